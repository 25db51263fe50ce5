//! Root mean square norms: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

use burn::{
    module::{Module, Param},
    nn::LayerNorm,
    tensor::{FloatDType, Tensor},
};

use super::attention::widened;
#[cfg(feature = "flex")]
use crate::kernels;

/// `x / sqrt(mean(x^2) + epsilon) * w`, in at least float32; Gemma's form has `1 + w` instead of `w`.
#[derive(Module, Debug)]
pub(super) struct RmsNorm {
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    pub epsilon: f64,
    /// Whether the weight is stored as its difference from 1, as Gemma does.
    #[module(skip)]
    pub from_one: bool,
}

impl RmsNorm {
    /// `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "flex")]
        if let Some(y) = kernels::rms_norm(&x, &self.weight.val(), self.epsilon, self.from_one) {
            return y;
        }
        let stored: FloatDType = x.dtype().into();
        let x = widened(x);
        let scale = (x.clone().square().mean_dim(1) + self.epsilon).sqrt();
        let x = x / scale;
        let weight = self.weight.val().unsqueeze();
        // In half precision the two forms round at different places.
        if self.from_one {
            (x * (widened(weight) + 1.0)).cast(stored)
        } else {
            x.cast(stored) * weight
        }
    }
}

/// Layer norm of `[rows, width]`, with the epsilon that the module was made with.
pub(super) fn layer_norm(norm: &LayerNorm, x: Tensor<2>, epsilon: f64) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let Some(bias) = &norm.beta
        && let Some(y) = kernels::layer_norm(&x, &norm.gamma.val(), &bias.val(), epsilon)
    {
        return y;
    }
    norm.forward(x)
}
