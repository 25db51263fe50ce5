//! The time and memory of a bilevel step of a checkpoint folder's model, for `benches/pytorch/compare.py`, which runs this
//! and PyTorch's counterpart in turn and prints the ratios. Prints one line of JSON.
//!
//! ```text
//! cargo bench --bench bilevel -- --model FOLDER --batch 8 --length 128 --steps 10
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use scalebio::burn::tensor::{Device, Tensor};
use scalebio::data::{Sample, Source};
use scalebio::models::{CausalLm, Differentiation};
use scalebio::reweight::{self, Draws, SourceWeights, TokenSources};
use scalebio::{Lisa, ScaleBio, Update};

#[derive(Parser)]
struct Options {
    /// Checkpoint folder; nothing is measured without it.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Samples of a draw, of training and of validation each.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sample.
    #[arg(long, default_value_t = 128)]
    length: usize,
    /// Steps that are measured, after two that are not.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Blocks that train at a time; all without it.
    #[arg(long)]
    lisa: Option<usize>,
    /// Under LISA, freeze what lies outside the blocks.
    #[arg(long, requires = "lisa")]
    freeze_others: bool,
    /// Compute gradients on one tape instead of block by block.
    #[arg(long)]
    plain: bool,
    /// Compute the gradients of u and w at the same time.
    #[arg(long)]
    parallel: bool,
    /// Only time the matmuls `[[m, k, n, how many], ...]` of a step, `[m, k]` times `[k, n]`.
    #[arg(long)]
    matmuls: Option<String>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Given by continuous integration, which only wants to know that benches run.
    #[arg(long, hide = true)]
    test: bool,
}

/// Sequences that count in steps of `stride`, so that there is something to learn.
fn source(name: &str, stride: usize, vocabulary: usize, length: usize) -> Source {
    let sample = |start: usize| Sample {
        ids: (0..length)
            .map(|i| ((start + i * stride) % vocabulary) as u32)
            .collect(),
        learned: vec![true; length],
    };
    Source {
        name: name.to_owned(),
        path: name.into(),
        samples: (0..64).map(sample).collect::<Vec<_>>().into(),
        records: 64,
        skipped: 0,
    }
}

/// User and system time of this process in seconds.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split(' ').collect();
    let ticks: f64 = fields[12].parse::<f64>()? + fields[13].parse::<f64>()?;
    Ok(ticks / 100.0)
}

/// A line of /proc/self/status, in MiB.
fn status(name: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no such line")?.parse::<f64>()? / 1024.0)
}

/// The time that matmuls take with nothing between them: the median of five times their number.
fn matmuls(sizes: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let device = Device::flex();
    let mut total = 0.0;
    for [m, k, n, count] in serde_json::from_str::<Vec<[usize; 4]>>(sizes)? {
        let (a, b) = (
            Tensor::<2>::ones([m, k], &device),
            Tensor::<2>::ones([k, n], &device),
        );
        let mut times: Vec<f64> = (0..6)
            .map(|_| {
                let start = Instant::now();
                drop(a.clone().matmul(b.clone()));
                start.elapsed().as_secs_f64()
            })
            .skip(1)
            .collect();
        times.sort_by(f64::total_cmp);
        total += times[2] * count as f64;
    }
    Ok(total)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    if let Some(sizes) = &options.matmuls {
        println!("{}", serde_json::json!({ "seconds": matmuls(sizes)? }));
        return Ok(());
    }
    let Some(folder) = options.model.filter(|_| !options.test) else {
        println!(
            "nothing to measure: benches/pytorch/compare.py gives the `--model` of both sides"
        );
        return Ok(());
    };
    let device = Device::flex().autodiff();
    let model = CausalLm::from_pretrained(folder, &device)?;
    let model = match options.plain {
        true => model.with_differentiation(Differentiation::Plain),
        false => model,
    };
    let loaded = status("VmRSS:")?;

    let source = |name, stride| source(name, stride, model.vocabulary_size(), options.length);
    let training = TokenSources::new(vec![source("ones", 1), source("threes", 3)]);
    let validation = TokenSources::new(vec![source("val", 1)]);
    let problem = reweight::problem(
        Draws::new(training, options.batch),
        Draws::new(validation, options.batch),
    )?;
    let weights = SourceWeights::uniform(["ones", "threes"], &device)?;
    let mut method = ScaleBio::new(Update::adamw(1e-2), Update::adamw(1e-4));
    if let Some(active) = options.lisa {
        let lisa = Lisa::over(&model, &model.blocks_path())?.active(active);
        method = method.layers(match options.freeze_others {
            true => lisa.freeze_others(),
            false => lisa,
        });
    }
    let mut run = method.start(problem, weights, model)?;
    if options.parallel {
        run = run.in_parallel();
    }

    let (mut walls, mut cpu, mut losses) = (Vec::new(), 0.0, Vec::new());
    for index in 0..options.steps + 2 {
        if index == 2 {
            cpu = cpu_seconds()?;
        }
        let start = Instant::now();
        let step = run.next().ok_or("the run ended")??;
        if index >= 2 {
            walls.push(start.elapsed().as_secs_f64());
        }
        losses.push(step.lower_loss());
    }
    let result = serde_json::json!({
        "seconds": walls,
        "cpu_seconds": (cpu_seconds()? - cpu) / options.steps as f64,
        "loaded_mib": loaded,
        "peak_mib": status("VmHWM:")?,
        "losses": losses,
    });
    println!("{result}");
    Ok(())
}
