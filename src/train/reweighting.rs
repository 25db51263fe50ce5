//! Learning the source weights of a language model, with the files of the run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::experiment::Experiment;
use super::log::{AverageReport, Metrics, RunFolder, Status, WeightsReport};
use super::stability::Stability;
use crate::Result;
use crate::models::CausalLm;
use crate::reweight::{self, SourceWeights, TokenSources, Validation, WeightedSources};
use crate::solver::{Run, Step};

/// Largest file of a saved model, in bytes: that of transformers 4.
const SHARD: u64 = 5_000_000_000;

type LanguageRun =
    Run<Validation<TokenSources>, WeightedSources<TokenSources>, SourceWeights, CausalLm>;

/// A run that learns source weights: an iterator over its steps, as many as the settings say, or until the weights
/// have settled as [`Stability::stop_below`] asks. After every step it appends a line to `metrics.jsonl` and replaces `weights.json`.
#[derive(Debug)]
#[must_use = "a run does nothing until its steps are taken"]
pub struct Reweighting {
    run: LanguageRun,
    folder: RunFolder,
    steps: usize,
    stability: Stability,
    seed: u64,
    samples: Vec<usize>,
    /// Reach and weights before each step and after the last.
    history: Vec<(f64, Vec<f64>)>,
    tokens: u64,
    failed: bool,
}

impl Reweighting {
    pub(super) fn start(experiment: &Experiment, out: &Path) -> Result<Self> {
        let config = experiment.config();
        let mut method = config.method();
        let model = experiment.base_model()?;
        if let Some(layers) = experiment.layers(&model)? {
            method = method.layers(layers);
        }
        let mut problem =
            reweight::problem(experiment.training_draws(), experiment.validation_draws())?;
        let stability = config.stability.clone();
        let weights = experiment.uniform_weights()?.with_floor(stability.floor)?;
        if let Some(pull) = stability.pull_over(weights.names())? {
            problem.upper = problem.upper.pull(pull);
        }
        let history = vec![(0.0, weights.weights())];
        let mut run = method.start(problem, weights, model)?;
        if config.parallel {
            run = run.in_parallel();
        }
        let sources = experiment.sources();
        // Last, so that settings that cannot work leave no folder behind.
        let folder = RunFolder::create(out, config)?;
        let reweighting = Self {
            run,
            folder,
            steps: config.steps,
            stability,
            seed: config.seed,
            samples: sources.iter().map(|source| source.samples.len()).collect(),
            history,
            tokens: 0,
            failed: false,
        };
        reweighting.folder.write_weights(&reweighting.report())?;
        Ok(reweighting)
    }

    /// The run itself, for its variables.
    pub fn run(&self) -> &LanguageRun {
        &self.run
    }

    /// The weights as they stand, as in `weights.json`.
    pub fn report(&self) -> WeightsReport {
        let mut report = WeightsReport::new(
            self.run.upper(),
            &self.samples,
            self.run.steps(),
            self.seed,
            self.run.reach(),
            self.status(),
        );
        let average = self.stability.average_of(&self.history);
        report.average = average.map(|(steps, weights)| AverageReport {
            steps,
            weights: self
                .run
                .upper()
                .names()
                .iter()
                .cloned()
                .zip(weights)
                .collect(),
        });
        report
    }

    /// Whether all steps are taken, or the run has stopped since the weights have settled.
    pub fn is_over(&self) -> bool {
        self.run.steps() >= self.steps || self.stability.has_settled(&self.history)
    }

    /// The file with the weights.
    pub fn weights_path(&self) -> PathBuf {
        self.folder.weights_path()
    }

    /// The file with a line for every step.
    pub fn metrics_path(&self) -> PathBuf {
        self.folder.metrics_path()
    }

    /// Saves the model `w` and the tokenizer as a Hugging Face folder beside the weights, and returns
    /// its path.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn save_model(&self, experiment: &Experiment) -> Result<PathBuf> {
        let folder = self.folder.model_path();
        self.run.lower().save_pretrained(&folder, SHARD)?;
        experiment.tokenizer().save(folder.join("tokenizer.json"))?;
        Ok(folder)
    }

    fn status(&self) -> Status {
        if !self.is_over() {
            return Status::Running;
        }
        if self.run.steps() < self.steps {
            return Status::Stopped;
        }
        Status::at_end(&self.history)
    }

    fn log(&mut self, step: &Step, started: Instant) -> Result<()> {
        let problem = self.run.problem();
        let drawn = problem.lower.draws().samples().tokens_drawn()
            + problem.upper.draws().samples().tokens_drawn();
        let tokens = drawn - self.tokens;
        self.tokens = drawn;
        let names = self.run.upper().names();
        let weights = &self.history[step.index()].1;
        let seconds = started.elapsed().as_secs_f64();
        let metrics = Metrics::new(step, names, weights, seconds, tokens);
        self.folder.append_metrics(&metrics)?;
        self.history
            .push((self.run.reach(), self.run.upper().weights()));
        self.folder.write_weights(&self.report())
    }
}

impl Iterator for Reweighting {
    type Item = Result<Step>;

    /// Takes a step and logs it. `None` after the last step, or after an error.
    fn next(&mut self) -> Option<Result<Step>> {
        if self.failed || self.is_over() {
            return None;
        }
        let started = Instant::now();
        let step = self.run.next()?;
        let step = step.and_then(|step| {
            self.log(&step, started)?;
            Ok(step)
        });
        self.failed = step.is_err();
        Some(step)
    }
}
