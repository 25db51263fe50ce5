//! Other ways to weigh sources or to select samples, which ScaleBiO is compared with.
//!
//! | method | what it gives | needs |
//! |---|---|---|
//! | [`Baseline::Uniform`] | equal weights | nothing |
//! | [`Baseline::Proportional`] | weights proportional to the number of samples | nothing |
//! | [`Baseline::Influence`], LESS | a selected set | validation set |
//! | [`Baseline::Reference`], RHO-LOSS | a selected set | validation set, reference model trained on it |
//! | [`Baseline::Alignment`] | weights | validation set |
//! | [`Baseline::GroupDro`], DoReMi | weights | reference model trained on the sources |
//!
//! Here are the settings and the rules of the methods, one file each; [`Experiment::baseline`](crate::train::Experiment)
//! runs one on the data, the model and the budget of an experiment. docs/comparison.md has a section for each, with the paper, the
//! equation, and what was simplified.

mod alignment;
mod gradients;
mod group_dro;
mod influence;
mod projection;
mod reference;
mod sizes;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use alignment::{AlignmentConfig, aligned};
pub(crate) use gradients::cosine;
pub use group_dro::{GroupDro, GroupDroConfig, excess};
pub use influence::{Influence, InfluenceConfig, ValidationGroups};
pub use projection::Projection;
pub use reference::{ReferenceConfig, top};
pub use sizes::{proportional, uniform};

/// A method, with its settings. What all methods have in common, as the model, the batch, the learning rate and the number of
/// steps, is the experiment's.
///
/// Its name, for [`FromStr`] and [`Display`](fmt::Display), is `uniform`, `proportional`, `less`, `rho-loss`, `alignment` or
/// `doremi`; from its name a method has its default settings.
///
/// # Example
///
/// ```
/// use scalebio::baselines::Baseline;
///
/// let baseline: Baseline = "doremi".parse()?;
/// assert!(matches!(baseline, Baseline::GroupDro(_)));
/// assert_eq!(baseline.to_string(), "doremi");
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method")]
pub enum Baseline {
    /// Equal weights.
    #[serde(rename = "uniform")]
    Uniform,
    /// Weights proportional to the number of samples.
    #[serde(rename = "proportional")]
    Proportional,
    /// LESS: the records whose Adam direction is most like the gradient of the validation set.
    #[serde(rename = "less")]
    Influence(InfluenceConfig),
    /// RHO-LOSS: of each candidate batch, the samples whose loss is furthest above that of a reference model.
    #[serde(rename = "rho-loss")]
    Reference(ReferenceConfig),
    /// One-step gradient alignment: sources by the cosine of their gradient with that of the validation set.
    #[serde(rename = "alignment")]
    Alignment(AlignmentConfig),
    /// DoReMi: sources by their excess loss over a reference model, by group DRO.
    #[serde(rename = "doremi")]
    GroupDro(GroupDroConfig),
}

impl Baseline {
    /// All methods with their default settings.
    pub fn all() -> [Self; 6] {
        [
            Self::Uniform,
            Self::Proportional,
            Self::Influence(InfluenceConfig::default()),
            Self::Reference(ReferenceConfig::default()),
            Self::Alignment(AlignmentConfig::default()),
            Self::GroupDro(GroupDroConfig::default()),
        ]
    }

    /// The name of the method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Proportional => "proportional",
            Self::Influence(_) => "less",
            Self::Reference(_) => "rho-loss",
            Self::Alignment(_) => "alignment",
            Self::GroupDro(_) => "doremi",
        }
    }

    /// Checks the settings, for a training of `steps` steps.
    pub(crate) fn validate(&self, steps: usize) -> Result<()> {
        match self {
            Self::Uniform | Self::Proportional => Ok(()),
            Self::Influence(config) => config.validate(steps),
            Self::Reference(config) => config.validate(),
            Self::Alignment(config) => config.validate(steps),
            Self::GroupDro(config) => config.validate(),
        }
    }
}

impl fmt::Display for Baseline {
    /// The name of the method.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Baseline {
    type Err = Error;

    /// The method of this name, with its default settings.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::all().into_iter().find(|method| method.name() == name);
        found.ok_or_else(|| {
            Error::setting(
                "baseline",
                format!("`{name}`"),
                "uniform, proportional, less, rho-loss, alignment or doremi",
                "spell it as it stands here",
            )
        })
    }
}

/// An error for a share that is none.
fn check_share(share: f64) -> Result<()> {
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    Err(Error::setting(
        "share",
        share,
        "above 0 and at most 1",
        "LESS takes 0.05 of all data, RHO-LOSS 0.1 of each candidate batch",
    ))
}

/// An error for no steps where a model is to be trained.
fn check_reference_steps(steps: Option<usize>) -> Result<()> {
    match steps {
        Some(0) => Err(Error::setting(
            "reference steps",
            0,
            "at least 1",
            "leave it out for as many as the experiment takes",
        )),
        _ => Ok(()),
    }
}

/// An error for a warm-up of fewer than `least` or more than `most` steps.
fn check_warmup(warmup: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&warmup) {
        return Ok(());
    }
    Err(Error::setting(
        "warm-up steps",
        warmup,
        format!("from {least} to {most}"),
        "leave it out for the default, which fits the steps of the experiment",
    ))
}
