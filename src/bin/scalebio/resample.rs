//! Draws a training set from the sources of a folder by learned weights.

use std::error::Error;
use std::path::PathBuf;

use scalebio::reweight::Shortage;
use scalebio::train::{Duplicates, ResampleConfig, resample};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// Draws a training set from the sources of a folder by learned weights, and writes what other programs need to draw by
/// them themselves.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with train_<source>.jsonl (or .json), val.jsonl and, if there is one, test.jsonl
    #[arg(long, value_name = "DIR", default_value = SHIPPED, hide_default_value = true,
          help = "Folder with train_<source>.jsonl (or .json), val.jsonl and, if there is one, test.jsonl [default: the data of this example]")]
    data: PathBuf,

    /// weights.json of a run on sources of the same names
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,

    /// Number of samples to draw
    #[arg(long, value_name = "N")]
    samples: usize,

    /// Draw with replacement: a record may be drawn more than once
    #[arg(long)]
    replacement: bool,

    /// Where a source has too few records, draw the rest from the others by weight [default: an error]
    #[arg(long)]
    redistribute: bool,

    /// Draw from all copies of a record that is in its source more than once [default: from the first]
    #[arg(long)]
    keep_duplicates: bool,

    /// Add a field `weight` to each record, p_i N / n_i, with which the weighted mean loss is exact; every source of a weight above 0 must then give a sample
    #[arg(long)]
    weight_column: bool,

    /// Leave the samples in the order of the sources and of their files [default: random order]
    #[arg(long)]
    no_shuffle: bool,

    /// Seed of all draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,

    /// Folder for mix.jsonl, resample.json and mixing/; one that already holds a mix is an error
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Args {
    fn config(&self) -> ResampleConfig {
        ResampleConfig {
            replacement: self.replacement,
            shortage: match self.redistribute {
                true => Shortage::Redistribute,
                false => Shortage::Error,
            },
            duplicates: match self.keep_duplicates {
                true => Duplicates::Keep,
                false => Duplicates::Drop,
            },
            weight_column: self.weight_column,
            shuffle: !self.no_shuffle,
            seed: self.seed,
            ..ResampleConfig::new(&self.data, &self.weights, self.samples)
        }
    }
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let report = resample(&args.config(), &args.out)?;
    println!(
        "{:<24} {:>8} {:>9} {:>9} {:>10} {:>9} {:>9}",
        "source", "weight", "records", "held out", "duplicates", "available", "samples"
    );
    for source in &report.sources {
        println!(
            "{:<24} {:>8.4} {:>9} {:>9} {:>10} {:>9} {:>9}",
            source.name,
            source.weight,
            source.records,
            source.held_out,
            source.duplicates,
            source.available,
            source.samples
        );
    }
    println!("\nsamples  {}", args.out.join("mix.jsonl").display());
    println!("mixing   {}", args.out.join("mixing").display());
    Ok(())
}
