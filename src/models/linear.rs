//! Linear layers as checkpoints store them.

use burn::{
    module::{Module, Param},
    nn,
    tensor::Tensor,
};

#[cfg(feature = "flex")]
use crate::kernels;

/// `x W^T + b`.
///
/// The weight is `[out, in]`, as in checkpoints: nothing is turned on the way in or out, and on Flex the product with the
/// transpose takes as long as that with a weight stored `[in, out]` (forward and backward, 256 to 1,536 wide, 2026-11).
#[derive(Module, Debug)]
pub(super) struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        affine(
            x,
            self.weight.val(),
            self.bias.as_ref().map(Param::val),
            true,
        )
    }
}

/// Burn's linear layer, whose weight is `[in, out]`, on `[rows, in]`.
pub(super) fn linear(layer: &nn::Linear, x: Tensor<2>) -> Tensor<2> {
    affine(
        x,
        layer.weight.val(),
        layer.bias.as_ref().map(Param::val),
        false,
    )
}

/// The scores of all tokens from rows of hidden states and a table of a row a token, `[vocabulary, width]`.
pub(super) fn head(table: Tensor<2>, rows: Tensor<2>) -> Tensor<2> {
    affine(rows, table, None, true)
}

/// `x W + b`, or `x W^T + b` for a weight whose first dimension is that of the outputs.
fn affine(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    outputs_first: bool,
) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let Some(y) = kernels::linear(&x, &weight, bias.as_ref(), outputs_first) {
        return y;
    }
    let weight = if outputs_first {
        weight.transpose()
    } else {
        weight
    };
    let y = x.matmul(weight);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}
