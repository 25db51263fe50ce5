//! Polyak's step sizes at both levels.

use crate::solver::PerVariable;
use crate::{Error, Result};

/// Polyak's step sizes: the step length follows from how far a loss is above its lowest value.
///
/// ```text
/// rate = min{ (loss - lowest) / (factor |gradient|^2), rate of the update and its schedule }
/// ```
///
/// * `x`: `F(x, w)` and the hypergradient.
/// * `w`, and `u` of a penalty method: `G` there and its gradient, divided by the penalty. (Not `F + alpha G`, whose
///   lowest value changes with `x`; the curvature is that of `alpha G`.)
/// * `v` of SOBA keeps its own rate: it descends no loss that is bounded below.
///
/// When to use it: where the lowest losses are known (0 for models that can fit all their data), so that no learning rate
/// must be found: the updates' rates are caps only. A `lowest` below the true one makes steps too long near the solution,
/// where the caps then do the work. Use it with [`Update::sgd`](crate::Update::sgd): other optimizers rescale the
/// direction.
///
/// Memory and gradients: none; the losses are there anyway.
///
/// # Reference
///
/// Fan et al., *BiSLS/SPS: Auto-tune step sizes for stable bi-level optimization*, NeurIPS 2023, arXiv 2305.18666; SPS:
/// Loizou et al., arXiv 2002.10542.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Polyak {
    upper: f64,
    lower: f64,
    factor: f64,
}

impl Polyak {
    /// With the lowest value 0 of both objectives and `factor` 1.
    pub fn new() -> Self {
        Self {
            upper: 0.0,
            lower: 0.0,
            factor: 1.0,
        }
    }

    /// The lowest value of `F` at lower solutions, and that of `G`. Default: 0 and 0.
    pub fn lowest(mut self, upper: f64, lower: f64) -> Self {
        self.upper = upper;
        self.lower = lower;
        self
    }

    /// `c` of the paper, greater than 0; larger is more careful. 1/2 minimizes a quadratic whose curvature is the same in all
    /// directions in one step. Default: 1.
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        if !(self.factor > 0.0 && self.factor.is_finite()) {
            return Err(Error::setting(
                "factor of Polyak's steps",
                self.factor,
                "a finite number greater than 0",
                "1 is the default, and 0.5 the longest that is sound",
            ));
        }
        if !(self.upper.is_finite() && self.lower.is_finite()) {
            return Err(Error::setting(
                "lowest losses of Polyak's steps",
                format!("{} and {}", self.upper, self.lower),
                "finite numbers",
                "0 is a bound of most losses",
            ));
        }
        Ok(())
    }

    /// `F - lowest`.
    pub(super) fn above_upper(&self, loss: f64) -> f64 {
        loss - self.upper
    }

    /// `G - lowest`.
    pub(super) fn above_lower(&self, loss: f64) -> f64 {
        loss - self.lower
    }

    /// The rates, of which `caps` are the largest.
    pub(super) fn rates(
        &self,
        excess: PerVariable,
        norms: PerVariable,
        caps: PerVariable,
    ) -> PerVariable {
        let rate = |excess: f64, norm: f64, cap: f64| {
            // Where the direction is 0 any rate will do, and where the loss is below its bound none.
            let step = excess.max(0.0) / (self.factor * norm * norm);
            if step < cap { step } else { cap }
        };
        PerVariable {
            upper: rate(excess.upper, norms.upper, caps.upper),
            lower: rate(excess.lower, norms.lower, caps.lower),
            auxiliary: rate(excess.auxiliary, norms.auxiliary, caps.auxiliary),
        }
    }
}

impl Default for Polyak {
    fn default() -> Self {
        Self::new()
    }
}
