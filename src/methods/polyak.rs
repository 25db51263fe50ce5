//! Polyak's step sizes at both levels.

use crate::solver::PerVariable;
use crate::{Error, Result};

/// Polyak's step sizes: the step length follows from how far a loss is above its lowest value.
///
/// ```text
/// rate = min{ (loss - lowest) / (c |gradient|^2), rate of the update and its schedule }
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
    lowest: [f64; 2],
    factors: [f64; 2],
}

impl Polyak {
    /// With the lowest value 0 of both objectives, and `c` 5 for `x` and 1 for `w`.
    pub fn new() -> Self {
        Self {
            lowest: [0.0, 0.0],
            factors: [5.0, 1.0],
        }
    }

    /// The lowest value of `F` at lower solutions, and that of `G`. Default: 0 and 0.
    pub fn lowest(mut self, upper: f64, lower: f64) -> Self {
        self.lowest = [upper, lower];
        self
    }

    /// `c` of the paper for `x` and for `w` (and `u`), greater than 0; larger is more careful. Default: 5 and 1.
    ///
    /// 1/2 solves a quadratic of one curvature in one step. For `x` it must be more: `w` is to follow it, and until it has,
    /// the hypergradient is too small and the step too long.
    pub fn factors(mut self, upper: f64, lower: f64) -> Self {
        self.factors = [upper, lower];
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        for factor in self.factors {
            if !(factor > 0.0 && factor.is_finite()) {
                return Err(Error::setting(
                    "factor of Polyak's steps",
                    factor,
                    "a finite number greater than 0",
                    "5 for the upper and 1 for the lower variable are the defaults",
                ));
            }
        }
        for lowest in self.lowest {
            if !lowest.is_finite() {
                return Err(Error::setting(
                    "lowest loss of Polyak's steps",
                    lowest,
                    "a finite number",
                    "0 is a bound of most losses",
                ));
            }
        }
        Ok(())
    }

    /// `F - lowest`.
    pub(super) fn above_upper(&self, loss: f64) -> f64 {
        loss - self.lowest[0]
    }

    /// `G - lowest`.
    pub(super) fn above_lower(&self, loss: f64) -> f64 {
        loss - self.lowest[1]
    }

    /// The rates, of which `caps` are the largest.
    pub(super) fn rates(
        &self,
        excess: PerVariable,
        norms: PerVariable,
        caps: PerVariable,
    ) -> PerVariable {
        let rate = |factor: f64, excess: f64, norm: f64, cap: f64| {
            // Where the gradient is 0 any rate will do, and where the loss is below its bound none.
            let step = excess.max(0.0) / (factor * norm * norm);
            if step < cap { step } else { cap }
        };
        let [upper, lower] = self.factors;
        PerVariable {
            upper: rate(upper, excess.upper, norms.upper, caps.upper),
            lower: rate(lower, excess.lower, norms.lower, caps.lower),
            auxiliary: rate(lower, excess.auxiliary, norms.auxiliary, caps.auxiliary),
        }
    }
}

impl Default for Polyak {
    fn default() -> Self {
        Self::new()
    }
}
