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
use scalebio::train::{Experiment, ReweightConfig, WeightsReport};

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

/// The settings that the table of `quality` in docs/experiments.md was made with.
const QUALITY: Settings = Settings {
    steps: 60,
    batch: 8,
    max_length: 128,
    alpha: 10.0,
    lr_lower: 3e-3,
    lr_upper: 5e-2,
};

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

    /// Steps of the run that learns the weights; like the flags below [default: those of docs/experiments.md]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,

    /// Training samples of a step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    /// Longest sample in tokens
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,

    /// Penalty
    #[arg(long, value_name = "A")]
    alpha: Option<f64>,

    /// Learning rate of the model
    #[arg(long, value_name = "X")]
    lr_lower: Option<f64>,

    /// Learning rate of the source weights' logits
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
    let mut table = Table::new(&["rank correlation", "ruined parts", "time"]);
    for &seed in &flags.seeds {
        let started = Instant::now();
        let folder = out.join(format!("seed-{seed}"));
        let report = denoising::run(pairs.clone(), &settings, seed, &folder)?;
        let more = [
            format!("{:.3}", denoising::correlation(&report)),
            format!("{:.3}", denoising::ruined(&report)),
            format!("{:.0} s", started.elapsed().as_secs_f64()),
        ];
        table.row(&report, &more);
    }
    Ok(())
}

fn languages_table(flags: &Flags, out: &Path) -> Outcome<()> {
    let shipped = || Path::new(SHIPPED).join("languages");
    let data = flags.data.clone().unwrap_or_else(shipped);
    let settings = flags.settings(languages::DEFAULTS);
    let mut table = Table::new(&["test loss", "of uniform", "of the largest alone", "time"]);
    let mut losses = [const { Vec::new() }; 3];
    for &seed in &flags.seeds {
        let started = Instant::now();
        let folder = out.join(format!("seed-{seed}"));
        let (report, of_mixes) = languages::run(&data, &settings, &languages::MIX, seed, &folder)?;
        let mut more: Vec<String> = of_mixes.iter().map(|loss| format!("{loss:.3}")).collect();
        more.push(format!("{:.0} s", started.elapsed().as_secs_f64()));
        table.row(&report, &more);
        for (losses, loss) in losses.iter_mut().zip(of_mixes) {
            losses.push(loss);
        }
    }
    for (losses, name) in losses.iter().zip(["learned", "uniform", "largest alone"]) {
        let highest = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        println!("test loss, {name}: mean {mean:.3}, lowest {lowest:.3}, highest {highest:.3}");
    }
    Ok(())
}

fn quality_table(flags: &Flags, out: &Path) -> Outcome<()> {
    let data = flags.data.clone().ok_or("quality needs --data DIR")?;
    let config = ReweightConfig {
        tokenizer: flags.tokenizer.clone(),
        ..flags.settings(QUALITY).apply(ReweightConfig::new(data))
    };
    let mut runs = Experiment::open(config)?.seeds(&flags.seeds, out)?;
    let mut table = Table::new(&["time"]);
    let mut started = Instant::now();
    while let Some(step) = runs.next() {
        step?;
        if runs.reports().len() > table.rows
            && let Some(report) = runs.reports().last()
        {
            table.row(
                report,
                &[format!("{:.0} s", started.elapsed().as_secs_f64())],
            );
            started = Instant::now();
        }
    }
    for source in runs.report()?.sources {
        let (name, mean) = (source.name, source.spread.mean);
        println!(
            "{name}: mean {mean:.3}, standard deviation {:.3}",
            source.spread.deviation
        );
    }
    Ok(())
}

/// A table in Markdown, a row a seed: weights, then what the experiment adds.
struct Table {
    more: Vec<String>,
    rows: usize,
}

impl Table {
    fn new(more: &[&str]) -> Self {
        Self {
            more: more.iter().map(|&name| name.to_owned()).collect(),
            rows: 0,
        }
    }

    fn row(&mut self, report: &WeightsReport, more: &[String]) {
        let line = |first: &str, cells: Vec<String>, more: &[String]| {
            println!("| {first} | {} |", [&cells[..], more].concat().join(" | "));
        };
        if self.rows == 0 {
            let names: Vec<String> = report.sources.iter().map(|s| s.name.clone()).collect();
            line("seed", names, &self.more);
            println!("|{}", "---|".repeat(1 + report.sources.len() + more.len()));
        }
        let weights = report.sources.iter().map(|s| format!("{:.3}", s.weight));
        line(&report.seed.to_string(), weights.collect(), more);
        self.rows += 1;
    }
}
