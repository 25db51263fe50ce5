//! The examples, run as a user runs them: as processes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use scalebio::problems::Images;
use scalebio::train::{Status, WeightsReport};

use crate::problems_readers::write_folder;

/// `cargo test` builds the examples beside this binary's folder.
pub(crate) fn command(name: &str, arguments: &[&str]) -> Command {
    let binary = std::env::current_exe().unwrap();
    let examples = binary.ancestors().nth(2).unwrap().join("examples");
    let mut command = Command::new(examples.join(name));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

pub(crate) fn example(name: &str, arguments: &[&str]) -> Output {
    command(name, arguments).output().unwrap()
}

pub(crate) fn printed(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = example("reweight", arguments);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

pub fn reweight(out: &Path, arguments: &[&str]) -> (String, WeightsReport) {
    let folder = out.to_str().unwrap();
    let output = example("reweight", &[&["--out", folder], arguments].concat());
    (
        printed(&output),
        WeightsReport::read(out.join("weights.json")).unwrap(),
    )
}

pub fn weight(report: &WeightsReport, name: &str) -> f64 {
    report
        .sources
        .iter()
        .find(|source| source.name == name)
        .unwrap()
        .weight
}

/// The number at the end of the line that starts with `name`.
fn loss(text: &str, name: &str) -> f64 {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(name))
        .unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

/// A run of a few steps on the shipped data.
const SHORT: [&str; 5] = ["--no-compare", "--steps", "3", "--batch", "14"];

#[test]
fn quadratic_ends_at_three() {
    let text = printed(&example("quadratic", &[]));
    assert!(text.starts_with("step 0: L1(w) 18.0"), "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("x = [2.99999") || last.starts_with("x = [3.0"),
        "{last}"
    );
}

/// The comparison runs every method on every problem, logs the same columns for all, names hyper-parameters, and writes
/// a page that asks for nothing from elsewhere.
#[test]
fn bilevel_bench_writes_tables_and_a_page_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let problems = "simulated,simulated-minibatch,sources";
    let short = ["--budget", "60", "--seeds", "2", "--out", out];
    let text = printed(&example(
        "bilevel_bench",
        &[&short[..], &["--problem", problems]].concat(),
    ));
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let (results, methods, page) = (read("results.csv"), read("methods.csv"), read("index.html"));
    for method in [
        "penalty",
        "f2sa",
        "bome",
        "sama",
        "no-u",
        "bda",
        "soba",
        "zeroth-order",
    ] {
        for problem in problems.split(',') {
            let row = format!("{problem},{method},");
            assert!(methods.contains(&row), "{row} in {methods}");
            assert!(results.contains(&row), "{row} in {results}");
        }
        assert!(text.contains(method) && page.contains(method), "{method}");
    }
    assert!(
        results.contains("simulated-minibatch,soba-saga,1,"),
        "{results}"
    );
    assert!(page.contains("rate: 0.3"), "hyper-parameters in {page}");
    for row in results.lines().skip(1) {
        let columns: Vec<&str> = row.split(',').collect();
        assert_eq!(columns.len(), 7, "{row}");
        let number = |i: usize| columns[i].parse::<f64>().unwrap();
        assert!(number(5) >= 0.0 && number(6).is_finite(), "{row}");
        assert!(number(4) <= 75.0, "a step past the budget at most: {row}");
    }
    assert_eq!(page.matches("<svg").count(), 9);
    for outside in ["src=", "@import", "url(", "<script", "href=\"http"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let underscored = ["--methods", "no_u", "--budget", "10"];
    let text = printed(&example(
        "bilevel_bench",
        &[&["--out", out], &underscored[..]].concat(),
    ));
    assert!(text.contains(" no-u "), "{text}");
    let unknown = example(
        "bilevel_bench",
        &[&short[..], &["--methods", "newton"]].concat(),
    );
    assert!(!unknown.status.success());
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        error.contains("newton") && error.contains("penalty"),
        "{error}"
    );
}

#[test]
fn replay_equals_the_recorded_pytorch_runs() {
    for (model, trajectory) in [("gpt2", "gpt2-adamw"), ("llama3", "llama3-sgd")] {
        let model = format!("tests/fixtures/hf/{model}");
        let folder = format!("tests/fixtures/trajectory/{trajectory}");
        let ways: [&[&str]; 2] = [&[], &["--blockwise", "--parallel"]];
        for way in ways {
            let arguments = [&[model.as_str(), &folder], way].concat();
            let text = printed(&example("replay", &arguments));
            let report: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(report["steps"], 20);
            // The bounds are 2e-3 and 1e-3; rounding alone moves the reference by 6e-5 and 8e-5.
            let bounded = |key: &str| report[key].as_f64().unwrap() <= 2e-4;
            assert!(bounded("max_abs_p_error"), "{way:?}: {text}");
            assert!(bounded("max_rel_loss_error"), "{way:?}: {text}");
        }
    }
}

#[test]
fn reweight_finds_the_relevant_sources_and_a_better_mix_with_three_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let uniform = 1.0 / 7.0;
    for seed in ["0", "1", "2"] {
        let (text, report) = reweight(&folder.path().join(seed), &["--seed", seed]);
        let mut sources = report.sources.clone();
        sources.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        let mut top: Vec<_> = sources[..2].iter().map(|s| s.name.as_str()).collect();
        top.sort_unstable();
        assert_eq!(top, ["devil", "jargon"], "{text}");
        for source in ["bantu", "germanic", "romance", "python", "jargon_scrambled"] {
            assert!(weight(&report, source) < uniform, "{text}");
        }
        let (learned, uniform) = (loss(&text, "on the learned"), loss(&text, "on uniform"));
        assert!(learned < uniform, "{text}");
    }
}

#[test]
fn reweight_with_one_seed_gives_the_same_weights_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        reweight(
            &out,
            &[&SHORT[..], &["--seed", seed, "--micro-batch", "5"]].concat(),
        );
        fs::read(out.join("weights.json")).unwrap()
    };
    let first = run("first", "4");
    assert_eq!(first, run("second", "4"));
    assert_ne!(first, run("third", "5"));
}

#[test]
fn reweight_writes_its_files_and_refuses_a_folder_that_holds_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (text, report) = reweight(
        &out,
        &[
            &SHORT[..],
            &["--save-model", "--lisa-blocks", "1", "--lisa-period", "2"],
        ]
        .concat(),
    );
    assert_eq!((report.schema_version, report.step), (1, 3));
    assert_ne!(report.status, Status::Running);
    let names: Vec<_> = report
        .sources
        .iter()
        .map(|source| source.name.as_str())
        .collect();
    assert!(names.is_sorted());
    let sum: f64 = report.sources.iter().map(|source| source.weight).sum();
    assert!((sum - 1.0).abs() < 1e-12);

    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    let reach: f64 = lines
        .iter()
        .map(|line| line["lr_upper"].as_f64().unwrap())
        .sum();
    assert!((reach - report.reach).abs() < 1e-12);
    for line in &lines {
        let gap = line["l2_w"].as_f64().unwrap() - line["l2_u"].as_f64().unwrap();
        assert!((gap - line["gap"].as_f64().unwrap()).abs() < 1e-12);
        assert!(line["seconds"].as_f64().unwrap() > 0.0 && line["tokens"].as_u64().unwrap() > 0);
        let weighted: f64 = names
            .iter()
            .map(|&name| {
                let of = |field: &str| line[field][name].as_f64().unwrap();
                of("weights") * of("source_losses_w")
            })
            .sum();
        assert!((weighted - line["l2_w"].as_f64().unwrap()).abs() < 1e-9);
    }
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(out.join("model").join(file).exists(), "{file}");
    }
    assert!(text.contains("weights.json"), "{text}");

    let before = fs::read(out.join("weights.json")).unwrap();
    let error = refused(&["--out", out.to_str().unwrap(), "--steps", "1"]);
    assert!(error.contains("already holds a run"), "{error}");
    let model = out.join("model");
    let config = fs::read(model.join("config.json")).unwrap();
    let error = refused(&["--out", model.to_str().unwrap(), "--steps", "1"]);
    assert!(error.contains("config.json"), "{error}");
    assert_eq!(fs::read(model.join("config.json")).unwrap(), config);
    assert_eq!(fs::read(out.join("weights.json")).unwrap(), before);

    // The saved model is a base model for the next run, with the tokenizer beside it.
    let model = out.join("model");
    let next = folder.path().join("next");
    reweight(
        &next,
        &[
            &SHORT[..],
            &["--model", model.to_str().unwrap(), "--dtype", "bf16"],
        ]
        .concat(),
    );
    let settings = fs::read_to_string(next.join("config.json")).unwrap();
    assert!(settings.contains("\"dtype\": \"bfloat16\""), "{settings}");
}

#[test]
fn reweight_takes_small_data_without_a_test_set_on_either_cpu_device() {
    let folder = tempfile::tempdir().unwrap();
    for (file, records) in [("train_a", 40), ("train_b", 40), ("val", 3)] {
        let text: String = (0..records)
            .map(|i| format!("{{\"text\": \"{file} number {i} and some more\"}}\n"))
            .collect();
        fs::write(folder.path().join(format!("{file}.jsonl")), text).unwrap();
    }
    let data = folder.path().to_str().unwrap();
    for device in ["flex", "ndarray"] {
        let arguments = [
            "--data", data, "--device", device, "--steps", "2", "--clip", "0",
        ];
        let (text, report) = reweight(&folder.path().join(device), &arguments);
        assert_eq!(report.sources.len(), 2);
        assert!(text.contains("no test set"), "{text}");
    }
}

#[test]
fn reweight_reports_the_micro_batch_free_weights_up_to_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, micro_batch: &str| -> Vec<f64> {
        let out = folder.path().join(name);
        let (_, report) = reweight(
            &out,
            &[
                &SHORT[..],
                &["--optimizer", "sgd", "--micro-batch", micro_batch],
            ]
            .concat(),
        );
        report.sources.iter().map(|source| source.weight).collect()
    };
    let (whole, cut) = (run("whole", "14"), run("cut", "3"));
    for (a, b) in whole.iter().zip(&cut) {
        assert!((a - b).abs() < 1e-5, "{whole:?} {cut:?}");
    }
}

#[test]
fn reweight_says_what_is_wrong_with_its_flags() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    for (arguments, said) in [
        (&["--steps", "0"][..], "at least 1"),
        (&["--alpha", "0"], "penalty"),
        (&["--alpha", "-1"], "penalty"),
        (&["--batch", "0"], "0 samples"),
        (&["--batch", "9999999"], "9999999 samples"),
        (&["--micro-batch", "0"], "micro-batch"),
        (&["--max-length", "1"], "max length"),
        (&["--lr-lower", "0"], "lr-lower"),
        (&["--lr-upper", "NaN"], "lr-upper"),
        (&["--clip", "-1"], "clip"),
        (&["--lisa-blocks", "3"], "3 blocks"),
        (&["--lisa-blocks", "1", "--lisa-period", "0"], "period"),
        (&["--optimizer", "adagrad"], "adamw or sgd"),
        (&["--device", "tpu"], "tpu"),
        (&["--dtype", "int8"], "float32 or bfloat16"),
        (
            &["--dtype", "bf16", "--device", "ndarray"],
            "float32 on this device",
        ),
        (
            &[
                "--model",
                "tests/fixtures/hf/gpt2",
                "--tokenizer",
                "tests/fixtures/stories260K/tokenizer.json",
            ],
            "vocabulary",
        ),
        (
            &[
                "--model",
                "tests/fixtures/stories260K",
                "--max-length",
                "513",
            ],
            "at most 512",
        ),
        (&["--data", "no/such/folder"], "no/such/folder"),
        (&["--model", "no/such/model"], "no/such/model"),
        (
            &["--tokenizer", "no/such/tokenizer.json"],
            "no/such/tokenizer.json",
        ),
    ] {
        let error = refused(&[arguments, &["--out", out]].concat());
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert!(
            !Path::new(out).exists(),
            "{arguments:?} left a folder behind"
        );
    }
}

#[test]
fn reweight_help_names_every_flag_with_its_default() {
    let text = printed(&example("reweight", &["--help"]));
    for flag in [
        "data",
        "model",
        "tokenizer",
        "steps",
        "batch",
        "micro-batch",
        "max-length",
        "alpha",
        "lr-lower",
        "lr-upper",
        "optimizer",
        "clip",
        "lisa-blocks",
        "lisa-period",
        "seed",
        "device",
        "dtype",
        "out",
    ] {
        let start = text
            .find(&format!("--{flag} "))
            .unwrap_or_else(|| panic!("{flag} in {text}"));
        assert!(
            text[start..]
                .lines()
                .take(2)
                .any(|line| line.contains("default")),
            "{flag}"
        );
    }
    assert!(text.contains("--save-model"));
}

#[test]
fn quality_data_of_the_authors_prefer_gpt4() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/quality");
    if !data.exists() {
        crate::zoo::say(&format!("skipped: {} is not here", data.display()));
        return;
    }
    // A smaller vocabulary and fewer steps than the full check, whose figures are in docs/performance.md.
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "--data",
        data.to_str().unwrap(),
        "--no-compare",
        "--steps",
        "60",
    ];
    let more = ["--batch", "8", "--max-length", "128", "--lr-upper", "5e-2"];
    let (text, report) = reweight(
        &folder.path().join("run"),
        &[&arguments[..], &more].concat(),
    );
    assert!(weight(&report, "gpt4_alpaca") >= 0.55, "{text}");
}

/// Data cleaning on a small folder of images: the learned weights find the wrong labels and help the classifier; both
/// protocols and minibatches run; a folder without images is an error that names the missing file.
#[test]
fn hyper_cleaning_finds_wrong_labels() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [Images::synthetic(10_000, 1), Images::synthetic(300, 2)];
    write_folder(folder.path(), sets.each_ref(), 12);
    let data = folder.path().to_str().unwrap();
    let run = |arguments: &[&str]| example("hyper_cleaning", arguments);
    let text = printed(&run(&[
        "--data", data, "--steps", "60", "--batch", "500", "--seed", "3",
    ]));
    assert!(text.starts_with("5000 training images"), "{text}");
    let error = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.contains(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let [uniform, right, learned] = ["uniform", "right labels only", "learned weights"].map(error);
    assert!(right < uniform && learned < uniform, "{text}");

    // Without arguments the images are the program's own; half of 500 labels are replaced.
    let text = printed(&run(&["--steps", "200"]));
    let scores = text.lines().last().unwrap().split_whitespace();
    let scores: Vec<f64> = scores.filter_map(|word| word.parse().ok()).collect();
    assert!(
        scores.len() == 2 && scores.iter().all(|f1| *f1 > 0.8),
        "{text}"
    );
    let text = printed(&run(&[
        "--steps",
        "2",
        "--protocol",
        "benchopt",
        "--corruption",
        "0",
        "--alpha",
        "2",
        "--lr-upper",
        "0.1",
        "--lr-lower",
        "0.1",
        "--device",
        "ndarray",
    ]));
    assert!(text.contains("500 labels kept, 500 right"), "{text}");

    let output = run(&["--data", "src"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && message.contains("train-images-idx3-ubyte"),
        "{message}"
    );
}
