//! The one error type of the crate.

#[cfg(any(feature = "checkpoint", feature = "problems"))]
use std::path::Path;
use std::path::PathBuf;

/// What went wrong, in which place, and what to do about it.
///
/// New variants may be added in any release. Match on the ones you handle and pass the rest on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A hyper-parameter has a value that cannot work.
    #[error("{name} is {given}, but must be {allowed}; {remedy}")]
    Setting {
        /// The setting, as its setter or flag is called.
        name: &'static str,
        /// The value that was given.
        given: String,
        /// The values that are possible.
        allowed: String,
        /// What to do instead.
        remedy: &'static str,
    },

    /// A loss or a gradient is NaN or infinite. The run stands at the state before the step, or, for a
    /// [method](crate::methods) with an inner loop, before the inner iteration.
    #[error(
        "step {step}: {quantity} is {value}; the variables are as they were before this update \
         (a smaller learning rate or penalty, or gradient clipping, usually helps)"
    )]
    NonFinite {
        /// Index of the step that failed, from 0.
        step: usize,
        /// The loss or gradient, for instance `L2(u)`.
        quantity: String,
        /// Its value.
        value: f64,
    },

    /// An objective drew no micro-batch.
    #[error("step {step}: the {objective} drew no micro-batch; `sample` must return at least one")]
    EmptyDraw {
        /// Index of the step that failed, from 0.
        step: usize,
        /// `upper objective` or `lower objective`.
        objective: &'static str,
    },

    /// A variable has no parameter that requires a gradient.
    #[error(
        "the {variable} has no parameter that requires a gradient; create it on an autodiff device, \
         for instance `Device::flex().autodiff()`, and do not freeze all of it"
    )]
    NotTrainable {
        /// `upper variable` or `lower variable`.
        variable: &'static str,
    },

    /// The lower problem could not be solved to the last digits, as a check against differences needs it.
    #[error(
        "the lower problem is not solved after up to {steps} Newton steps: the last one was {length:.1e} long, but must \
         be at most {allowed:.1e} (gradient norm {gradient:.1e}); start nearer to its solution, and see that it is \
         strongly convex there, smooth, and computed in float64"
    )]
    NotSolved {
        /// Newton steps at most.
        steps: usize,
        /// Length of the last Newton step.
        length: f64,
        /// Length of a Newton step at which it counts as solved.
        allowed: f64,
        /// Norm of the gradient where it ended.
        gradient: f64,
    },

    /// A loss does not depend on any trainable parameter, so that it cannot be differentiated.
    #[error(
        "a loss has no gradient: it depends on no parameter that requires one; \
         check that it is computed from the variables it is given, without `inner()` or `detach()`"
    )]
    NotDifferentiable,

    /// A loss is not a single number.
    #[error("a loss has {elements} elements, but must have 1; reduce it with `sum()` or `mean()`")]
    NotScalar {
        /// Number of elements of the tensor that was returned.
        elements: usize,
    },

    /// A module has no list of blocks at the path that was given.
    #[error("no list of blocks at `{path}`; the module has {}", listed(.available))]
    UnknownBlocks {
        /// The path that was asked for.
        path: String,
        /// The paths of all lists in the module.
        available: Vec<String>,
    },

    /// An objective of the user failed.
    #[error(transparent)]
    Objective(#[from] Box<dyn std::error::Error + Send + Sync>),

    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },

    /// One record of a data file is not usable.
    #[error("{}:{line}: {message}", .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it, and what is allowed.
        message: String,
    },

    /// A file or folder as a whole is not what it should be.
    #[error("{}: {message}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        message: String,
    },

    /// A rank of a data-parallel run has failed; all ranks have this error, and the run stands at the state before the step.
    #[error("rank {rank}: {message}")]
    Rank {
        /// The rank that failed, from 0.
        rank: usize,
        /// What its error says.
        message: String,
    },

    /// The ranks of a data-parallel run are not of one run; all ranks have this error.
    #[error(
        "the ranks do not agree: {what}; start all of them with the same program, settings, data and base model, on \
         machines and devices of one kind"
    )]
    Disagreement {
        /// What differs, and on which rank.
        what: String,
    },

    /// A rank of a data-parallel run has waited too long for the others.
    #[error(
        "rank {rank} of {ranks} has waited {seconds:.0} s for the others: one has ended, hangs, or takes longer than that for \
         a step or a checkpoint (then set a longer time, --rank-timeout); resume from the last checkpoint"
    )]
    Timeout {
        /// The rank that has waited, from 0.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
        /// How long it has waited.
        seconds: f64,
    },

    /// A device cannot be used on this machine or with the features of this build.
    #[error("device `{device}`: {message}")]
    Device {
        /// The device, as it was named.
        device: String,
        /// Why it cannot be used, and which ones can.
        message: String,
    },
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn setting(
        name: &'static str,
        given: impl ToString,
        allowed: impl ToString,
        remedy: &'static str,
    ) -> Self {
        Self::Setting {
            name,
            given: given.to_string(),
            allowed: allowed.to_string(),
            remedy,
        }
    }

    #[cfg(any(feature = "checkpoint", feature = "problems"))]
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    #[cfg(any(feature = "checkpoint", feature = "problems"))]
    pub(crate) fn record(path: &Path, line: usize, message: impl ToString) -> Self {
        Self::Record {
            path: path.to_owned(),
            line,
            message: message.to_string(),
        }
    }

    #[cfg(any(feature = "checkpoint", feature = "problems"))]
    pub(crate) fn file(path: &Path, message: impl ToString) -> Self {
        Self::File {
            path: path.to_owned(),
            message: message.to_string(),
        }
    }
}

fn listed(paths: &[String]) -> String {
    if paths.is_empty() {
        return "no list of modules at all".to_owned();
    }
    format!("lists at: `{}`", paths.join("`, `"))
}
