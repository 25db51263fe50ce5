//! Irrelevant languages: sources are languages, the target is one of them, and what is learned is put to use.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use scalebio::data::{Record, Records};
use scalebio::train::{
    Experiment, FinetuneConfig, Finetuning, ResampleConfig, ReweightConfig, WeightsReport, resample,
};

use crate::base::Base;
use crate::{Outcome, Settings};

/// The source in the language of the validation and the test set, in the shipped data.
pub const TARGET: &str = "english";

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

/// Weights, and the test losses of models that were trained on mixes drawn by them.
#[derive(Clone, Debug)]
pub struct Learned {
    pub report: WeightsReport,
    pub learned: f64,
    pub uniform: f64,
}

/// Learns the weights of the sources of `data`, draws a mix by them and one by uniform weights, and trains the base model on
/// each. Everything goes to `folder`.
pub fn run(
    data: &Path,
    settings: &Settings,
    mix: &Mix,
    seed: u64,
    folder: &Path,
) -> Outcome<Learned> {
    fs::create_dir_all(folder)?;
    let texts = texts(data)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let base = Base {
        length: settings.max_length,
        ..BASE
    };
    let model = base.make(&texts, seed, folder)?;
    let config = ReweightConfig {
        model: Some(model.clone()),
        seed,
        ..settings.apply(ReweightConfig::new(data))
    };
    let experiment = Experiment::open(config)?;
    let mut run = experiment.reweight(folder.join("run"))?;
    for step in run.by_ref() {
        step?;
    }
    let report = run.report();
    let mut losses = BTreeMap::new();
    for (name, weights) in [("learned", report.clone()), ("uniform", uniform(&report))] {
        let file = folder.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_vec_pretty(&weights)?)?;
        let config = ResampleConfig {
            replacement: true, // a source of one language is small
            seed,
            ..ResampleConfig::new(data, file, mix.records)
        };
        let drawn = folder.join(format!("{name}-mix"));
        resample(&config, &drawn)?;
        let config = FinetuneConfig {
            model: Some(model.clone()),
            steps: mix.steps,
            batch: mix.batch,
            max_length: settings.max_length,
            learning_rate: settings.lr_lower,
            seed,
            ..FinetuneConfig::new(drawn.join("mix.jsonl"))
        };
        let mut training = Finetuning::start(config, folder.join(format!("{name}-model")))?;
        for step in training.by_ref() {
            step?;
        }
        let test = experiment.test().ok_or("the data have no test set")?;
        losses.insert(name, experiment.mean_loss(training.model(), test));
    }
    Ok(Learned {
        report,
        learned: losses["learned"],
        uniform: losses["uniform"],
    })
}

fn uniform(report: &WeightsReport) -> WeightsReport {
    let mut uniform = report.clone();
    for source in &mut uniform.sources {
        source.weight = 1.0 / report.sources.len() as f64;
        source.logit = 0.0;
    }
    uniform
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
