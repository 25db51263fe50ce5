//! Small dense matrices in float64, for closed forms.

/// A matrix by rows.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    pub columns: usize,
    pub values: Vec<f64>,
}

impl Dense {
    pub fn new(columns: usize, values: Vec<f64>) -> Self {
        Self { columns, values }
    }

    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        // A matrix without columns has no rows either; `chunks_exact` refuses a length of 0.
        self.values.chunks_exact(self.columns.max(1))
    }

    pub fn times(&self, vector: &[f64]) -> Vec<f64> {
        self.rows().map(|row| dot(row, vector)).collect()
    }

    pub fn transposed_times(&self, vector: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; self.columns];
        for (row, factor) in self.rows().zip(vector) {
            add(&mut sum, *factor, row);
        }
        sum
    }

    /// `self^T other / rows`: the mean of the rank-one matrices of the rows.
    pub fn mean_product(&self, other: &Self) -> Self {
        let mut sum = vec![0.0; self.columns * other.columns];
        let mut count = 0.0;
        for (left, right) in self.rows().zip(other.rows()) {
            for (sum, factor) in sum.chunks_exact_mut(other.columns).zip(left) {
                add(sum, *factor, right);
            }
            count += 1.0;
        }
        sum.iter_mut().for_each(|value| *value /= count);
        Self::new(other.columns, sum)
    }

    pub fn mean_row(&self) -> Vec<f64> {
        let rows = (self.values.len() / self.columns.max(1)) as f64;
        let ones = vec![1.0 / rows; self.rows().count()];
        self.transposed_times(&ones)
    }

    /// Solves `self y = right` for each row `right`, `self` symmetric and positive definite. `None` if it is not.
    pub fn solve(&self, right: &Self) -> Option<Self> {
        let factor = self.cholesky()?;
        let rows = right.rows().map(|row| factor.substitute(row));
        Some(Self::new(self.columns, rows.flatten().collect()))
    }

    /// The lower triangle `L` of `L L^T = self`.
    fn cholesky(&self) -> Option<Self> {
        let n = self.columns;
        let mut factor = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let inner = dot(&factor[i * n..i * n + j], &factor[j * n..j * n + j]);
                let rest = self.values[i * n + j] - inner;
                factor[i * n + j] = if i > j {
                    rest / factor[j * n + j]
                } else if rest > 0.0 {
                    rest.sqrt()
                } else {
                    return None; // NaN too
                };
            }
        }
        Some(Self::new(n, factor))
    }

    /// Solves `L L^T y = right`.
    fn substitute(&self, right: &[f64]) -> Vec<f64> {
        let n = self.columns;
        let mut y = right.to_vec();
        for i in 0..n {
            let row = &self.values[i * n..i * n + i];
            y[i] = (y[i] - dot(row, &y[..i])) / self.values[i * n + i];
        }
        for i in (0..n).rev() {
            let below: f64 = (i + 1..n).map(|k| self.values[k * n + i] * y[k]).sum();
            y[i] = (y[i] - below) / self.values[i * n + i];
        }
        y
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `sum += factor * vector`.
pub(super) fn add(sum: &mut [f64], factor: f64, vector: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(vector) {
        *sum += factor * value;
    }
}

pub(super) fn sum(a: &[f64], factor: f64, b: &[f64]) -> Vec<f64> {
    let mut sum = a.to_vec();
    add(&mut sum, factor, b);
    sum
}
