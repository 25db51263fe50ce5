//! How one variable follows its gradient: an optimizer, a learning rate and a schedule.

use std::fmt;
use std::sync::Arc;

use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, DynOptimizer, Optimizer, SgdConfig};

use super::adamw::AdamW;
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
    Adam(Adam),
    AdamW(Adam),
    Other(Arc<dyn DynOptimizer>),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Adam {
    pub(super) betas: (f32, f32),
    pub(super) epsilon: f32,
    weight_decay: f32,
}

/// PyTorch's betas and epsilon, and no decay. (Burn's defaults are epsilon 1e-5 and, in AdamW, decay 1e-4.)
const ADAM: Adam = Adam {
    betas: (0.9, 0.999),
    epsilon: 1e-8,
    weight_decay: 0.0,
};

impl Update {
    /// Plain gradient descent: `x <- x - rate g`.
    pub fn sgd(rate: f64) -> Self {
        Self::with_rule(Rule::Sgd, rate)
    }

    /// Adam (Kingma and Ba, arXiv 1412.6980) with betas 0.9 and 0.999, epsilon 1e-8 and no weight decay;
    /// decay is added to the gradient.
    pub fn adam(rate: f64) -> Self {
        Self::with_rule(Rule::Adam(ADAM), rate)
    }

    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with betas 0.9 and 0.999, epsilon 1e-8 and no
    /// weight decay; decay is decoupled from the gradient.
    pub fn adamw(rate: f64) -> Self {
        Self::with_rule(Rule::AdamW(ADAM), rate)
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

    /// Adam's decay of the first and second moment, each in [0, 1). Default: 0.9 and 0.999. An error at
    /// the start with another optimizer.
    #[must_use]
    pub fn betas(self, first: f32, second: f32) -> Self {
        self.set_adam("betas", |adam| adam.betas = (first, second))
    }

    /// Adam's `epsilon`, greater than 0. Default: 1e-8. An error at the start with another optimizer.
    #[must_use]
    pub fn epsilon(self, value: f32) -> Self {
        self.set_adam("epsilon", |adam| adam.epsilon = value)
    }

    /// Adam's weight decay, at least 0. Default: 0. An error at the start with another optimizer.
    #[must_use]
    pub fn weight_decay(self, value: f32) -> Self {
        self.set_adam("weight_decay", |adam| adam.weight_decay = value)
    }

    fn set_adam(mut self, setting: &'static str, set: impl FnOnce(&mut Adam)) -> Self {
        match &mut self.rule {
            Rule::Adam(adam) | Rule::AdamW(adam) => set(adam),
            Rule::Sgd | Rule::Other(_) => self.misplaced = Some(setting),
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

    /// Divides the rate of step `t` (from 0) by `(t + 1)^exponent`; `exponent` is at least 0.
    #[must_use]
    pub fn power(self, exponent: f64) -> Self {
        self.schedule(Schedule::Power { exponent })
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
                format!("`Update::adamw` or `Update::adam` to have `{setting}`"),
                "configure another optimizer before `Update::new`",
            ));
        }
        if let Rule::Adam(adam) | Rule::AdamW(adam) = self.rule {
            adam.validate(name)?;
        }
        self.schedule.validate()
    }

    /// The settings of Adam or AdamW, and whether it is AdamW.
    pub(super) fn adam_family(&self) -> Option<(Adam, bool)> {
        match self.rule {
            Rule::Adam(adam) => Some((adam, false)),
            Rule::AdamW(adam) => Some((adam, true)),
            Rule::Sgd | Rule::Other(_) => None,
        }
    }

    pub(super) fn rule(&self) -> Arc<dyn DynOptimizer> {
        match &self.rule {
            Rule::Sgd => Arc::new(SgdConfig::new().build()),
            Rule::Adam(adam) => {
                let decay = adam.weight_decay;
                let decay = (decay > 0.0).then(|| WeightDecayConfig::new(decay));
                Arc::new(
                    AdamConfig::new()
                        .with_beta_1(adam.betas.0)
                        .with_beta_2(adam.betas.1)
                        .with_epsilon(adam.epsilon)
                        .with_weight_decay(decay)
                        .build(),
                )
            }
            Rule::AdamW(adam) => Arc::new(AdamW::new(adam.betas, adam.epsilon, adam.weight_decay)),
            Rule::Other(optimizer) => Arc::clone(optimizer),
        }
    }
}

impl Adam {
    fn validate(&self, name: &'static str) -> Result<()> {
        let unit = 0.0..1.0;
        let possible = unit.contains(&self.betas.0)
            && unit.contains(&self.betas.1)
            && self.epsilon > 0.0
            && self.epsilon.is_finite()
            && self.weight_decay >= 0.0
            && self.weight_decay.is_finite();
        if possible {
            return Ok(());
        }
        Err(Error::setting(
            name,
            format!("{self:?}"),
            "Adam with betas in [0, 1), epsilon greater than 0 and weight decay at least 0",
            "the defaults are betas 0.9 and 0.999, epsilon 1e-8, weight decay 0",
        ))
    }
}

/// All settings, on one line.
impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            rate,
            schedule,
            ..
        } = self;
        write!(f, "{rule:?}, rate {rate}, {schedule:?}")
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sgd => f.write_str("Sgd"),
            Self::Adam(adam) => write!(f, "Adam {adam:?}"),
            Self::AdamW(adam) => write!(f, "AdamW {adam:?}"),
            Self::Other(_) => f.write_str("an optimizer of yours"),
        }
    }
}
