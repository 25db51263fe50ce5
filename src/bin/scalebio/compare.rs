//! ScaleBiO beside other methods.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use scalebio::train::{Compare, CompareConfig, Comparison, Job, Method, ReweightConfig};

use super::report;
use super::training::{TRAINING, Training};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");

/// Compares ScaleBiO with other methods: each chooses the training data, the same model is trained on each choice for as many
/// tokens, and the losses on the test set are reported.
///
/// Every method runs with every seed in a process of its own. Start again with the same --out to go on after an interruption,
/// or to add methods or seeds: what is finished is not run again.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    /// Folder with train_<source>.jsonl (or .json), val.jsonl and test.jsonl
    #[arg(long, value_name = "DIR", default_value = SHIPPED, hide_default_value = true,
          help = "Folder with train_<source>.jsonl (or .json), val.jsonl and test.jsonl [default: the data of this example]")]
    data: PathBuf,

    #[command(flatten)]
    training: Training,

    /// Methods, separated by commas: scalebio, uniform, proportional, less, rho-loss, alignment, doremi, validation (training on
    /// the validation set itself) [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = method)]
    methods: Option<Vec<Method>>,

    /// Number of seeds, counted from --seed
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u64,

    /// Training tokens of each fine-tuning [default: what the steps take on samples of average length]
    #[arg(long, value_name = "N", help_heading = TRAINING)]
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

    /// Folder of the comparison [default: the next free runs/compare-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Run one job of the comparison that is in a folder: its method and its seed
    #[arg(long, hide = true, num_args = 3)]
    job: Option<Vec<String>>,
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

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if let Some(job) = &args.job {
        return run_job(job);
    }
    let out = args.out.clone().unwrap_or_else(next_free_folder);
    let compare = Compare::open(args.config(), &out)?;
    let (all, remaining) = (compare.jobs().len(), compare.remaining());
    let finished = all - remaining.len();
    if finished > 0 {
        println!(
            "{finished} of {all} runs are finished in {}\n",
            out.display()
        );
    }
    println!(
        "{:>7}  {:<14} {:>6} {:>10} {:>12}",
        "run", "method", "seed", "test loss", "seconds"
    );
    for (index, job) in remaining.iter().enumerate() {
        start(&out, job)?;
        let run = compare.run(job)?; // read, since it is finished
        println!(
            "{:>3}/{all:<3}  {:<14} {:>6} {:>10.4} {:>12.1}",
            finished + index + 1,
            run.method,
            run.seed,
            run.test.sample_loss,
            run.cost.seconds
        );
    }
    let comparison = compare.finish()?;
    println!("\n{}", table(&comparison));
    for sentence in report::sentences(&comparison) {
        println!("{sentence}");
    }
    println!("\nresults  {}", out.join("comparison.json").display());
    println!("report   {}", report::write(&out, None)?.display());
    Ok(())
}

/// A job in a process of its own, so that the memory of one method is not that of another.
fn start(out: &Path, job: &Job) -> Result<(), Box<dyn Error>> {
    let status = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--job")
        .arg(out)
        .args([job.method.name(), &job.seed.to_string()])
        .status()?;
    if status.success() {
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

fn run_job(job: &[String]) -> Result<(), Box<dyn Error>> {
    let [folder, name, seed] = job else {
        return Err("--job takes a folder, a method and a seed".into());
    };
    let (compare, seed) = (Compare::resume(folder)?, seed.parse::<u64>()?);
    let jobs = compare.jobs();
    let same = |job: &&Job| job.method.name() == name && job.seed == seed;
    let job = jobs
        .iter()
        .find(same)
        .ok_or_else(|| format!("{folder}: the comparison has no run of {name} with seed {seed}"))?;
    compare.run(job)?;
    Ok(())
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
