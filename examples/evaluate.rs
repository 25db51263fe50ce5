//! Measures the loss of a Hugging Face checkpoint on held-out files, and its answers to questions: `scalebio evaluate`,
//! without installing it.
//!
//! ```text
//! cargo run --release --example evaluate -- HF_DIR test.jsonl gsm8k.jsonl --json report.json
//! ```

use std::process::ExitCode;

#[path = "../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("evaluate"))
}
