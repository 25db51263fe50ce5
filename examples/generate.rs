//! Continues a text with a Hugging Face checkpoint, to look at what it says.
//!
//! `cargo run --release --example generate -- HF_DIR --prompt "Once upon a time"`

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::Parser;
use scalebio::{
    data::Tokenizer,
    models::{CausalLm, Sampling},
};

/// Continues a text with a checkpoint.
#[derive(Debug, Parser)]
struct Args {
    /// Folder with config.json, model.safetensors (or its shards) and tokenizer.json
    hf_dir: PathBuf,

    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    /// Tokens to add at most; an end of text ends it earlier
    #[arg(long, value_name = "N", default_value_t = 100)]
    tokens: usize,

    /// Temperature at which tokens are drawn [default: the most likely token is taken]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,

    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,

    /// Where to compute: flex, ndarray, wgpu[:cpu|:N] or cuda[:N]
    #[arg(long, value_name = "NAME", default_value = "flex")]
    device: String,
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
    let device = scalebio::device(&args.device)?;
    let model = CausalLm::from_pretrained(&args.hf_dir, &device)?;
    let tokenizer = Tokenizer::from_pretrained(&args.hf_dir)?;
    let sampling = match args.temperature {
        None => Sampling::Greedy,
        Some(temperature) => Sampling::Temperature {
            temperature,
            seed: args.seed,
        },
    };
    let mut tokens = tokenizer.tokens(&args.prompt)?;
    let added = model.generate(&tokens, sampling)?.take(args.tokens);
    let end = tokenizer.end_of_text();
    tokens.extend(added.take_while(|token| Some(*token) != end));
    println!("{}", tokenizer.text(&tokens)?);
    Ok(())
}
