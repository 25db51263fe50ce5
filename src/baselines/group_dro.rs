//! DoReMi.

use serde::{Deserialize, Serialize};

use super::check_reference_steps;
use crate::{Error, Result};

/// Settings of DoReMi.
///
/// # Reference
///
/// Xie et al., *DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining*, NeurIPS 2023, arXiv 2305.10429,
/// algorithm 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupDroConfig {
    /// Rate `eta` of the exponentiated gradient, above 0. Default: 1, the paper's.
    pub rate: f64,
    /// Smoothing `c`, the share of uniform weights in the weights of each step, from 0 to 1. Default: 1e-3, the paper's.
    pub smoothing: f64,
    /// Steps of the training of the reference model on uniform weights, at least 1. Default: the experiment's.
    pub reference_steps: Option<usize>,
}

impl Default for GroupDroConfig {
    fn default() -> Self {
        Self {
            rate: 1.0,
            smoothing: 1e-3,
            reference_steps: None,
        }
    }
}

impl GroupDroConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::setting(
                "rate of the exponentiated gradient",
                self.rate,
                "a finite number above 0",
                "the paper takes 1",
            ));
        }
        if !(0.0..=1.0).contains(&self.smoothing) {
            return Err(Error::setting(
                "smoothing",
                self.smoothing,
                "from 0 to 1",
                "the paper takes 1e-3",
            ));
        }
        check_reference_steps(self.reference_steps)
    }
}
