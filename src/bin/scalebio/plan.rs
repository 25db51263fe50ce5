//! How much memory a run of ScaleBiO will take on each device, from a model's config.json, before anything is loaded.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use scalebio::models::{Dtype, MemoryPlan, ModelSize, Placement, PlanConfig};

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

/// Predicts the memory of a run on each device, before anything is loaded.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model's config.json, or its folder [default: the seven models of the paper]
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    config: Option<PathBuf>,

    /// A model of the paper
    #[arg(long, value_name = "NAME", value_parser = MODELS)]
    model: Option<String>,

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

    /// Optimizer of the models
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: Optimizer,

    /// Compute gradients block by block, or on one tape [default: block by block where something is frozen]
    #[arg(long, value_name = "BOOL")]
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

    /// Where the models are [default: one for one device, else spread]
    #[arg(long, value_enum)]
    placement: Option<Where>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Optimizer {
    Adamw,
    Sgd,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Where {
    /// Both models on one device
    One,
    /// u and w on a device each
    Apart,
    /// The blocks of both models over all devices
    Spread,
    /// Both models on all devices, which share the batch
    Parallel,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let config = match (&args.config, &args.model) {
        (Some(config), _) => config.clone(),
        (None, Some(name)) => shipped(name),
        (None, None) => return all(args),
    };
    let size = ModelSize::read(&config)?;
    let plan = MemoryPlan::new(&size, &args.plan(args.placement()?))?;
    describe(&size, args);
    let unit = if plan.largest() < 10 * GB {
        table::MB
    } else {
        GB
    };
    let name = if unit == GB { "GB" } else { "MB" };
    println!("{name} on each device, beside the program, its data and the driver");
    print!("{}", table::table(plan.devices(), unit));
    Ok(())
}

fn shipped(name: &str) -> PathBuf {
    Path::new(CONFIGS).join(format!("{name}.json"))
}

fn describe(size: &ModelSize, args: &Args) {
    let active = match args.lisa_blocks {
        0 => size.blocks(),
        blocks => blocks,
    };
    println!(
        "{} parameters in {} blocks of {} and {} outside; {} train at a time",
        size.parameters(),
        size.blocks(),
        size.per_block(),
        size.outside(),
        size.trained(active, !args.freeze_others)
    );
}

/// A line a model and placement.
fn all(args: &Args) -> Result<(), Box<dyn Error>> {
    let devices = args.devices.unwrap_or(8);
    println!(
        "batch {} in micro-batches of {}, {} tokens, {}, LISA {} blocks{}; GB on the fullest device",
        args.batch,
        args.micro_batch,
        args.length,
        args.dtype,
        args.lisa_blocks,
        if args.freeze_others {
            ", the rest frozen"
        } else {
            ""
        },
    );
    let names = ["one", "apart", "spread", "parallel"];
    println!(
        "{:<13} {:>14} {:>13} {:>10} {:>10} {:>10} {:>10}",
        "model",
        "parameters",
        "train",
        names[0],
        names[1],
        format!("{} {devices}", names[2]),
        format!("{} {devices}", names[3])
    );
    for name in MODELS {
        let size = ModelSize::read(shipped(name))?;
        let trained = size.trained(args.lisa_blocks, !args.freeze_others);
        print!("{name:<13} {:>14} {trained:>13}", size.parameters());
        for placement in [
            Placement::One,
            Placement::Apart,
            Placement::Spread(devices),
            Placement::Parallel(devices),
        ] {
            let plan = MemoryPlan::new(&size, &args.plan(placement))?;
            print!(" {:>10.1}", plan.largest() as f64 / GB as f64);
        }
        println!();
    }
    Ok(())
}

impl Args {
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
        }
    }

    fn placement(&self) -> Result<Placement, String> {
        let devices = self.devices.unwrap_or(match self.placement {
            None | Some(Where::One) => 1,
            Some(_) => 2,
        });
        let placement = self.placement.unwrap_or(match devices {
            1 => Where::One,
            _ => Where::Spread,
        });
        match (placement, devices) {
            (Where::One, 1) => Ok(Placement::One),
            (Where::Apart, 2) => Ok(Placement::Apart),
            (Where::Spread, _) => Ok(Placement::Spread(devices)),
            (Where::Parallel, _) => Ok(Placement::Parallel(devices)),
            (Where::One | Where::Apart, _) => Err(format!(
                "--devices is {devices}, but one takes 1 and apart takes 2; use spread or parallel for more"
            )),
        }
    }
}
