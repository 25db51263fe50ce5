//! Layer norms, Ba et al., "Layer Normalization" (2016); and root mean square norms, Zhang and Sennrich, "Root Mean Square
//! Layer Normalization" (2019).

use burn::{
    module::{Module, Param},
    tensor::{FloatDType, Tensor, module::layer_norm},
};

use super::attention::widened;
#[cfg(feature = "flex")]
use crate::kernels;

/// `(x - mean(x)) / sqrt(var(x) + epsilon) * gamma + beta`, in at least float32: Burn's own module takes the statistics of
/// bfloat16 in bfloat16.
#[derive(Module, Debug)]
pub(super) struct LayerNorm {
    pub gamma: Param<Tensor<1>>,
    pub beta: Param<Tensor<1>>,
    #[module(skip)]
    pub epsilon: f64,
}

impl LayerNorm {
    /// `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "flex")]
        let fused = kernels::layer_norm(&x, &self.gamma.val(), &self.beta.val(), self.epsilon);
        #[cfg(feature = "flex")]
        if let Some(y) = fused {
            return y;
        }
        let stored: FloatDType = x.dtype().into();
        let (gamma, beta) = (widened(self.gamma.val()), widened(self.beta.val()));
        layer_norm(widened(x), gamma, Some(beta), self.epsilon).cast(stored)
    }
}

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
