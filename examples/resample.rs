//! Draws a training set from the sources of a folder by learned weights: `scalebio resample`, without installing it.
//!
//! ```text
//! cargo run --release --example resample -- --weights runs/reweight-1/weights.json --samples 1000 --out runs/mix
//! ```

use std::process::ExitCode;

#[path = "../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("resample"))
}
