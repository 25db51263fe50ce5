//! How much memory a run of ScaleBiO will take on each device, from a model's config.json, before anything is loaded:
//! `scalebio plan`, without installing it.
//!
//! Without arguments: the seven models of the paper at its settings, a line a model and placement.
//!
//! ```text
//! cargo run --release --example memory_plan
//! cargo run --release --example memory_plan -- --config config.json --batch 64 --micro-batch 8 --lisa-blocks 2 --devices 8
//! ```

use std::process::ExitCode;

#[path = "../../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("plan"))
}
