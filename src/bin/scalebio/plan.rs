//! How much memory a run of ScaleBiO will take on each device, from a model's config.json, before anything is loaded.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use scalebio::models::{Dtype, MemoryPlan, ModelSize, Offloading, Placement, PlanConfig};

use super::config::is_flags;
use super::console::{print, say};
use super::table;

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/memory_plan/configs");
/// The models of the paper, by their files.
const MODELS: [&str; 7] = [
    "gpt2",
    "gpt-neox-20b",
    "llama-3-8b",
    "yi-34b",
    "gemma-2-9b",
    "qwen2-7b",
    "qwen2.5-32b",
];
/// Bytes of a gigabyte, as makers of devices count.
const GB: u64 = 1_000_000_000;

const EXAMPLES: &str = "\
Examples:
  scalebio plan                                           # the seven models of the paper
  scalebio plan --model llama-3-8b --devices 8
  scalebio plan --model HF_DIR --batch 64 --micro-batch 8 --length 1024 --lisa-blocks 2";

/// Predict the memory of a run on each device, before anything is loaded
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A folder with config.json, that file, or a model of the paper: gpt2,
    /// gpt-neox-20b, llama-3-8b, yi-34b, gemma-2-9b, qwen2-7b or qwen2.5-32b
    /// [default: these seven]
    #[arg(long, value_name = "MODEL", verbatim_doc_comment)]
    model: Option<PathBuf>,

    /// Take flags from this file; a config.json is taken for that of --model
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,

    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,

    /// Samples computed at a time
    #[arg(long, value_name = "N", default_value_t = 8)]
    micro_batch: usize,

    /// Tokens of a sample
    #[arg(long, value_name = "N", default_value_t = 1024)]
    length: usize,

    /// Floating type of the models: float32 or bfloat16 (bf16)
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: Dtype,

    /// Blocks that train at a time; 0 for all
    #[arg(long, value_name = "N", default_value_t = 2)]
    lisa_blocks: usize,

    /// Freeze embeddings, final norm and head
    #[arg(long)]
    freeze_others: bool,

    /// Optimizer of the models: adamw or sgd
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        default_value = "adamw",
        hide_possible_values = true
    )]
    optimizer: Optimizer,

    /// Compute gradients block by block, or on one tape
    /// [default: by block where something is frozen, if that saves much]
    #[arg(
        long,
        value_name = "BOOL",
        verbatim_doc_comment,
        hide_possible_values = true
    )]
    blockwise: Option<bool>,

    /// Compute the gradients of both models at the same time
    #[arg(long)]
    concurrent: bool,

    /// A method without the auxiliary model u
    #[arg(long)]
    without_u: bool,

    /// Number of devices
    #[arg(long, value_name = "N")]
    devices: Option<usize>,

    /// one: u and w on one device; apart: half of them each; spread: their blocks
    /// over all devices; parallel: both on all devices, which share the batch
    /// [default: one for one device, else spread]
    #[arg(
        long,
        value_enum,
        value_name = "WHERE",
        verbatim_doc_comment,
        hide_possible_values = true
    )]
    placement: Option<Where>,

    /// Memory of a device in GB: takes the fastest placement that fits; without
    /// --model, of each model on 1, 2, 4 and 8 devices
    #[arg(
        long,
        value_name = "GB",
        verbatim_doc_comment,
        conflicts_with = "placement"
    )]
    device_memory: Option<f64>,

    /// Keep in host memory: frozen (the blocks that do not train), or
    /// frozen,moments (also what the optimizer remembers)
    #[arg(long, value_name = "WHAT", verbatim_doc_comment)]
    offload: Option<Offloading>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Optimizer {
    Adamw,
    Sgd,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Where {
    One,
    Apart,
    Spread,
    Parallel,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let Some(model) = args.model()? else {
        return match args.capacity()? {
            Some(capacity) => fitting(args, capacity),
            None => all(args),
        };
    };
    let size = size(model)?;
    let plan = MemoryPlan::new(&size, &args.plan(args.placement(&size)?))?;
    describe(&size, args)?;
    let unit = if plan.largest() < 10 * GB {
        table::MB
    } else {
        GB
    };
    let name = if unit == GB { "GB" } else { "MB" };
    say!("{name} on each device, beside the program, its data and the driver")?;
    print(format_args!("{}", table::table(&plan, unit)))?;
    Ok(())
}

/// The sizes of a model of the paper, or of one in a file.
fn size(model: &Path) -> Result<ModelSize, String> {
    let name = model.to_str().filter(|name| MODELS.contains(name));
    ModelSize::read(name.map_or_else(|| model.to_owned(), shipped)).map_err(|error| {
        let models = MODELS.join(", ");
        format!("{error}; --model takes a folder with config.json, that file, or one of {models}")
    })
}

fn shipped(name: &str) -> PathBuf {
    Path::new(CONFIGS).join(format!("{name}.json"))
}

fn describe(size: &ModelSize, args: &Args) -> io::Result<()> {
    let active = match args.lisa_blocks {
        0 => size.blocks(),
        blocks => blocks,
    };
    say!(
        "{} parameters in {} blocks of {} and {} outside; {} train at a time",
        size.parameters(),
        size.blocks(),
        size.per_block(),
        size.outside(),
        size.trained(active, !args.freeze_others)
    )
}

/// A line a model and placement.
fn all(args: &Args) -> Result<(), Box<dyn Error>> {
    let devices = args.devices.unwrap_or(8);
    say!("{}; GB on the fullest device", args.settings())?;
    let names = ["one", "apart", "spread", "parallel"];
    say!(
        "{:<13} {:>14} {:>13} {:>10} {:>10} {:>10} {:>10}",
        "model",
        "parameters",
        "train",
        names[0],
        names[1],
        format!("{} {devices}", names[2]),
        format!("{} {devices}", names[3])
    )?;
    for name in MODELS {
        let size = ModelSize::read(shipped(name))?;
        let trained = size.trained(args.lisa_blocks, !args.freeze_others);
        print(format_args!(
            "{name:<13} {:>14} {trained:>13}",
            size.parameters()
        ))?;
        for placement in [
            Placement::One,
            Placement::Apart(2),
            Placement::Spread(devices),
            Placement::Parallel(devices),
        ] {
            let plan = MemoryPlan::new(&size, &args.plan(placement))?;
            print(format_args!(" {:>10.1}", plan.largest() as f64 / GB as f64))?;
        }
        say!()?;
    }
    Ok(())
}

/// A line a model: the placement on so many devices, and what it takes of the fullest.
fn fitting(args: &Args, capacity: u64) -> Result<(), Box<dyn Error>> {
    say!(
        "{}; the fastest placement that fits in {} GB, and GB on its fullest device; in brackets what does not fit",
        args.settings(),
        capacity as f64 / GB as f64
    )?;
    let counts = [1, 2, 4, 8];
    let heads = counts.map(|devices| format!(" {:>15}", format!("{devices} devices")));
    say!("{:<13}{}", "model", heads.concat())?;
    for name in MODELS {
        let size = ModelSize::read(shipped(name))?;
        print(format_args!("{name:<13}"))?;
        for devices in counts {
            let plan = args.plan(Placement::One);
            let placement = MemoryPlan::place(&size, &plan, devices, Some(capacity))?;
            let largest = MemoryPlan::new(&size, &args.plan(placement))?.largest();
            let how = match placement {
                Placement::Apart(_) => "apart ",
                Placement::Spread(_) => "spread ",
                _ => "",
            };
            let text = format!("{how}{:.1}", largest as f64 / GB as f64);
            let text = match largest > capacity {
                true => format!("({text})"),
                false => text,
            };
            print(format_args!(" {text:>15}"))?;
        }
        say!()?;
    }
    Ok(())
}

impl Args {
    fn model(&self) -> Result<Option<&Path>, &'static str> {
        let config = self.config.as_deref().filter(|path| !is_flags(path));
        match (self.model.as_deref(), config) {
            (Some(_), Some(_)) => Err("the model is given twice, by --model and by --config"),
            (model, config) => Ok(model.or(config)),
        }
    }

    /// What the plans are for, in words.
    fn settings(&self) -> String {
        format!(
            "batch {} in micro-batches of {}, {} tokens, {}, LISA {} blocks{}",
            self.batch,
            self.micro_batch,
            self.length,
            self.dtype,
            self.lisa_blocks,
            match self.freeze_others {
                true => ", the rest frozen",
                false => "",
            }
        )
    }

    /// Bytes of a device's memory, if they are given.
    fn capacity(&self) -> Result<Option<u64>, &'static str> {
        match self.device_memory {
            Some(gigabytes) if !(gigabytes > 0.0 && gigabytes.is_finite()) => {
                Err("--device-memory takes a number of GB greater than 0")
            }
            gigabytes => Ok(gigabytes.map(|gigabytes| (gigabytes * GB as f64) as u64)),
        }
    }

    fn plan(&self, placement: Placement) -> PlanConfig {
        PlanConfig {
            batch: self.batch,
            micro_batch: Some(self.micro_batch),
            length: self.length,
            dtype: self.dtype,
            moments: match self.optimizer {
                Optimizer::Adamw => 2,
                Optimizer::Sgd => 0,
            },
            lisa_blocks: (self.lisa_blocks > 0).then_some(self.lisa_blocks),
            draws: None,
            freeze_others: self.freeze_others,
            blockwise: self.blockwise,
            concurrent: self.concurrent,
            auxiliary: !self.without_u,
            placement,
            offload: self.offload,
        }
    }

    fn placement(&self, size: &ModelSize) -> Result<Placement, Box<dyn Error>> {
        let devices = self.devices.unwrap_or(match self.placement {
            None | Some(Where::One) => 1,
            Some(_) => 2,
        });
        if let Some(capacity) = self.capacity()? {
            let plan = self.plan(Placement::One);
            return Ok(MemoryPlan::place(size, &plan, devices, Some(capacity))?);
        }
        let placement = self.placement.unwrap_or(match devices {
            1 => Where::One,
            _ => Where::Spread,
        });
        match (placement, devices) {
            (Where::One, 1) => Ok(Placement::One),
            (Where::Apart, 2..) => Ok(Placement::Apart(devices)),
            (Where::Spread, _) => Ok(Placement::Spread(devices)),
            (Where::Parallel, _) => Ok(Placement::Parallel(devices)),
            (Where::One | Where::Apart, _) => Err(format!(
                "--devices is {devices}, but one takes 1 and apart takes 2 or more"
            )
            .into()),
        }
    }
}
