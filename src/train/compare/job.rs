//! One method with one seed: choosing the data, training on them, measuring.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::usage::{Usage, peak_memory};
use super::{CompareConfig, Job, Method, OwnMethod};
use crate::data::{DataFiles, Sample, Source};
use crate::models::CausalLm;
use crate::reweight::Shortage;
use crate::train::evaluate::Evaluation;
use crate::train::experiment::Experiment;
use crate::train::finetune::{FinetuneConfig, Finetuning};
use crate::train::log::{SourceReport, WeightsReport, write_json};
use crate::train::resample::{ResampleConfig, resample};
use crate::{Error, Result};

/// The version of `run.json`.
const SCHEMA_VERSION: u32 = 1;

/// What one method came to with one seed: the content of `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodRun {
    /// Version of the format, 1.
    pub schema_version: u32,
    /// The method.
    #[serde(flatten)]
    pub method: Method,
    /// The seed.
    pub seed: u64,
    /// The weights of the sources, sorted by name; of a method that selects, the shares of its selection. Empty for `validation`.
    pub weights: Vec<SourceReport>,
    /// What choosing the data took.
    pub cost: Cost,
    /// Records of the training set.
    pub records: usize,
    /// Their samples.
    pub samples: usize,
    /// Steps of the fine-tuning.
    pub steps: usize,
    /// Its tokens, without padding.
    pub tokens: u64,
    /// The loss of the fine-tuned model on the test set.
    pub test: TestLoss,
}

/// What a method took to choose the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Tokens of all gradients, without padding: forward and backward. ScaleBiO takes two gradients of each training sample, for
    /// `w` and for `u`, and one of each validation sample.
    pub training_tokens: u64,
    /// Tokens of all losses without a gradient: forward only.
    pub scored_tokens: u64,
    /// Time on the clock.
    pub seconds: f64,
    /// Processor time of all cores; known on Linux.
    pub cpu_seconds: Option<f64>,
    /// The most memory that was resident in the process up to then, in bytes, data and program included; known on Linux.
    pub peak_memory: Option<u64>,
}

/// Losses on the test set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestLoss {
    /// Number of samples.
    pub samples: usize,
    /// Number of tokens predicted.
    pub tokens: usize,
    /// Mean over the samples of each sample's mean over its tokens, in nats.
    pub sample_loss: f64,
    /// Mean over all tokens, in nats.
    pub token_loss: f64,
    /// `exp` of the loss a token.
    pub perplexity: f64,
}

/// What a method gave.
struct Choice {
    weights: Vec<SourceReport>,
    training_tokens: u64,
    scored_tokens: u64,
    /// The selected records, or the validation set. Otherwise the data are drawn by the weights.
    records: Option<PathBuf>,
}

pub(super) fn run(config: &CompareConfig, job: &Job, folder: &Path) -> Result<MethodRun> {
    let mut settings = config.experiment.clone();
    settings.seed = job.seed;
    settings.stream.get_or_insert(false); // baselines need all samples at once
    let experiment = Experiment::open(settings)?;
    let usage = Usage::start();
    let choice = choose(&experiment, &job.method, &folder.join("learn"))?;
    let cost = Cost {
        training_tokens: choice.training_tokens,
        scored_tokens: choice.scored_tokens,
        seconds: usage.seconds(),
        cpu_seconds: usage.cpu_seconds(),
        peak_memory: peak_memory(),
    };
    let data = match &choice.records {
        Some(path) => path.clone(),
        None => draw(&experiment, &choice.weights, folder)?,
    };
    let length = experiment.config().max_length;
    let set = Source::read("train", &data, experiment.tokenizer(), length)?;
    let trained = finetune(config, &experiment, &set, folder)?;
    Ok(MethodRun {
        schema_version: SCHEMA_VERSION,
        method: job.method.clone(),
        seed: job.seed,
        weights: choice.weights,
        cost,
        records: set.records,
        samples: set.samples.len(),
        steps: trained.steps,
        tokens: trained.tokens,
        test: measure(&experiment, trained.run.model())?,
    })
}

fn choose(experiment: &Experiment, method: &Method, out: &Path) -> Result<Choice> {
    match method {
        Method::Own(OwnMethod::ScaleBio) => {
            let mut run = experiment.reweight(out)?;
            for step in run.by_ref() {
                step?;
            }
            let problem = run.run().problem();
            let training = problem.lower.draws().samples().tokens_drawn();
            let validation = problem.upper.draws().samples().tokens_drawn();
            Ok(Choice {
                weights: run.report().sources,
                training_tokens: 2 * training + validation,
                scored_tokens: 0,
                records: None,
            })
        }
        Method::Own(OwnMethod::Validation) => Ok(Choice {
            weights: Vec::new(),
            training_tokens: 0,
            scored_tokens: 0,
            records: Some(DataFiles::find(&experiment.config().data)?.validation),
        }),
        Method::Baseline(baseline) => {
            let result = experiment.baseline(baseline, out)?;
            Ok(Choice {
                weights: result.weights.sources,
                training_tokens: result.training_tokens,
                scored_tokens: result.scored_tokens,
                records: result.selection.map(|selection| selection.path),
            })
        }
    }
}

/// Draws as many records by the weights as fill the steps of the experiment about once.
fn draw(experiment: &Experiment, weights: &[SourceReport], folder: &Path) -> Result<PathBuf> {
    let config = experiment.config();
    // Weights are of samples, but records are drawn: a source with many samples a record needs fewer of them.
    let shares = weights.iter().zip(experiment.sources());
    let shares: Vec<f64> = shares
        .map(|(source, data)| source.weight * data.records as f64 / data.samples.len() as f64)
        .collect();
    let total: f64 = shares.iter().sum();
    let records = ((config.steps * config.batch) as f64 * total).ceil();
    let short = shares
        .iter()
        .zip(experiment.sources())
        .any(|(share, data)| records * share / total > data.records as f64);

    let by_record = WeightsReport::fixed(
        weights
            .iter()
            .zip(&shares)
            .map(|(source, share)| ((source.name.clone(), share / total), source.samples)),
        0,
        config.seed,
    );
    let path = folder.join("record-weights.json");
    write_json(&path, &by_record)?;
    let mut drawing = ResampleConfig::new(&config.data, path, records as usize);
    drawing.seed = config.seed;
    drawing.replacement = short;
    // Records that are in the validation set or repeated are few, so that this changes little.
    drawing.shortage = Shortage::Redistribute;
    let out = folder.join("mix");
    resample(&drawing, &out)?;
    Ok(out.join("mix.jsonl"))
}

struct Trained {
    run: Finetuning,
    steps: usize,
    tokens: u64,
}

/// Trains the base model for the tokens that every method has.
fn finetune(
    config: &CompareConfig,
    experiment: &Experiment,
    set: &Source,
    folder: &Path,
) -> Result<Trained> {
    let settings = experiment.config();
    let batch = settings.batch.min(set.samples.len());
    let mut all = Vec::new();
    for source in experiment.sources() {
        all.extend(source.in_memory()?);
    }
    let budget = match config.tokens {
        Some(tokens) => tokens as f64,
        None => mean_length(all.into_iter()) * (settings.steps * settings.batch) as f64,
    };
    let steps = budget / (mean_length(set.in_memory()?.iter()) * batch as f64);
    let mut finetuning = FinetuneConfig {
        model: settings.model.clone(),
        dtype: settings.dtype,
        tokenizer: settings.tokenizer.clone(),
        steps: (steps.round() as usize).max(1),
        batch,
        micro_batch: settings.micro_batch.map(|samples| samples.min(batch)),
        max_length: settings.max_length,
        learning_rate: settings.lr_lower,
        clip: settings.clip,
        lisa_blocks: settings.lisa_blocks,
        lisa_period: settings.lisa_period,
        seed: settings.seed,
        device: settings.device.clone(),
        ..FinetuneConfig::new(&set.path)
    };
    if settings.model.is_none() && settings.tokenizer.is_none() {
        // The one that was trained on all sources, and not one on this set.
        let path = folder.join("tokenizer.json");
        experiment.tokenizer().save(&path)?;
        finetuning.tokenizer = Some(path);
    }
    let mut run = Finetuning::start(finetuning, folder.join("finetune"))?;
    let (mut steps, mut tokens) = (0, 0);
    for step in run.by_ref() {
        tokens += step?.tokens;
        steps += 1;
    }
    Ok(Trained { run, steps, tokens })
}

fn mean_length<'a>(samples: impl Iterator<Item = &'a Sample>) -> f64 {
    let (count, tokens) = samples.fold((0usize, 0usize), |sum, sample| {
        (sum.0 + 1, sum.1 + sample.ids.len())
    });
    tokens as f64 / count.max(1) as f64
}

fn measure(experiment: &Experiment, model: &CausalLm) -> Result<TestLoss> {
    let config = experiment.config();
    let test = experiment.test().ok_or_else(|| {
        let message = "no test set, on which the results are compared; add it as `test.jsonl`";
        Error::file(&config.data, message)
    })?;
    let batch = config.micro_batch.unwrap_or(config.batch);
    let evaluation = Evaluation::of(model, test, batch)?;
    Ok(TestLoss {
        samples: evaluation.samples,
        tokens: evaluation.tokens,
        sample_loss: evaluation.sample_loss,
        token_loss: evaluation.token_loss,
        perplexity: evaluation.perplexity,
    })
}
