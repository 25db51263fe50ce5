//! The memory and the time of resampling sources that are larger than memory may be, and of training on them.
//!
//! ```text
//! cargo bench --bench data                            # 1 GB of JSONL in records of 500 bytes
//! cargo bench --bench data -- --record-bytes 100
//! cargo bench --bench data -- --train --megabytes 2000
//! ```
//!
//! Four sources of one size, of which half of the records are drawn; or, with `--train`, on which the small default model
//! takes some steps, twice: at the second start the index of the data is there. The peak of memory is the process's own, which
//! writes the data too, a record at a time; it is known on Linux only.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use clap::Parser;
use scalebio::data::Tokenizer;
use scalebio::train::{Experiment, ResampleConfig, ReweightConfig, resample};
use serde_json::json;

const SOURCES: [&str; 4] = ["a", "b", "c", "d"];

const SYLLABLES: [&str; 16] = [
    "ba", "re", "lin", "so", "ta", "mor", "ke", "du", "shi", "ven", "o", "pra", "nes", "il", "gu",
    "ton",
];

#[derive(Debug, Parser)]
struct Args {
    /// Megabytes (10^6 bytes) of JSONL in all
    #[arg(long, default_value_t = 1000)]
    megabytes: usize,

    /// Bytes of a record
    #[arg(long, default_value_t = 500)]
    record_bytes: usize,

    /// Train on the data, which stay in their files, instead of drawing from them
    #[arg(long)]
    train: bool,

    /// Hold them in memory instead
    #[arg(long, requires = "train")]
    in_memory: bool,

    /// Steps of the training
    #[arg(long, default_value_t = 20)]
    steps: usize,

    /// Longest sample in tokens
    #[arg(long, default_value_t = 64)]
    max_length: usize,

    /// What cargo passes
    #[arg(long)]
    bench: bool,

    /// Only see that it works, on a megabyte
    #[arg(long)]
    test: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let megabytes = if args.test { 1 } else { args.megabytes };
    let folder = tempfile::tempdir()?;
    let records = megabytes * 1_000_000 / args.record_bytes / SOURCES.len();
    for (source, name) in SOURCES.iter().enumerate() {
        let path = folder.path().join(format!("train_{name}.jsonl"));
        write_source(&path, source, records, args.record_bytes)?;
    }
    write_source(&folder.path().join("val.jsonl"), 4, 100, args.record_bytes)?;
    println!(
        "{megabytes} MB of JSONL in {} records",
        records * SOURCES.len()
    );
    if args.train || args.test {
        train(folder.path(), &args)?;
    }
    if !args.train || args.test {
        draw(folder.path(), records)?;
    }
    Ok(())
}

fn draw(folder: &Path, records: usize) -> Result<(), Box<dyn Error>> {
    let sources: Vec<_> = SOURCES
        .iter()
        .map(|name| json!({"name": name, "weight": 0.25, "logit": 0.0, "samples": records}))
        .collect();
    let weights = json!({
        "schema_version": 1, "step": 1, "seed": 0, "reach": 1.0, "status": "converged", "sources": sources,
    });
    let file = folder.join("weights.json");
    fs::write(&file, weights.to_string())?;

    let before = peak();
    let started = Instant::now();
    let samples = records * SOURCES.len() / 2;
    let config = ResampleConfig::new(folder, &file, samples);
    resample(&config, folder.join("out"))?;
    println!(
        "{samples} samples: {:.1} s, peak of memory {} (before: {before})",
        started.elapsed().as_secs_f64(),
        peak(),
    );
    Ok(())
}

/// Trains twice, with a tokenizer that was trained on a small part of the data.
fn train(folder: &Path, args: &Args) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(folder.join("val.jsonl"))?;
    let file = folder.join("tokenizer.json");
    Tokenizer::train(text.lines(), 4096)?.save(&file)?;
    for name in ["first", "second"] {
        let mut config = ReweightConfig::new(folder);
        config.tokenizer = Some(file.clone());
        (config.max_length, config.steps) = (args.max_length, args.steps);
        config.stream = Some(!args.in_memory);
        config.index = Some(folder.join("index"));
        let (before, started) = (peak(), Instant::now());
        let experiment = Experiment::open(config)?;
        let opened = started.elapsed().as_secs_f64();
        let samples: usize = experiment.sources().iter().map(|s| s.samples.len()).sum();
        let mut run = experiment.reweight(folder.join(name))?;
        run.next().transpose()?;
        let stepped = started.elapsed().as_secs_f64();
        let steps = run.collect::<Result<Vec<_>, _>>()?.len();
        let a_step = (started.elapsed().as_secs_f64() - stepped) / steps as f64;
        println!(
            "{name} start: {samples} samples, opened after {opened:.2} s, first step after {stepped:.2} s, \
             {:.1} ms a step after that, peak of memory {} (before: {before})",
            1e3 * a_step,
            peak(),
        );
    }
    Ok(())
}

/// Records of words that nobody has written, some of which are frequent.
fn write_source(path: &Path, source: usize, records: usize, bytes: usize) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut state = source as u64;
    let mut line = String::new();
    for record in 0..records {
        line.clear();
        line.push_str(&format!("{{\"text\": \"{source} {record}"));
        while line.len() + 3 < bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let word = (state >> 33) % (1 << (state >> 60)); // below 1 to 32768
            let syllable = |i: u32| SYLLABLES[(word >> (4 * i)) as usize % SYLLABLES.len()];
            line.push(' ');
            (0..=word.max(1).ilog2() / 4).for_each(|i| line.push_str(syllable(i)));
        }
        line.truncate(bytes.saturating_sub(3));
        writeln!(file, "{line}\"}}")?;
    }
    file.flush()
}

/// The largest resident memory of this process so far.
fn peak() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.map_or("unknown".to_owned(), |kb| format!("{:.0} MiB", kb / 1024.0))
}
