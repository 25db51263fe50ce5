//! Runs on language models: from a folder of text to learned weights, with the files they leave.
//!
//! [`Experiment::open`] reads the data and knows the base model; [`Experiment::reweight`] learns the
//! source weights and writes the run folder; [`Experiment::train`] trains the base model on weights that
//! are fixed, to compare what was learned with uniform weights. The example `reweight` shows all three.
//!
//! What comes after, each also an example: [`resample`] draws a training set by the learned weights,
//! [`Finetuning`] trains a base model on it, and [`evaluate`] measures a model on text it has not seen. [`Compare`] does all of
//! this for ScaleBiO and the methods of [`baselines`](crate::baselines), with the same number of training tokens.

mod answers;
mod baselines;
mod checkpoints;
mod compare;
mod config;
mod evaluate;
mod experiment;
mod finetune;
mod log;
mod placement;
mod resample;
mod reweighting;
mod seeds;
mod stability;
mod training;

pub use answers::Answer;
pub use baselines::{BaselineResult, SelectedSource, Selection};
pub use compare::{
    Compare, CompareConfig, Comparison, Cost, Job, Method, MethodRun, MethodSummary, OwnMethod,
    SourceSpread, Spread, TestLoss,
};
pub use config::{OptimizerKind, ReweightConfig};
pub use evaluate::{
    AnswerScore, EvaluateConfig, Evaluation, EvaluationReport, PromptStyle, evaluate,
};
pub use experiment::Experiment;
pub use finetune::{FinetuneConfig, FinetuneStep, Finetuning};
pub use log::{AverageReport, SourceReport, Status, WeightsReport};
pub use placement::PlacementKind;
pub use resample::{Duplicates, ResampleConfig, ResampleReport, ResampledSource, resample};
pub use reweighting::Reweighting;
pub use seeds::{SeedRuns, SeedWeights, SeedsReport};
pub use stability::Stability;
pub use training::Training;
