//! Functions whose value and slope are computed aside, so that the tape records three cheap operations instead of all.
//!
//! On a CPU a training step is spent in passes over memory and in exponentials, and Burn's tape repeats both: it stores
//! every intermediate result and computes some again.

use burn::tensor::{Tensor, activation};

/// `value + slope (x - fixed)`, where `fixed` is the present value of `x`: exactly `value`, with the gradient `slope`.
///
/// `fixed`, `value` and `slope` are without autodiff, as `x.inner()` gives them: then Burn takes them for constants.
pub(super) fn linearized<const D: usize>(
    x: Tensor<D>,
    fixed: Tensor<D>,
    value: Tensor<D>,
    slope: Tensor<D>,
) -> Tensor<D> {
    (x - fixed) * slope + value
}

/// `exp(x - c)` along the last dimension, with the constant c for which the present values sum to 1: their softmax, but
/// not normalised on the tape. A caller that divides by the sum, or takes its logarithm, gets the softmax's gradient.
///
/// Burn has a fast kernel for the softmax without autodiff only.
pub(super) fn exponentials<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let fixed = x.clone().inner();
    let value = activation::softmax(fixed.clone(), D - 1);
    if !x.is_tracked() {
        return value;
    }
    linearized(x, fixed, value.clone(), value)
}
