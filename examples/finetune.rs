//! Trains a base model on one file of records, for instance the mix that `resample` drew.
//!
//! ```text
//! cargo run --release --example finetune -- runs/mix/mix.jsonl --val examples/data/val.jsonl --out runs/finetuned
//! ```

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use scalebio::models::Dtype;
use scalebio::train::{FinetuneConfig, Finetuning};

/// Trains a base model on one file of records with AdamW, and saves it as a Hugging Face folder.
#[derive(Debug, Parser)]
#[command(allow_negative_numbers = true)]
struct Args {
    /// File of records to train on
    data: PathBuf,

    /// File of records to measure the loss on, at the end and, with --evaluate-every, on the way
    #[arg(long, value_name = "FILE")]
    val: Option<PathBuf>,

    /// Steps between two measurements on the file of --val [default: only after the last step]
    #[arg(long, value_name = "N")]
    evaluate_every: Option<usize>,

    /// Hugging Face folder of the base model [default: a small GPT-2 with random weights: width 128, 2 blocks, 4 heads]
    #[arg(long, value_name = "HF_DIR")]
    model: Option<PathBuf>,

    /// Floating type in which the model is held, computed and saved: float32 or bfloat16 (bf16), which takes half the memory;
    /// its updates are still summed in float32
    #[arg(long, value_name = "TYPE", default_value_t = defaults().dtype)]
    dtype: Dtype,

    /// tokenizer.json to use [default: the one in the model's folder; without --model, a byte-level BPE trained on the data]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Steps of the run; the learning rate falls to 0 over them
    #[arg(long, value_name = "N", default_value_t = defaults().steps)]
    steps: usize,

    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = defaults().batch)]
    batch: usize,

    /// Samples computed at a time, to save memory; results stay the same up to rounding [default: the whole batch]
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,

    /// Longest sample in tokens; longer texts are cut into pieces, longer responses truncated
    #[arg(long, value_name = "N", default_value_t = defaults().max_length)]
    max_length: usize,

    /// Learning rate, on a cosine with 3 % warm-up; 1e-5 is usual for a large pretrained model
    #[arg(long, value_name = "X", default_value_t = defaults().learning_rate)]
    lr: f64,

    /// Clip gradients at this global norm; 0 for no clipping
    #[arg(long, value_name = "C", default_value_t = defaults().clip.unwrap_or(0.0))]
    clip: f64,

    /// Train only this many blocks at a time, with embeddings and head (LISA) [default: all blocks]
    #[arg(long, value_name = "N")]
    lisa_blocks: Option<usize>,

    /// Steps after which LISA draws other blocks
    #[arg(long, value_name = "K", default_value_t = defaults().lisa_period)]
    lisa_period: usize,

    /// Seed of the initial values and of all draws; a seed gives the same model again on the same machine
    #[arg(long, value_name = "S", default_value_t = defaults().seed)]
    seed: u64,

    /// Where to compute: flex, ndarray, wgpu[:cpu|:N] or cuda[:N]
    #[arg(long, value_name = "NAME", default_value_t = defaults().device)]
    device: String,

    /// Folder for the files of the run; one that already holds a run is an error
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn defaults() -> FinetuneConfig {
    FinetuneConfig::new("")
}

impl Args {
    fn config(&self) -> FinetuneConfig {
        FinetuneConfig {
            data: self.data.clone(),
            validation: self.val.clone(),
            evaluate_every: self.evaluate_every,
            model: self.model.clone(),
            dtype: self.dtype,
            tokenizer: self.tokenizer.clone(),
            steps: self.steps,
            batch: self.batch,
            micro_batch: self.micro_batch,
            max_length: self.max_length,
            learning_rate: self.lr,
            clip: (self.clip != 0.0).then_some(self.clip),
            lisa_blocks: self.lisa_blocks,
            lisa_period: self.lisa_period,
            seed: self.seed,
            device: self.device.clone(),
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut run = Finetuning::start(args.config(), &args.out)?;
    let bar = bar(args.steps);
    for step in run.by_ref() {
        let step = step?;
        if let Some(loss) = step.validation_loss {
            bar.suspend(|| println!("after step {}: validation loss {loss:.4}", step.step + 1));
        }
        if bar.is_hidden() && step.step.is_multiple_of(args.steps.div_ceil(10)) {
            eprintln!("step {}: loss {:.4}", step.step, step.loss); // a log shows life
        }
        bar.set_message(format!("loss {:.3}", step.loss));
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("metrics  {}", run.metrics_path().display());
    println!("model    {}", run.save_model()?.display());
    Ok(())
}

fn bar(steps: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len}, {eta} left  {msg}") {
        bar.set_style(style);
    }
    bar
}
