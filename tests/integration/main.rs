//! The one integration test binary: each binary links Burn again. One file a promise; everything goes
//! through the public API.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod closed_forms;
#[cfg(feature = "llm")]
#[path = "../../examples/check_model/compare.rs"]
mod compare;
#[cfg(feature = "llm")]
mod data_corpus;
#[cfg(feature = "llm")]
mod data_records;
#[cfg(feature = "llm")]
mod data_tokens;
mod device;
#[cfg(feature = "llm")]
mod gpt2;
mod layers;
#[cfg(feature = "llm")]
mod pretrained;
mod properties;
mod reweighting;
mod solver;
mod zoo;
