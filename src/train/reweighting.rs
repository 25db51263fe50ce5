//! Learning the source weights of a language model, with the files of the run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::checkpoints::{History, Note, Origin, Schedule};
use super::experiment::Experiment;
use super::log::{AverageReport, CHECKPOINTS, Metrics, RunFolder, Status, WeightsReport};
use super::stability::Stability;
use crate::collective::Ranks;
use crate::models::{CausalLm, Offloading, Placement};
use crate::reweight::{self, SourceWeights, TokenSources, Validation, WeightedSources};
use crate::solver::{Checkpoint, Run, ScaleBio, Step};
use crate::{Bilevel, Error, Result};

/// Largest file of a saved model, in bytes: that of transformers 4.
const SHARD: u64 = 5_000_000_000;

type LanguageRun =
    Run<Validation<TokenSources>, WeightedSources<TokenSources>, SourceWeights, CausalLm>;

/// A run that learns source weights: an iterator over its steps, as many as the settings say, or until the weights
/// have settled as [`Stability::stop_below`] asks. After every step it appends a line to `metrics.jsonl` and replaces
/// `weights.json`; now and then it writes a checkpoint
/// ([`ReweightConfig::checkpoint_minutes`](super::ReweightConfig::checkpoint_minutes)), from which
/// [`Experiment::resume`] goes on.
#[derive(Debug)]
#[must_use = "a run does nothing until its steps are taken"]
pub struct Reweighting {
    run: LanguageRun,
    folder: RunFolder,
    steps: usize,
    stability: Stability,
    seed: u64,
    samples: Vec<usize>,
    history: History,
    tokens: u64,
    origin: Origin,
    schedule: Schedule,
    ranks: Ranks,
    damaged: Vec<String>,
    failed: bool,
}

/// What a run starts from, at its first step or at a later one.
struct Start {
    method: ScaleBio,
    problem: Bilevel<Validation<TokenSources>, WeightedSources<TokenSources>>,
    weights: SourceWeights,
    model: CausalLm,
    origin: Origin,
}

impl Start {
    fn of(experiment: &Experiment) -> Result<Self> {
        let ranks = experiment.ranks().clone();
        let mut method = experiment.config().method().collective(ranks);
        let model = experiment.base_model()?;
        if let Some(layers) = experiment.layers(&model)? {
            method = method.layers(layers);
        }
        let (training, validation) = (experiment.training_draws(), experiment.validation_draws());
        let mut problem = reweight::problem(training, validation)?;
        let stability = &experiment.config().stability;
        let weights = experiment.uniform_weights()?.with_floor(stability.floor)?;
        if let Some(pull) = stability.pull_over(weights.names())? {
            problem.upper = problem.upper.pull(pull);
        }
        Ok(Self {
            method,
            problem,
            weights,
            origin: Origin::new(experiment, &model)?,
            model,
        })
    }
}

impl Reweighting {
    pub(super) fn start(experiment: &Experiment, out: &Path) -> Result<Self> {
        let ranks = experiment.ranks();
        ranks.together(Self::started(experiment, out))
    }

    fn started(experiment: &Experiment, out: &Path) -> Result<Self> {
        let (start, ranks) = (Start::of(experiment)?, experiment.ranks());
        ranks.agree(&start.origin.facts(0))?;
        let history = vec![(0.0, start.weights.weights())];
        let place = |u| experiment.auxiliary(u);
        let run = start
            .method
            .start_apart(start.problem, start.weights, start.model, place)?;
        // Last, so that settings that cannot work leave no folder behind.
        let folder = match ranks.is_first() {
            true => RunFolder::create(out, experiment.config())?,
            false => RunFolder::of_another_rank(out),
        };
        Self::new(experiment, run, folder, history, start.origin)
    }

    pub(super) fn resume(experiment: &Experiment, out: &Path) -> Result<Self> {
        let ranks = experiment.ranks();
        ranks.together(Self::resumed(experiment, out))
    }

    fn resumed(experiment: &Experiment, out: &Path) -> Result<Self> {
        let checkpoints = out.join(CHECKPOINTS);
        if !checkpoints.exists() {
            let message = "holds no checkpoint: the run ended before its first one, or is older than checkpoints; start it \
                           again in another folder";
            return Err(Error::file(out, message));
        }
        let checkpoint = Checkpoint::newest(&checkpoints)?;
        let path = checkpoint.path();
        let (note, history) = Note::read(checkpoint.note(), path, checkpoint.step())?;
        let (start, ranks) = (Start::of(experiment)?, experiment.ranks());
        note.origin.compare(&start.origin, path)?;
        let place = |u| experiment.auxiliary(u);
        let run = checkpoint.resume(
            start.method,
            start.problem,
            start.weights,
            start.model,
            place,
        )?;
        // Before anything is written: all have read the checkpoint.
        ranks.agree(&start.origin.facts(run.steps()))?;
        let folder = match ranks.is_first() {
            true => RunFolder::resume(out, note.metrics)?,
            false => RunFolder::of_another_rank(out),
        };
        let mut reweighting = Self::new(experiment, run, folder, history, start.origin)?;
        let damaged = checkpoint.damaged().iter();
        reweighting.damaged = damaged.map(ToString::to_string).collect();
        Ok(reweighting)
    }

    fn new(
        experiment: &Experiment,
        mut run: LanguageRun,
        folder: RunFolder,
        history: History,
        origin: Origin,
    ) -> Result<Self> {
        let (config, sources) = (experiment.config(), experiment.sources());
        if config.parallel || matches!(experiment.placement()?, Placement::Apart(_)) {
            run = run.in_parallel();
        }
        if let Some(offloading) = config.offload {
            let with_moments = offloading == Offloading::FrozenAndMoments;
            run = run.offload(|model| {
                let offload = model.offloaded();
                offload.map(|offload| {
                    if with_moments {
                        offload.moments()
                    } else {
                        offload
                    }
                })
            });
        }
        let reweighting = Self {
            schedule: Schedule::new(config, run.steps()),
            run,
            folder,
            steps: config.steps,
            stability: config.stability.clone(),
            seed: config.seed,
            samples: sources.iter().map(|source| source.samples.len()).collect(),
            history,
            tokens: 0,
            origin,
            ranks: experiment.ranks().clone(),
            damaged: Vec::new(),
            failed: false,
        };
        reweighting.folder.write_weights(&reweighting.report())?;
        Ok(reweighting)
    }

    /// Writes a checkpoint of the run as it stands to `checkpoints` in its folder, and returns its path. The last two are
    /// kept. Of several ranks all call it, rank 0 writes, and the others return that folder when it has.
    ///
    /// # Errors
    ///
    /// A file that cannot be written; a run whose last step is not in its log, since that could not be written.
    pub fn checkpoint(&mut self) -> Result<PathBuf> {
        let written = match self.ranks.is_first() {
            true => self.write_checkpoint(),
            false => Ok(self.folder.checkpoints_path()),
        };
        let path = self.ranks.together(written)?;
        self.schedule.written(self.run.steps());
        Ok(path)
    }

    fn write_checkpoint(&self) -> Result<PathBuf> {
        if self.history.len() != self.run.steps() + 1 {
            let message =
                "lacks the last step, which could not be written; resume from the last checkpoint";
            return Err(Error::file(&self.folder.metrics_path(), message));
        }
        let position = self.folder.synced_position()?;
        let note = Note::new(&self.origin, position, &self.history);
        let checkpoints = self.folder.checkpoints_path();
        let note = serde_json::to_value(note).map_err(|e| Error::file(&checkpoints, e))?;
        self.run.checkpoint_with(&checkpoints, note)
    }

    /// What is wrong with checkpoints that were passed over when the run was resumed, since they are damaged.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
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
    /// its path. Of several ranks all call it, and rank 0 writes.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn save_model(&self, experiment: &Experiment) -> Result<PathBuf> {
        let folder = self.folder.model_path();
        let save = || {
            self.run.lower().save_pretrained(&folder, SHARD)?;
            experiment.tokenizer().save(folder.join("tokenizer.json"))
        };
        let saved = if self.ranks.is_first() {
            save()
        } else {
            Ok(())
        };
        self.ranks.together(saved)?;
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

    /// Tokens of the last step on all ranks, and whether a checkpoint is due, for which rank 0's clock counts.
    fn after_step(&mut self) -> Result<(u64, bool)> {
        let problem = self.run.problem();
        let drawn = problem.lower.draws().samples().tokens_drawn()
            + problem.upper.draws().samples().tokens_drawn();
        let tokens = drawn - self.tokens;
        self.tokens = drawn;
        let due = self.ranks.is_first() && self.schedule.is_due(self.run.steps());
        let said = [&[u8::from(due)], &tokens.to_le_bytes()[..]].concat();
        let said = self.ranks.gather(Ok(said))?;
        let said = said.iter().filter_map(|said| said.split_first());
        Ok(said.fold((0, false), |(sum, due), (&first, tokens)| {
            let tokens = tokens.try_into().map_or(0, u64::from_le_bytes);
            (sum + tokens, due || first == 1)
        }))
    }

    fn log(&mut self, step: &Step, started: Instant, tokens: u64) -> Result<()> {
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
            let (tokens, checkpoint_is_due) = self.after_step()?;
            let logged = self.log(&step, started, tokens);
            self.ranks.together(logged)?;
            if checkpoint_is_due {
                self.checkpoint()?;
            }
            Ok(step)
        });
        self.failed = step.is_err();
        Some(step)
    }
}
