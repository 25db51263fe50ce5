//! Trains a base model on one file of records, for instance the mix that `resample` drew: `scalebio finetune`, without
//! installing it.
//!
//! ```text
//! cargo run --release --example finetune -- runs/mix/mix.jsonl --val examples/data/val.jsonl --out runs/finetuned
//! ```

use std::process::ExitCode;

#[path = "../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("finetune"))
}
