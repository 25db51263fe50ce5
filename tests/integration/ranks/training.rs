//! Whole runs on several ranks, in threads: their files, and going on with another number of ranks.

use std::fs;
use std::path::Path;

use scalebio::Result;
use scalebio::collective::{Ranks, Threads};
use scalebio::train::{Experiment, ReweightConfig, Reweighting, WeightsReport};
use serde_json::Value;
use tempfile::tempdir;

use super::{PATIENCE, on_ranks, on_threads};
use crate::evaluate::stories;
use crate::resume_training::{data, metrics};

const STEPS: usize = 8;

fn config(data: &Path) -> ReweightConfig {
    let mut config = ReweightConfig::new(data);
    config.model = Some(stories());
    (config.steps, config.batch, config.max_length) = (STEPS, 5, 12);
    (config.lr_lower, config.lisa_blocks, config.lisa_period) = (1e-3, Some(1), 3);
    config.checkpoint_minutes = None;
    config
}

fn take(run: Result<Reweighting>, steps: usize) -> Result<Reweighting> {
    let mut run = run?;
    for step in run.by_ref().take(steps) {
        step?;
    }
    Ok(run)
}

fn start(config: &ReweightConfig, ranks: Ranks, out: &Path) -> Result<Reweighting> {
    Experiment::open(config.clone())?
        .with_ranks(ranks)
        .reweight(out)
}

fn resume(config: &ReweightConfig, ranks: Ranks, out: &Path) -> Result<Reweighting> {
    Experiment::open(config.clone())?
        .with_ranks(ranks)
        .resume(out)
}

fn weights(out: &Path) -> Vec<f64> {
    let report = WeightsReport::read(out.join("weights.json")).unwrap();
    assert_eq!(report.step, STEPS);
    report.sources.iter().map(|source| source.weight).collect()
}

fn near(found: &[f64], expected: &[f64]) {
    let difference = crate::zoo::largest_difference(found, expected);
    assert!(difference < 1e-5, "{difference:e}");
}

/// Lines of `metrics.jsonl`.
fn lines(out: &Path) -> Vec<Value> {
    metrics(out)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Three ranks learn the weights that one learns; rank 0 alone writes, and what it writes is of all ranks.
#[test]
fn rank_0_writes_the_files_of_the_run() {
    let (data, folder) = (data(), tempdir().unwrap());
    let config = config(data.path());
    let (alone, shared) = (folder.path().join("alone"), folder.path().join("shared"));
    drop(take(start(&config, Ranks::default(), &alone), STEPS).unwrap());
    on_ranks(3, |ranks| {
        // Were it to write, a rank would find what another has made.
        let out = match ranks.rank() {
            0 => shared.clone(),
            rank => folder.path().join(format!("of-{rank}")),
        };
        let mut run = take(start(&config, ranks, &out), STEPS).unwrap();
        run.checkpoint().unwrap();
        let experiment = Experiment::open(config.clone()).unwrap();
        run.save_model(&experiment).unwrap();
    });
    for rank in 1..3 {
        assert!(!folder.path().join(format!("of-{rank}")).exists());
    }
    for file in [
        "model/model.safetensors",
        "config.json",
        "checkpoints/step-00000008",
    ] {
        assert!(shared.join(file).exists(), "{file}");
    }
    near(&weights(&shared), &weights(&alone));
    let config = |out: &Path| fs::read_to_string(out.join("config.json")).unwrap();
    assert_eq!(config(&shared), config(&alone));
    for (shared, alone) in lines(&shared).iter().zip(lines(&alone)) {
        assert_eq!(shared["tokens"], alone["tokens"]);
        assert!(shared["collective_bytes"].as_u64().unwrap() > 4 * 2 * 10_000);
        assert!(alone.get("collective_bytes").is_none());
    }
}

/// A run of two ranks goes on with three or one, from its last checkpoint, to the weights of a run that was not interrupted.
#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let (data, folder) = (data(), tempdir().unwrap());
    let config = config(data.path());
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    drop(take(start(&config, Ranks::default(), &whole), STEPS).unwrap());

    let all_but = |left: usize, run: Result<Reweighting>| {
        let mut run = take(run, STEPS - left).unwrap();
        run.checkpoint().unwrap();
        drop(take(Ok(run), 1).unwrap()); // a step that is lost
    };
    on_ranks(2, |ranks| all_but(5, start(&config, ranks, &out)));
    on_ranks(3, |ranks| {
        let run = resume(&config, ranks, &out).unwrap();
        assert_eq!(run.run().steps(), 3);
        let mut run = take(Ok(run), 2).unwrap();
        run.checkpoint().unwrap();
    });
    drop(take(resume(&config, Ranks::default(), &out), STEPS).unwrap());
    near(&weights(&out), &weights(&whole));
    let tokens = |out: &Path| -> Vec<u64> {
        lines(out)
            .iter()
            .map(|line| line["tokens"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(tokens(&out), tokens(&whole));
}

/// Other data, another seed or another checkpoint on one rank: an error on all before anything is written, which says what
/// differs.
#[test]
fn ranks_of_different_experiments_are_refused() {
    let (same, other, folder) = (data(), data(), tempdir().unwrap());
    let source = other.path().join("train_b.jsonl");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text.replacen("dog", "cat", 1)).unwrap();
    let out = folder.path().join("out");
    let base = config(same.path());
    let mut reseeded = base.clone();
    reseeded.seed = 1;
    let mut longer = base.clone();
    longer.steps += 1;
    for (differs, what) in [
        (config(other.path()), "the source `b` is"),
        (reseeded, "the setting seed is 1 on rank 1, but 0 on rank 0"),
        (longer, "the setting steps is 9 on rank 1, but 8 on rank 0"),
    ] {
        let errors = on_ranks(3, |ranks| {
            let config = if ranks.rank() == 1 { &differs } else { &base };
            start(config, ranks, &out).unwrap_err().to_string()
        });
        for error in errors {
            assert!(error.contains(what) && error.contains("rank 1"), "{error}");
        }
        assert!(!out.exists());
    }
    let missing = on_ranks(2, |ranks| {
        let out = folder.path().join(if ranks.is_first() { "a" } else { "b" });
        resume(&base, ranks, &out).unwrap_err().to_string()
    });
    assert!(
        missing
            .iter()
            .all(|error| error.contains("rank 0") && error.contains("no checkpoint"))
    );
}

/// A folder that rank 0 cannot have, and a checkpoint that it cannot write, end all ranks.
#[test]
fn what_rank_0_cannot_write_is_an_error_on_all() {
    let (data, folder) = (data(), tempdir().unwrap());
    let mut config = config(data.path());
    let out = folder.path().join("out");
    fs::write(&out, "a file").unwrap();
    for error in on_ranks(2, |ranks| {
        start(&config, ranks, &out).unwrap_err().to_string()
    }) {
        assert!(error.starts_with("rank 0: "), "{error}");
    }
    config.checkpoint_steps = Some(3);
    let out = folder.path().join("second");
    let threads = Threads::new(2, PATIENCE).unwrap();
    let ended = on_threads(threads, |ranks| {
        let mut run = take(start(&config, ranks.clone(), &out), 1).unwrap();
        if ranks.is_first() {
            fs::write(out.join("checkpoints"), "a file").unwrap();
        }
        let error = run.find_map(Result::err).unwrap();
        assert!(run.next().is_none());
        (run.run().steps(), error.to_string())
    });
    for (steps, error) in ended {
        assert_eq!(steps, 3);
        assert!(
            error.starts_with("rank 0: ") && error.contains("checkpoints"),
            "{error}"
        );
    }
}
