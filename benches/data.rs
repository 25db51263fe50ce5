//! The memory and the time of resampling sources that are larger than memory may be.
//!
//! ```text
//! cargo bench --bench data                            # 1 GB of JSONL in records of 500 bytes
//! cargo bench --bench data -- --record-bytes 100
//! ```
//!
//! Four sources of one size, of which half of the records are drawn. The peak of memory is the process's own, which writes
//! the data too, a record at a time; it is known on Linux only.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use clap::Parser;
use scalebio::train::{ResampleConfig, resample};
use serde_json::json;

const SOURCES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Parser)]
struct Args {
    /// Megabytes (10^6 bytes) of JSONL in all
    #[arg(long, default_value_t = 1000)]
    megabytes: usize,

    /// Bytes of a record
    #[arg(long, default_value_t = 500)]
    record_bytes: usize,

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
    fs::write(
        folder.path().join("val.jsonl"),
        "{\"text\": \"held out\"}\n",
    )?;
    let sources: Vec<_> = SOURCES
        .iter()
        .map(|name| json!({"name": name, "weight": 0.25, "logit": 0.0, "samples": records}))
        .collect();
    let weights = json!({
        "schema_version": 1, "step": 1, "seed": 0, "reach": 1.0, "status": "converged", "sources": sources,
    });
    let file = folder.path().join("weights.json");
    fs::write(&file, weights.to_string())?;

    let before = peak();
    let started = Instant::now();
    let samples = records * SOURCES.len() / 2;
    let config = ResampleConfig::new(folder.path(), &file, samples);
    resample(&config, folder.path().join("out"))?;
    println!(
        "{megabytes} MB of JSONL in {} records, {samples} samples: {:.1} s, peak of memory {} (before: {})",
        records * SOURCES.len(),
        started.elapsed().as_secs_f64(),
        peak(),
        before
    );
    Ok(())
}

fn write_source(path: &Path, source: usize, records: usize, bytes: usize) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for record in 0..records {
        let start = format!("{{\"text\": \"{source} {record} ");
        let filler = bytes.saturating_sub(start.len() + 3);
        writeln!(file, "{start}{:.<filler$}\"}}", "")?;
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
