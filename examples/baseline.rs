//! Runs one of the methods that ScaleBiO is compared with, and prints the weights that it gives.
//!
//! ```text
//! cargo run --release --example baseline -- --method doremi --out runs/doremi
//! cargo run --release --example baseline -- --method '{"method": "less", "share": 0.2}' --out runs/less
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use scalebio::baselines::Baseline;
use scalebio::train::{BaselineResult, Experiment, ReweightConfig};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// Weighs sources, or selects records from them, by a method that ScaleBiO is compared with.
#[derive(Debug, Parser)]
struct Args {
    /// uniform, proportional, less, rho-loss, alignment or doremi; or JSON with settings of its own, for instance
    /// {"method": "less", "share": 0.2}
    #[arg(long, value_name = "NAME", value_parser = method)]
    method: Baseline,

    /// Folder with train_<source>.jsonl (or .json), val.jsonl and, if there is one, test.jsonl
    #[arg(long, value_name = "DIR", default_value = SHIPPED, hide_default_value = true,
          help = "Folder with train_<source>.jsonl (or .json), val.jsonl and, if there is one, test.jsonl [default: the data of this example]")]
    data: PathBuf,

    /// Hugging Face folder of the base model [default: a small GPT-2 with random weights: width 128, 2 blocks, 4 heads]
    #[arg(long, value_name = "HF_DIR")]
    model: Option<PathBuf>,

    /// Steps of every training of the method
    #[arg(long, value_name = "N", default_value_t = defaults().steps)]
    steps: usize,

    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = defaults().batch)]
    batch: usize,

    /// Longest sample in tokens
    #[arg(long, value_name = "N", default_value_t = defaults().max_length)]
    max_length: usize,

    /// Learning rate of the model, on a cosine with 3 % warm-up
    #[arg(long, value_name = "X", default_value_t = defaults().lr_lower)]
    lr_lower: f64,

    /// Seed of the initial values and of all draws
    #[arg(long, value_name = "S", default_value_t = defaults().seed)]
    seed: u64,

    /// Folder for weights.json and the other files; one that already holds a run is an error
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn defaults() -> ReweightConfig {
    ReweightConfig::new(SHIPPED)
}

fn method(text: &str) -> Result<Baseline, String> {
    match text.starts_with('{') {
        true => serde_json::from_str(text).map_err(|error| error.to_string()),
        false => text
            .parse()
            .map_err(|error: scalebio::Error| error.to_string()),
    }
}

impl Args {
    fn config(&self) -> ReweightConfig {
        ReweightConfig {
            model: self.model.clone(),
            steps: self.steps,
            batch: self.batch,
            max_length: self.max_length,
            lr_lower: self.lr_lower,
            seed: self.seed,
            stream: Some(false), // some methods need all samples at once
            ..ReweightConfig::new(&self.data)
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result: Result<BaselineResult, Box<dyn Error>> = Experiment::open(args.config())
        .and_then(|experiment| experiment.baseline(&args.method, &args.out))
        .map_err(Into::into);
    match result {
        Ok(result) => {
            print(&result);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(result: &BaselineResult) {
    println!(
        "{:<24} {:>8} {:>8} {:>9}",
        "source", "samples", "weight", "selected"
    );
    for (index, source) in result.weights.sources.iter().enumerate() {
        let selected = result.selection.as_ref().map_or(String::new(), |s| {
            let of = &s.sources[index];
            format!("{}/{}", of.records, of.candidates)
        });
        println!(
            "{:<24} {:>8} {:>8.4} {:>9}",
            source.name, source.samples, source.weight, selected
        );
    }
    println!(
        "\ntokens   {} in gradients, {} in losses alone",
        result.training_tokens, result.scored_tokens
    );
    println!("weights  {}", result.weights_path.display());
    if let Some(selection) = &result.selection {
        println!("selected {}", selection.path.display());
    }
}
