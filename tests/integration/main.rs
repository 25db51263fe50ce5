//! The one integration test binary: each binary links Burn again. One file a promise; everything goes
//! through the public API.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "llm")]
mod data_corpus;
#[cfg(feature = "llm")]
mod data_records;
#[cfg(feature = "llm")]
mod data_tokens;
