//! Small dense linear algebra in plain numbers, for solutions in closed form.

pub type Row = Vec<f64>;
pub type Matrix = Vec<Row>;

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `a + c b`.
pub fn plus(a: &[f64], c: f64, b: &[f64]) -> Row {
    a.iter().zip(b).map(|(a, b)| a + c * b).collect()
}

/// `A v`.
pub fn apply(a: &Matrix, v: &[f64]) -> Row {
    a.iter().map(|row| dot(row, v)).collect()
}

pub fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len())
        .map(|j| a.iter().map(|row| row[j]).collect())
        .collect()
}

/// `A B`.
pub fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let b = transposed(b);
    a.iter().map(|row| apply(&b, row)).collect()
}

/// `A + c B`.
pub fn sum(a: &Matrix, c: f64, b: &Matrix) -> Matrix {
    a.iter().zip(b).map(|(a, b)| plus(a, c, b)).collect()
}

pub fn identity(size: usize) -> Matrix {
    let entry = |i, j| if i == j { 1.0 } else { 0.0 };
    (0..size)
        .map(|i| (0..size).map(|j| entry(i, j)).collect())
        .collect()
}

/// `x` with `A x = v`, by Gaussian elimination with partial pivots.
pub fn solve(a: &Matrix, v: &[f64]) -> Row {
    let size = v.len();
    let mut rows: Matrix = a
        .iter()
        .zip(v)
        .map(|(row, v)| [&row[..], &[*v]].concat())
        .collect();
    for k in 0..size {
        let larger = |&i: &usize, &j: &usize| rows[i][k].abs().total_cmp(&rows[j][k].abs());
        let pivot = (k..size).max_by(larger).unwrap();
        rows.swap(k, pivot);
        for i in k + 1..size {
            let factor = rows[i][k] / rows[k][k];
            rows[i] = plus(&rows[i], -factor, &rows[k]);
        }
    }
    let mut x = vec![0.0; size];
    for k in (0..size).rev() {
        x[k] = (rows[k][size] - dot(&rows[k][k + 1..size], &x[k + 1..])) / rows[k][k];
    }
    x
}

/// `A^-1 B`.
pub fn divided(a: &Matrix, b: &Matrix) -> Matrix {
    let columns = transposed(b);
    transposed(&columns.iter().map(|column| solve(a, column)).collect())
}

/// The largest eigenvalue of a symmetric positive definite matrix is at most this: the largest sum of a
/// row's absolute values.
pub fn largest(a: &Matrix) -> f64 {
    let of_row = |row: &Row| row.iter().map(|entry| entry.abs()).sum();
    a.iter().map(of_row).fold(0.0, f64::max)
}

#[test]
fn elimination_solves() {
    let a = vec![
        vec![0.0, 2.0, 1.0],
        vec![1.0, -1.0, 0.5],
        vec![3.0, 0.0, -2.0],
    ];
    let x = [1.5, -0.25, 2.0];
    let solved = solve(&a, &apply(&a, &x));
    assert!(norm(&plus(&solved, -1.0, &x)) < 1e-14);
}
