//! Matmuls of float32 matrices into memory that is not cleared first, or added to what is there.
//!
//! This calls the `gemm` crate, as Flex's matmul does. Flex's own clears each result, and copies the zeros once more to align
//! them, before the first number is computed: 6 % of a training step of a small model, and more for a large vocabulary.
//!
//! The only module of the crate with unsafe code: `gemm` takes pointers. What it asks for is checked here for every call.

#![allow(unsafe_code)]

use burn::backend::flex::FlexTensor;

use super::shape;

/// Whether a matmul may use all threads, if it is large enough, or runs within a task that has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    All,
    One,
}

/// `a b` of `[m, k]` and `[k, n]`, which may be views: `m n` numbers, row by row.
pub(super) fn product(a: &FlexTensor, b: &FlexTensor, threads: Threads) -> Vec<f32> {
    let count = shape::<2>(a)[0] * shape::<2>(b)[1];
    let mut result = Vec::with_capacity(count);
    // SAFETY: the pointer is that of room for `count` numbers, all of which `multiply` sets before they are owned.
    unsafe {
        multiply(a, b, result.as_mut_ptr(), false, threads);
        result.set_len(count);
    }
    result
}

/// Adds `a b` to the first `m n` numbers of `sum`.
pub(super) fn add_product(sum: &mut [f32], a: &FlexTensor, b: &FlexTensor, threads: Threads) {
    let count = shape::<2>(a)[0] * shape::<2>(b)[1];
    let sum = &mut sum[..count];
    // SAFETY: the pointer is that of `count` numbers, to which nothing else refers.
    unsafe { multiply(a, b, sum.as_mut_ptr(), true, threads) }
}

/// Sets the `m n` numbers at `result` to `a b`, or adds it to them.
///
/// # Safety
/// `result` must be valid for writes of `m n` numbers, and for reads if they are added to, and nothing else may refer to them.
unsafe fn multiply(a: &FlexTensor, b: &FlexTensor, result: *mut f32, add: bool, threads: Threads) {
    // From here on a matmul gains from a second thread; the value is Flex's.
    const LARGE: usize = 192 * 192 * 192;
    let ([m, k], [l, n]) = (shape(a), shape(b));
    assert_eq!(k, l, "the inner sizes of a matmul differ");
    let ((a, [a_row, a_column]), (b, [b_row, b_column])) = (checked(a), checked(b));
    let parallelism = match threads {
        Threads::All if m * n * k >= LARGE => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: `checked` has seen that both matrices lie within their slices; the caller answers for the result, whose rows
    // are n numbers apart. Without `add`, gemm writes it without reading it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            result,
            1,
            n as isize,
            add,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The numbers from the first of a matrix on, and how far its rows and columns lie apart, all of it within the slice.
fn checked(matrix: &FlexTensor) -> (&[f32], [isize; 2]) {
    let [rows, columns] = shape(matrix);
    let layout = matrix.layout();
    let numbers = &matrix.storage::<f32>()[layout.start_offset()..];
    let strides = [layout.strides()[0], layout.strides()[1]];
    let last = |count: usize, stride: isize| {
        assert!(stride >= 0, "a matrix runs backwards");
        count.saturating_sub(1) * stride as usize
    };
    let last = last(rows, strides[0]) + last(columns, strides[1]);
    let inside = last < numbers.len() || rows == 0 || columns == 0;
    assert!(inside, "a matrix leaves its storage");
    (numbers, strides)
}

#[cfg(test)]
mod tests {
    use super::super::{matrix, tensor, turned};
    use super::*;

    /// Views, sizes of 0, sums and products against three loops.
    #[test]
    fn products_of_views_are_right() {
        let numbers = |count: usize| (0..count).map(|i| (i % 7) as f32 - 3.0).collect();
        for [m, k, n] in [
            [3, 4, 5],
            [1, 1, 1],
            [17, 33, 9],
            [0, 2, 3],
            [2, 0, 3],
            [200, 190, 210],
        ] {
            // Each is the transpose of a part of a larger matrix.
            let a = matrix(
                &tensor(numbers(2 + (m + 1) * (k + 1)), [2 + (m + 1) * (k + 1)]),
                2,
                [m, k],
                [1, m as isize],
            );
            let b = matrix(
                &tensor(numbers(5 + 2 * k * (n + 1)), [5 + 2 * k * (n + 1)]),
                5,
                [k, n],
                [2 * n as isize, 2],
            );
            let at = |x: &FlexTensor, i: usize, j: usize| {
                let strides = x.layout().strides();
                let index = x.layout().start_offset() as isize
                    + i as isize * strides[0]
                    + j as isize * strides[1];
                x.storage::<f32>()[index as usize]
            };
            let expected: Vec<f32> = (0..m * n)
                .map(|place| {
                    (0..k)
                        .map(|l| at(&a, place / n, l) * at(&b, l, place % n))
                        .sum()
                })
                .collect();
            let mut sum = product(&a, &b, Threads::All);
            assert_eq!(sum, expected);
            add_product(&mut sum, &a, &b, Threads::One);
            assert!(
                sum.iter()
                    .zip(&expected)
                    .all(|(s, e)| (s - 2.0 * e).abs() < 1e-3)
            );
        }
    }

    /// What leaves the storage is stopped before gemm sees it.
    #[test]
    #[should_panic(expected = "leaves its storage")]
    fn a_matrix_outside_of_its_storage_is_stopped() {
        let a = matrix(&tensor(vec![0.0; 6], [6]), 1, [2, 3], [3, 1]);
        product(&a, &turned(&a), Threads::One);
    }
}
