//! LESS.
//!
//! ```text
//! score(z) = max over groups j of sum_k r_k cos(R g_j(w_k), R d(z; w_k)) / sum_k r_k
//! ```
//!
//! over the checkpoints `w_k` of a warm-up, `r_k` the learning rate there, `g_j` the mean gradient of validation group `j`, `d` the
//! direction of the Adam step that takes in the gradient of `z`, and `R` a [`Projection`](super::Projection). This is definition
//! 3.1 of the paper, but for the division, which makes a score a mean cosine and changes no order.

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
        if self.checkpoints > steps {
            return Err(Error::setting(
                "checkpoints",
                self.checkpoints,
                format!("at most {steps}, the steps of the experiment"),
                "take fewer, or let the experiment take more steps",
            ));
        }
        check_warmup(self.warmup_steps(steps), self.checkpoints, steps)
    }
}

/// The scores of training samples, checkpoint by checkpoint. Of all gradients only one number a training sample and validation
/// group is kept from one checkpoint to the next, and within a checkpoint the projections of the groups.
#[derive(Clone, Debug)]
pub struct Influence {
    /// `scores[sample][group]`, the sum over the checkpoints.
    scores: Vec<Vec<f64>>,
    groups: usize,
    rates: f64,
}

impl Influence {
    /// No scores yet, for so many training samples and validation groups.
    pub fn new(samples: usize, groups: usize) -> Self {
        Self {
            scores: vec![vec![0.0; groups]; samples],
            groups,
            rates: 0.0,
        }
    }

    /// Adds a checkpoint: the learning rate there, the projected mean gradient of each validation group, and the projected Adam
    /// direction of each training sample in turn.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another number of groups or samples; the first error of an item.
    pub fn add(
        &mut self,
        rate: f64,
        groups: &[Vec<f64>],
        samples: impl IntoIterator<Item = Result<Vec<f64>>>,
    ) -> Result<()> {
        check_number("validation groups", groups.len(), self.groups)?;
        let mut given = 0;
        for direction in samples {
            let direction = direction?;
            if let Some(scores) = self.scores.get_mut(given) {
                for (score, group) in scores.iter_mut().zip(groups) {
                    *score += rate * cosine(group, &direction);
                }
            }
            given += 1;
        }
        check_number("training samples", given, self.scores.len())?;
        self.rates += rate;
        Ok(())
    }

    /// The score of each training sample, from -1 to 1; 0 before the first checkpoint.
    pub fn scores(&self) -> Vec<f64> {
        let best = |scores: &Vec<f64>| scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = |scores| match self.rates > 0.0 {
            true => best(scores) / self.rates,
            false => 0.0,
        };
        self.scores.iter().map(mean).collect()
    }
}

fn check_number(name: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected {
        return Ok(());
    }
    let remedy = "give as many at each checkpoint as at the start";
    Err(Error::setting(name, given, expected, remedy))
}

/// The cosine of the angle between two vectors; 0 if one of them is zero.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let lengths = (inner(a, a) * inner(b, b)).sqrt();
    match lengths > 0.0 {
        true => inner(a, b) / lengths,
        false => 0.0,
    }
}
