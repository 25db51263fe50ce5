//! What is public can be sent to another thread, and shared with one where it has no tape or sampler.

use scalebio::collective::{Collective, Ranks, Threads};
use scalebio::methods;
use scalebio::reweight::{
    Draws, Mixture, Pick, Sampling, Shortage, SourceWeights, Validation, WeightedBatch,
    WeightedSources,
};
use scalebio::{
    ActiveLayers, AllLayers, Bilevel, Error, Gradients, Lisa, Moments, Penalty, PerVariable, Run,
    ScaleBio, Schedule, Solution, Step, Update,
};

use crate::zoo::Vector;
use crate::zoo::samples::Points;

type Objective = fn(&Vector, &Vector) -> burn::tensor::Tensor<1>;

fn send<T: Send>() {}

fn send_and_sync<T: Send + Sync>() {}

#[test]
fn public_types_are_send_and_where_possible_sync() {
    // A tape, moments of an optimizer and a sampler of the user's are at home on one thread at a time.
    send::<Gradients>();
    send::<Run<Objective, Objective, Vector, Vector>>();
    send::<ScaleBio>();

    send::<methods::NoU>();
    send::<methods::Sama>();

    #[cfg(feature = "mpi")]
    send_and_sync::<scalebio::collective::Mpi>();
    send::<Box<dyn Collective>>();
    send_and_sync::<Ranks>();
    send_and_sync::<Threads>();
    send_and_sync::<ActiveLayers>();
    send_and_sync::<AllLayers>();
    send_and_sync::<Bilevel<Objective, Objective>>();
    send_and_sync::<Draws<Points>>();
    send_and_sync::<Error>();
    send_and_sync::<Lisa>();
    send_and_sync::<Mixture>();
    send_and_sync::<methods::Bda>();
    send_and_sync::<methods::Bome>();
    send_and_sync::<methods::Comparison>();
    send_and_sync::<methods::Estimator>();
    send_and_sync::<methods::F2sa>();
    send_and_sync::<methods::HypergradientCheck>();
    send_and_sync::<methods::HypergradientReport>();
    send_and_sync::<methods::Penalized>();
    send_and_sync::<methods::Polyak>();
    send_and_sync::<methods::Soba>();
    send_and_sync::<methods::ZerothOrder>();
    send_and_sync::<Moments>();
    send_and_sync::<Penalty>();
    send_and_sync::<PerVariable>();
    send_and_sync::<Pick>();
    send_and_sync::<Sampling>();
    send_and_sync::<Schedule>();
    send_and_sync::<Solution<Vec<f64>, Vec<f64>>>();
    send_and_sync::<Shortage>();
    send_and_sync::<Step>();
    send_and_sync::<Update>();
    send_and_sync::<Validation<Points>>();
    send_and_sync::<WeightedBatch<Vec<f64>>>();
    send_and_sync::<WeightedSources<Points>>();
    send::<Solution<Vector, Vector>>();
    send::<SourceWeights>();
}

#[test]
#[cfg(feature = "llm")]
fn public_types_of_language_models_are_send_too() {
    use scalebio::{baselines, data, models, reweight, train};

    send_and_sync::<baselines::AlignmentConfig>();
    send_and_sync::<baselines::Baseline>();
    send_and_sync::<baselines::GroupDro>();
    send_and_sync::<baselines::GroupDroConfig>();
    send_and_sync::<baselines::Influence>();
    send_and_sync::<baselines::InfluenceConfig>();
    send_and_sync::<baselines::Projection>();
    send_and_sync::<baselines::ReferenceConfig>();
    send_and_sync::<baselines::ValidationGroups>();
    send::<models::CausalLm>();
    send::<models::Generation>();
    send::<reweight::TokenSources>();
    send::<train::Experiment>();
    send::<train::Finetuning>();
    send::<train::Reweighting>();
    send::<train::Training>();
    send_and_sync::<data::Corpus>();
    send_and_sync::<data::CorpusConfig>();
    send_and_sync::<data::Question>();
    send_and_sync::<data::Record>();
    send_and_sync::<data::Records>();
    send_and_sync::<data::Sample>();
    send_and_sync::<data::Segment>();
    send_and_sync::<data::Source>();
    send_and_sync::<data::TokenBatch>();
    send_and_sync::<data::Tokenizer>();
    send_and_sync::<models::Activation>();
    send_and_sync::<models::Dtype>();
    send_and_sync::<models::Gpt2Config>();
    send_and_sync::<models::Sampling>();
    send_and_sync::<train::Answer>();
    send_and_sync::<train::BaselineResult>();
    send_and_sync::<train::Compare>();
    send_and_sync::<train::Comparison>();
    send_and_sync::<train::EvaluateConfig>();
    send_and_sync::<train::EvaluationReport>();
    send_and_sync::<train::FinetuneConfig>();
    send_and_sync::<train::FinetuneStep>();
    send_and_sync::<train::ResampleConfig>();
    send_and_sync::<train::ResampleReport>();
    send_and_sync::<train::ReweightConfig>();
    send_and_sync::<train::SelectedSource>();
    send_and_sync::<train::Selection>();
    send_and_sync::<train::Status>();
    send_and_sync::<train::WeightsReport>();
}
