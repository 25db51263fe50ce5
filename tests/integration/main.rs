//! The one integration test binary: each binary links Burn again. One file a promise; everything goes
//! through the public API.
#![allow(clippy::unwrap_used)]

mod closed_forms;
mod layers;
mod properties;
mod reweighting;
mod solver;
mod zoo;
