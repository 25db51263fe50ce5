//! Writes a report on the folder of a run, one HTML page and its charts as SVG and PNG: `scalebio report`, without installing it.
//!
//! ```text
//! cargo run --release --example report -- runs/reweight-1
//! ```

use std::process::ExitCode;

#[path = "../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("report"))
}
