//! Causal attention, written once for all architectures.

use burn::tensor::{DType, FloatDType, Int, Tensor};

use super::linearized::exponentials;
#[cfg(feature = "flex")]
use crate::kernels;

/// Added to a score that must not count. Far below any score, yet finite: a row in which everything is masked (a query of
/// padding) gets an even mixture instead of NaN.
const MASKED: f64 = -1e9;

/// What is added to the scores: 0 where a query may look at a key, a large negative number where it may not, because the
/// key comes later, is padding, or lies outside the window. The same for all blocks, so that a forward pass makes it once.
///
/// # Shapes
/// - `mask` `[batch, keys]`: 1 for tokens, 0 for padding; the queries are the last `length` of the keys
/// - result `[batch, 1, length, keys]`: query by key, for all heads
pub(super) fn causal_bias(mask: Tensor<2, Int>, length: usize, window: Option<usize>) -> Tensor<4> {
    let [batch, keys] = mask.dims();
    let position = Tensor::<1, Int>::arange(0..keys as i64, &mask.device());
    let query = position.clone().narrow(0, keys - length, length);
    let query = query.reshape([1, 1, length, 1]);
    let key = position.reshape([1, 1, 1, keys]);
    let mut hidden = key.clone().greater(query.clone()).float();
    if let Some(window) = window.filter(|window| *window < keys) {
        hidden = hidden + key.lower_equal(query - window as i64).float();
    }
    let padding = mask.reshape([batch, 1, 1, keys]).equal_elem(0);
    hidden * MASKED + padding.float() * MASKED
}

/// The biases of a model some of whose blocks look back no further than a window.
pub(super) struct Biases {
    full: Tensor<4>,
    sliding: Option<Tensor<4>>,
}

impl Biases {
    /// See [`causal_bias`].
    pub fn new(mask: Tensor<2, Int>, length: usize, window: Option<usize>) -> Self {
        let sliding = |window| causal_bias(mask.clone(), length, Some(window));
        Self {
            sliding: window.map(sliding),
            full: causal_bias(mask, length, None),
        }
    }

    /// That of a block which does or does not have the window.
    pub fn of(&self, slides: bool) -> &Tensor<4> {
        let sliding = self.sliding.as_ref().filter(|_| slides);
        sliding.unwrap_or(&self.full)
    }
}

/// The keys and values of the tokens that a block has read, so that the next token needs no other computed again.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Option<(Tensor<4>, Tensor<4>)>);

/// All keys and values `[batch, heads, keys, head]`: those seen before, if they are kept, and the new ones.
pub(super) fn with_seen(
    seen: Option<&mut Seen>,
    k: Tensor<4>,
    v: Tensor<4>,
) -> (Tensor<4>, Tensor<4>) {
    let Some(seen) = seen else {
        return (k, v);
    };
    let (k, v) = match seen.0.take() {
        None => (k, v),
        Some((old_k, old_v)) => (
            Tensor::cat(vec![old_k, k], 2),
            Tensor::cat(vec![old_v, v], 2),
        ),
    };
    seen.0 = Some((k.clone(), v.clone()));
    (k, v)
}

/// Scaled dot-product attention: `softmax(scale q k^T + bias) v`, the softmax in at least float32; with a cap c, the scores
/// are `c tanh(scale q k^T / c)` before the bias.
///
/// Heads of `k` and `v` may be fewer: each then serves as many consecutive heads of `q`, without being copied.
///
/// On the tape the weights are normalised after they are applied: `(e v) / sum(e)` divides `[length, head]` numbers instead
/// of `[length, length]`, forward and backward.
///
/// # Shapes
/// - `q` `[batch, heads, length, head]`
/// - `k`, `v` `[batch, key_heads, keys, head]`
/// - `bias` `[batch, 1, length, keys]`, see [`causal_bias`]
/// - result `[batch, heads, length, head]`
pub(super) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: &Tensor<4>,
    scale: f64,
    cap: Option<f64>,
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if let Some(mixed) = kernels::attention([&q, &k, &v], bias, scale, cap) {
        return mixed.swap_dims(1, 2);
    }
    let stored: FloatDType = v.dtype().into();
    let [batch, heads, length, head] = q.dims();
    let [_, key_heads, keys, _] = k.dims();
    // The queries that share a key head are rows of one matrix.
    let shared = [batch, key_heads, heads / key_heads * length];
    let grouped = key_heads != heads;
    let by_key_head = |x: Tensor<4>, width| match grouped {
        true => x.reshape([shared[0], shared[1], shared[2], width]),
        false => x,
    };
    let by_head = |x: Tensor<4>, width| match grouped {
        true => x.reshape([batch, heads, length, width]),
        false => x,
    };

    // Backends round the factor to the tensor's type: in half precision it would be off by up to 0.2 %.
    let q = (widened(q) * (scale / cap.unwrap_or(1.0))).cast(stored);
    let q = by_key_head(q, head);
    let mut scores = widened(by_head(q.matmul(k.swap_dims(2, 3)), keys));
    if let Some(cap) = cap {
        scores = scores.tanh() * cap;
    }
    let weights = exponentials(scores + bias.clone());
    let total = weights.clone().sum_dim(3);
    let mixed = by_head(by_key_head(weights, keys).matmul(widened(v)), head);
    (mixed / total).cast(stored)
}

/// The tensor in float32 if it is stored in half precision, in which sums and exponentials lose too much; else as it is.
pub(super) fn widened<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(FloatDType::F32),
        _ => tensor,
    }
}
