//! Learns how much each source of a language model's training data should count.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use scalebio::burn::module::Module;
use scalebio::reweight::SourceWeights;
use scalebio::train::{
    Experiment, OptimizerKind, ReweightConfig, Reweighting, Status, WeightsReport,
};

use super::computing::{Computing, memory};
use super::console::{bar, progress, say};
use super::interrupt::{self, Interrupt};
use super::job::Job;
use super::record::Record;
use super::stability;
use super::training::{TRAINING, Training, index_beside};

const EXAMPLES: &str = "\
A step trains on a batch of the sources, and as many samples of the validation set, or all if there
are fewer. The seed gives the same weights again on the same machine. weights.json and metrics.jsonl
grow in the folder of the run, whose config.toml holds all flags and repeats it.

Examples:
  scalebio reweight                                       # the shipped data, a small model
  scalebio reweight --data DIR --model HF_DIR --dtype bf16 --lisa-blocks 2 --out runs/a
  scalebio reweight --config runs/a/config.toml --seed 1 --out runs/b
  scalebio reweight --resume runs/a                       # after Ctrl-C, or a crash
  mpirun -n 4 scalebio reweight --data DIR --out runs/a   # data-parallel (feature mpi)";

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// Heading of the help.
const STOPPING: &str = "Stopping and going on";

/// The flags that determine a run: one that goes on has those of its config.json.
const SETTINGS: &[&str] = &[
    "data",
    "model",
    "tokenizer",
    "dtype",
    "max_length",
    "steps",
    "batch",
    "seed",
    "device",
    "micro_batch",
    "lisa_blocks",
    "lisa_period",
    "alpha",
    "lr_lower",
    "lr_upper",
    "optimizer",
    "clip",
    "blockwise",
    "parallel",
    "offload",
    "stream",
    "stop_below",
    "stop_window",
    "pull",
    "prior",
    "floor",
    "average",
    "seeds",
    "out",
];

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

    /// Penalty on the model's distance from the minimum of the
    /// training loss
    #[arg(long, verbatim_doc_comment, value_name = "A", help_heading = TRAINING, default_value_t = defaults().alpha)]
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

    /// Clip the model's gradients at this norm times the
    /// penalty; 0: do not
    #[arg(long, verbatim_doc_comment, value_name = "C", help_heading = TRAINING, default_value_t = defaults().clip.unwrap_or(0.0))]
    clip: f64,

    #[command(flatten)]
    computing: Computing,

    #[command(flatten)]
    stability: stability::Flags,

    /// Go on with the run in this folder from its last checkpoint, with the
    /// settings of its config.json, as if it had not been interrupted
    #[arg(long, value_name = "DIR", verbatim_doc_comment, help_heading = STOPPING, conflicts_with_all = SETTINGS.iter().copied())]
    resume: Option<PathBuf>,

    /// Steps between two checkpoints [default: by time only]
    #[arg(long, value_name = "N", help_heading = STOPPING)]
    checkpoint_steps: Option<usize>,

    /// Minutes between two checkpoints: what an end without notice costs at
    /// most; 0 for none by time [default: 15]
    #[arg(long, value_name = "M", verbatim_doc_comment, help_heading = STOPPING)]
    checkpoint_minutes: Option<f64>,

    /// Save the trained model as a Hugging Face folder beside the weights
    #[arg(long)]
    save_model: bool,

    /// Do not train on learned and on uniform weights afterwards,
    /// to compare their losses on test.jsonl
    #[arg(long, verbatim_doc_comment)]
    no_compare: bool,

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
    fn settings(&self) -> ReweightConfig {
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
            seed: self.training.seed,
            device: self.training.device.clone(),
            stability: self.stability.settings(),
            ..self.computing.settings(defaults())
        }
    }

    /// The settings of the flags, or those of the run to go on with; when to write checkpoints may be said anew.
    fn config(&self) -> scalebio::Result<ReweightConfig> {
        let mut config = match &self.resume {
            Some(run) => self.computing.placed(ReweightConfig::read(run)?),
            None => self.settings(),
        };
        let run = self.resume.clone().or(self.out.clone());
        config.index = Some(index_beside(&run.unwrap_or_else(next_free_folder)));
        config.checkpoint_steps = self.checkpoint_steps.or(config.checkpoint_steps);
        if let Some(minutes) = self.checkpoint_minutes {
            config.checkpoint_minutes = (minutes != 0.0).then_some(minutes);
        }
        Ok(config)
    }
}

pub fn run(args: &Args, record: &Record) -> Result<(), Box<dyn Error>> {
    let mut job = Job::join(args.computing.rank_timeout())?;
    let outcome = scalebio::catch_lost_device(|| learn(args, record, &mut job));
    job.end(outcome)
}

fn learn(args: &Args, record: &Record, job: &mut Job) -> Result<(), Box<dyn Error>> {
    let ranks = job.ranks().clone();
    let experiment = ranks.together(args.config().and_then(|config| {
        let device_share = job.share();
        Experiment::open(ReweightConfig {
            device_share,
            ..config
        })
    }))?;
    let experiment = experiment.with_ranks(ranks.clone());
    describe(&experiment)?;
    args.computing.plan(&experiment, job.on_this_machine())?;

    let new_folder = || args.out.clone().unwrap_or_else(next_free_folder);
    if !args.stability.seeds.is_empty() {
        let out = new_folder();
        record.check(&out)?;
        stability::run_seeds(experiment, &args.stability.seeds, &out, record)?;
        return Ok(job.finish()?);
    }
    let (out, mut run) = match &args.resume {
        Some(out) => (out.clone(), experiment.resume(out)?),
        None => {
            let out = new_folder();
            if ranks.is_first() {
                record.check(&out)?;
            }
            let run = experiment.reweight(&out)?;
            if ranks.is_first() {
                record.save(&out)?;
            }
            (out, run)
        }
    };
    let interrupt = Interrupt::catch()?;
    say!(
        "\nmodel with {} parameters, vocabulary {}, on {}",
        run.run().lower().num_params(),
        experiment.tokenizer().vocabulary_size(),
        experiment.config().device_names().join(", ")
    )?;
    if ranks.count() > 1 {
        say!("{} ranks, each on its share of every batch", ranks.count())?;
    }
    if args.resume.is_some() {
        for damage in run.damaged() {
            say!("passed over: {damage}")?;
        }
        say!("going on after {} steps", run.run().steps())?;
    }
    take_steps(&mut run, &experiment, &interrupt, &out, job).map_err(|error| {
        match error.downcast_ref() {
            Some(scalebio::Error::Device { .. }) => how_to_go_on(&*error, &out),
            _ => error,
        }
    })?;
    interrupt.release();

    print_weights(&run.report())?;
    if let Some(peak) = memory("/proc/self/status", "VmHWM:") {
        say!("\nmemory   {} MB at the peak", peak / 1_000_000)?;
    }
    say!("weights  {}", run.weights_path().display())?;
    say!("metrics  {}", run.metrics_path().display())?;
    if args.save_model {
        say!("model    {}", run.save_model(&experiment)?.display())?;
    }
    job.finish()?;
    if !ranks.is_first() {
        return Ok(());
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

/// Takes all steps. If an end is asked for, of any rank, writes a checkpoint after the step and ends the program.
fn take_steps(
    run: &mut Reweighting,
    experiment: &Experiment,
    interrupt: &Interrupt,
    out: &Path,
    job: &mut Job,
) -> Result<(), Box<dyn Error>> {
    let steps = experiment.config().steps;
    let bar = bar("reweighting", steps);
    bar.set_position(run.run().steps() as u64);
    while let Some(step) = run.next() {
        let step = step?;
        if bar.is_hidden() && step.index().is_multiple_of(steps.div_ceil(10)) {
            progress(format_args!("{step}")); // no terminal: a line now and then, so that a log shows life
        }
        bar.set_message(format!(
            "L1(w) {:.3}  L2(w) {:.3}  L2(u) {:.3}",
            step.upper_loss(),
            step.lower_loss(),
            step.auxiliary_loss()
        ));
        bar.inc(1);
        let done = run.run().steps();
        if experiment.ranks().any(interrupt.is_asked())? && !run.is_over() {
            bar.finish_and_clear();
            let checkpoint = run.checkpoint()?;
            say!("\nstopped after {done} of {steps} steps")?;
            say!("checkpoint  {}", checkpoint.display())?;
            say!("go on with  --resume {}", out.display())?;
            job.finish()?;
            std::process::exit(interrupt::STATUS);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// A device that is lost takes `u` or more along, but not the last checkpoint.
fn how_to_go_on(error: &dyn Error, out: &Path) -> Box<dyn Error> {
    let words = match out.join("checkpoints").exists() {
        true => format!(
            "go on from the last checkpoint with --resume {} (and --devices for other devices)",
            out.display()
        ),
        false => {
            "there was no checkpoint yet (see --checkpoint-minutes), so start again".to_owned()
        }
    };
    format!("{error}; {words}").into()
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
    if experiment
        .sources()
        .iter()
        .any(|s| s.samples.in_memory().is_none())
    {
        say!("sources are read from their files as they are drawn")?;
    }
    Ok(())
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
    if let Some(average) = &report.average {
        say!("\naverage over the last {} steps", average.steps)?;
        for (name, weight) in &average.weights {
            say!("{name:<24} {:>8} {weight:>8.4}", "")?;
        }
    }
    say!(
        "\nafter {} steps: {}",
        report.step,
        match report.status {
            Status::Stopped =>
                "stopped, since the weights moved less than --stop-below over the last --stop-window steps"
                    .to_owned(),
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
        losses.push(experiment.mean_loss(training.model(), test)?);
    }
    say!("\ntest loss of a model trained afresh")?;
    say!("  on the learned weights {:>8.4}", losses[0])?;
    say!("  on uniform weights     {:>8.4}", losses[1])?;
    say!(
        "  (for information: w itself, which has seen the validation set, {:.4})",
        experiment.mean_loss(reweighted, test)?
    )?;
    Ok(())
}

fn next_free_folder() -> PathBuf {
    (1..)
        .map(|n| PathBuf::from(format!("runs/reweight-{n}")))
        .find(|folder| !folder.exists())
        .unwrap_or_else(|| PathBuf::from("runs/reweight"))
}
