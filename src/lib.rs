//! A first-order bilevel optimiser on Burn (work in progress).

#![deny(missing_docs)]
#![warn(
    missing_debug_implementations,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

pub use burn;

#[cfg(feature = "llm")]
pub mod data;
mod error;

pub use error::{Error, Result};
