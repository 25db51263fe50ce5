//! DoReMi.
//!
//! ```text
//! excess_i = mean over the tokens of source i of max(loss(w) - loss(reference), 0)
//! a_i  <- a_i exp(eta excess_i),   a <- a / sum_j a_j,   p_t = (1 - c) a + c / m
//! ```
//!
//! `w` follows the gradient of `sum_i p_i (mean loss over the tokens of source i)`, and the result is the mean of the `p_t` over the
//! steps. In algorithm 1 of the paper the next step starts from the smoothed weights, `a = p_t`, and so it does here.

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

/// The weights of group DRO, step by step.
///
/// # Example
///
/// ```
/// use scalebio::baselines::{GroupDro, GroupDroConfig};
///
/// let mut dro = GroupDro::new(&GroupDroConfig::default(), 2);
/// dro.update(&[0.7, 0.0])?; // the first source has something left to learn
/// assert!(dro.weights()[0] > 0.66);
/// assert_eq!(dro.average(), dro.weights());
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GroupDro {
    rate: f64,
    smoothing: f64,
    weights: Vec<f64>,
    sum: Vec<f64>,
    steps: usize,
}

impl GroupDro {
    /// Uniform weights for so many sources.
    pub fn new(config: &GroupDroConfig, sources: usize) -> Self {
        Self {
            rate: config.rate,
            smoothing: config.smoothing,
            weights: super::uniform(sources),
            sum: vec![0.0; sources],
            steps: 0,
        }
    }

    /// Takes a step, from the excess loss of each source: at least 0, and 0 for a source without a token in the batch.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another number of losses than of sources.
    pub fn update(&mut self, excess: &[f64]) -> Result<()> {
        let sources = self.weights.len();
        if excess.len() != sources {
            return Err(Error::setting(
                "excess losses",
                excess.len(),
                format!("{sources} numbers, one a source"),
                "give a source without tokens the excess 0",
            ));
        }
        // Relative to the largest, so that no exponential overflows.
        let largest = excess.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for (weight, excess) in self.weights.iter_mut().zip(excess) {
            *weight *= (self.rate * (excess - largest)).exp();
        }
        let total: f64 = self.weights.iter().sum();
        for (weight, sum) in self.weights.iter_mut().zip(&mut self.sum) {
            *weight = (1.0 - self.smoothing) * *weight / total + self.smoothing / sources as f64;
            *sum += *weight;
        }
        self.steps += 1;
        Ok(())
    }

    /// The weights of the last step; uniform before the first.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The mean of the weights over the steps; uniform before the first.
    pub fn average(&self) -> Vec<f64> {
        match self.steps {
            0 => self.weights.clone(),
            steps => self.sum.iter().map(|sum| sum / steps as f64).collect(),
        }
    }
}

/// The excess loss of each of `sources` sources in a batch: the mean over all label tokens of its samples of
/// `max(loss - reference, 0)`; 0 for a source without any.
///
/// `tokens` holds of each sample its source and the losses of its label tokens, under the model and under the reference.
pub fn excess<'a>(
    tokens: impl IntoIterator<Item = (usize, &'a [f64], &'a [f64])>,
    sources: usize,
) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0; sources], vec![0_usize; sources]);
    for (source, losses, reference) in tokens {
        for (loss, reference) in losses.iter().zip(reference) {
            sums[source] += (loss - reference).max(0.0);
            counts[source] += 1;
        }
    }
    let means = sums.iter().zip(&counts);
    means
        .map(|(sum, &count)| sum / count.max(1) as f64)
        .collect()
}
