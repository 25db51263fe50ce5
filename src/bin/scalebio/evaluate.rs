//! Measures the loss of a Hugging Face checkpoint on held-out files, and its answers to questions.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use scalebio::models::Dtype;
use scalebio::train::{EvaluateConfig, PromptStyle, evaluate};

use super::console::{print, say};

const EXAMPLES: &str = "\
A file of {\"question\", \"answer\"} records is asked, and the answers are compared as in GSM8K and MATH.

Examples:
  scalebio evaluate runs/tuned/model DIR/test.jsonl
  scalebio evaluate HF_DIR gsm8k.jsonl --prompt chat --answer-tokens 512 --json report.json";

/// Measure the loss of a checkpoint on held-out files, and its answers to questions
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder with config.json, model.safetensors (or its shards) and tokenizer.json
    hf_dir: PathBuf,

    /// Files of records
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Floating type of the model: float32 or bfloat16 (bf16)
    #[arg(long, value_name = "TYPE", default_value_t = Dtype::default())]
    dtype: Dtype,

    /// tokenizer.json to use [default: the one in the model's folder]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Samples computed at a time
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,

    /// Longest sample in tokens; longer texts are cut, longer responses truncated
    /// [default: 1024, or the positions of the model]
    #[arg(long, verbatim_doc_comment, value_name = "N")]
    max_length: Option<usize>,

    /// How questions are asked: alpaca, chat (the model's chat template)
    /// or plain
    #[arg(long, verbatim_doc_comment, value_name = "STYLE", default_value = "alpaca", value_parser = style)]
    prompt: PromptStyle,

    /// Tokens after which an answer ends
    #[arg(long, value_name = "N", default_value_t = 256)]
    answer_tokens: usize,

    /// Where to compute: flex, ndarray, wgpu[:cpu|:N], cuda[:N] or
    /// ws://HOST:PORT[/N]
    #[arg(
        long,
        value_name = "NAME",
        verbatim_doc_comment,
        default_value = "flex"
    )]
    device: String,

    /// Write the report to this file; `-` prints it instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn style(name: &str) -> Result<PromptStyle, String> {
    match name {
        "alpaca" => Ok(PromptStyle::Alpaca),
        "chat" => Ok(PromptStyle::Chat),
        "plain" => Ok(PromptStyle::Plain),
        _ => Err("use alpaca, chat or plain".to_owned()),
    }
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let report = evaluate(&EvaluateConfig {
        dtype: args.dtype,
        tokenizer: args.tokenizer.clone(),
        batch: args.batch,
        max_length: args.max_length,
        prompt: args.prompt,
        answer_tokens: args.answer_tokens,
        device: args.device.clone(),
        ..EvaluateConfig::new(&args.hf_dir, args.files.clone())
    })?;
    let json = serde_json::to_string_pretty(&report)?;
    match &args.json {
        Some(file) if file.as_os_str() == "-" => say!("{json}")?,
        Some(file) => {
            fs::write(file, json + "\n").map_err(|e| format!("{}: {e}", file.display()))?;
            print(format_args!("{report}"))?;
        }
        None => print(format_args!("{report}"))?,
    }
    Ok(())
}
