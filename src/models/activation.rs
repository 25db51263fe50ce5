//! The non-linearities that checkpoints name.

use burn::tensor::{FloatDType, Tensor, activation};
use serde::{Deserialize, Serialize};

use super::{attention::widened, linearized::linearized};
#[cfg(feature = "flex")]
use crate::kernels;

/// A non-linearity, called as in a checkpoint's config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// The tanh approximation of GELU (`gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`).
    #[serde(alias = "gelu_fast", alias = "gelu_pytorch_tanh")]
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
    /// Applies the non-linearity to each element, in at least float32.
    pub(crate) fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        #[cfg(feature = "flex")]
        if let Some(y) = kernels::curve(self.curve(), &x) {
            return y;
        }
        let stored: FloatDType = x.dtype().into();
        let x = widened(x);
        let y = match self {
            Self::GeluNew => gelu_new(x),
            Self::Gelu => gelu(x),
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
        };
        y.cast(stored)
    }

    /// `f(gate) * up`, in one pass where it can be.
    pub(super) fn gated<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        #[cfg(feature = "flex")]
        if let Some(y) = kernels::gated(self.curve(), &gate, &up) {
            return y;
        }
        self.forward(gate) * up
    }

    #[cfg(feature = "flex")]
    fn curve(self) -> kernels::Curve {
        match self {
            Self::GeluNew => kernels::Curve::GeluTanh,
            Self::Gelu => kernels::Curve::Gelu,
            Self::Relu => kernels::Curve::Relu,
            Self::Silu => kernels::Curve::Silu,
        }
    }
}

/// `x/2 (1 + tanh z)` with `z = sqrt(2/pi) (x + 0.044715 x^3)`, written as `x sigmoid(2 z)`, which is the same in fewer
/// passes; so is its derivative, `g + x g (1 - g) 2z'` with `g = sigmoid(2 z)`.
fn gelu_new<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    const LINEAR: f64 = 2.0 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    const CUBIC: f64 = LINEAR * 0.044715;

    let fixed = x.clone().inner();
    let square = fixed.clone().square();
    let gate = activation::sigmoid((square.clone() * CUBIC + LINEAR) * fixed.clone());
    let value = gate.clone() * fixed.clone();
    if !x.is_tracked() {
        return value;
    }
    let inner_slope = square * (3.0 * CUBIC) + LINEAR;
    let slope = inner_slope * (gate.clone() * -1.0 + 1.0) * value.clone() + gate;
    linearized(x, fixed, value, slope)
}

/// `x P(normal < x)`, with the slope `P(normal < x) + x density(x)`. (The backward pass of Burn's own takes the slope of the
/// tanh approximation, which is off by up to 1e-3.)
fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    const DENSITY: f64 = 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;

    let fixed = x.clone().inner();
    let below = (fixed.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() * 0.5 + 0.5;
    let value = below.clone() * fixed.clone();
    if !x.is_tracked() {
        return value;
    }
    let density = (fixed.clone().square() * -0.5).exp() * DENSITY;
    let slope = density * fixed.clone() + below;
    linearized(x, fixed, value, slope)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::Device;

    use super::*;

    #[test]
    fn names_and_values_are_those_of_transformers() {
        // torch.nn.functional.gelu(x, approximate="tanh"), gelu(x), relu(x), silu(x) at -1.5 and 0.7.
        let cases = [
            ("gelu_new", [-0.100_428_42, 0.530_570_13]),
            ("gelu_fast", [-0.100_428_42, 0.530_570_13]),
            ("gelu_pytorch_tanh", [-0.100_428_42, 0.530_570_13]),
            ("gelu", [-0.100_210_8, 0.530_625_5]),
            ("relu", [0.0, 0.7]),
            ("silu", [-0.273_638_4, 0.467_731_46]),
            ("swish", [-0.273_638_4, 0.467_731_46]),
        ];
        for (name, expected) in cases {
            let activation: Activation = serde_json::from_value(name.into()).unwrap();
            let x = Tensor::<1>::from_data([-1.5f32, 0.7], &Device::flex());
            let found: Vec<f32> = activation.forward(x).into_data().try_into_vec().unwrap();
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{name}: {found:?}");
            }
        }
    }
}
