//! Lends devices of this machine to other machines: `scalebio serve`, without installing it.
//!
//! ```text
//! export SCALEBIO_TOKEN=$(openssl rand -hex 16)
//! cargo run --release --features remote --example device_server -- --device flex --listen 0.0.0.0:3000
//! ```

use std::process::ExitCode;

#[path = "../src/bin/scalebio/program.rs"]
mod program;

fn main() -> ExitCode {
    program::main(Some("serve"))
}
