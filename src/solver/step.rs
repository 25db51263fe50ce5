//! What happened in one step.

use std::fmt;

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
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    pub(super) index: usize,
    pub(super) penalty: f64,
    pub(super) rates: PerVariable,
    pub(super) gradient_norms: PerVariable,
    pub(super) upper_loss: f64,
    pub(super) lower_loss: f64,
    pub(super) auxiliary_loss: f64,
    pub(super) upper_parts: Vec<f64>,
    pub(super) lower_parts: Vec<f64>,
    pub(super) auxiliary_parts: Vec<f64>,
}

impl Step {
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
        self.auxiliary_loss
    }

    /// `G(x, w) - G(x, u)`: the estimate of how far `w` is from minimizing `G`. Slightly negative
    /// where `u` is behind.
    pub fn value_gap(&self) -> f64 {
        self.lower_loss - self.auxiliary_loss
    }

    /// The upper objective's [`parts`](crate::Gradients::parts) at `w`.
    pub fn upper_parts(&self) -> &[f64] {
        &self.upper_parts
    }

    /// The lower objective's [`parts`](crate::Gradients::parts) at `w`, for instance source losses.
    pub fn lower_parts(&self) -> &[f64] {
        &self.lower_parts
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
            "step {}: L1(w) {:.6}, L2(w) {:.6}, L2(u) {:.6}, gap {:.2e}, |hypergradient| {:.2e}",
            self.index,
            self.upper_loss,
            self.lower_loss,
            self.auxiliary_loss,
            self.value_gap(),
            self.gradient_norms.upper,
        )
    }
}
