//! The sum of squares of a tensor, for the norm of a gradient, without a tensor of the squares.

use burn::backend::Flex;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::math::sum;
use super::simd::{PIECE, vectorized};
use super::{contiguous, numbers, plain, tensor};

vectorized! {
    fn squares(x: &[f32]) -> f32 {
        sum(x, |x| x * x)
    }
}

/// The sum of the squares, as one number; the pieces are added in double precision.
pub(crate) fn square_sum<const D: usize>(x: &Tensor<D>) -> Option<Tensor<1>> {
    let x = contiguous(plain(x)?);
    let pieces = numbers(&x).par_chunks(PIECE);
    let pieces: Vec<f64> = pieces.map(|piece| f64::from(squares(piece))).collect();
    let total = pieces.iter().sum::<f64>() as f32;
    Some(Tensor::from_primitive::<Flex>(tensor(vec![total], [1])))
}
