//! What happened in one step.

use std::fmt;

use crate::{Error, Result};

/// A number for each of the three variables.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerVariable {
    /// Of the upper variable `x`.
    pub upper: f64,
    /// Of the lower variable `w`.
    pub lower: f64,
    /// Of the auxiliary variable `u`.
    pub auxiliary: f64,
}

/// What one step computed at the point where it started, and how far it could move.
///
/// The penalty and the losses at `u` are NaN for a [method](crate::methods) that has none, and the rate and the norm of a
/// variable that a method does not have are 0.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    pub(crate) index: usize,
    pub(crate) penalty: f64,
    pub(crate) rates: PerVariable,
    pub(crate) gradient_norms: PerVariable,
    pub(crate) upper_loss: f64,
    pub(crate) lower_loss: f64,
    /// `None` for a method that has none.
    pub(crate) auxiliary_loss: Option<f64>,
    pub(crate) upper_parts: Vec<f64>,
    pub(crate) lower_parts: Vec<f64>,
    pub(crate) auxiliary_parts: Vec<f64>,
    pub(crate) gradient_calls: usize,
    pub(crate) bytes_moved: Option<u64>,
    pub(crate) collective_bytes: u64,
}

impl Step {
    /// Step `index` of a method without penalty and without `u`; to be filled in.
    pub(crate) fn at(index: usize) -> Self {
        Self {
            index,
            penalty: f64::NAN,
            rates: PerVariable::default(),
            gradient_norms: PerVariable::default(),
            upper_loss: f64::NAN,
            lower_loss: f64::NAN,
            auxiliary_loss: None,
            upper_parts: Vec::new(),
            lower_parts: Vec::new(),
            auxiliary_parts: Vec::new(),
            gradient_calls: 0,
            bytes_moved: None,
            collective_bytes: 0,
        }
    }

    /// An error for the first quantity that is NaN or infinite.
    pub(crate) fn check_finite(&self) -> Result<()> {
        let norms = self.gradient_norms;
        let quantities = [
            ("the upper loss L1(w)", self.upper_loss),
            ("the lower loss L2(w)", self.lower_loss),
            ("the lower loss L2(u)", self.auxiliary_loss.unwrap_or(0.0)),
            ("the norm of the gradient of w", norms.lower),
            ("the norm of the gradient of u", norms.auxiliary),
            ("the norm of the hypergradient", norms.upper),
        ];
        for (quantity, value) in quantities {
            if !value.is_finite() {
                return Err(Error::NonFinite {
                    step: self.index,
                    quantity: quantity.to_owned(),
                    value,
                });
            }
        }
        Ok(())
    }

    /// Number of the step, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The penalty `alpha` of this step.
    pub fn penalty(&self) -> f64 {
        self.penalty
    }

    /// The learning rates of this step, schedule and stage included.
    pub fn learning_rates(&self) -> PerVariable {
        self.rates
    }

    /// Euclidean norms of the three gradients before clipping; the upper one is the norm of the
    /// penalty hypergradient.
    pub fn gradient_norms(&self) -> PerVariable {
        self.gradient_norms
    }

    /// `F(x, w)`, the paper's `L1(w)`, before the update.
    pub fn upper_loss(&self) -> f64 {
        self.upper_loss
    }

    /// `G(x, w)`, the paper's `L2(w)`, before the update.
    pub fn lower_loss(&self) -> f64 {
        self.lower_loss
    }

    /// `G(x, u)`, the paper's `L2(u)`, before the update.
    pub fn auxiliary_loss(&self) -> f64 {
        self.auxiliary_loss.unwrap_or(f64::NAN)
    }

    /// `G(x, w) - G(x, u)`: the estimate of how far `w` is from minimizing `G`. Slightly negative
    /// where `u` is behind.
    pub fn value_gap(&self) -> f64 {
        self.lower_loss - self.auxiliary_loss()
    }

    /// The upper objective's [`parts`](crate::Gradients::parts) at `w`.
    pub fn upper_parts(&self) -> &[f64] {
        &self.upper_parts
    }

    /// The lower objective's [`parts`](crate::Gradients::parts) at `w`, for instance source losses.
    pub fn lower_parts(&self) -> &[f64] {
        &self.lower_parts
    }

    /// Number of gradients that the step took: of one objective at one point, over all its micro-batches.
    pub fn gradient_calls(&self) -> usize {
        self.gradient_calls
    }

    /// Bytes that the step moved between host memory and the devices that compute, both ways: parameters, and moments and
    /// masters if these are kept on the host. `None` for a run without [`Run::offload`](crate::Run::offload).
    pub fn bytes_moved(&self) -> Option<u64> {
        self.bytes_moved
    }

    /// Bytes that this rank handed to the [collective](crate::collective) in this step: its gradients of the parameters of
    /// `w` and `u` that train, 4 bytes a number (8 in float64), three gradients of `x`, and some hundred bytes of losses and
    /// checksums. 0 for a run that is alone.
    pub fn collective_bytes(&self) -> u64 {
        self.collective_bytes
    }

    /// The lower objective's [`parts`](crate::Gradients::parts) at `u`.
    pub fn auxiliary_parts(&self) -> &[f64] {
        &self.auxiliary_parts
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "step {}: L1(w) {:.6}, L2(w) {:.6}",
            self.index, self.upper_loss, self.lower_loss,
        )?;
        if let Some(loss) = self.auxiliary_loss {
            write!(f, ", L2(u) {loss:.6}, gap {:.2e}", self.value_gap())?;
        }
        write!(f, ", |hypergradient| {:.2e}", self.gradient_norms.upper)
    }
}
