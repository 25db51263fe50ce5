//! ScaleBiO beside other methods.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scalebio::train::{Compare, CompareConfig, Comparison, Job, Method, ReweightConfig};

use super::console::{note, print, say};
use super::record::Record;
use super::report;
use super::training::{TRAINING, Training};

const EXAMPLES: &str = "\
Each method chooses the training data, the same model is trained on each choice for as many tokens, and
its loss on the test set is measured. Every method runs with every seed in a process of its own. Start
again with the same --out to go on after an interruption, or to add methods or seeds: what is finished
is not run again. comparison.json gets all numbers, report.html shows them.

Examples:
  scalebio compare --data DIR --model HF_DIR --steps 500 --lr-lower 1e-5 --out runs/compare
  scalebio compare --methods scalebio,uniform,less --seeds 5";

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// Compare ScaleBiO with other methods
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder with train_<source>.jsonl (or .json) for each source, val.jsonl
    /// and test.jsonl [default: the data that ship with scalebio]
    #[arg(long, value_name = "DIR", verbatim_doc_comment, default_value = SHIPPED, hide_default_value = true)]
    data: PathBuf,

    #[command(flatten)]
    training: Training,

    /// Methods, separated by commas: scalebio, uniform, proportional, less,
    /// rho-loss, alignment, doremi and validation, which trains on the
    /// validation set itself [default: all]
    #[arg(long, value_name = "NAMES", verbatim_doc_comment, value_delimiter = ',', value_parser = method)]
    methods: Option<Vec<Method>>,

    /// Number of seeds, counted from --seed; three show what is chance
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,

    /// Training tokens of each fine-tuning
    /// [default: what the steps take on samples of average length]
    #[arg(long, value_name = "N", help_heading = TRAINING, verbatim_doc_comment)]
    tokens: Option<u64>,

    /// Penalty of ScaleBiO
    #[arg(long, value_name = "A", help_heading = TRAINING, default_value_t = defaults().alpha)]
    alpha: f64,

    /// Learning rate of every model
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value_t = defaults().lr_lower)]
    lr_lower: f64,

    /// Learning rate of ScaleBiO's logits
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value_t = defaults().lr_upper)]
    lr_upper: f64,

    /// Folder of the comparison; in one that holds it already, it goes on
    /// [default: the next free runs/compare-N]
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    out: Option<PathBuf>,

    /// Do one run only, in this process, for instance less:0: on a cluster, one
    /// machine a run; then start without it to compare all
    #[arg(
        long,
        value_name = "METHOD:SEED",
        verbatim_doc_comment,
        requires = "out"
    )]
    job: Option<String>,
}

fn defaults() -> ReweightConfig {
    ReweightConfig::new(SHIPPED)
}

fn method(name: &str) -> Result<Method, String> {
    name.parse()
        .map_err(|error: scalebio::Error| error.to_string())
}

impl Args {
    fn config(&self) -> CompareConfig {
        let training = &self.training;
        let experiment = ReweightConfig {
            model: training.model.clone(),
            dtype: training.dtype,
            tokenizer: training.tokenizer.clone(),
            steps: training.steps,
            batch: training.batch,
            micro_batch: training.micro_batch,
            max_length: training.max_length,
            alpha: self.alpha,
            lr_lower: self.lr_lower,
            lr_upper: self.lr_upper,
            lisa_blocks: training.lisa_blocks,
            lisa_period: training.lisa_period,
            device: training.device.clone(),
            ..ReweightConfig::new(&self.data)
        };
        let mut config = CompareConfig::new(experiment);
        config.seeds = (0..self.seeds)
            .map(|i| training.seed.wrapping_add(i))
            .collect();
        config.tokens = self.tokens;
        if let Some(methods) = &self.methods {
            config.methods.clone_from(methods);
        }
        config
    }
}

pub fn run(args: &Args, record: &Record) -> Result<(), Box<dyn Error>> {
    let out = args.out.clone().unwrap_or_else(next_free_folder);
    let compare = Compare::open(args.config(), &out)?;
    if let Some(job) = &args.job {
        compare.run(&find(&compare, job)?)?;
        return Ok(());
    }
    record.save(&out)?;
    let (all, remaining) = (compare.jobs().len(), compare.remaining());
    let finished = all - remaining.len();
    if finished > 0 {
        say!(
            "{finished} of {all} runs are finished in {}\n",
            out.display()
        )?;
    }
    for (index, job) in remaining.iter().enumerate() {
        let number = finished + index + 1;
        note(format_args!(
            "{number} of {all}: {} with seed {}",
            job.method, job.seed
        ));
        start(&out, args.out.is_some(), job)?;
        let run = compare.run(job)?; // read, since it is finished
        let (loss, seconds) = (run.test.sample_loss, run.cost.seconds);
        note(format_args!(
            "    test loss {loss:.4}; choosing the data took {seconds:.1} s"
        ));
    }
    let comparison = compare.finish()?;
    print(format_args!("{}", table(&comparison)))?;
    for sentence in report::sentences(&comparison) {
        say!("{sentence}")?;
    }
    say!("\nresults  {}", out.join("comparison.json").display())?;
    say!("report   {}", report::write(&out, None)?.display())?;
    Ok(())
}

/// A run in a process of its own, so that the memory of one method is not that of another.
fn start(out: &Path, out_is_given: bool, job: &Job) -> Result<(), Box<dyn Error>> {
    let mut process = Command::new(std::env::current_exe()?);
    process.args(std::env::args_os().skip(1));
    if !out_is_given {
        process.arg("--out").arg(out);
    }
    process
        .arg("--job")
        .arg(format!("{}:{}", job.method, job.seed));
    if process.stdout(Stdio::null()).status()?.success() {
        return Ok(());
    }
    Err(format!(
        "the run of {} with seed {} failed; start again with --out {} to go on",
        job.method,
        job.seed,
        out.display()
    )
    .into())
}

fn find(compare: &Compare, name: &str) -> Result<Job, String> {
    let jobs = compare.jobs().into_iter();
    let found = jobs
        .into_iter()
        .find(|job| format!("{}:{}", job.method, job.seed) == name);
    found.ok_or_else(|| format!("--job {name}: the comparison has no such run; its runs are METHOD:SEED, for instance scalebio:0"))
}

/// Both tables as markdown: what each method came to, and its weights.
fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (head, rows) in [
        (
            report::HEAD.map(str::to_owned).to_vec(),
            report::rows(comparison),
        ),
        report::weights(comparison),
    ] {
        text += &format!("| {} |\n", head.join(" | "));
        text += &format!("|---{}|\n", "|---:".repeat(head.len() - 1));
        for row in rows {
            text += &format!("| {} |\n", row.join(" | ").replace('\n', " "));
        }
        text.push('\n');
    }
    text
}

fn next_free_folder() -> PathBuf {
    (1..)
        .map(|n| PathBuf::from(format!("runs/compare-{n}")))
        .find(|folder| !folder.exists())
        .unwrap_or_else(|| PathBuf::from("runs/compare"))
}
