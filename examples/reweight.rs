//! Learns how much each source of a language model's training data should count: `scalebio reweight`, without installing it.
//!
//! Without arguments: seven sources of text that ship in `examples/data`, a small GPT-2 from scratch.
//!
//! ```text
//! cargo run --release --example reweight
//! cargo run --release --example reweight -- --data DIR --model HF_DIR --steps 500
//! ```

use std::process::ExitCode;

#[path = "../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("reweight"))
}
