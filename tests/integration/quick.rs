#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, dead_code)]
mod architecture;
mod bad_input;
mod evaluate;
mod examples;
mod failures;
mod minibatches;
mod problems;
mod problems_classifiers;
mod problems_readers;
mod program;
mod resample;
mod resume;
mod resume_kill;
mod resume_training;
mod zoo;
