//! The one integration test binary: each binary links Burn again. One file a promise; everything goes
//! through the public API.
#![allow(clippy::unwrap_used)]

mod algebra;
mod autotraits;
mod closed_forms;
mod failures;
mod layers;
mod moments;
mod properties;
mod reweighting;
mod settings;
mod solver;
mod zoo;
