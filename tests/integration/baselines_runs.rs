//! What ScaleBiO is compared with, in miniature: from a folder of texts to the files of a run.

use std::fs;
use std::path::Path;

use scalebio::baselines::{
    AlignmentConfig, Baseline, GroupDroConfig, InfluenceConfig, ReferenceConfig,
};
use scalebio::train::{
    BaselineResult, Experiment, FinetuneConfig, Finetuning, ResampleConfig, ReweightConfig, Status,
    WeightsReport, resample,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::baselines::assert_weights;
use crate::examples::{example, printed};
use crate::zoo::{bits, largest_difference};

/// Three sources of texts, of which some give several samples; one record of the first is in the validation set too.
fn data() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let texts = |word: &str, from: usize, count: usize| -> String {
        let line = |i: usize| {
            format!(
                "{{\"text\": \"{word} {i}{}\"}}\n",
                " more of it".repeat(i % 4)
            )
        };
        (from..from + count).map(line).collect()
    };
    let files = [
        ("train_ants", texts("ants walk", 0, 9)),
        ("train_bees", texts("bees fly", 0, 12)),
        ("train_cows", texts("= 17 * cows", 0, 6)),
        ("val", texts("ants walk", 8, 8)),
    ];
    for (name, text) in files {
        fs::write(folder.path().join(format!("{name}.jsonl")), text).unwrap();
    }
    folder
}

/// The small GPT-2 from scratch, for a few steps.
fn settings(folder: &Path) -> ReweightConfig {
    ReweightConfig {
        steps: 4,
        batch: 6,
        micro_batch: Some(4),
        max_length: 8,
        ..ReweightConfig::new(folder)
    }
}

fn open(folder: &TempDir) -> Experiment {
    Experiment::open(settings(folder.path())).unwrap()
}

/// Every method with its default settings, but for candidates of RHO-LOSS that are not all there are.
fn methods() -> [Baseline; 6] {
    Baseline::all().map(|baseline| match baseline {
        Baseline::Reference(config) => Baseline::Reference(ReferenceConfig {
            share: 0.5,
            ..config
        }),
        other => other,
    })
}

fn weights(result: &BaselineResult) -> Vec<f64> {
    result.weights.sources.iter().map(|s| s.weight).collect()
}

/// Every method, from a folder to its files: weights that `resample` takes, or a set that `Finetuning` takes; the same again
/// from the same seed, bit for bit.
#[test]
fn every_method_gives_weights_or_a_set() {
    let folder = data();
    let experiment = open(&folder);
    for baseline in methods() {
        let out = folder.path().join(baseline.name());
        let result = experiment.baseline(&baseline, &out).unwrap();
        assert_weights(&weights(&result));
        let read = WeightsReport::read(&result.weights_path).unwrap();
        for (read, given) in read.sources.iter().zip(&result.weights.sources) {
            // A decimal fraction may be read one bit off.
            assert!((read.weight - given.weight).abs() < 1e-15 && read.name == given.name);
        }
        assert_eq!(result.weights.status, Status::Converged);
        let trained = !matches!(baseline, Baseline::Uniform | Baseline::Proportional);
        assert_eq!(result.training_tokens > 0, trained, "{baseline}");
        assert_eq!(result.weights.step > 0, trained);
        let written = fs::read_to_string(out.join("config.json")).unwrap();
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written["baseline"]["method"], baseline.name());
        assert_eq!(written["steps"], 4);

        let again = folder.path().join(format!("{baseline}-again"));
        let repeated = experiment.baseline(&baseline, &again).unwrap();
        assert_eq!(
            bits(&weights(&repeated)),
            bits(&weights(&result)),
            "{baseline}"
        );
        let selects = matches!(baseline, Baseline::Influence(_) | Baseline::Reference(_));
        assert_eq!(result.selection.is_some(), selects);
        if let Some(selection) = result.selection {
            let mix = fs::read_to_string(&selection.path).unwrap();
            assert_eq!(fs::read_to_string(again.join("mix.jsonl")).unwrap(), mix);
            let records: usize = selection.sources.iter().map(|s| s.records).sum();
            assert_eq!(mix.lines().count(), records);
            let mut config = FinetuneConfig::new(&selection.path);
            (config.steps, config.batch, config.max_length) = (1, 1, 8);
            let mut run = Finetuning::start(config, out.join("finetuned")).unwrap();
            run.next().unwrap().unwrap();
        } else {
            let config = ResampleConfig::new(folder.path(), &result.weights_path, 3);
            resample(&config, out.join("mix")).unwrap();
        }
        let error = experiment
            .baseline(&baseline, &out)
            .unwrap_err()
            .to_string();
        assert!(error.contains("already holds"), "{error}");
    }
}

/// A share of 1 selects every record but the one that is in the validation set, as it stands in its file; records are whole, so
/// that long texts give several samples.
#[test]
fn a_share_of_one_is_everything_but_what_is_held_out() {
    let folder = data();
    let methods = [
        Baseline::Influence(InfluenceConfig {
            share: 1.0,
            checkpoints: 1,
            ..InfluenceConfig::default()
        }),
        Baseline::Reference(ReferenceConfig {
            share: 1.0,
            reference_steps: Some(1),
        }),
    ];
    // Of RHO-LOSS enough steps for an epoch.
    let config = ReweightConfig {
        steps: 20,
        ..settings(folder.path())
    };
    let experiment = Experiment::open(config).unwrap();
    let all: String = ["ants", "bees", "cows"]
        .map(|name| fs::read_to_string(folder.path().join(format!("train_{name}.jsonl"))).unwrap())
        .concat();
    let mut all: Vec<&str> = all.lines().collect();
    assert_eq!(all.remove(8), "{\"text\": \"ants walk 8\"}");
    for baseline in methods {
        let out = folder.path().join(baseline.name());
        let result = experiment.baseline(&baseline, &out).unwrap();
        let selection = result.selection.unwrap();
        let mix = fs::read_to_string(&selection.path).unwrap();
        assert_eq!(mix.lines().collect::<Vec<_>>(), all, "{baseline}");
        let counts: Vec<_> = selection
            .sources
            .iter()
            .map(|s| (s.candidates, s.records))
            .collect();
        assert_eq!(counts, [(8, 8), (12, 12), (6, 6)]);
        let samples: usize = selection.sources.iter().map(|s| s.samples).sum();
        match baseline {
            Baseline::Reference(_) => assert_eq!(samples, 20 * 6),
            _ => {
                let given: usize = experiment.sources().iter().map(|s| s.samples.len()).sum();
                assert!(
                    samples == given - 1 && samples > all.len(),
                    "{samples} {given}"
                );
            }
        }
    }
}

/// The names of sources, and with them their order, say nothing: where every draw is all there is, weights go with the texts.
#[test]
fn weights_go_with_the_texts_of_a_source() {
    let text = |word: &str| -> String {
        (0..4)
            .map(|i| format!("{{\"text\": \"{word} {i} {word}\"}}\n"))
            .collect()
    };
    let words = ["ants", "17 =", "bees fly"];
    let run = |names: [&str; 3], baseline: &Baseline| {
        let folder = tempfile::tempdir().unwrap();
        for (name, word) in names.iter().zip(words) {
            fs::write(
                folder.path().join(format!("train_{name}.jsonl")),
                text(word),
            )
            .unwrap();
        }
        fs::write(folder.path().join("val.jsonl"), text("the ants")).unwrap();
        let config = ReweightConfig {
            model: Some(crate::evaluate::stories()),
            batch: 12,
            ..settings(folder.path())
        };
        let experiment = Experiment::open(ReweightConfig {
            max_length: 16,
            ..config
        })
        .unwrap();
        let result = experiment
            .baseline(baseline, folder.path().join("out"))
            .unwrap();
        let sources = &result.weights.sources;
        names.map(|name| sources.iter().find(|s| s.name == name).unwrap().weight)
    };
    let half = InfluenceConfig {
        share: 0.5,
        ..InfluenceConfig::default()
    };
    for baseline in [
        Baseline::Influence(half),
        Baseline::Alignment(AlignmentConfig::default()),
        Baseline::GroupDro(GroupDroConfig::default()),
    ] {
        let (one, other) = (
            run(["a", "b", "c"], &baseline),
            run(["z", "a", "m"], &baseline),
        );
        assert!(
            largest_difference(&one, &other) < 1e-4,
            "{baseline}: {one:?} {other:?}"
        );
        assert!(largest_difference(&one, &[1.0 / 3.0; 3]) > 1e-3, "{one:?}");
    }
}

/// With LISA only some blocks have gradients and moments, and every method still works, from another seed with another result.
#[test]
fn methods_work_with_lisa() {
    let folder = data();
    for baseline in &methods()[2..] {
        let weights = [0, 1].map(|seed| {
            let config = ReweightConfig {
                lisa_blocks: Some(1),
                lisa_period: 1,
                seed,
                ..settings(folder.path())
            };
            let out = folder.path().join(format!("{baseline}-{seed}"));
            let result = Experiment::open(config)
                .unwrap()
                .baseline(baseline, out)
                .unwrap();
            assert_weights(&weights(&result));
            fs::read_to_string(
                folder
                    .path()
                    .join(format!("{baseline}-{seed}/metrics.jsonl")),
            )
            .unwrap()
        });
        assert_ne!(weights[0], weights[1], "{baseline}");
    }
}

/// Settings that cannot work are errors with the value, what is allowed and what to do, and leave no folder behind.
#[test]
fn settings_that_cannot_work_are_errors() {
    let folder = data();
    let experiment = open(&folder);
    let less = |change: fn(&mut InfluenceConfig)| {
        let mut config = InfluenceConfig::default();
        change(&mut config);
        Baseline::Influence(config)
    };
    let rho = |share, reference_steps| {
        Baseline::Reference(ReferenceConfig {
            share,
            reference_steps,
        })
    };
    let alignment = |warmup, temperature| {
        Baseline::Alignment(AlignmentConfig {
            warmup,
            temperature,
        })
    };
    let dro = |rate, smoothing, reference_steps| {
        Baseline::GroupDro(GroupDroConfig {
            rate,
            smoothing,
            reference_steps,
        })
    };
    let cases = [
        (less(|c| c.share = 0.0), "share is 0, but must be above 0"),
        (less(|c| c.share = f64::NAN), "share is NaN"),
        (
            less(|c| c.checkpoints = 0),
            "checkpoints is 0, but must be at least 1",
        ),
        (
            less(|c| c.dimension = 0),
            "dimension is 0, but must be at least 1",
        ),
        (
            less(|c| c.warmup = Some(3)),
            "warm-up steps is 3, but must be from 4 to 4",
        ),
        (less(|c| c.warmup = Some(5)), "warm-up steps is 5"),
        (
            less(|c| c.checkpoints = 5),
            "checkpoints is 5, but must be at most 4",
        ),
        (
            rho(1.5, None),
            "share is 1.5, but must be above 0 and at most 1",
        ),
        (rho(0.5, Some(0)), "reference steps is 0"),
        (
            alignment(Some(4), 0.1),
            "warm-up steps is 4, but must be from 0 to 3",
        ),
        (alignment(None, 0.0), "temperature is 0"),
        (alignment(None, f64::INFINITY), "temperature is inf"),
        (
            dro(0.0, 0.1, None),
            "rate of the exponentiated gradient is 0",
        ),
        (
            dro(1.0, 1.1, None),
            "smoothing is 1.1, but must be from 0 to 1",
        ),
        (dro(1.0, 0.1, Some(0)), "reference steps is 0"),
    ];
    for (baseline, expected) in cases {
        let out = folder.path().join("out");
        let error = experiment
            .baseline(&baseline, &out)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected) && error.contains(';'), "{error}");
        assert!(!out.exists(), "{baseline:?}");
    }
}

/// The example prints the weights of a method, and takes settings as JSON.
#[test]
fn the_example_prints_weights() {
    let folder = data();
    let run = |method: &str, out: &str| {
        let out = folder.path().join(out);
        let data = folder.path().to_str().unwrap();
        let small = ["--steps", "2", "--batch", "6", "--max-length", "8"];
        let mut arguments = vec!["--method", method, "--data", data];
        arguments.extend(["--out", out.to_str().unwrap()]);
        arguments.extend(small);
        example("baseline", &arguments)
    };
    let text = printed(&run("uniform", "uniform"));
    assert_eq!(text.matches("0.3333").count(), 3, "{text}");
    let text = printed(&run(
        "{\"method\": \"less\", \"share\": 1, \"checkpoints\": 1}",
        "less",
    ));
    assert!(
        text.contains("12/12") && text.contains("mix.jsonl"),
        "{text}"
    );
    let bad = run("dogma", "dogma");
    assert!(!bad.status.success());
    let error = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(
        error.contains("uniform, proportional, less, rho-loss, alignment or doremi"),
        "{error}"
    );
}
