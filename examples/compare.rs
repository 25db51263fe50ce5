//! Compares ScaleBiO with other methods: `scalebio compare`, without installing it.
//!
//! Without arguments: the data of `examples/data`, a small GPT-2 from scratch, all methods, one seed.
//!
//! ```text
//! cargo run --release --example compare
//! cargo run --release --example compare -- --data DIR --model HF_DIR --methods scalebio,uniform,less --seeds 3
//! ```

use std::process::ExitCode;

#[path = "../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("compare"))
}
