//! The non-linearities that checkpoints name.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

/// A non-linearity, called as in a checkpoint's config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// GELU with the error function (`gelu`).
    Gelu,
    /// `max(0, x)` (`relu`).
    Relu,
    /// `x sigmoid(x)` (`silu`, `swish`).
    #[serde(alias = "swish")]
    Silu,
}

impl Activation {
    /// Applies the non-linearity to each element.
    pub(crate) fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::GeluNew => gelu_new(x),
            Self::Gelu => activation::gelu(x),
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
        }
    }
}

/// `x/2 (1 + tanh z)` with `z = sqrt(2/pi) (x + 0.044715 x^3)`, written as `x sigmoid(2 z)`, which is the same and has
/// half the passes over memory: those, not arithmetic, are what an activation costs on a CPU.
fn gelu_new<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    const TWO_ROOT: f64 = 2.0 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;

    let factor = x.clone().square() * (TWO_ROOT * 0.044715) + TWO_ROOT;
    let gate = activation::sigmoid(factor * x.clone());
    gate * x
}
