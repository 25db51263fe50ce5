//! The flags that every training has.

use std::path::{Path, PathBuf};

use clap::Args;
use scalebio::models::Dtype;
use scalebio::train::ReweightConfig;

/// Headings of the help.
pub const MODEL: &str = "Model";
pub const TRAINING: &str = "Training";
pub const COMPUTING: &str = "Memory and speed";

/// The flags that every training has, with the same defaults.
#[derive(Args, Debug)]
pub struct Training {
    /// Hugging Face folder of the base model
    /// [default: a small GPT-2 with random weights: width 128, 2 blocks, 4 heads]
    #[arg(long, value_name = "HF_DIR", help_heading = MODEL, verbatim_doc_comment)]
    pub model: Option<PathBuf>,

    /// tokenizer.json to use
    /// [default: that of --model; without it, a byte-level BPE trained on the data]
    #[arg(long, value_name = "FILE", help_heading = MODEL, verbatim_doc_comment)]
    pub tokenizer: Option<PathBuf>,

    /// Floating type of the model in memory and file: float32 or bfloat16 (bf16),
    /// half the memory; updates are summed in float32
    #[arg(long, value_name = "TYPE", help_heading = MODEL, verbatim_doc_comment, default_value_t = defaults().dtype)]
    pub dtype: Dtype,

    /// Longest sample in tokens; longer texts are cut into pieces,
    /// longer responses truncated
    #[arg(long, value_name = "N", help_heading = MODEL, verbatim_doc_comment, default_value_t = defaults().max_length)]
    pub max_length: usize,

    /// Steps of the run; learning rates fall to 0 over them
    #[arg(long, value_name = "N", help_heading = TRAINING, default_value_t = defaults().steps)]
    pub steps: usize,

    /// Training samples of a step
    #[arg(long, value_name = "N", help_heading = TRAINING, default_value_t = defaults().batch)]
    pub batch: usize,

    /// Seed of the initial values and of all draws
    #[arg(long, value_name = "S", help_heading = TRAINING, default_value_t = defaults().seed)]
    pub seed: u64,

    /// Where to compute: flex, ndarray, wgpu[:cpu|:N], cuda[:N], or
    /// ws://HOST:PORT[/N], where `scalebio serve` runs
    #[arg(long, value_name = "NAME", help_heading = COMPUTING, verbatim_doc_comment, default_value_t = defaults().device)]
    pub device: String,

    /// Samples computed at a time; the results stay the same up to rounding
    /// [default: the whole batch]
    #[arg(long, value_name = "N", help_heading = COMPUTING, verbatim_doc_comment)]
    pub micro_batch: Option<usize>,

    /// Train only this many blocks at a time, with embeddings and head (LISA)
    /// [default: all blocks]
    #[arg(long, value_name = "N", help_heading = COMPUTING, verbatim_doc_comment)]
    pub lisa_blocks: Option<usize>,

    /// Steps after which LISA draws other blocks
    #[arg(long, value_name = "K", help_heading = COMPUTING, default_value_t = defaults().lisa_period)]
    pub lisa_period: usize,
}

/// The flag of those that need some samples at a time only.
#[derive(Args, Debug)]
pub struct Streaming {
    /// Read the training samples from their files as they are drawn, instead of
    /// holding all in memory: the same results
    /// [default: if the files have more than 256 MiB]
    #[arg(long, value_name = "BOOL", verbatim_doc_comment, hide_possible_values = true, help_heading = COMPUTING, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub stream: Option<bool>,
}

/// The folder for indices of streamed data: one for all runs that are in a folder, so that the next start is fast.
pub fn index_beside(run: &Path) -> PathBuf {
    run.with_file_name("index")
}

/// Those of the library; [`FinetuneConfig`](scalebio::train::FinetuneConfig) has the same.
fn defaults() -> ReweightConfig {
    ReweightConfig::new("")
}
