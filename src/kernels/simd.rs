//! Loops compiled for the vector instructions of the machine that they run on, and cut into pieces for its threads.

use rayon::prelude::*;

/// Numbers a piece of work has at least: below that, handing it to another thread costs more than it gains.
pub(super) const PIECE: usize = 1 << 14;

/// Runs what [`vectorized`] made with AVX-512 or AVX2 where the machine has it, and otherwise as compiled for the target.
pub(super) fn run<R>(call: impl pulp::NullaryFnOnce<Output = R>) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        return simd.vectorize(call);
    } else if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(call);
    }
    call.call()
}

/// Makes a function whose loops are compiled for each instruction set, of which the machine's is taken when it is called.
///
/// What the body calls must be `#[inline(always)]`: a function that is not inlined keeps the instructions of the target. A
/// closure as the body would not be inlined either, hence the macro.
macro_rules! vectorized {
    ($(
        $(#[$documentation:meta])*
        fn $name:ident $(<$generic:ident: $bound:ident>)? ($($argument:ident: $type:ty),+ $(,)?) $(-> $out:ty)?
        $body:block
    )+) => {$(
        $(#[$documentation])*
        #[allow(clippy::too_many_arguments)]
        fn $name $(<$generic: $bound>)? ($($argument: $type),+) $(-> $out)? {
            struct Call<A $(, $generic)?>(A $(, std::marker::PhantomData<$generic>)?);

            impl $(<$generic: $bound>)? pulp::NullaryFnOnce for Call<($($type,)+) $(, $generic)?> {
                type Output = $crate::kernels::simd::output!($($out)?);

                #[inline(always)]
                fn call(self) -> Self::Output {
                    let ($($argument,)+) = self.0;
                    $body
                }
            }

            $crate::kernels::simd::run(Call(($($argument,)+) $(, std::marker::PhantomData::<$generic>)?))
        }
    )+};
}

/// The type of a result that may be left out.
macro_rules! output {
    () => {
        ()
    };
    ($out:ty) => {
        $out
    };
}

pub(super) use {output, vectorized};

/// Number of rows of a piece of a matrix of this width.
pub(super) fn rows_of_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Calls `f` for the pieces of a result of `rows x width` numbers, which starts as zeros, with the first row of each; on all
/// threads.
pub(super) fn fill_rows(
    rows: usize,
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut result = vec![0.0; rows * width];
    change_rows(&mut result, width, f);
    result
}

/// [`fill_rows`] for two results with rows of the given widths at once.
pub(super) fn fill_both(
    rows: usize,
    widths: [usize; 2],
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> [Vec<f32>; 2] {
    let mut results = widths.map(|width| vec![0.0; rows * width]);
    let [first, second] = &mut results;
    let step = rows_of_piece(widths[0] + widths[1]);
    let [a, b] = widths.map(|width| step * width.max(1));
    let pieces = first.par_chunks_mut(a).zip(second.par_chunks_mut(b));
    pieces
        .enumerate()
        .for_each(|(index, (a, b))| f(index * step, a, b));
    results
}

/// Calls `f` for the pieces of a matrix, with the first row of each; on all threads.
pub(super) fn change_rows(numbers: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_of_piece(width);
    let piece = rows * width.max(1);
    if numbers.len() <= piece {
        f(0, numbers);
        return;
    }
    let pieces = numbers.par_chunks_mut(piece).enumerate();
    pieces.for_each(|(index, piece)| f(index * rows, piece));
}

/// [`change_rows`] with a number of each row in a second slice.
pub(super) fn change_rows_and(
    numbers: &mut [f32],
    width: usize,
    others: &mut [f32],
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let rows = rows_of_piece(width);
    let pieces = numbers.par_chunks_mut(rows * width.max(1));
    let pieces = pieces.zip(others.par_chunks_mut(rows)).enumerate();
    pieces.for_each(|(index, (a, b))| f(index * rows, a, b));
}

/// Calls `f` for the pieces of two slices of the same length, with the first index of each.
pub(super) fn change_both(
    [first, second]: [&mut [f32]; 2],
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let pieces = first
        .par_chunks_mut(PIECE)
        .zip(second.par_chunks_mut(PIECE));
    let pieces = pieces.enumerate();
    pieces.for_each(|(index, (a, b))| f(index * PIECE, a, b));
}

/// The sum over the rows of what `f` adds up for a range of rows into `width` numbers; pieces of the same size for any
/// number of threads, added in order.
pub(super) fn sum_rows(
    rows: usize,
    width: usize,
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let step = rows_of_piece(width);
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    let pieces = starts.into_par_iter().map(|start| {
        let mut sum = vec![0.0; width];
        f(start..(start + step).min(rows), &mut sum);
        sum
    });
    let mut total = vec![0.0; width];
    for piece in pieces.collect::<Vec<_>>() {
        total.iter_mut().zip(piece).for_each(|(t, p)| *t += p);
    }
    total
}
