#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, dead_code)]
mod evaluate;
mod examples;
mod problems;
mod problems_classifiers;
mod problems_readers;
mod resume;
mod resume_kill;
mod resume_training;
mod zoo;
