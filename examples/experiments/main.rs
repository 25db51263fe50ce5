//! The paper's experiments at the size of one machine; docs/experiments.md has their figures.
//!
//! ```text
//! cargo run --release --example experiments -- denoising
//! cargo run --release --example experiments -- languages
//! cargo run --release --example experiments -- quality --data DIR
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use scalebio::train::{Experiment, ReweightConfig, SeedsReport, WeightsReport};

mod base;
mod denoising;
mod languages;

pub type Outcome<T> = Result<T, Box<dyn Error>>;

pub const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// What an experiment sets of a [`ReweightConfig`].
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub steps: usize,
    pub batch: usize,
    pub max_length: usize,
    pub alpha: f64,
    pub lr_lower: f64,
    pub lr_upper: f64,
}

impl Settings {
    pub fn apply(&self, config: ReweightConfig) -> ReweightConfig {
        ReweightConfig {
            steps: self.steps,
            batch: self.batch,
            max_length: self.max_length,
            alpha: self.alpha,
            lr_lower: self.lr_lower,
            lr_upper: self.lr_upper,
            ..config
        }
    }
}

/// The paper's experiments at the size of one machine.
#[derive(Debug, Parser)]
struct Program {
    #[command(subcommand)]
    experiment: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// Ten parts of one instruction data set, in which more and more answers are those of other questions
    Denoising(Flags),
    /// Sources in eight languages, of which one is wanted; then resampling and fine-tuning, against a uniform mix
    Languages(Flags),
    /// Two sources of answers, of which the better and smaller one is wanted
    Quality(Flags),
}

#[derive(Args, Debug)]
struct Flags {
    /// Seeds, one run each
    #[arg(long, value_name = "S,S,...", value_delimiter = ',', default_values_t = [0, 1, 2])]
    seeds: Vec<u64>,

    /// Data instead of those that ship: a file of Alpaca records (denoising), a folder of sources (languages, quality)
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,

    /// tokenizer.json (quality) [default: one trained on the sources]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Folder for the files [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[arg(long, value_name = "N")]
    steps: Option<usize>,

    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    #[arg(long, value_name = "N")]
    max_length: Option<usize>,

    #[arg(long, value_name = "A")]
    alpha: Option<f64>,

    #[arg(long, value_name = "X")]
    lr_lower: Option<f64>,

    #[arg(long, value_name = "X")]
    lr_upper: Option<f64>,
}

impl Flags {
    fn settings(&self, defaults: Settings) -> Settings {
        Settings {
            steps: self.steps.unwrap_or(defaults.steps),
            batch: self.batch.unwrap_or(defaults.batch),
            max_length: self.max_length.unwrap_or(defaults.max_length),
            alpha: self.alpha.unwrap_or(defaults.alpha),
            lr_lower: self.lr_lower.unwrap_or(defaults.lr_lower),
            lr_upper: self.lr_upper.unwrap_or(defaults.lr_upper),
        }
    }
}

fn main() -> Outcome<()> {
    let program = Program::parse();
    let (Which::Denoising(flags) | Which::Languages(flags) | Which::Quality(flags)) =
        &program.experiment;
    let temporary = tempfile::tempdir()?;
    let out = flags.out.as_deref().unwrap_or(temporary.path());
    match program.experiment {
        Which::Denoising(_) => denoising_table(flags, out),
        Which::Languages(_) => languages_table(flags, out),
        Which::Quality(_) => quality_table(flags, out),
    }
}

fn denoising_table(flags: &Flags, out: &Path) -> Outcome<()> {
    let pairs = match &flags.data {
        Some(file) => denoising::alpaca(file)?,
        None => denoising::shipped()?,
    };
    let settings = flags.settings(denoising::DEFAULTS);
    for &seed in &flags.seeds {
        let started = Instant::now();
        let folder = out.join(format!("seed-{seed}"));
        let report = denoising::run(pairs.clone(), &settings, seed, &folder)?;
        row(seed, &report);
        println!(
            "| rank correlation {:.3}, ruined parts {:.3}, {:.0} s",
            denoising::correlation(&report),
            denoising::ruined(&report),
            started.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn languages_table(flags: &Flags, out: &Path) -> Outcome<()> {
    let data = flags
        .data
        .clone()
        .unwrap_or_else(|| Path::new(SHIPPED).join("languages"));
    let settings = flags.settings(languages::DEFAULTS);
    for &seed in &flags.seeds {
        let started = Instant::now();
        let folder = out.join(format!("seed-{seed}"));
        let end = languages::run(&data, &settings, &languages::MIX, seed, &folder)?;
        row(seed, &end.report);
        println!(
            "| test loss {:.4}, of the uniform mix {:.4}, {:.0} s",
            end.learned,
            end.uniform,
            started.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn quality_table(flags: &Flags, out: &Path) -> Outcome<()> {
    let data = flags.data.clone().ok_or("quality needs --data")?;
    let settings = flags.settings(Settings {
        steps: 60,
        batch: 8,
        max_length: 128,
        alpha: 10.0,
        lr_lower: 3e-3,
        lr_upper: 5e-2,
    });
    let config = ReweightConfig {
        tokenizer: flags.tokenizer.clone(),
        ..settings.apply(ReweightConfig::new(data))
    };
    let mut runs = Experiment::open(config)?.seeds(&flags.seeds, out)?;
    for step in runs.by_ref() {
        step?;
    }
    for report in runs.reports() {
        row(report.seed, report);
        println!();
    }
    let SeedsReport { sources, .. } = runs.report()?;
    for source in sources {
        println!(
            "{} {:.3} +- {:.3}",
            source.name, source.mean, source.standard_deviation
        );
    }
    Ok(())
}

fn row(seed: u64, report: &WeightsReport) {
    print!("seed {seed} ");
    for source in &report.sources {
        print!("| {} {:.3} ", source.name, source.weight);
    }
}
