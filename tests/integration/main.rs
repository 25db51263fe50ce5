//! The one integration test binary: each binary links Burn again. One file a promise; everything goes
//! through the public API.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod adamw;
mod algebra;
mod architecture;
mod autotraits;
mod check_hypergradient;
mod closed_forms;
mod device;
mod downstream;
mod estimators;
mod failures;
mod layers;
mod masters;
mod methods_models;
mod methods_points;
mod methods_promises;
mod minibatches;
mod mixture;
mod moments;
mod parallel;
mod polyak;
mod problems;
mod problems_classifiers;
mod problems_readers;
mod properties;
mod ranks;
mod reweighting;
mod settings;
mod solver;
mod stability;
mod theory;
mod zeroth_order;
mod zoo;

#[cfg(feature = "llm")]
mod architectures;
#[cfg(feature = "llm")]
mod bad_input;
#[cfg(feature = "llm")]
mod baselines;
#[cfg(feature = "llm")]
mod baselines_naive;
#[cfg(feature = "llm")]
mod baselines_runs;
#[cfg(feature = "llm")]
mod bfloat16;
#[cfg(feature = "llm")]
mod blockwise;
#[cfg(feature = "llm")]
#[path = "../../examples/check_model/compare.rs"]
mod compare;
#[cfg(feature = "llm")]
mod compared;
#[cfg(feature = "llm")]
mod damaged;
#[cfg(feature = "llm")]
mod data_chat;
#[cfg(feature = "llm")]
mod data_corpus;
#[cfg(feature = "llm")]
mod data_records;
#[cfg(feature = "llm")]
mod data_tokens;
#[cfg(feature = "llm")]
mod evaluate;
#[cfg(feature = "llm")]
mod examples;
#[cfg(feature = "llm")]
mod experiments;
#[cfg(feature = "llm")]
mod finetune;
#[cfg(feature = "llm")]
mod generation;
#[cfg(feature = "llm")]
mod gpt2;
#[cfg(all(feature = "llm", feature = "wgpu"))]
mod gpu;
#[cfg(feature = "llm")]
mod lisa_gpt2;
#[cfg(all(feature = "llm", target_os = "linux"))]
mod memory;
#[cfg(feature = "llm")]
mod methods_golden;
#[cfg(feature = "llm")]
mod offload;
#[cfg(feature = "llm")]
mod placement;
#[cfg(feature = "llm")]
mod plan;
#[cfg(feature = "llm")]
mod pretrained;
#[cfg(feature = "llm")]
mod program;
#[cfg(all(feature = "llm", feature = "remote", unix))]
mod remote;
#[cfg(feature = "llm")]
mod report;
#[cfg(feature = "llm")]
mod resample;
#[cfg(feature = "llm")]
mod resume;
#[cfg(all(feature = "llm", unix))]
mod resume_kill;
#[cfg(feature = "llm")]
mod resume_training;
#[cfg(feature = "llm")]
mod spread;
#[cfg(feature = "llm")]
mod stability_runs;
#[cfg(feature = "llm")]
mod stories;
#[cfg(feature = "llm")]
mod streaming;
