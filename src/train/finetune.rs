//! Training a model on one set of records, as they come out of resampling.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::evaluate::mean_loss;
use super::experiment::{Stream, VOCABULARY, base_model, given_tokenizer, layers};
use super::log::RunFolder;
use super::training::Trainer;
use crate::data::{Source, Tokenizer, is_streamed, train_tokenizer};
use crate::models::{CausalLm, Dtype};
use crate::problem::UpperObjective;
use crate::reweight::{Draws, SourceWeights, TokenSources, Validation};
use crate::solver::gradients::total;
use crate::solver::{ScaleBio, Update};
use crate::{Error, Result, device};

/// Largest file of a saved model, in bytes: that of transformers 4.
const SHARD: u64 = 5_000_000_000;

/// Everything that determines a fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinetuneConfig {
    /// The file of records to train on, for instance the `mix.jsonl` of [`resample`](super::resample).
    pub data: PathBuf,
    /// A file of records to measure the loss on. Default: none.
    pub validation: Option<PathBuf>,
    /// Steps between two measurements on the validation file, at least 1; one more follows the last step. Default: only that.
    pub evaluate_every: Option<usize>,
    /// Hugging Face folder of the base model. Default: a small GPT-2 with random weights, the same as in
    /// [`ReweightConfig`](super::ReweightConfig) with the same seed and tokenizer.
    pub model: Option<PathBuf>,
    /// In which floating type the model is held, computed and saved. Default: float32, also for a model saved in bfloat16.
    #[serde(default)]
    pub dtype: Dtype,
    /// `tokenizer.json` to use. Default: that of the model's folder; without a model, one trained on the data.
    pub tokenizer: Option<PathBuf>,
    /// Steps of the run, at least 1; the length of the cosine schedule. Default: 120.
    pub steps: usize,
    /// Samples of a step. Default: 28.
    pub batch: usize,
    /// Samples of a micro-batch: gradients are added up over the micro-batches of a step. Default: the whole batch.
    pub micro_batch: Option<usize>,
    /// Longest sample, in tokens. Default: 64.
    pub max_length: usize,
    /// Learning rate, on a cosine with 3 % warm-up. Default: 3e-3, which suits the small model from scratch; for a pretrained
    /// one of some billion parameters 1e-5 is usual.
    pub learning_rate: f64,
    /// Clipping of the gradient at this global norm. Default: 1.
    pub clip: Option<f64>,
    /// Blocks that LISA trains at a time. Default: no LISA, all blocks train.
    pub lisa_blocks: Option<usize>,
    /// Steps between two draws of LISA. Default: 20.
    pub lisa_period: usize,
    /// Seed of the initial values and of all draws. Default: 0.
    pub seed: u64,
    /// Where to compute; see [`device`](crate::device). Default: `flex`.
    pub device: String,
    /// Whether the training samples stay in their file and are read as they are drawn; the results are the same. See
    /// [`Source::stream`]. Default: if the file has more than 256 MiB.
    #[serde(default)]
    pub stream: Option<bool>,
    /// The folder in which the index of streamed samples is kept from one start to the next. Default: nowhere; the program takes
    /// `index` beside the folder of the run.
    #[serde(default)]
    pub index: Option<PathBuf>,
}

impl FinetuneConfig {
    /// The defaults for a file of records.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            validation: None,
            evaluate_every: None,
            model: None,
            dtype: Dtype::default(),
            tokenizer: None,
            steps: 120,
            batch: 28,
            micro_batch: None,
            max_length: 64,
            learning_rate: 3e-3,
            clip: Some(1.0),
            lisa_blocks: None,
            lisa_period: 20,
            seed: 0,
            device: "flex".to_owned(),
            stream: None,
            index: None,
        }
    }

    fn validate(&self) -> Result<()> {
        let none = |name, remedy| Err(Error::setting(name, 0, "at least 1", remedy));
        if self.steps == 0 {
            return none(
                "steps",
                "an epoch is the number of samples by that of a batch",
            );
        }
        if self.micro_batch == Some(0) {
            return none("micro-batch", "leave it out for a single micro-batch");
        }
        if self.evaluate_every == Some(0) {
            return none(
                "evaluate-every",
                "leave it out to measure after the last step only",
            );
        }
        if self.evaluate_every.is_some() && self.validation.is_none() {
            return Err(Error::setting(
                "evaluate-every",
                "given without a validation file",
                "given with one",
                "name a file of records as validation",
            ));
        }
        let update = self.update();
        update.validate("learning rate")?;
        // Checks the clipping, which is the solver's.
        let method = ScaleBio::new(Update::sgd(1.0), update);
        self.clip
            .map_or(Ok(()), |norm| method.clip(norm).validate())
    }

    fn update(&self) -> Update {
        let warmup = self.steps * 3 / 100; // the paper's 3 %
        Update::adamw(self.learning_rate).cosine_with_warmup(self.steps, warmup)
    }
}

/// What happened in one step of a [`Finetuning`]: a line of its `metrics.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FinetuneStep {
    /// From 0.
    pub step: usize,
    /// Mean loss of the samples drawn, before the step's update.
    pub loss: f64,
    /// Mean loss of the validation samples after the update, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Euclidean norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Wall-clock time of the step, without the measurement.
    pub seconds: f64,
    /// Tokens of the step, without padding.
    pub tokens: u64,
}

/// Training of a base model on one file of records with AdamW: an iterator over its steps, as many as the settings say.
/// Records become samples as in reweighting, and are drawn without replacement in an order of their own each epoch. After
/// every step it appends a line to `metrics.jsonl` in the folder of the run.
///
/// # Example
///
/// ```no_run
/// use scalebio::train::{FinetuneConfig, Finetuning};
///
/// let mut config = FinetuneConfig::new("mix/mix.jsonl");
/// config.model = Some("path/to/model".into());
/// let mut run = Finetuning::start(config, "runs/finetuned")?;
/// for step in run.by_ref() {
///     println!("{:.3}", step?.loss);
/// }
/// run.save_model()?; // runs/finetuned/model
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a run does nothing until its steps are taken"]
pub struct Finetuning {
    config: FinetuneConfig,
    trainer: Trainer,
    /// The mean loss of a draw: that of a validation set, though it is the training set here.
    objective: Validation<TokenSources>,
    validation: Option<Source>,
    tokenizer: Tokenizer,
    folder: RunFolder,
    tokens: u64,
    failed: bool,
}

impl Finetuning {
    /// Reads the data and the base model, and starts the files of the run in the folder `out`.
    ///
    /// # Errors
    ///
    /// Settings that cannot work; those of [`device`](crate::device), [`Source::read`], [`Tokenizer::from_pretrained`],
    /// [`CausalLm::from_pretrained`]; a folder that already holds a run.
    pub fn start(config: FinetuneConfig, out: impl AsRef<Path>) -> Result<Self> {
        config.validate()?;
        let device = device(&config.device)?.autodiff();
        config.dtype.check(&device)?;
        let (file, folder) = (config.tokenizer.as_deref(), config.model.as_deref());
        let tokenizer = match given_tokenizer(file, folder)? {
            Some(tokenizer) => tokenizer,
            None => train_tokenizer([&config.data].into_iter(), VOCABULARY)?,
        };
        let read = |name, path| Source::read(name, path, &tokenizer, config.max_length);
        let training = match is_streamed(config.stream, [&config.data].into_iter())? {
            true => {
                let (length, index) = (config.max_length, config.index.as_deref());
                Source::stream("train", &config.data, &tokenizer, length, index)?
            }
            false => read("train", &config.data)?,
        };
        let validation = match &config.validation {
            Some(path) => Some(read("val", path)?),
            None => None,
        };
        let samples = training.samples.len();
        if config.batch == 0 || config.batch > samples {
            return Err(Error::setting(
                "batch",
                format!("{} samples", config.batch),
                format!("from 1 to {samples} samples, all there are"),
                "use a smaller batch or more data",
            ));
        }
        let (length, seed) = (config.max_length, config.seed);
        let model = base_model(folder, &tokenizer, length, seed, config.dtype, &device)?;
        let layers = layers(&model, config.lisa_blocks, config.lisa_period, seed)?;
        let draws = Draws::new(TokenSources::new(Arc::from([training])), config.batch)
            .micro_batch(config.micro_batch.unwrap_or(config.batch))
            .seed(Stream::Training.seed(seed));
        Ok(Self {
            trainer: Trainer::new(model, config.update(), layers, 1.0, config.clip)?,
            objective: Validation::new(draws)?,
            validation,
            tokenizer,
            // Last, so that settings that cannot work leave no folder behind.
            folder: RunFolder::create(out.as_ref(), &config)?,
            config,
            tokens: 0,
            failed: false,
        })
    }

    /// The model as it stands.
    pub fn model(&self) -> &CausalLm {
        self.trainer.model()
    }

    /// Saves the model and the tokenizer as a Hugging Face folder, `model` in the folder of the run, and returns its path.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn save_model(&self) -> Result<PathBuf> {
        let folder = self.folder.model_path();
        self.model().save_pretrained(&folder, SHARD)?;
        self.tokenizer.save(folder.join("tokenizer.json"))?;
        Ok(folder)
    }

    /// The file with a line for every step.
    pub fn metrics_path(&self) -> PathBuf {
        self.folder.metrics_path()
    }

    fn advance(&mut self) -> Result<FinetuneStep> {
        let started = Instant::now();
        let (step, learning_rate) = (self.trainer.steps(), self.trainer.rate());
        let objective = &mut self.objective;
        let taken = self.trainer.advance(|model| {
            let draw = UpperObjective::<SourceWeights, CausalLm>::sample(objective)?;
            total(&draw, model, model, |batch| batch.gradients(model))
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let drawn = self.objective.draws().samples().tokens_drawn();
        let tokens = drawn - self.tokens;
        self.tokens = drawn;
        let is_due = |every: usize| (step + 1).is_multiple_of(every);
        let measured = self.validation.as_ref().filter(|_| {
            step + 1 == self.config.steps || self.config.evaluate_every.is_some_and(is_due)
        });
        let batch = self.config.micro_batch.unwrap_or(self.config.batch);
        let metrics = FinetuneStep {
            step,
            loss: taken.loss,
            validation_loss: measured
                .map(|source| mean_loss(self.model(), source, batch))
                .transpose()?,
            gradient_norm: taken.gradient_norm,
            learning_rate,
            seconds,
            tokens,
        };
        self.folder.append_metrics(&metrics)?;
        Ok(metrics)
    }
}

impl Iterator for Finetuning {
    type Item = Result<FinetuneStep>;

    /// Takes a step and logs it. `None` after the last step, or after an error.
    fn next(&mut self) -> Option<Result<FinetuneStep>> {
        if self.failed || self.trainer.steps() >= self.config.steps {
            return None;
        }
        let step = self.advance();
        self.failed = step.is_err();
        Some(step)
    }
}
