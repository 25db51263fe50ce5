//! Flags for weights that are less noise, and runs of several seeds.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use clap::Args;
use scalebio::train::{Experiment, SeedsReport, Stability};

use super::console::{bar, say};
use super::record::Record;

/// Heading of the help.
const HEADING: &str = "Stability of the weights (all off by default)";

#[derive(Args, Debug)]
pub struct Flags {
    /// Stop when every weight stayed within a range below this over the last steps
    /// (see --stop-window), for instance 0.005; learning rates that fall to 0
    /// bring that about too, late in a run
    #[arg(long, verbatim_doc_comment, value_name = "EPS", help_heading = HEADING)]
    stop_below: Option<f64>,

    /// Steps over which the weights must have stayed so
    #[arg(long, value_name = "N", help_heading = HEADING, default_value_t = Stability::default().stop_window)]
    stop_window: usize,

    /// Strength of a pull to the prior: adds STRENGTH * KL(weights, prior) to the
    /// validation loss, and biases the answer towards the prior; weights of
    /// sources that are equally useful become those of the prior
    #[arg(long, verbatim_doc_comment, value_name = "STRENGTH", help_heading = HEADING, default_value_t = 0.0)]
    pull: f64,

    /// What --pull pulls to, for all sources: NAME=SHARE,NAME=SHARE,...
    /// [default: equal shares]
    #[arg(long, verbatim_doc_comment, value_name = "SHARES", help_heading = HEADING, value_delimiter = ',', value_parser = share)]
    prior: Vec<(String, f64)>,

    /// No weight below this: weights are
    /// P + (1 - sources * P) softmax(logits)
    #[arg(long, verbatim_doc_comment, value_name = "P", help_heading = HEADING, default_value_t = 0.0)]
    floor: f64,

    /// Report the mean of the weights over this share of the steps (the last
    /// ones) beside the weights of the last step
    #[arg(long, verbatim_doc_comment, value_name = "SHARE", help_heading = HEADING)]
    average: Option<f64>,

    /// Run once for each of these seeds, and report the mean and the spread of
    /// the weights
    #[arg(long, verbatim_doc_comment, value_name = "S,S,...", help_heading = HEADING, value_delimiter = ',', conflicts_with_all = ["seed", "save_model"])]
    pub seeds: Vec<u64>,
}

fn share(text: &str) -> Result<(String, f64), String> {
    let (name, share) = text.rsplit_once('=').ok_or("write NAME=SHARE")?;
    let share = share.parse().map_err(|_| "the share is not a number")?;
    Ok((name.to_owned(), share))
}

impl Flags {
    pub fn settings(&self) -> Stability {
        let prior: BTreeMap<_, _> = self.prior.iter().cloned().collect();
        Stability {
            stop_below: self.stop_below,
            stop_window: self.stop_window,
            pull: self.pull,
            prior: (!prior.is_empty()).then_some(prior),
            floor: self.floor,
            average: self.average,
        }
    }
}

/// Learns the weights once for each seed.
pub fn run_seeds(
    experiment: Experiment,
    seeds: &[u64],
    out: &Path,
    record: &Record,
) -> Result<(), Box<dyn Error>> {
    let steps = experiment.config().steps;
    let first = experiment.ranks().is_first();
    let mut runs = experiment.seeds(seeds, out)?;
    if first {
        fs::create_dir_all(out)?;
        record.save(out)?;
    }
    let bar = bar("reweighting", steps * seeds.len());
    while let Some(step) = runs.next() {
        step?;
        let done = runs.reports().len();
        bar.set_message(format!("{done} of {} seeds done", seeds.len()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    print_spread(&runs.report()?)?;
    say!("\nspread   {}", runs.summary_path().display())?;
    Ok(())
}

fn print_spread(report: &SeedsReport) -> io::Result<()> {
    say!(
        "\n{:<24} {:>8} {:>8} {:>8} {:>8}",
        "source",
        "mean",
        "deviation",
        "lowest",
        "highest"
    )?;
    for source in &report.sources {
        say!(
            "{:<24} {:>8.4} {:>8.4} {:>8.4} {:>8.4}",
            source.name,
            source.spread.mean,
            source.spread.deviation,
            source.spread.lowest,
            source.spread.highest
        )?;
    }
    for ((seed, steps), status) in report.seeds.iter().zip(&report.steps).zip(&report.statuses) {
        say!("seed {seed}: {steps} steps, {status}")?;
    }
    Ok(())
}
