//! A step of AdamW in one pass, in place: `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`,
//! `w <- (1 - rate decay) w - rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)`.
//!
//! Four numbers are read and three written a parameter; plain Burn takes some twelve passes, and temporaries of the size of
//! the parameter.

use burn::backend::Flex;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::simd::{PIECE, vectorized};
use super::{contiguous, numbers, plain};

/// The coefficients of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamW {
    /// Decay of the moments.
    pub betas: [f32; 2],
    /// `1 - b^t` of each moment.
    pub corrections: [f32; 2],
    pub epsilon: f32,
    /// Learning rate.
    pub rate: f32,
    /// Weight decay.
    pub decay: f32,
}

vectorized! {
    fn advance(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], step: AdamW) {
        let AdamW { betas: [b1, b2], corrections: [c1, c2], epsilon, rate, decay } = step;
        let (kept, rate) = (1.0 - rate * decay, rate / c1);
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *w = kept * *w - rate * *m / ((*v / c2).sqrt() + epsilon);
        }
    }
}

/// Moves a parameter and its two moments, in place where nothing else refers to them. Gives everything back where kernels do
/// not apply, among which is a tape.
#[allow(clippy::result_large_err)] // The error is the arguments.
pub(crate) fn adamw<const D: usize>(
    tensors: [Tensor<D>; 3],
    gradient: Tensor<D>,
    step: AdamW,
) -> Result<[Tensor<D>; 3], ([Tensor<D>; 3], Tensor<D>)> {
    let [Some(w), Some(m), Some(v)] = tensors.each_ref().map(plain) else {
        return Err((tensors, gradient));
    };
    let Some(g) = plain(&gradient) else {
        return Err((tensors, gradient));
    };
    // From here on the numbers have one owner.
    drop((tensors, gradient));
    let (mut w, mut m, mut v, g) = (contiguous(w), contiguous(m), contiguous(v), contiguous(g));
    let moments = m.storage_mut::<f32>().par_chunks_mut(PIECE);
    let moments = moments.zip(v.storage_mut::<f32>().par_chunks_mut(PIECE));
    let pieces = w.storage_mut::<f32>().par_chunks_mut(PIECE);
    let pieces = pieces.zip(moments).zip(numbers(&g).par_chunks(PIECE));
    pieces.for_each(|((w, (m, v)), g)| advance(w, m, v, g, step));
    Ok([w, m, v].map(Tensor::from_primitive::<Flex>))
}
