//! The flags for memory and speed of learning source weights, and the memory that they lead to.

use std::error::Error;
use std::time::Duration;

use scalebio::train::{Experiment, ReweightConfig};

use super::console::{print, say};
use super::table;
use super::training::COMPUTING;

/// What changes memory and speed, and results by rounding only.
#[derive(Debug, clap::Args)]
pub struct Computing {
    /// Compute gradients block by block: less memory for one more forward pass
    /// [default: with LISA, where that saves much]
    #[arg(long, value_name = "BOOL", verbatim_doc_comment, hide_possible_values = true, help_heading = COMPUTING, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    blockwise: Option<bool>,

    /// Compute the gradients of model and auxiliary copy at the same time:
    /// more memory, the same results
    #[arg(long, verbatim_doc_comment, help_heading = COMPUTING)]
    parallel: bool,

    /// Under mpirun: seconds after which a rank that waits for the others ends
    /// the run; more than the slowest step and a checkpoint take
    #[arg(long, value_name = "S", verbatim_doc_comment, help_heading = COMPUTING, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    rank_timeout: u64,

    /// Start also if the memory that the run will take is not there
    #[arg(long, help_heading = COMPUTING)]
    force: bool,
}

impl Computing {
    /// These settings with the flags'.
    pub fn settings(&self, settings: ReweightConfig) -> ReweightConfig {
        ReweightConfig {
            blockwise: self.blockwise,
            parallel: self.parallel,
            ..settings
        }
    }

    /// How long a rank waits for the others.
    pub fn rank_timeout(&self) -> Duration {
        Duration::from_secs(self.rank_timeout)
    }

    /// Prints how much memory the run will take, and refuses what this machine does not have for as many `processes`. What a
    /// GPU has is not known.
    pub fn plan(&self, experiment: &Experiment, processes: u64) -> Result<(), Box<dyn Error>> {
        let plan = experiment.plan()?;
        say!("\nmemory as predicted, in MB, beside data and program")?;
        print(format_args!("{}", table::table(plan.devices(), table::MB)))?;
        let device = &experiment.config().device;
        if !matches!(device.as_str(), "flex" | "ndarray") {
            return Ok(());
        }
        if let Some(resident) = memory("/proc/self/status", "VmRSS:") {
            let peak = resident + plan.largest();
            say!(
                "with {} MB of data and program: {} MB",
                resident / 1_000_000,
                peak / 1_000_000
            )?;
        }
        match memory("/proc/meminfo", "MemAvailable:") {
            Some(available) if available / processes < plan.largest() && !self.force => {
                Err(format!(
                    "the run takes {} MB more, as predicted, but this machine has {} MB available; \
                 set a smaller --micro-batch, --lisa-blocks or --dtype bf16, or start with --force",
                    processes * plan.largest() / 1_000_000,
                    available / 1_000_000
                )
                .into())
            }
            _ => Ok(()),
        }
    }
}

/// Bytes that Linux states in a file under a name; nothing on other systems.
pub fn memory(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
