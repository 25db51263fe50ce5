//! What the methods share: trainers, batches of picked samples, the count of tokens, the log.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::Module;
use burn::optim::GradientsParams;
use serde::Serialize;

use super::super::config::ReweightConfig;
use super::super::experiment::Experiment;
use super::super::log::RunFolder;
use super::super::training::Trainer;
use crate::data::{Sample, Source, TokenBatch};
use crate::models::CausalLm;
use crate::reweight::{Pick, SampleLosses, SourceWeights, WeightedBatch};
use crate::solver::gradients::total;
use crate::{Error, Gradients, Result};

/// A run of one method.
pub(super) struct Session<'a> {
    pub experiment: &'a Experiment,
    folder: Option<RunFolder>,
    /// What sums of gradients ask for beside the model.
    weights: SourceWeights,
    steps: usize,
    pub training_tokens: u64,
    pub scored_tokens: u64,
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    stage: &'static str,
    step: usize,
    loss: f64,
    gradient_norm: f64,
    learning_rate: f64,
    tokens: u64,
    #[serde(flatten)]
    more: BTreeMap<&'static str, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<BTreeMap<&'a str, f64>>,
}

/// What a method adds to the line of a step.
#[derive(Debug, Default)]
pub(super) struct Extra<'a> {
    pub numbers: BTreeMap<&'static str, f64>,
    /// The weights of the step, in the order of the sources.
    pub weights: Option<&'a [f64]>,
}

impl<'a> Session<'a> {
    pub fn new(experiment: &'a Experiment) -> Result<Self> {
        let draws = experiment.training_draws();
        draws.validate("training set")?;
        Ok(Self {
            experiment,
            folder: None,
            weights: experiment.uniform_weights()?,
            steps: 0,
            training_tokens: 0,
            scored_tokens: 0,
        })
    }

    /// Where lines of steps go from now on.
    pub fn log_to(&mut self, folder: RunFolder) {
        self.folder = Some(folder);
    }

    pub fn config(&self) -> &'a ReweightConfig {
        self.experiment.config()
    }

    /// Steps of all trainings together.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// A training of the base model of `steps` steps, as in [`Experiment::train`].
    pub fn trainer(&self, steps: usize) -> Result<Trainer> {
        let config = ReweightConfig {
            steps,
            ..self.config().clone()
        };
        let model = self.experiment.base_model()?;
        let layers = self.experiment.layers(&model)?;
        Trainer::new(model, config.lower(), layers, config.alpha, config.clip)
    }

    /// A file of the run's folder, which is there.
    pub fn path(&self, name: &str) -> PathBuf {
        let metrics = self.folder.as_ref().map(RunFolder::metrics_path);
        metrics.unwrap_or_default().with_file_name(name)
    }

    /// Takes a step along the gradient of `sum_j coefficient_j loss_j` over samples.
    pub fn step(
        &mut self,
        trainer: &mut Trainer,
        stage: &'static str,
        samples: &[&Sample],
        coefficients: &[f64],
        extra: Extra<'_>,
    ) -> Result<()> {
        let (step, learning_rate) = (trainer.steps(), trainer.rate());
        let taken = trainer.advance(|model| self.gradients(model, samples, coefficients))?;
        self.steps += 1;
        let sources = self.experiment.sources();
        let named = |weights: &[f64]| {
            let names = sources.iter().map(|source| source.name.as_str());
            names.zip(weights.iter().copied()).collect()
        };
        self.log(&Line {
            stage,
            step,
            loss: taken.loss,
            gradient_norm: taken.gradient_norm,
            learning_rate,
            tokens: tokens(samples),
            more: extra.numbers,
            weights: extra.weights.map(named),
        })
    }

    /// Takes a step on the plain mean of samples.
    pub fn mean_step(
        &mut self,
        trainer: &mut Trainer,
        stage: &'static str,
        samples: &[&Sample],
        extra: Extra<'_>,
    ) -> Result<()> {
        let coefficients = vec![1.0 / samples.len() as f64; samples.len()];
        self.step(trainer, stage, samples, &coefficients, extra)
    }

    pub fn log(&mut self, line: &impl Serialize) -> Result<()> {
        match &mut self.folder {
            Some(folder) => folder.append_metrics(line),
            None => Ok(()),
        }
    }

    /// Loss and gradients of `sum_j coefficient_j loss_j`, some samples at a time.
    pub fn gradients(
        &mut self,
        model: &CausalLm,
        samples: &[&Sample],
        coefficients: &[f64],
    ) -> Result<Gradients> {
        self.training_tokens += tokens(samples);
        let chunk = self.chunk();
        let batches: Vec<_> = samples
            .chunks(chunk)
            .zip(coefficients.chunks(chunk))
            .map(|(samples, coefficients)| WeightedBatch {
                data: TokenBatch::new(samples),
                sources: vec![0; samples.len()],
                coefficients: coefficients.to_vec(),
            })
            .collect();
        total(&batches, &self.weights, model, |batch| {
            batch.gradients(model)
        })
    }

    /// The gradient of the mean loss of samples.
    pub fn mean_gradient(
        &mut self,
        model: &CausalLm,
        samples: &[&Sample],
    ) -> Result<GradientsParams> {
        let coefficients = vec![1.0 / samples.len() as f64; samples.len()];
        let gradients = self.gradients(model, samples, &coefficients)?;
        check(gradients.loss, "the loss of a sample", self.steps)?;
        Ok(gradients.of_lower)
    }

    /// The loss of each sample.
    pub fn losses(&mut self, model: &CausalLm, samples: &[&Sample]) -> Result<Vec<f64>> {
        self.scored_tokens += tokens(samples);
        let model = model.valid(); // no tape
        let mut losses = Vec::with_capacity(samples.len());
        for chunk in samples.chunks(self.chunk()) {
            let chunk = SampleLosses::sample_losses(&model, &TokenBatch::new(chunk));
            losses.extend(chunk.into_data().iter::<f64>());
        }
        for &loss in &losses {
            check(loss, "the loss of a sample", self.steps)?;
        }
        Ok(losses)
    }

    /// Samples computed at a time.
    pub fn chunk(&self) -> usize {
        let config = self.config();
        config.micro_batch.unwrap_or(config.batch).max(1)
    }

    /// The samples of sources that were picked.
    pub fn samples<'s>(sources: &'s [Source], picks: &[Pick]) -> Result<Vec<&'s Sample>> {
        let samples = sources.iter().map(Source::in_memory);
        let samples = samples.collect::<Result<Vec<_>>>()?;
        let picks = picks.iter();
        Ok(picks
            .map(|pick| &samples[pick.source][pick.index])
            .collect())
    }
}

pub(super) fn tokens(samples: &[&Sample]) -> u64 {
    samples.iter().map(|sample| sample.ids.len() as u64).sum()
}

/// An error for a quantity that is not finite.
pub(super) fn check(value: f64, quantity: &str, step: usize) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NonFinite {
        step,
        quantity: quantity.to_owned(),
        value,
    })
}
