//! The same in runs on language models: a run stops when its weights have settled and not before, averages are the means they
//! say, and several seeds are the single runs with their spread. Off by default.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use approx::assert_abs_diff_eq;
use scalebio::train::{Experiment, ReweightConfig, SeedsReport, Stability, Status, WeightsReport};
use serde_json::Value;

use crate::examples::{example, printed};

/// Three sources of short lines, of which the validation set is like the first.
fn data(folder: &Path) {
    let lines = |words: [&str; 3], count: usize| -> String {
        let text = |i: usize| format!("{} {} {}", words[i % 3], words[i * i % 3], words[i / 3 % 3]);
        (0..count)
            .map(|i| format!("{}\n", serde_json::json!({ "text": text(i) })))
            .collect()
    };
    fs::create_dir(folder).unwrap();
    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    write("train_cats.jsonl", lines(["purr", "hiss", "meow"], 20));
    write("train_dogs.jsonl", lines(["bark", "growl", "whine"], 20));
    write("train_owls.jsonl", lines(["hoot", "screech", "fly"], 20));
    write("val.jsonl", lines(["purr", "hiss", "meow"], 12));
}

fn config(data: &Path, stability: Stability) -> ReweightConfig {
    ReweightConfig {
        steps: 12,
        batch: 6,
        max_length: 8,
        stability,
        ..ReweightConfig::new(data)
    }
}

/// Runs to the end; the report and the weights before each step and after the last.
fn run(
    data: &Path,
    out: &Path,
    stability: Stability,
) -> (WeightsReport, Vec<Vec<f64>>, Vec<Value>) {
    let experiment = Experiment::open(config(data, stability)).unwrap();
    let mut run = experiment.reweight(out).unwrap();
    run.by_ref().for_each(|step| drop(step.unwrap()));
    let report = WeightsReport::read(run.weights_path()).unwrap();
    assert_eq!(report, run.report());
    let lines: Vec<Value> = fs::read_to_string(run.metrics_path())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of_line = |line: &Value| -> Vec<f64> {
        let weights = line["weights"].as_object().unwrap();
        weights.values().map(|p| p.as_f64().unwrap()).collect()
    };
    let mut history: Vec<Vec<f64>> = lines.iter().map(of_line).collect();
    history.push(report.sources.iter().map(|source| source.weight).collect());
    (report, history, lines)
}

fn range(history: &[Vec<f64>]) -> f64 {
    (0..history[0].len())
        .map(|source| {
            let weights = history.iter().map(|weights| weights[source]);
            let highest = weights.clone().fold(f64::MIN, f64::max);
            highest - weights.fold(f64::MAX, f64::min)
        })
        .fold(0.0, f64::max)
}

/// A run that asks for nothing takes all its steps, and its files have no word of averages and pulls.
#[test]
fn nothing_happens_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let data_folder = folder.path().join("data");
    data(&data_folder);
    let out = folder.path().join("out");
    let (report, history, lines) = run(&data_folder, &out, Stability::default());
    assert_eq!((report.step, history.len()), (12, 13));
    assert_ne!(report.status, Status::Stopped);
    assert_eq!(report.average, None);
    let text = fs::read_to_string(out.join("weights.json")).unwrap();
    assert!(!text.contains("average"), "{text}");
    assert!(lines.iter().all(|line| line.get("pull").is_none()));
    // A config.json from before these settings is read as without them.
    let mut old: Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    for field in [
        "stop_below",
        "stop_window",
        "pull",
        "prior",
        "floor",
        "average",
    ] {
        old.as_object_mut().unwrap().remove(field).unwrap();
    }
    let old: ReweightConfig = serde_json::from_value(old).unwrap();
    assert_eq!(old, config(&data_folder, Stability::default()));
}

/// The run ends at the first step at which the weights of the window lie within the bound, and says so.
#[test]
fn a_run_stops_at_the_first_step_at_which_its_weights_have_settled() {
    let folder = tempfile::tempdir().unwrap();
    let data_folder = folder.path().join("data");
    data(&data_folder);
    let (_, all, _) = run(
        &data_folder,
        &folder.path().join("all"),
        Stability::default(),
    );
    let window = 3;
    let ranges: Vec<f64> = all.windows(window + 1).map(range).collect();
    // A bound that some window after the first is the first to keep.
    let first = (2..ranges.len())
        .find(|&k| ranges[..k].iter().all(|range| ranges[k] < *range))
        .unwrap();
    let bound = f64::midpoint(
        ranges[first],
        ranges[..first].iter().copied().fold(f64::MAX, f64::min),
    );
    let stability = Stability {
        stop_below: Some(bound),
        stop_window: window,
        ..Stability::default()
    };
    let (report, history, _) = run(
        &data_folder,
        &folder.path().join("stopped"),
        stability.clone(),
    );
    assert_eq!(report.step, first + window);
    assert_eq!(report.status, Status::Stopped);
    assert_eq!(history, all[..=report.step]);

    let never = Stability {
        stop_below: Some(1e-12),
        ..stability
    };
    let (report, _, _) = run(&data_folder, &folder.path().join("never"), never);
    assert_eq!(report.step, 12);
    assert_ne!(report.status, Status::Stopped);
}

/// Averages are the means of the weights after the last steps, and change nothing else.
#[test]
fn averages_are_the_means_of_the_last_weights() {
    let folder = tempfile::tempdir().unwrap();
    let data_folder = folder.path().join("data");
    data(&data_folder);
    for (name, share, expected) in [("third", 0.3, 4), ("one", 1e-9, 1), ("all", 1.0, 12)] {
        let stability = Stability {
            average: Some(share),
            ..Stability::default()
        };
        let (report, history, _) = run(&data_folder, &folder.path().join(name), stability);
        let average = report.average.unwrap();
        assert_eq!(average.steps, expected, "{share}");
        for (source, (name, mean)) in average.weights.iter().enumerate() {
            assert_eq!(*name, report.sources[source].name);
            let last = &history[history.len() - expected..];
            let sum: f64 = last.iter().map(|weights| weights[source]).sum();
            assert_abs_diff_eq!(*mean, sum / expected as f64, epsilon = 1e-12);
        }
        assert_abs_diff_eq!(average.weights.values().sum::<f64>(), 1.0, epsilon = 1e-12);
    }
}

/// A floor and a pull reach the run, and the log keeps the validation loss apart from the pull.
#[test]
fn a_run_has_the_floor_and_the_pull_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let data_folder = folder.path().join("data");
    data(&data_folder);
    let (_, _, plain) = run(
        &data_folder,
        &folder.path().join("plain"),
        Stability::default(),
    );
    let prior = [("cats", 0.1), ("dogs", 0.2), ("owls", 0.7)];
    let stability = Stability {
        floor: 0.25,
        pull: 5.0,
        prior: Some(prior.map(|(name, share)| (name.to_owned(), share)).into()),
        ..Stability::default()
    };
    let (report, history, lines) = run(&data_folder, &folder.path().join("pulled"), stability);
    assert!(history.iter().flatten().all(|p| *p >= 0.25), "{history:?}");
    let owls = &report.sources[2];
    assert!(owls.weight > 0.34, "{report:?}"); // the prior, not the validation set, which is of cats
    assert_eq!(lines[0]["l1_w"], plain[0]["l1_w"]);
    for (line, weights) in lines.iter().zip(&history) {
        let divergence: f64 = weights
            .iter()
            .zip(prior)
            .map(|(p, (_, q))| p * (p / q).ln())
            .sum();
        let pull = line["pull"].as_f64().unwrap();
        assert_abs_diff_eq!(pull, 5.0 * divergence, epsilon = 1e-5);
    }
}

/// Each seed's run is the single run of that seed, in a folder of its own, and the summary is their mean and spread.
#[test]
fn runs_of_several_seeds_are_the_single_runs_and_their_spread() {
    let folder = tempfile::tempdir().unwrap();
    let data_folder = folder.path().join("data");
    data(&data_folder);
    let out = folder.path().join("seeds");
    let experiment = Experiment::open(config(&data_folder, Stability::default())).unwrap();
    let mut runs = experiment.seeds(&[3, 1], &out).unwrap();
    assert!(runs.report().unwrap_err().to_string().contains("seeds"));
    assert_eq!(runs.by_ref().map(Result::unwrap).count(), 24);
    let reports = runs.reports().to_vec();
    let summary: SeedsReport =
        serde_json::from_slice(&fs::read(runs.summary_path()).unwrap()).unwrap();
    assert_eq!(summary, SeedsReport::new(&reports).unwrap());
    assert_eq!((summary.seeds, summary.steps), (vec![3, 1], vec![12, 12]));

    let single = ReweightConfig {
        seed: 1,
        ..config(&data_folder, Stability::default())
    };
    let experiment = Experiment::open(single).unwrap();
    let mut run = experiment.reweight(folder.path().join("single")).unwrap();
    run.by_ref().for_each(|step| drop(step.unwrap()));
    let bytes = |path: &Path| fs::read(path.join("weights.json")).unwrap();
    assert_eq!(
        bytes(&out.join("seed-1")),
        bytes(&folder.path().join("single"))
    );
    assert_ne!(bytes(&out.join("seed-3")), bytes(&out.join("seed-1")));

    let again = Experiment::open(config(&data_folder, Stability::default())).unwrap();
    let error = again.seeds(&[7], &out).unwrap_err().to_string();
    assert!(error.contains("already there"), "{error}");
}

/// Mean, standard deviation of a sample and bounds, on numbers computed by hand.
#[test]
fn the_spread_of_three_seeds_is_that_of_a_sample() {
    let report = |seed, weight: f64| -> WeightsReport {
        let source = |name: &str, weight: f64| serde_json::json!({"name": name, "weight": weight, "logit": 0.0, "samples": 5});
        serde_json::from_value(serde_json::json!({
            "schema_version": 1, "step": 10, "seed": seed, "reach": 1.0, "status": "converged",
            "sources": [source("a", weight), source("b", 1.0 - weight)],
        }))
        .unwrap()
    };
    let spread = SeedsReport::new(&[report(0, 0.5), report(1, 0.6), report(2, 0.7)]).unwrap();
    for (source, mean) in spread.sources.iter().zip([0.6, 0.4]) {
        assert_abs_diff_eq!(source.spread.mean, mean, epsilon = 1e-12);
        assert_abs_diff_eq!(source.spread.deviation, 0.1, epsilon = 1e-12);
        assert_abs_diff_eq!(
            source.spread.highest - source.spread.lowest,
            0.2,
            epsilon = 1e-12
        );
    }
    let one = SeedsReport::new(&[report(0, 0.5)]).unwrap();
    assert_abs_diff_eq!(one.sources[0].spread.deviation, 0.0);
    let mut other = report(1, 0.6);
    other.sources[0].name = "c".to_owned();
    let error = SeedsReport::new(&[report(0, 0.5), other]).unwrap_err();
    assert!(error.to_string().contains("c, b"), "{error}");
}

/// What cannot work is refused before anything is read or written, with what would.
#[test]
fn impossible_settings_of_stability_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let data_folder = folder.path().join("data");
    data(&data_folder);
    let out = folder.path().join("out");
    let refused = |stability: Stability| -> String {
        let opened = Experiment::open(config(&data_folder, stability));
        let error = match opened {
            Ok(experiment) => experiment.reweight(&out).unwrap_err(),
            Err(error) => error,
        };
        assert!(!out.exists());
        error.to_string()
    };
    let default = Stability::default;
    let prior = |shares: &[(&str, f64)]| -> Option<BTreeMap<String, f64>> {
        let shares = shares.iter();
        Some(
            shares
                .map(|(name, share)| ((*name).to_owned(), *share))
                .collect(),
        )
    };
    let pulled = |shares| Stability {
        pull: 1.0,
        prior: prior(shares),
        ..default()
    };
    let all = [("cats", 0.5), ("dogs", 0.25), ("owls", 0.25)];
    let cases = [
        (
            Stability {
                stop_below: Some(0.0),
                ..default()
            },
            "stop-below",
        ),
        (
            Stability {
                stop_below: Some(f64::NAN),
                ..default()
            },
            "stop-below",
        ),
        (
            Stability {
                stop_below: Some(0.1),
                stop_window: 0,
                ..default()
            },
            "stop-window",
        ),
        (
            Stability {
                stop_below: Some(0.1),
                stop_window: 12,
                ..default()
            },
            "12 of 12 steps",
        ),
        (
            Stability {
                pull: -1.0,
                ..default()
            },
            "pull",
        ),
        (
            Stability {
                prior: prior(&all),
                ..default()
            },
            "without a pull",
        ),
        (pulled(&all[..2]), "no share for `owls`"),
        (pulled(&[("cats", 0.5), ("bats", 0.5)]), "share for `bats`"),
        (
            pulled(&[("cats", 0.5), ("dogs", 0.25), ("owls", 0.5)]),
            "1.25",
        ),
        (
            Stability {
                floor: 0.34,
                ..default()
            },
            "below 1/3",
        ),
        (
            Stability {
                average: Some(0.0),
                ..default()
            },
            "average",
        ),
        (
            Stability {
                average: Some(1.5),
                ..default()
            },
            "average",
        ),
    ];
    for (stability, expected) in cases {
        let message = refused(stability);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let seeds = |seeds: &[u64]| {
        let experiment = Experiment::open(config(&data_folder, default())).unwrap();
        experiment.seeds(seeds, &out).unwrap_err().to_string()
    };
    assert!(seeds(&[]).contains("at least 1"));
    assert!(seeds(&[1, 2, 1]).contains("1 twice"));
}

/// Every flag of the program reaches the run, and what came of it is printed.
#[test]
fn the_program_takes_the_settings_of_stability_and_several_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let data_folder = folder.path().join("data");
    data(&data_folder);
    let data_folder = data_folder.to_str().unwrap();
    let reweight = |out: &Path, flags: &[&str]| -> String {
        let run = [
            "--data",
            data_folder,
            "--steps",
            "8",
            "--batch",
            "6",
            "--max-length",
            "8",
        ];
        let out = ["--out", out.to_str().unwrap()];
        printed(&example("reweight", &[&run[..], &out, flags].concat()))
    };
    let flags = [
        "--stop-below",
        "0.9",
        "--stop-window",
        "3",
        "--pull",
        "0.5",
        "--prior",
        "cats=0.2,dogs=0.3,owls=0.5",
        "--floor",
        "0.1",
        "--average",
        "0.5",
    ];
    let expected = Stability {
        stop_below: Some(0.9),
        stop_window: 3,
        pull: 0.5,
        prior: Some(
            [("cats", 0.2), ("dogs", 0.3), ("owls", 0.5)]
                .map(|(name, p)| (name.to_owned(), p))
                .into(),
        ),
        floor: 0.1,
        average: Some(0.5),
    };
    let stability = |folder: &Path| -> Stability {
        let config = fs::read(folder.join("config.json")).unwrap();
        serde_json::from_slice::<ReweightConfig>(&config)
            .unwrap()
            .stability
    };
    let single = folder.path().join("single");
    let text = reweight(&single, &flags);
    assert_eq!(stability(&single), expected);
    assert!(text.contains("after 3 steps: stopped"), "{text}");
    assert!(text.contains("average over the last 2 steps"), "{text}");

    let several = folder.path().join("several");
    let text = reweight(&several, &[&flags[..], &["--seeds", "4,2"]].concat());
    assert_eq!(stability(&several.join("seed-4")), expected);
    assert_eq!(stability(&several.join("seed-2")), expected);
    assert!(several.join("seeds.json").is_file());
    assert!(
        text.contains("deviation") && text.contains("seed 2: 3 steps, stopped"),
        "{text}"
    );
}
