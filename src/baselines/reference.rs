//! RHO-LOSS.
//!
//! Of each candidate batch, the samples are trained on for which
//!
//! ```text
//! loss(z; w) - loss(z; reference)
//! ```
//!
//! is largest, with `w` the model as it stands and the reference trained on a hold-out set: equation (3) of the paper.

use serde::{Deserialize, Serialize};

use super::{check_reference_steps, check_share};
use crate::Result;

/// Settings of RHO-LOSS.
///
/// # Reference
///
/// Mindermann et al., *Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt*, ICML 2022,
/// arXiv 2206.07137.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceConfig {
    /// Share of each candidate batch that is trained on, above 0 and at most 1: a step draws the experiment's batch divided by
    /// it, or all samples if there are fewer. Default: 0.1, the paper's.
    pub share: f64,
    /// Steps of the training of the reference model on the validation set, at least 1. Default: the experiment's.
    pub reference_steps: Option<usize>,
}

impl Default for ReferenceConfig {
    fn default() -> Self {
        Self {
            share: 0.1,
            reference_steps: None,
        }
    }
}

impl ReferenceConfig {
    /// Size of the batches of which `batch` samples are kept.
    pub(crate) fn candidates(&self, batch: usize) -> usize {
        (batch as f64 / self.share).round() as usize
    }

    pub(super) fn validate(&self) -> Result<()> {
        check_share(self.share)?;
        check_reference_steps(self.reference_steps)
    }
}

/// The indices of the `count` largest scores, or of all if there are fewer, in ascending order. Of equal scores the first is
/// taken.
pub fn top(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a])); // stable
    order.truncate(count);
    order.sort_unstable();
    order
}
