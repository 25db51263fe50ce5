//! How one variable follows its gradient: an optimizer, a learning rate and a schedule.

use std::fmt;
use std::sync::Arc;

use burn::optim::{AdamConfig, AdamWConfig, DynOptimizer, Optimizer, SgdConfig};

use super::schedule::Schedule;
use crate::{Error, Result};

/// The update rule of one variable.
///
/// # Example
///
/// ```
/// use scalebio::Update;
///
/// let lower = Update::adamw(1e-5).cosine_with_warmup(200, 6);
/// let upper = Update::adamw(1e-2).epsilon(1e-3).cosine(200);
/// ```
#[derive(Clone, Debug)]
pub struct Update {
    rule: Rule,
    rate: f64,
    schedule: Schedule,
    /// A setting that the optimizer does not have.
    misplaced: Option<&'static str>,
}

#[derive(Clone)]
enum Rule {
    Sgd,
    AdamW {
        beta_1: f32,
        beta_2: f32,
        epsilon: f32,
        weight_decay: f32,
    },
    Other(Arc<dyn DynOptimizer>),
}

impl Update {
    /// Plain gradient descent: `x <- x - rate g`.
    pub fn sgd(rate: f64) -> Self {
        Self::with_rule(Rule::Sgd, rate)
    }

    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with betas 0.9 and 0.999, epsilon 1e-8 and
    /// weight decay 0. Without weight decay this is Adam.
    pub fn adamw(rate: f64) -> Self {
        let rule = Rule::AdamW {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        };
        Self::with_rule(rule, rate)
    }

    /// Any of Burn's optimizers, or your own, for instance
    /// `Update::new(LionConfig::new().build(), 1e-4)`.
    pub fn new(optimizer: impl Optimizer, rate: f64) -> Self {
        Self::with_rule(Rule::Other(Arc::new(optimizer)), rate)
    }

    fn with_rule(rule: Rule, rate: f64) -> Self {
        Self {
            rule,
            rate,
            schedule: Schedule::Constant,
            misplaced: None,
        }
    }

    /// AdamW's decay of the first and second moment, each in [0, 1). Default: 0.9 and 0.999.
    /// An error at the start with another optimizer.
    #[must_use]
    pub fn betas(mut self, first: f32, second: f32) -> Self {
        if let Rule::AdamW { beta_1, beta_2, .. } = &mut self.rule {
            (*beta_1, *beta_2) = (first, second);
        } else {
            self.misplaced = Some("betas");
        }
        self
    }

    /// AdamW's `epsilon`, greater than 0. Default: 1e-8. An error at the start with another optimizer.
    #[must_use]
    pub fn epsilon(mut self, value: f32) -> Self {
        if let Rule::AdamW { epsilon, .. } = &mut self.rule {
            *epsilon = value;
        } else {
            self.misplaced = Some("epsilon");
        }
        self
    }

    /// AdamW's decoupled weight decay, at least 0. Default: 0. An error at the start with another optimizer.
    #[must_use]
    pub fn weight_decay(mut self, value: f32) -> Self {
        if let Rule::AdamW { weight_decay, .. } = &mut self.rule {
            *weight_decay = value;
        } else {
            self.misplaced = Some("weight_decay");
        }
        self
    }

    /// Any schedule of the learning rate. Default: [`Schedule::Constant`].
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Falls from `rate` to 0 along half a cosine over `steps` steps.
    #[must_use]
    pub fn cosine(self, steps: usize) -> Self {
        self.cosine_with_warmup(steps, 0)
    }

    /// Rises along a line for `warmup` steps, then falls along half a cosine; `steps` in all.
    #[must_use]
    pub fn cosine_with_warmup(self, steps: usize, warmup: usize) -> Self {
        self.schedule(Schedule::Cosine { steps, warmup })
    }

    /// Falls from `rate` to 0 along a line over `steps` steps.
    #[must_use]
    pub fn linear(self, steps: usize) -> Self {
        self.schedule(Schedule::Linear { steps })
    }

    /// Multiplies the rate by `decay`, in (0, 1], after every step.
    #[must_use]
    pub fn exponential(self, decay: f64) -> Self {
        self.schedule(Schedule::Exponential { decay })
    }

    /// The learning rate at step `step` (from 0), before the stage's factor.
    pub fn rate_at(&self, step: usize) -> f64 {
        self.rate * self.schedule.factor(step)
    }

    pub(crate) fn validate(&self, name: &'static str) -> Result<()> {
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::setting(
                name,
                format!("learning rate {}", self.rate),
                "a finite learning rate greater than 0",
                "the paper uses 1e-2 for the source weights and 1e-7 to 1e-5 for the model",
            ));
        }
        if let Some(setting) = self.misplaced {
            return Err(Error::setting(
                name,
                format!("{:?} with `{setting}`", self.rule),
                format!("`Update::adamw` to have `{setting}`"),
                "configure another optimizer before `Update::new`",
            ));
        }
        if let Rule::AdamW {
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
        } = self.rule
        {
            let unit = 0.0..1.0;
            let possible = unit.contains(&beta_1)
                && unit.contains(&beta_2)
                && epsilon > 0.0
                && epsilon.is_finite()
                && weight_decay >= 0.0
                && weight_decay.is_finite();
            if !possible {
                return Err(Error::setting(
                    name,
                    format!(
                        "AdamW with betas {beta_1} and {beta_2}, epsilon {epsilon}, weight decay {weight_decay}"
                    ),
                    "AdamW with betas in [0, 1), epsilon greater than 0, weight decay at least 0",
                    "the defaults are betas 0.9 and 0.999, epsilon 1e-8, weight decay 0",
                ));
            }
        }
        self.schedule.validate()
    }

    pub(super) fn rule(&self) -> Arc<dyn DynOptimizer> {
        match &self.rule {
            Rule::Sgd => Arc::new(SgdConfig::new().build()),
            Rule::AdamW {
                beta_1,
                beta_2,
                epsilon,
                weight_decay,
            } => Arc::new(
                AdamWConfig::new()
                    .with_beta_1(*beta_1)
                    .with_beta_2(*beta_2)
                    .with_epsilon(*epsilon)
                    .with_weight_decay(*weight_decay)
                    .build(),
            ),
            Rule::Other(optimizer) => Arc::clone(optimizer),
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sgd => f.write_str("Sgd"),
            Self::AdamW {
                beta_1,
                beta_2,
                epsilon,
                weight_decay,
            } => f
                .debug_struct("AdamW")
                .field("beta_1", beta_1)
                .field("beta_2", beta_2)
                .field("epsilon", epsilon)
                .field("weight_decay", weight_decay)
                .finish(),
            Self::Other(_) => f.write_str("Other"),
        }
    }
}
