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

#[cfg(feature = "llm")]
pub mod data;
mod device;
mod error;
#[cfg(feature = "llm")]
mod files;
#[cfg(feature = "llm")]
pub mod models;
mod problem;
pub mod reweight;
mod sampler;
mod solver;
#[cfg(feature = "llm")]
pub mod train;

pub use device::device;
pub use error::{Error, Result};
pub use problem::{Bilevel, Gradients, LowerObjective, UpperObjective};
pub use sampler::{ActiveLayers, AllLayers, LayerSampler, Lisa};
pub use solver::{Moments, Penalty, PerVariable, Run, ScaleBio, Schedule, Solution, Step, Update};
