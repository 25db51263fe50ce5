//! Draws a training set from the sources of a folder by learned weights.

use std::error::Error;
use std::path::PathBuf;

use scalebio::reweight::Shortage;
use scalebio::train::{Duplicates, ResampleConfig, resample};

use super::console::say;
use super::record::Record;

const EXAMPLES: &str = "\
mix.jsonl gets the samples; mixing/ what LLaMA-Factory, axolotl, MosaicML Streaming and Hugging Face
datasets need to draw by the same weights themselves; config.toml holds all flags and repeats the draw.

Examples:
  scalebio resample --data DIR --weights runs/a/weights.json --samples 10000 --out runs/mix
  scalebio resample --config runs/mix/config.toml --redistribute --seed 1 --out runs/mix-1";

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// Draw a training set by learned weights
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder with train_<source>.jsonl (or .json) for each source, val.jsonl
    /// and, if there is one, test.jsonl [default: the data that ship with scalebio]
    #[arg(long, value_name = "DIR", verbatim_doc_comment, default_value = SHIPPED, hide_default_value = true)]
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

    /// Where a source has too few records, draw the rest from the others by weight
    /// [default: an error]
    #[arg(long, verbatim_doc_comment)]
    redistribute: bool,

    /// Draw from all copies of a record that is in its source more than once
    /// [default: from the first]
    #[arg(long, verbatim_doc_comment)]
    keep_duplicates: bool,

    /// Add a field `weight` to each record, p_i N / n_i, with which the weighted
    /// mean loss is exact; every source of a weight above 0 must then give a sample
    #[arg(long, verbatim_doc_comment)]
    weight_column: bool,

    /// Leave the samples in the order of the sources and of their files
    /// [default: random order]
    #[arg(long, verbatim_doc_comment)]
    no_shuffle: bool,

    /// Seed of all draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,

    /// Folder for mix.jsonl and mixing/; one that holds a mix is an error
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

pub fn run(args: &Args, record: &Record) -> Result<(), Box<dyn Error>> {
    record.check(&args.out)?;
    let report = resample(&args.config(), &args.out)?;
    record.save(&args.out)?;
    say!(
        "{:<24} {:>8} {:>9} {:>9} {:>10} {:>9} {:>9}",
        "source",
        "weight",
        "records",
        "held out",
        "duplicates",
        "available",
        "samples"
    )?;
    for source in &report.sources {
        say!(
            "{:<24} {:>8.4} {:>9} {:>9} {:>10} {:>9} {:>9}",
            source.name,
            source.weight,
            source.records,
            source.held_out,
            source.duplicates,
            source.available,
            source.samples
        )?;
    }
    say!("\nsamples  {}", args.out.join("mix.jsonl").display())?;
    say!("mixing   {}", args.out.join("mixing").display())?;
    Ok(())
}
