//! The one integration test binary: each binary would link Burn again.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[cfg(feature = "llm")]
#[path = "../../examples/check_model/compare.rs"]
mod compare;
mod device;
#[cfg(feature = "llm")]
mod gpt2;
#[cfg(feature = "llm")]
mod pretrained;
