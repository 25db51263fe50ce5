//! Memory of a run on streamed data, measured in a process of its own.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use scalebio::train::Experiment;
use tempfile::tempdir;

use super::experiment;

/// What the kernel says of this process, in bytes.
fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kibibytes = line.split_whitespace().nth(1).unwrap();
    kibibytes.parse::<u64>().unwrap() * 1024
}

/// A process of its own, for the test below.
#[test]
#[ignore = "the process of another test"]
fn trains_on_a_folder() {
    let (Ok(folder), Ok(stream)) = (std::env::var("DATA"), std::env::var("STREAM")) else {
        return;
    };
    let folder = Path::new(&folder);
    let out = tempdir().unwrap();
    let mut config = experiment(folder, Some(folder.join("index")), Some(stream == "true"));
    config.max_length = 64;
    let before = memory("VmRSS:");
    let experiment = Experiment::open(config).unwrap();
    let run = experiment.reweight(out.path().join("run")).unwrap();
    let steps = run.map(|step| step.unwrap()).count();
    println!("peak {} after {steps} steps", memory("VmHWM:") - before);
}

/// 20 MB of text, of which a run in memory holds more than that: streamed, at the first start and at the second, it is less than
/// half of it, most of which is the program's own.
#[test]
fn a_streamed_run_takes_a_fraction_of_the_memory_of_its_data() {
    let folder = tempdir().unwrap();
    for (name, records) in [("train_a", 25_000), ("train_b", 15_000), ("val", 20)] {
        let mut text = String::new();
        for record in 0..records {
            write!(text, "{{\"text\": \"{name}").unwrap();
            for word in 0..60 {
                write!(text, " {}", (record * 7919 + word * 104_729) % 1_000_003).unwrap();
            }
            text.push_str(".\"}\n");
        }
        fs::write(folder.path().join(format!("{name}.jsonl")), text).unwrap();
    }
    let peak = |stream: &str| {
        let name = "streaming::memory::trains_on_a_folder";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env("DATA", folder.path())
            .env("STREAM", stream)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once("peak "));
        let (_, line) = line.unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains("after 9 steps"), "{line}");
        line.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
    };
    let (held, first, second) = (peak("false"), peak("true"), peak("true"));
    assert!(held > 60.0, "{held} MB");
    assert!(
        first < 0.5 * held && second < 0.5 * held,
        "{held} {first} {second} MB"
    );
}
