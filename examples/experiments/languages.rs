//! Irrelevant languages: sources are languages, the target is one of them, and what is learned is put to use.

use std::fs;
use std::path::{Path, PathBuf};

use scalebio::data::{Record, Records};
use scalebio::train::{
    Experiment, FinetuneConfig, Finetuning, ResampleConfig, ReweightConfig, WeightsReport, resample,
};

use crate::base::Base;
use crate::{Outcome, Settings};

/// The settings that the table of docs/experiments.md was made with.
pub const DEFAULTS: Settings = Settings {
    steps: 150,
    batch: 32,
    max_length: 64,
    alpha: 10.0,
    lr_lower: 3e-3,
    lr_upper: 3e-2,
};

/// Steps of fine-tuning, and records that are drawn for it.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub records: usize,
    pub steps: usize,
    pub batch: usize,
}

pub const MIX: Mix = Mix {
    records: 400,
    steps: 60,
    batch: 16,
};

const BASE: Base = Base {
    vocabulary: 1024,
    width: 64,
    blocks: 2,
    heads: 4,
    length: 64,
    steps: 0,
    batch: 1,
};

/// Learns the weights of the sources of `data`, and trains the base model three times: on a mix that is drawn by them, by
/// uniform weights, and from the source of the largest weight alone. Returns the weights and the three test losses.
/// Everything goes to `folder`.
pub fn run(
    data: &Path,
    settings: &Settings,
    mix: &Mix,
    seed: u64,
    folder: &Path,
) -> Outcome<(WeightsReport, [f64; 3])> {
    fs::create_dir_all(folder)?;
    let texts = texts(data)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let base = Base {
        length: settings.max_length,
        ..BASE
    };
    let model = base.make(&texts, seed, folder)?;
    let config = ReweightConfig {
        model: Some(model),
        seed,
        ..settings.apply(ReweightConfig::new(data))
    };
    let experiment = Experiment::open(config)?;
    let mut run = experiment.reweight(folder.join("run"))?;
    for step in run.by_ref() {
        step?;
    }
    let report = run.report();
    let learned: Vec<f64> = report.sources.iter().map(|s| s.weight).collect();
    let largest = learned.iter().copied().fold(0.0, f64::max);
    let uniform = vec![1.0 / learned.len() as f64; learned.len()];
    let alone = learned.iter().map(|&w| if w < largest { 0.0 } else { 1.0 });
    let alone: Vec<f64> = alone.collect();
    let mut losses = [0.0; 3];
    for (loss, (name, weights)) in losses.iter_mut().zip([
        ("learned", &learned),
        ("uniform", &uniform),
        ("alone", &alone),
    ]) {
        let mut report = report.clone();
        for (source, weight) in report.sources.iter_mut().zip(weights) {
            source.weight = *weight;
        }
        *loss = train(&experiment, &report, mix, &folder.join(name))?;
    }
    Ok((report, losses))
}

/// The test loss of the base model, trained on a mix that is drawn by the given weights.
fn train(
    experiment: &Experiment,
    weights: &WeightsReport,
    mix: &Mix,
    folder: &Path,
) -> Outcome<f64> {
    fs::create_dir_all(folder)?;
    let (config, file) = (experiment.config(), folder.join("weights.json"));
    fs::write(&file, serde_json::to_vec_pretty(weights)?)?;
    let drawing = ResampleConfig {
        replacement: true, // there are few records in one language
        seed: config.seed,
        ..ResampleConfig::new(&config.data, file, mix.records)
    };
    let drawn = folder.join("mix");
    resample(&drawing, &drawn)?;
    let training = FinetuneConfig {
        model: config.model.clone(),
        steps: mix.steps,
        batch: mix.batch,
        max_length: config.max_length,
        learning_rate: config.lr_lower,
        seed: config.seed,
        ..FinetuneConfig::new(drawn.join("mix.jsonl"))
    };
    let mut run = Finetuning::start(training, folder.join("finetuned"))?;
    for step in run.by_ref() {
        step?;
    }
    let test = experiment.test().ok_or("the data have no test set")?;
    Ok(experiment.mean_loss(run.model(), test)?)
}

/// The texts of all sources.
fn texts(data: &Path) -> Outcome<Vec<String>> {
    let mut files: Vec<PathBuf> = fs::read_dir(data)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|file| {
        file.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("train_"))
    });
    files.sort();
    let mut texts = Vec::new();
    for file in files {
        for record in Records::open(file)? {
            if let Record::Text { text } = record? {
                texts.push(text);
            }
        }
    }
    Ok(texts)
}
