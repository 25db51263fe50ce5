//! Causal attention, written once for all architectures.

use burn::tensor::{DType, FloatDType, Int, Tensor};

use super::linearized::exponentials;

/// Added to a score that must not count. Far below any score, yet finite: a row in which everything is masked (a query of
/// padding) gets an even mixture instead of NaN.
const MASKED: f64 = -1e9;

/// What is added to the scores: 0 where a query may look at a key, a large negative number where it may not, because the
/// key comes later or is padding. The same for all blocks, so that a forward pass makes it once.
///
/// # Shapes
/// - `mask` `[batch, length]`: 1 for tokens, 0 for padding
/// - result `[batch, 1, length, length]`: query by key, for all heads
pub(crate) fn causal_bias(mask: Tensor<2, Int>) -> Tensor<4> {
    let [batch, length] = mask.dims();
    let position = Tensor::<1, Int>::arange(0..length as i64, &mask.device());
    let query = position.clone().reshape([1, 1, length, 1]);
    let key = position.reshape([1, 1, 1, length]);
    let later = key.greater(query);
    let padding = mask.reshape([batch, 1, 1, length]).equal_elem(0);
    later.float() * MASKED + padding.float() * MASKED
}

/// Scaled dot-product attention: `softmax(scale q k^T + bias) v`, the softmax in at least float32.
///
/// On the tape the weights are normalised after they are applied: `(e v) / sum(e)` divides `[length, head]` numbers instead
/// of `[length, length]`, forward and backward.
///
/// # Shapes
/// - `q`, `k`, `v` `[batch, heads, length, head]`
/// - `bias` `[batch, 1, length, length]`, see [`causal_bias`]
/// - result `[batch, heads, length, head]`
pub(crate) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: &Tensor<4>,
    scale: f64,
) -> Tensor<4> {
    let stored: FloatDType = v.dtype().into();
    let scores = widened((q * scale).matmul(k.swap_dims(2, 3))) + bias.clone();
    let weights = exponentials(scores);
    let total = weights.clone().sum_dim(3);
    (weights.matmul(widened(v)) / total).cast(stored)
}

/// The tensor in float32 if it is stored in half precision, in which sums and exponentials lose too much; else as it is.
pub(crate) fn widened<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(FloatDType::F32),
        _ => tensor,
    }
}
