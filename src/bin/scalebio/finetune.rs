//! Trains a base model on one file of records, for instance the mix that `resample` drew.

use std::error::Error;
use std::path::PathBuf;

use scalebio::train::{FinetuneConfig, Finetuning};

use super::console::{bar, note, say};
use super::record::Record;
use super::training::{Streaming, TRAINING, Training, index_beside};

const EXAMPLES: &str = "\
AdamW on a cosine; the seed gives the same model again on the same machine. model/ and metrics.jsonl
come into the folder of the training, whose config.toml holds all flags and repeats it.

Examples:
  scalebio finetune runs/mix/mix.jsonl --model HF_DIR --lr 1e-5 --out runs/tuned
  scalebio finetune --config runs/tuned/config.toml --seed 1 --out runs/tuned-1";

/// Train a base model on one file of records, and save it as a Hugging Face folder
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true, after_help = EXAMPLES)]
pub struct Args {
    /// File of records to train on
    data: PathBuf,

    /// File of records to measure the loss on, at the end and,
    /// with --evaluate-every, on the way
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    val: Option<PathBuf>,

    /// Steps between two measurements on the file of --val
    /// [default: only after the last step]
    #[arg(long, value_name = "N", verbatim_doc_comment)]
    evaluate_every: Option<usize>,

    #[command(flatten)]
    training: Training,

    #[command(flatten)]
    streaming: Streaming,

    /// Learning rate, on a cosine with 3 % warm-up;
    /// 1e-5 is usual for a large pretrained model
    #[arg(long, verbatim_doc_comment, value_name = "X", help_heading = TRAINING, default_value_t = defaults().learning_rate)]
    lr: f64,

    /// Clip gradients at this global norm; 0 for no clipping
    #[arg(long, value_name = "C", help_heading = TRAINING, default_value_t = defaults().clip.unwrap_or(0.0))]
    clip: f64,

    /// Folder for the files of the training; one that holds a run is an error
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
            stream: self.streaming.stream,
            index: Some(index_beside(&self.out)),
        }
    }
}

pub fn run(args: &Args, record: &Record) -> Result<(), Box<dyn Error>> {
    record.check(&args.out)?;
    let mut run = Finetuning::start(args.config(), &args.out)?;
    record.save(&args.out)?;
    let bar = bar("training", args.training.steps);
    for step in run.by_ref() {
        let step = step?;
        if let Some(loss) = step.validation_loss {
            bar.suspend(|| say!("after step {}: validation loss {loss:.4}", step.step + 1))?;
        }
        if bar.is_hidden() && step.step.is_multiple_of(args.training.steps.div_ceil(10)) {
            note(format_args!("step {}: loss {:.4}", step.step, step.loss)); // a log shows life
        }
        bar.set_message(format!("loss {:.3}", step.loss));
        bar.inc(1);
    }
    bar.finish_and_clear();
    say!("metrics  {}", run.metrics_path().display())?;
    say!("model    {}", run.save_model()?.display())?;
    Ok(())
}
