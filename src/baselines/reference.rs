//! RHO-LOSS.

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
    /// it. Default: 0.1, the paper's.
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
    pub(super) fn validate(&self) -> Result<()> {
        check_share(self.share)?;
        check_reference_steps(self.reference_steps)
    }
}
