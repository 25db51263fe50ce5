//! Denoising: ten parts of one instruction data set, in which more and more answers are those of other questions.

use std::fs;
use std::path::Path;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use scalebio::data::{Record, Records};
use scalebio::train::{Experiment, ReweightConfig, WeightsReport};
use serde_json::json;

use crate::base::Base;
use crate::{Outcome, SHIPPED, Settings};

/// Parts that the training records are cut into; in part `i` an answer is replaced with probability `min(1, 2 i / 10)`.
const PARTS: usize = 10;
/// Parts in which some answers are still their own, and one in which none is.
pub const RANKED: usize = 6;

/// Collections of `examples/data`, of each of which the questions show some characters of every record.
const COLLECTIONS: [&str; 6] = ["bantu", "devil", "germanic", "jargon", "python", "romance"];
const SHOWN: usize = 40;

/// A question with its answer.
#[derive(Clone, Debug)]
pub struct Pair {
    question: String,
    answer: String,
}

/// The settings that the table of docs/experiments.md was made with.
pub const DEFAULTS: Settings = Settings {
    steps: 200,
    batch: 100,
    max_length: 32,
    alpha: 10.0,
    lr_lower: 3e-3,
    lr_upper: 2.5e-2,
};

const BASE: Base = Base {
    vocabulary: 512,
    width: 64,
    blocks: 2,
    heads: 4,
    length: 32,
    steps: 150,
    batch: 100,
};

/// From which collection is this text? One question for every record that ships.
pub fn shipped() -> Outcome<Vec<Pair>> {
    let mut pairs = Vec::new();
    for name in COLLECTIONS {
        for record in Records::open(Path::new(SHIPPED).join(format!("train_{name}.jsonl")))? {
            let Record::Text { text } = record? else {
                continue;
            };
            let words: Vec<&str> = text.split_whitespace().collect();
            pairs.push(Pair {
                question: words.join(" ").chars().take(SHOWN).collect(),
                answer: name.to_owned(),
            });
        }
    }
    Ok(pairs)
}

/// The instructions of a file of Alpaca records.
pub fn alpaca(file: &Path) -> Outcome<Vec<Pair>> {
    let mut pairs = Vec::new();
    for record in Records::open(file)? {
        if let Record::Alpaca {
            instruction,
            input,
            output,
        } = record?
        {
            let question = format!("{instruction} {input}");
            pairs.push(Pair {
                question: question.trim().to_owned(),
                answer: output,
            });
        }
    }
    Ok(pairs)
}

/// Learns the weights of the ten parts of `pairs`. Data, model and run go to `folder`.
pub fn run(
    mut pairs: Vec<Pair>,
    settings: &Settings,
    seed: u64,
    folder: &Path,
) -> Outcome<WeightsReport> {
    let data = folder.join("data");
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    pairs.shuffle(&mut random);
    fs::create_dir_all(&data)?;
    let base = Base {
        length: settings.max_length,
        ..BASE
    };
    // Of the questions only: the base model has not seen an answer.
    let texts: Vec<&str> = pairs.iter().map(|pair| pair.question.as_str()).collect();
    let model = base.make(&texts, seed, folder)?;
    write(&pairs, &mut random, &data)?;
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
    Ok(run.report())
}

/// A tenth of the pairs is the validation set; the rest are the parts.
fn write(pairs: &[Pair], random: &mut Xoshiro256PlusPlus, folder: &Path) -> Outcome<()> {
    let save = |name: &str, pairs: &[Pair]| {
        let lines: String = pairs.iter().map(line).collect();
        fs::write(folder.join(format!("{name}.jsonl")), lines)
    };
    let (validation, training) = pairs.split_at(pairs.len() / 10);
    save("val", validation)?;
    let size = training.len() / PARTS;
    for (part, pairs) in training.chunks_exact(size).take(PARTS).enumerate() {
        let spoiled = spoil(pairs, (0.2 * part as f64).min(1.0), random);
        save(&format!("train_part{part}"), &spoiled)?;
    }
    Ok(())
}

/// Replaces answers by those of other pairs, each with the given probability.
fn spoil(pairs: &[Pair], probability: f64, random: &mut Xoshiro256PlusPlus) -> Vec<Pair> {
    let mut spoiled = pairs.to_vec();
    for (index, pair) in spoiled.iter_mut().enumerate() {
        if random.random::<f64>() < probability {
            let other = (index + random.random_range(1..pairs.len())) % pairs.len();
            pair.answer.clone_from(&pairs[other].answer);
        }
    }
    spoiled
}

fn line(pair: &Pair) -> String {
    let messages = json!([
        {"role": "user", "content": pair.question},
        {"role": "assistant", "content": pair.answer},
    ]);
    format!("{}\n", json!({ "messages": messages }))
}

/// Spearman's rank correlation between the weights of the first parts and their cleanliness.
pub fn correlation(report: &WeightsReport) -> f64 {
    let weights: Vec<f64> = report.sources[..RANKED].iter().map(|s| s.weight).collect();
    let squares: usize = weights
        .iter()
        .enumerate()
        .map(|(part, weight)| {
            let rank = weights.iter().filter(|other| *other > weight).count();
            rank.abs_diff(part).pow(2)
        })
        .sum();
    let n = RANKED as f64;
    1.0 - 6.0 * squares as f64 / (n * (n * n - 1.0))
}

/// The weight of all parts in which no answer is its own.
pub fn ruined(report: &WeightsReport) -> f64 {
    report.sources[RANKED - 1..].iter().map(|s| s.weight).sum()
}
