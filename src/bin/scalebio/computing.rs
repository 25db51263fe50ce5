//! The flags for memory and speed of learning source weights, and the memory that they lead to.

use std::error::Error;
use std::time::Duration;

use scalebio::models::{Offloading, Placement};
use scalebio::train::{Experiment, PlacementKind, ReweightConfig};

use super::console::{print, say};
use super::table;
use super::training::{COMPUTING, Streaming};

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

    /// Compute on several devices in place of --device: w on the first half, u on
    /// the others, or the blocks of both over all; see --placement. Under mpirun
    /// they are divided among the ranks of a machine
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', verbatim_doc_comment, help_heading = COMPUTING)]
    devices: Vec<String>,

    /// How several devices are used: apart (u and w at the same time) or spread (by
    /// blocks) [default: apart, if that fits in --device-memory]
    #[arg(long, value_name = "HOW", verbatim_doc_comment, help_heading = COMPUTING, requires = "devices", value_parser = placement)]
    placement: Option<PlacementKind>,

    /// Memory of the smallest of several devices, in GB [default: enough]
    #[arg(long, value_name = "GB", help_heading = COMPUTING, requires = "devices")]
    device_memory: Option<f64>,

    /// Keep in host memory, beside a GPU: frozen (the blocks that LISA does not
    /// train at present), or frozen,moments (also what the optimizer remembers);
    /// slower, the same results; metrics.jsonl says how many bytes a step moves
    #[arg(long, value_name = "WHAT", verbatim_doc_comment, help_heading = COMPUTING)]
    offload: Option<Offloading>,

    /// Under mpirun: seconds after which a rank that waits for the others ends
    /// the run; more than the slowest step and a checkpoint take
    #[arg(long, value_name = "S", verbatim_doc_comment, help_heading = COMPUTING, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    rank_timeout: u64,

    #[command(flatten)]
    streaming: Streaming,

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
            offload: self.offload,
            stream: self.streaming.stream,
            ..self.placed(settings)
        }
    }

    /// These settings on the flags' devices, if there are any: also for a run that goes on.
    pub fn placed(&self, mut settings: ReweightConfig) -> ReweightConfig {
        if !self.devices.is_empty() {
            settings.devices = self.devices.clone();
            settings.placement = self.placement;
            settings.device_memory = self.device_memory;
        }
        settings
    }

    /// How long a rank waits for the others.
    pub fn rank_timeout(&self) -> Duration {
        Duration::from_secs(self.rank_timeout)
    }

    /// Prints how much memory the run will take, and refuses what is not there. What a GPU has is known from
    /// --device-memory only. So many `processes` run on this machine.
    pub fn plan(&self, experiment: &Experiment, processes: u64) -> Result<(), Box<dyn Error>> {
        let (plan, config) = (experiment.plan()?, experiment.config());
        say!("\nmemory as predicted, in MB, beside data and program")?;
        print(format_args!("{}", table::table(&plan, table::MB)))?;
        let names = config.device_names();
        describe(experiment.placement()?, &names)?;

        let exceeds = |bytes: u64| {
            config
                .device_memory
                .is_some_and(|gb| bytes as f64 > gb * 1e9)
        };
        if exceeds(plan.largest()) && !self.force {
            return Err(format!(
                "the run takes {} MB on one device, as predicted, which is more than --device-memory; \
                 add devices, set a smaller --micro-batch, --lisa-blocks or --dtype bf16, or start with --force",
                plan.largest() / table::MB
            )
            .into());
        }
        let on_cpu = |(name, _): &(&&str, _)| matches!(**name, "flex" | "ndarray");
        let here = names.iter().zip(plan.devices()).filter(on_cpu);
        let here: u64 = here.map(|(_, device)| device.total).sum();
        let here = here + plan.host().map_or(0, |host| host.total);
        if here == 0 {
            return Ok(());
        }
        if let Some(resident) = memory("/proc/self/status", "VmRSS:") {
            say!(
                "with {} MB of data and program: {} MB",
                resident / table::MB,
                (resident + here) / table::MB
            )?;
        }
        match memory("/proc/meminfo", "MemAvailable:") {
            Some(available) if available / processes < here && !self.force => Err(format!(
                "the run takes {} MB more, as predicted, but this machine has {} MB available; \
                 set a smaller --micro-batch, --lisa-blocks or --dtype bf16, or start with --force",
                processes * here / table::MB,
                available / table::MB
            )
            .into()),
            _ => Ok(()),
        }
    }
}

/// Prints what several devices hold.
fn describe(placement: Placement, names: &[&str]) -> std::io::Result<()> {
    let number = |index: usize| format!("{index} is {}", names[index]);
    let list: Vec<String> = (0..names.len()).map(number).collect();
    match placement {
        Placement::Apart(devices) => {
            let (w, u) = list.split_at(devices.div_ceil(2));
            say!(
                "w on devices: {}; u on devices: {}",
                w.join(", "),
                u.join(", ")
            )
        }
        Placement::Spread(_) => say!("the blocks of w and u on devices: {}", list.join(", ")),
        _ => Ok(()),
    }
}

/// The flag's values.
fn placement(name: &str) -> Result<PlacementKind, String> {
    match name {
        "apart" => Ok(PlacementKind::Apart),
        "spread" => Ok(PlacementKind::Spread),
        _ => Err("use apart or spread".to_owned()),
    }
}

/// Bytes that Linux states in a file under a name; nothing on other systems.
pub fn memory(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
