//! A first-order bilevel optimizer on [Burn](https://burn.dev), and on top of it ScaleBiO: learning how much
//! each source of a language model's training data should count, so that the model trained on the mix does best
//! on a validation set.
//!
//! # The problem
//!
//! ```text
//! min over x of F(x, w*(x))    where    w*(x) = argmin over w of G(x, w)
//! ```
//!
//! `F` is the upper objective (`L1` in the paper), `G` the lower objective (`L2`); `x` and `w` are any Burn modules.
//! The method needs first derivatives only: an auxiliary copy `u` of `w` follows `argmin G(x, .)`, `w` minimizes
//! `F + alpha G`, and `x` descends `F + alpha (G(x, w) - G(x, u))`, one update of each a step.
//!
//! # Bring your own two losses
//!
//! ```
//! use burn::{module::Param, tensor::{Device, Tensor}};
//! use scalebio::{Bilevel, ScaleBio, Update};
//!
//! type Vector = Param<Tensor<1>>;
//!
//! fn main() -> scalebio::Result<()> {
//!     let device = Device::flex().autodiff();
//!     // min_x |w*(x) - 3|^2  subject to  w*(x) = argmin_w |w - x|^2.  Solution: x = w = 3.
//!     let problem = Bilevel {
//!         upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
//!         lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
//!     };
//!     let zeros = || Vector::from_data([0.0, 0.0], &device);
//!     let mut run = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02)) // upper, lower
//!         .penalty(10.0)
//!         .start(problem, zeros(), zeros())?;
//!     for step in run.by_ref().take(500) {
//!         let step = step?;
//!         if step.index() % 100 == 0 {
//!             println!("{step}");
//!         }
//!     }
//!     println!("x = {}", run.upper().val().into_data());
//!     Ok(())
//! }
//! ```
//!
//! Objectives with data implement [`UpperObjective`] and [`LowerObjective`]: `sample` draws the micro-batches of
//! a step, `loss` is the loss of one, and the step minimizes their sum.
//!
//! # Where things are
//!
//! | | |
//! |---|---|
//! | [`ScaleBio`], [`Update`], [`Schedule`], [`Penalty`] | hyper-parameters |
//! | [`Run`], [`Step`], [`Solution`] | the run, an iterator over its steps; its checkpoints (`Run::checkpoint`, `ScaleBio::resume`) |
//! | [`LayerSampler`], [`AllLayers`], [`Lisa`] | which layers train at which step |
//! | [`Offload`] | frozen parameters in host memory |
//! | [`Minibatches`] | seeded draws from a finite sum, that resume from one number |
//! | [`collective`] | data-parallel runs: several ranks, over MPI or as threads |
//! | [`methods`] | the bilevel methods of the field behind one trait: F2SA, BOME, SAMA, SOBA and others |
//! | [`reweight`] | source weights over any model with a loss a sample |
//! | `baselines` (feature `llm`) | what ScaleBiO is compared with: LESS, RHO-LOSS, DoReMi and others |
//! | `models`, `data`, `train` (feature `llm`) | language models, text, whole runs with their files |
//! | `problems` (feature `problems`) | classical bilevel problems, exact solutions where there are, data readers |
//! | [`device`] | devices by name, as on a command line |
//!
//! # Features
//!
//! * `flex` (default): the CPU device that Burn recommends; pure Rust. Nothing runs without some device. Brings fused kernels
//!   for language models, with `gemm`, `pulp` and `rayon`.
//! * `checkpoint` (with `llm`): checkpoints of a run, from which it resumes bit for bit. Adds `safetensors`, `serde`,
//!   `serde_json`, `twox-hash`.
//! * `llm` (default): language models, tokenizers, text and training. Adds `tokenizers`, `minijinja` and those of `checkpoint`.
//!   Without it the crate is the solver, methods, samplers and source weights.
//! * `problems`: classical bilevel problems and readers of their data. Adds `csv-core`, `flate2`, `safetensors`.
//! * `mpi`: data-parallel runs over MPI, by processes on one machine or several. Adds `mpi`; needs an MPI and libclang.
//! * `ndarray`: Burn's older CPU device. `wgpu`, `vulkan`, `metal`, `webgpu`, `cuda`: GPUs.
//!
//! # Scope
//!
//! Not for inference at scale, not for training from scratch on clusters, not a general trainer: only what it takes
//! to solve bilevel problems with first derivatives and to learn data weights with them.
//!
//! # Reference
//!
//! Pan et al., *ScaleBiO: Scalable Bilevel Optimization for LLM Data Reweighting*, ACL 2025, arXiv 2406.19976.

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
pub mod baselines;
pub mod collective;
#[cfg(feature = "llm")]
pub mod data;
mod device;
mod error;
#[cfg(feature = "checkpoint")]
mod files;
#[cfg(feature = "flex")]
// Without language models only AdamW and the gradient norm use kernels.
#[cfg_attr(not(feature = "llm"), allow(dead_code, unused_imports))]
mod kernels;
pub mod methods;
#[cfg(feature = "llm")]
pub mod models;
mod offload;
mod problem;
#[cfg(feature = "problems")]
pub mod problems;
mod progress;
pub mod reweight;
mod sampler;
mod solver;
#[cfg(feature = "llm")]
pub mod train;

pub use device::{catch_lost_device, device};
pub use error::{Error, Result};
pub use offload::Offload;
pub use problem::{Bilevel, Gradients, LowerObjective, Slot, UpperObjective};
pub use sampler::{ActiveLayers, AllLayers, LayerSampler, Lisa, Minibatch, Minibatches, Order};
pub use solver::{Moments, Penalty, PerVariable, Run, ScaleBio, Schedule, Solution, Step, Update};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
