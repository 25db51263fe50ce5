//! Compares a Hugging Face checkpoint, as this crate runs it, with the outputs of transformers.
//!
//! `cargo run --release --example check_model -- HF_DIR EXPECTED.safetensors`
//!
//! Prints one line of JSON. The exit status is 0 only if logits, losses and gradients are within the tolerances.
//! tests/fixtures/README.md says what EXPECTED.safetensors holds and which program makes it.

mod compare;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Compares a checkpoint, as this crate runs it, with the outputs of transformers.
#[derive(Parser)]
struct Arguments {
    /// Folder with config.json and model.safetensors.
    hf_dir: PathBuf,
    /// The reference: input_ids, attention_mask, labels, logits, token_nll and the gradients.
    expected: PathBuf,
    /// Largest absolute error of logits and losses; gradients may have ten times that, relatively.
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
    /// Where to run: flex, ndarray, wgpu[:cpu|:N] or cuda[:N].
    #[arg(long, default_value = "flex")]
    device: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let device = scalebio::device(&arguments.device)?;
    let report = compare::compare(&arguments.hf_dir, &arguments.expected, &device)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(report.within(arguments.tolerance))
}
