//! How likely a Hugging Face checkpoint finds texts.
//!
//! `cargo run --release --example score -- HF_DIR --texts FILE.json`
//!
//! FILE.json is a list of objects with a `text`. Prints one line of JSON a text: `text`, `tokens` (ids), `mean_nll` (of each
//! token given those before it, in nats; null for a single token) and `last_argmax` (the most likely next token).

use std::{error::Error, fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use scalebio::{
    burn::tensor::{Int, Tensor},
    data::Tokenizer,
    models::{CausalLm, token_losses},
};
use serde::Deserialize;
use serde_json::json;

/// How likely a checkpoint finds texts.
#[derive(Debug, Parser)]
struct Args {
    /// Folder with config.json, model.safetensors (or its shards) and tokenizer.json
    hf_dir: PathBuf,

    /// A JSON list of objects with a `text`
    #[arg(long, value_name = "FILE")]
    texts: PathBuf,

    /// Where to compute: flex, ndarray, wgpu[:cpu|:N] or cuda[:N]
    #[arg(long, value_name = "NAME", default_value = "flex")]
    device: String,
}

#[derive(Debug, Deserialize)]
struct Record {
    text: String,
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
    let named = |e: &dyn Error| format!("{}: {e}", args.texts.display());
    let texts = fs::read(&args.texts).map_err(|e| named(&e))?;
    let records: Vec<Record> = serde_json::from_slice(&texts).map_err(|e| named(&e))?;

    let device = scalebio::device(&args.device)?;
    let model = CausalLm::from_pretrained(&args.hf_dir, &device)?;
    let tokenizer = Tokenizer::from_pretrained(&args.hf_dir)?;
    tokenizer.check_vocabulary(model.vocabulary_size())?;

    for Record { text } in records {
        let tokens = tokenizer.tokens(&text)?;
        let longest = model.longest_sequence();
        if tokens.is_empty() || tokens.len() > longest {
            let found = tokens.len();
            return Err(
                format!("`{text}` has {found} tokens, but must have from 1 to {longest}").into(),
            );
        }
        let row: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::<1, Int>::from_data(row.as_slice(), &device).unsqueeze::<2>();
        let logits = model.logits(ids.clone(), ids.ones_like());
        let last = logits.clone().narrow(1, tokens.len() - 1, 1);
        let last_argmax = last.argmax(2).into_data().iter::<i64>().next();
        let losses = token_losses(logits, ids).into_data();
        let mean_nll = losses.iter::<f64>().sum::<f64>() / (tokens.len() - 1) as f64;
        println!(
            "{}",
            json!({
                "text": text,
                "tokens": tokens,
                "mean_nll": mean_nll,
                "last_argmax": last_argmax,
            })
        );
    }
    Ok(())
}
