//! What keeps learned weights from being noise: settings, all of them off by default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reweight::{Pull, check_strength};
use crate::{Error, Result};

/// Settings for weights that are less noisy, or closer to what one would expect anyway. By default a run takes all its steps
/// and reports the weights of the last: nothing is stopped, pulled, bounded or averaged.
///
/// | setting | what it changes |
/// |---|---|
/// | `stop_below`, `stop_window` | when the run ends, and so the weights if they would have moved later |
/// | `pull`, `prior` | the answer: a minimum of `L1 + pull * KL(p, prior)`, see [`Pull`] |
/// | `floor` | the answer: no weight below it, see [`SourceWeights::with_floor`](crate::reweight::SourceWeights::with_floor) |
/// | `average` | nothing; the mean of the weights over the last steps is reported beside them |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stability {
    /// The run stops when every weight stayed within a range below this, in units of the weights, over the last
    /// `stop_window` steps. Default: the run takes all its steps.
    ///
    /// Learning rates that fall to 0 stop any weights at last: a stop near the end of the schedule, or one that a small
    /// `lr_upper` causes (it moves a weight by at most `2 p (1 - p) lr_upper` a step), says nothing about the problem.
    pub stop_below: Option<f64>,
    /// Steps over which the weights must have stayed so, at least 1 and fewer than the steps of the run. Default: 20.
    pub stop_window: usize,
    /// Strength of the [`Pull`] to the prior, in nats of validation loss. Default: 0, none.
    pub pull: f64,
    /// The prior: a share above 0 for every source, 1 together. Default: uniform.
    pub prior: Option<BTreeMap<String, f64>>,
    /// No weight is below it; less than 1 by the number of sources. Default: 0.
    pub floor: f64,
    /// The weights are averaged over this share of the steps taken, the last ones; from above 0 to 1. Default: no average.
    ///
    /// The mean of `n` steps has less noise than the last weights where these wander around an answer, and lags
    /// behind where they are on their way to it: a share of 1 contains the uniform weights of the start.
    pub average: Option<f64>,
}

impl Default for Stability {
    fn default() -> Self {
        Self {
            stop_below: None,
            stop_window: 20,
            pull: 0.0,
            prior: None,
            floor: 0.0,
            average: None,
        }
    }
}

impl Stability {
    /// Everything that can be said without the sources, for a run of `steps` steps.
    pub(super) fn validate(&self, steps: usize) -> Result<()> {
        if let Some(bound) = self.stop_below {
            if !(bound.is_finite() && bound > 0.0) {
                return Err(Error::setting(
                    "stop-below",
                    bound,
                    "a finite number above 0",
                    "it is a change of weights, for instance 0.005",
                ));
            }
            if self.stop_window == 0 || self.stop_window >= steps {
                return Err(Error::setting(
                    "stop-window",
                    format!("{} of {steps} steps", self.stop_window),
                    "at least 1 step, and fewer than the run has",
                    "take a smaller window or more steps",
                ));
            }
        }
        check_strength(self.pull)?;
        if self.prior.is_some() && self.pull <= 0.0 {
            return Err(Error::setting(
                "prior",
                "given without a pull",
                "given with a pull above 0",
                "set the strength of the pull to the prior",
            ));
        }
        match self.average {
            Some(share) if !(share > 0.0 && share <= 1.0) => Err(Error::setting(
                "average",
                share,
                "above 0 and at most 1",
                "it is the share of the steps, for instance 0.25 for the last quarter",
            )),
            _ => Ok(()),
        }
    }

    /// The pull over the sources `names`, if there is one.
    pub(super) fn pull_over(&self, names: &[String]) -> Result<Option<Pull>> {
        if self.pull <= 0.0 {
            return Ok(None);
        }
        let Some(prior) = &self.prior else {
            return Pull::uniform(self.pull, names.len()).map(Some);
        };
        if let Some(unknown) = prior.keys().find(|name| !names.contains(name)) {
            return Err(Error::setting(
                "prior",
                format!("a share for `{unknown}`"),
                format!("shares for {}", names.join(", ")),
                "name the sources as their files do",
            ));
        }
        let share = |name: &String| {
            prior.get(name).copied().ok_or_else(|| {
                Error::setting(
                    "prior",
                    format!("no share for `{name}`"),
                    "a share above 0 for every source",
                    "name all sources",
                )
            })
        };
        let shares = names.iter().map(share).collect::<Result<Vec<_>>>()?;
        Pull::new(self.pull, shares).map(Some)
    }

    /// Whether the weights have settled, from those before each step and after the last.
    pub(super) fn has_settled(&self, history: &[(f64, Vec<f64>)]) -> bool {
        let Some(bound) = self.stop_below else {
            return false;
        };
        let Some(start) = history.len().checked_sub(self.stop_window + 1) else {
            return false;
        };
        let window = &history[start..];
        let sources = window[0].1.len();
        (0..sources).all(|source| {
            let weights = || window.iter().map(|(_, weights)| weights[source]);
            let highest = weights().fold(f64::NEG_INFINITY, f64::max);
            let lowest = weights().fold(f64::INFINITY, f64::min);
            highest - lowest < bound
        })
    }

    /// The mean of the weights after the last steps, and how many these are, from the weights before each step and
    /// after the last.
    pub(super) fn average_of(&self, history: &[(f64, Vec<f64>)]) -> Option<(usize, Vec<f64>)> {
        let (_, after) = history.split_first()?;
        let steps = ((self.average? * after.len() as f64).ceil() as usize).min(after.len());
        let mut mean = vec![0.0; after.first()?.1.len()];
        for (_, weights) in &after[after.len() - steps..] {
            for (mean, weight) in mean.iter_mut().zip(weights) {
                *mean += weight / steps as f64;
            }
        }
        Some((steps, mean))
    }
}
