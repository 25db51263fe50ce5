//! Learns how much each source of a language model's training data should count.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use scalebio::burn::module::Module;
use scalebio::reweight::SourceWeights;
use scalebio::train::{Experiment, OptimizerKind, ReweightConfig, Status, WeightsReport};

use super::console::{bar, note, print, say};
use super::record::Record;
use super::table;
use super::training::{COMPUTING, TRAINING, Training};

const EXAMPLES: &str = "\
A step trains on a batch of the sources, and as many samples of the validation set, or all if there
are fewer. The seed gives the same weights again on the same machine. weights.json and metrics.jsonl
grow in the folder of the run, whose config.toml holds all flags and repeats it.

Examples:
  scalebio reweight                                       # the shipped data, a small model
  scalebio reweight --data DIR --model HF_DIR --dtype bf16 --lisa-blocks 2 --out runs/a
  scalebio reweight --config runs/a/config.toml --seed 1 --out runs/b";

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// Learn source weights for which the trained model does best on val.jsonl
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true, after_help = EXAMPLES)]
pub struct Args {
    /// Folder with train_<source>.jsonl (or .json) for each source, val.jsonl
    /// and, if there is one, test.jsonl [default: the data that ship with scalebio]
    #[arg(long, value_name = "DIR", verbatim_doc_comment, default_value = SHIPPED, hide_default_value = true)]
    data: PathBuf,

    #[command(flatten)]
    training: Training,

    /// Penalty on the model's distance from the minimum of the training loss
    #[arg(long, value_name = "A", help_heading = TRAINING, default_value_t = defaults().alpha)]
    alpha: f64,

    /// Learning rate of the model and of its auxiliary copy
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value_t = defaults().lr_lower)]
    lr_lower: f64,

    /// Learning rate of the source weights' logits
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value_t = defaults().lr_upper)]
    lr_upper: f64,

    /// Optimizer of model, copy and source weights: adamw or sgd
    #[arg(long, value_name = "NAME", help_heading = TRAINING, default_value = "adamw", value_parser = optimizer)]
    optimizer: OptimizerKind,

    /// Clip the model's gradients at this norm times the penalty; 0: do not
    #[arg(long, value_name = "C", help_heading = TRAINING, default_value_t = defaults().clip.unwrap_or(0.0))]
    clip: f64,

    /// Compute gradients block by block: less memory for one more forward pass
    /// [default: with LISA]
    #[arg(long, value_name = "BOOL", verbatim_doc_comment, hide_possible_values = true, help_heading = COMPUTING, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    blockwise: Option<bool>,

    /// Compute the gradients of model and auxiliary copy at the same time:
    /// more memory, the same results
    #[arg(long, verbatim_doc_comment, help_heading = COMPUTING)]
    parallel: bool,

    /// Save the trained model as a Hugging Face folder beside the weights
    #[arg(long)]
    save_model: bool,

    /// Do not train on learned and on uniform weights afterwards,
    /// to compare their losses on test.jsonl
    #[arg(long, verbatim_doc_comment)]
    no_compare: bool,

    /// Start also if the memory that the run will take is not there
    #[arg(long, help_heading = COMPUTING)]
    force: bool,

    /// Folder for the files of the run; one that holds a run is an error
    /// [default: the next free runs/reweight-N]
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    out: Option<PathBuf>,
}

fn defaults() -> ReweightConfig {
    ReweightConfig::new(SHIPPED)
}

fn optimizer(name: &str) -> Result<OptimizerKind, String> {
    match name {
        "adamw" => Ok(OptimizerKind::AdamW),
        "sgd" => Ok(OptimizerKind::Sgd),
        _ => Err("use adamw or sgd".to_owned()),
    }
}

impl Args {
    fn config(&self) -> ReweightConfig {
        ReweightConfig {
            data: self.data.clone(),
            model: self.training.model.clone(),
            dtype: self.training.dtype,
            tokenizer: self.training.tokenizer.clone(),
            steps: self.training.steps,
            batch: self.training.batch,
            micro_batch: self.training.micro_batch,
            max_length: self.training.max_length,
            alpha: self.alpha,
            lr_lower: self.lr_lower,
            lr_upper: self.lr_upper,
            optimizer: self.optimizer,
            clip: (self.clip != 0.0).then_some(self.clip),
            lisa_blocks: self.training.lisa_blocks,
            lisa_period: self.training.lisa_period,
            blockwise: self.blockwise,
            parallel: self.parallel,
            seed: self.training.seed,
            device: self.training.device.clone(),
        }
    }
}

pub fn run(args: &Args, record: &Record) -> Result<(), Box<dyn Error>> {
    let experiment = Experiment::open(args.config())?;
    describe(&experiment)?;
    plan(&experiment, args.force)?;

    let out = args.out.clone().unwrap_or_else(next_free_folder);
    record.check(&out)?;
    let mut run = experiment.reweight(&out)?;
    record.save(&out)?;
    say!(
        "\nmodel with {} parameters, vocabulary {}, on {}",
        run.run().lower().num_params(),
        experiment.tokenizer().vocabulary_size(),
        args.training.device
    )?;
    let bar = bar("reweighting", args.training.steps);
    for step in run.by_ref() {
        let step = step?;
        if bar.is_hidden()
            && step
                .index()
                .is_multiple_of(args.training.steps.div_ceil(10))
        {
            note(format_args!("{step}")); // no terminal: a line now and then, so that a log shows life
        }
        bar.set_message(format!(
            "L1(w) {:.3}  L2(w) {:.3}  L2(u) {:.3}",
            step.upper_loss(),
            step.lower_loss(),
            step.auxiliary_loss()
        ));
        bar.inc(1);
    }
    bar.finish_and_clear();

    print_weights(&run.report())?;
    if let Some(peak) = memory("/proc/self/status", "VmHWM:") {
        say!("\nmemory   {} MB at the peak", peak / 1_000_000)?;
    }
    say!("weights  {}", run.weights_path().display())?;
    say!("metrics  {}", run.metrics_path().display())?;
    if args.save_model {
        say!("model    {}", run.save_model(&experiment)?.display())?;
    }
    if experiment.test().is_none() {
        say!("\nno test set (test.jsonl), so no comparison with uniform weights")?;
    } else if !args.no_compare {
        let (learned, reweighted) = (run.run().upper().clone(), run.run().lower().clone());
        drop(run); // u and what the optimizers remember: their memory is the next model's
        compare(&experiment, &learned, &reweighted)?;
    }
    Ok(())
}

fn describe(experiment: &Experiment) -> io::Result<()> {
    say!(
        "{:<24} {:>8} {:>8} {:>8}",
        "data",
        "records",
        "samples",
        "skipped"
    )?;
    let sets = [Some(experiment.validation()), experiment.test()];
    for source in experiment
        .sources()
        .iter()
        .chain(sets.into_iter().flatten())
    {
        say!(
            "{:<24} {:>8} {:>8} {:>8}",
            source.name,
            source.records,
            source.samples.len(),
            source.skipped
        )?;
    }
    Ok(())
}

/// Prints how much memory the run will take, and refuses what this machine does not have. What a GPU has is not known.
fn plan(experiment: &Experiment, force: bool) -> Result<(), Box<dyn Error>> {
    let plan = experiment.plan()?;
    say!("\nmemory as predicted, in MB, beside data and program")?;
    print(format_args!("{}", table::table(plan.devices(), table::MB)))?;
    let device = &experiment.config().device;
    if !matches!(device.as_str(), "flex" | "ndarray") {
        return Ok(());
    }
    if let Some(resident) = memory("/proc/self/status", "VmRSS:") {
        let peak = resident + plan.largest();
        say!(
            "with {} MB of data and program: {} MB",
            resident / 1_000_000,
            peak / 1_000_000
        )?;
    }
    match memory("/proc/meminfo", "MemAvailable:") {
        Some(available) if available < plan.largest() && !force => Err(format!(
            "the run takes {} MB more, as predicted, but this machine has {} MB available; \
             set a smaller --micro-batch, --lisa-blocks or --dtype bf16, or start with --force",
            plan.largest() / 1_000_000,
            available / 1_000_000
        )
        .into()),
        _ => Ok(()),
    }
}

/// Bytes that Linux states in a file under a name; nothing on other systems.
fn memory(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn print_weights(report: &WeightsReport) -> io::Result<()> {
    let uniform = 1.0 / report.sources.len() as f64;
    say!("\n{:<24} {:>8} {:>8}", "source", "samples", "weight")?;
    for source in &report.sources {
        let bar = "#".repeat((source.weight * 60.0).round() as usize);
        say!(
            "{:<24} {:>8} {:>8.4}  {bar}",
            source.name,
            source.samples,
            source.weight
        )?;
    }
    say!("{:<24} {:>8} {uniform:>8.4}", "(uniform)", "")?;
    say!(
        "\nafter {} steps: {}",
        report.step,
        match report.status {
            Status::Converged => "the weights have settled".to_owned(),
            _ => format!(
                "the weights were still moving when the learning rates were used up (reach {:.2}): \
                 take more steps or a larger --lr-upper to let them go further",
                report.reach
            ),
        }
    )
}

/// Trains two models afresh, from one initialization and on the same batches of each source, with the
/// learned weights and with uniform ones.
fn compare(
    experiment: &Experiment,
    learned: &SourceWeights,
    reweighted: &scalebio::models::CausalLm,
) -> Result<(), Box<dyn Error>> {
    let Some(test) = experiment.test() else {
        return Ok(());
    };
    let mut losses = Vec::new();
    for (name, weights) in [
        ("learned", learned.clone()),
        ("uniform", experiment.uniform_weights()?),
    ] {
        let mut training = experiment.train(weights)?;
        let bar = bar(
            &format!("training on {name} weights"),
            experiment.config().steps,
        );
        for loss in training.by_ref() {
            bar.set_message(format!("L2 {:.3}", loss?));
            bar.inc(1);
        }
        bar.finish_and_clear();
        losses.push(experiment.mean_loss(training.model(), test));
    }
    say!("\ntest loss of a model trained afresh")?;
    say!("  on the learned weights {:>8.4}", losses[0])?;
    say!("  on uniform weights     {:>8.4}", losses[1])?;
    say!(
        "  (for information: w itself, which has seen the validation set, {:.4})",
        experiment.mean_loss(reweighted, test)
    )?;
    Ok(())
}

fn next_free_folder() -> PathBuf {
    (1..)
        .map(|n| PathBuf::from(format!("runs/reweight-{n}")))
        .find(|folder| !folder.exists())
        .unwrap_or_else(|| PathBuf::from("runs/reweight"))
}
