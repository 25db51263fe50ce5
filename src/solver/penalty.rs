//! The penalty `alpha` and its growth over stages.

use crate::{Error, Result};

/// The penalty `alpha` on the value gap `G(x, w) - G(x, u)`.
///
/// Stage `i` uses `alpha_i = alpha_0 tau^i` and multiplies all learning rates by `tau^-i`; the last
/// stage lasts as long as the run. The bias of the penalty hypergradient is `O(1 / alpha)`, and the
/// stable learning rates of `u` and `w` shrink with `alpha`.
///
/// A plain number is a constant penalty: `.penalty(10.0)`.
///
/// # Reference
///
/// Pan et al., *ScaleBiO*, algorithm 1 (arXiv 2406.19976). The paper's runs use 10 or 100, one stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalty {
    initial: f64,
    growth: f64,
    stages: usize,
    steps_per_stage: usize,
}

impl Penalty {
    /// The same penalty at every step. Greater than 0.
    pub fn constant(alpha: f64) -> Self {
        Self::geometric(alpha, 1.0, 1, 1)
    }

    /// `alpha_0 tau^i` in stage `i` of `stages` (`N` in the paper), each of `steps_per_stage` steps
    /// (`K`). `alpha_0` is greater than 0, `tau` at least 1.
    pub fn geometric(initial: f64, growth: f64, stages: usize, steps_per_stage: usize) -> Self {
        Self {
            initial,
            growth,
            stages,
            steps_per_stage,
        }
    }

    /// The penalty `alpha_i` at step `step`, from 0.
    pub fn at(&self, step: usize) -> f64 {
        self.initial * self.scale(step)
    }

    /// `tau^i` at step `step`: the factor of the penalty, and the divisor of the learning rates.
    pub(super) fn scale(&self, step: usize) -> f64 {
        // Settings that `validate` refuses must not panic here: `at` is public.
        let stage = (step / self.steps_per_stage.max(1)).min(self.stages.saturating_sub(1));
        self.growth.powf(stage as f64)
    }

    pub(super) fn validate(&self) -> Result<()> {
        if !(self.initial > 0.0 && self.initial.is_finite()) {
            return Err(Error::setting(
                "penalty",
                self.initial,
                "a finite number greater than 0",
                "the paper uses 10 for GPT-2 and 100 for larger models",
            ));
        }
        if !(self.growth >= 1.0 && self.growth.is_finite()) {
            return Err(Error::setting(
                "penalty growth",
                self.growth,
                "a finite number of at least 1",
                "use 1 for a constant penalty",
            ));
        }
        if self.stages == 0 || self.steps_per_stage == 0 {
            return Err(Error::setting(
                "penalty stages",
                format!("{} of {} steps", self.stages, self.steps_per_stage),
                "at least 1 stage of at least 1 step",
                "use `Penalty::constant` for a single stage",
            ));
        }
        Ok(())
    }
}

/// Penalty 10, the paper's for GPT-2.
impl Default for Penalty {
    fn default() -> Self {
        Self::constant(10.0)
    }
}

impl From<f64> for Penalty {
    fn from(alpha: f64) -> Self {
        Self::constant(alpha)
    }
}
