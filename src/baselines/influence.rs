//! LESS.

use serde::{Deserialize, Serialize};

use super::{check_share, check_warmup};
use crate::{Error, Result};

/// Of which samples the validation gradients are averaged before training samples are compared with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValidationGroups {
    /// The validation set is one group: a sample should help all of it.
    #[default]
    Whole,
    /// Each validation sample is a group of its own: a sample should help one of them much.
    Samples,
}

/// Settings of LESS.
///
/// # Reference
///
/// Xia et al., *LESS: Selecting Influential Data for Targeted Instruction Tuning*, ICML 2024, arXiv 2402.04333.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InfluenceConfig {
    /// Share of the records that is selected, above 0 and at most 1. Default: 0.05, the paper's.
    pub share: f64,
    /// Checkpoints of the warm-up at which gradients are taken, evenly spread, the last at its end. At least 1. Default: 4, the
    /// paper's.
    pub checkpoints: usize,
    /// Steps of the warm-up, the first of the experiment's. Default: a quarter of them, and at least one a checkpoint.
    pub warmup: Option<usize>,
    /// Numbers that a gradient is projected to, at least 1. Default: 8192, the paper's.
    pub dimension: usize,
    /// Groups of the validation set. Default: the whole set is one.
    pub groups: ValidationGroups,
}

impl Default for InfluenceConfig {
    fn default() -> Self {
        Self {
            share: 0.05,
            checkpoints: 4,
            warmup: None,
            dimension: 8192,
            groups: ValidationGroups::default(),
        }
    }
}

impl InfluenceConfig {
    /// Steps of the warm-up in an experiment of `steps`.
    pub(crate) fn warmup_steps(&self, steps: usize) -> usize {
        let default = (steps / 4).max(self.checkpoints);
        self.warmup.unwrap_or(default)
    }

    pub(super) fn validate(&self, steps: usize) -> Result<()> {
        check_share(self.share)?;
        for (name, value, remedy) in [
            ("checkpoints", self.checkpoints, "the paper takes 4"),
            ("dimension", self.dimension, "the paper takes 8192"),
        ] {
            if value == 0 {
                return Err(Error::setting(name, 0, "at least 1", remedy));
            }
        }
        check_warmup(self.warmup_steps(steps), self.checkpoints, steps)
    }
}
