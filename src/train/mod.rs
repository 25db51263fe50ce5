//! Runs on language models: from a folder of text to learned weights, with the files they leave.
//!
//! [`Experiment::open`] reads the data and knows the base model; [`Experiment::reweight`] learns the
//! source weights and writes the run folder; [`Experiment::train`] trains the base model on weights that
//! are fixed, to compare what was learned with uniform weights. The example `reweight` shows all three.

mod config;
mod experiment;
mod log;
mod reweighting;
mod training;

pub use config::{OptimizerKind, ReweightConfig};
pub use experiment::Experiment;
pub use log::{SourceReport, Status, WeightsReport};
pub use reweighting::Reweighting;
pub use training::Training;
