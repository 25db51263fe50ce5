//! One-step gradient alignment.
//!
//! ```text
//! p_i = exp(cos(g_i, g) / T) / sum_j exp(cos(g_j, g) / T)
//! ```
//!
//! with the mean gradients `g_i` of the sources and `g` of the validation set, at one and the same model. A step along `g_i`
//! changes the validation loss by `-rate <g_i, g>` to first order. DoGE takes a step of mirror descent with these inner products
//! at every step of a proxy model; here it is one step, from uniform weights, and gradients are scaled to
//! length 1, so that a source does not count more because its loss is larger.

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

/// The weights that belong to the cosines between the gradients of the sources and that of the validation set: their softmax at
/// a temperature.
pub fn aligned(cosines: &[f64], temperature: f64) -> Vec<f64> {
    let largest = cosines.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponential = |cosine: &f64| ((cosine - largest) / temperature).exp();
    let weights: Vec<f64> = cosines.iter().map(exponential).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}
