//! A first-order bilevel optimiser on Burn (work in progress).

#![deny(missing_docs)]
#![warn(
    missing_debug_implementations,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

pub use burn;

mod error;
mod problem;
pub mod reweight;
mod sampler;
mod solver;

pub use error::{Error, Result};
pub use problem::{Bilevel, Gradients, LowerObjective, UpperObjective};
pub use sampler::{ActiveLayers, AllLayers, LayerSampler, Lisa};
pub use solver::{Moments, Penalty, PerVariable, Run, ScaleBio, Schedule, Solution, Step, Update};
