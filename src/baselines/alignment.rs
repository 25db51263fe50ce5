//! One-step gradient alignment.

use serde::{Deserialize, Serialize};

use super::check_warmup;
use crate::{Error, Result};

/// Settings of one-step gradient alignment.
///
/// # Reference
///
/// Fan et al., *DoGE: Domain Reweighting with Generalization Estimation*, ICML 2024, arXiv 2310.15393, for a target domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlignmentConfig {
    /// Steps of training on uniform weights before the gradients are taken, fewer than the experiment's; those that are left are
    /// draws that the gradients are averaged over. Default: half of the experiment's.
    pub warmup: Option<usize>,
    /// The cosine by which two sources differ if the weight of one is e times that of the other, above 0. Default: 0.1.
    pub temperature: f64,
}

impl Default for AlignmentConfig {
    fn default() -> Self {
        Self {
            warmup: None,
            temperature: 0.1,
        }
    }
}

impl AlignmentConfig {
    /// Steps of the warm-up in an experiment of `steps`.
    pub(crate) fn warmup_steps(&self, steps: usize) -> usize {
        self.warmup.unwrap_or(steps / 2)
    }

    pub(super) fn validate(&self, steps: usize) -> Result<()> {
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::setting(
                "temperature",
                self.temperature,
                "a finite number above 0",
                "cosines differ by some tenths; 0.1 is the default",
            ));
        }
        check_warmup(self.warmup_steps(steps), 0, steps.saturating_sub(1))
    }
}
