//! Linear layers as checkpoints store them.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

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
        let y = x.matmul(self.weight.val().transpose());
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }
}
