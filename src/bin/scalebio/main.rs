//! The program `scalebio`; `cargo install --path . --features cli` installs it.

use std::process::ExitCode;

#[path = "program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(None)
}
