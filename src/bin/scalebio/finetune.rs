//! Trains a base model on one file of records, for instance the mix that `resample` drew.

use std::error::Error;
use std::path::PathBuf;

use scalebio::train::{FinetuneConfig, Finetuning};

use super::console::bar;
use super::training::{TRAINING, Training};

/// Trains a base model on one file of records with AdamW, and saves it as a Hugging Face folder.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    /// File of records to train on
    data: PathBuf,

    /// File of records to measure the loss on, at the end and, with --evaluate-every, on the way
    #[arg(long, value_name = "FILE")]
    val: Option<PathBuf>,

    /// Steps between two measurements on the file of --val [default: only after the last step]
    #[arg(long, value_name = "N")]
    evaluate_every: Option<usize>,

    #[command(flatten)]
    training: Training,

    /// Learning rate, on a cosine with 3 % warm-up; 1e-5 is usual for a large pretrained model
    #[arg(long, value_name = "X", help_heading = TRAINING, default_value_t = defaults().learning_rate)]
    lr: f64,

    /// Clip gradients at this global norm; 0 for no clipping
    #[arg(long, value_name = "C", help_heading = TRAINING, default_value_t = defaults().clip.unwrap_or(0.0))]
    clip: f64,

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
            model: self.training.model.clone(),
            dtype: self.training.dtype,
            tokenizer: self.training.tokenizer.clone(),
            steps: self.training.steps,
            batch: self.training.batch,
            micro_batch: self.training.micro_batch,
            max_length: self.training.max_length,
            learning_rate: self.lr,
            clip: (self.clip != 0.0).then_some(self.clip),
            lisa_blocks: self.training.lisa_blocks,
            lisa_period: self.training.lisa_period,
            seed: self.training.seed,
            device: self.training.device.clone(),
        }
    }
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut run = Finetuning::start(args.config(), &args.out)?;
    let bar = bar("training", args.training.steps);
    for step in run.by_ref() {
        let step = step?;
        if let Some(loss) = step.validation_loss {
            bar.suspend(|| println!("after step {}: validation loss {loss:.4}", step.step + 1));
        }
        if bar.is_hidden() && step.step.is_multiple_of(args.training.steps.div_ceil(10)) {
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
