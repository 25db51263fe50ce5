//! The paper's experiments come out as they should: run as a user runs them, one seed each, and all seeds with
//! `--ignored`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use scalebio::data::{Record, Records, Tokenizer};
use scalebio::train::ReweightConfig;
use serde_json::Value;

use crate::examples::{example, printed};

/// Rows of the table that an experiment prints, by the names of its columns.
fn experiment(arguments: &[&str]) -> Vec<BTreeMap<String, String>> {
    let text = printed(&example("experiments", arguments));
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().filter(|line| line.starts_with('|'));
    let header = cells(lines.next().unwrap());
    let rows = lines.skip(1);
    rows.map(|row| header.iter().cloned().zip(cells(row)).collect())
        .collect()
}

fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap()
}

fn check_denoising(row: &BTreeMap<String, String>) {
    assert!(number(row, "rank correlation") >= 0.9, "{row:?}");
    assert!(number(row, "ruined parts") < 0.15, "{row:?}");
    // What is printed is what the weights say.
    let weight = |part: usize| number(row, &format!("part{part}"));
    let ruined: f64 = (5..10).map(weight).sum();
    assert!(
        (ruined - number(row, "ruined parts")).abs() < 4e-3,
        "{row:?}"
    );
    let largest = (1..10).map(weight).fold(0.0, f64::max);
    assert!(weight(0) > largest, "{row:?}");
}

/// The answers of `folder` that are not those of their questions, as a share, for each part.
fn replaced(folder: &Path, right: &BTreeMap<String, String>) -> Vec<f64> {
    (0..10)
        .map(|part| {
            let file = folder.join(format!("data/train_part{part}.jsonl"));
            let text = fs::read_to_string(file).unwrap();
            let wrong = text.lines().filter(|line| {
                let record: Value = serde_json::from_str(line).unwrap();
                let content = |turn: usize| record["messages"][turn]["content"].as_str().unwrap();
                right[content(0)] != content(1)
            });
            wrong.count() as f64 / text.lines().count() as f64
        })
        .collect()
}

/// Questions of the shipped collections with their answers, made anew.
fn right_answers() -> BTreeMap<String, String> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let mut right = BTreeMap::new();
    for name in ["bantu", "devil", "germanic", "jargon", "python", "romance"] {
        let text = fs::read_to_string(data.join(format!("train_{name}.jsonl"))).unwrap();
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let words = record["text"].as_str().unwrap().split_whitespace();
            let words: Vec<&str> = words.collect();
            let question = words.join(" ").chars().take(40).collect();
            right.insert(question, name.to_owned());
        }
    }
    right
}

/// With one seed: weights fall with the share of replaced answers, and parts without a right answer get next to nothing.
/// A replaced answer is that of another record, so that it is right by chance for one in five or six.
#[test]
fn denoising_ranks_parts_by_their_cleanliness() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let rows = experiment(&["denoising", "--seeds", "2", "--out", out]);
    assert_eq!(rows.len(), 1);
    check_denoising(&rows[0]);
    let wrong = replaced(&folder.path().join("seed-2"), &right_answers());
    for (part, wrong) in wrong.iter().enumerate() {
        let expected = (0.2 * part as f64).min(1.0) * 0.82; // sum of the squared shares of the collections: .18
        assert!((wrong - expected).abs() < 0.1, "{part}: {wrong} {expected}");
    }
}

/// The bounds over three seeds.
#[test]
#[ignore = "minutes"]
fn denoising_ranks_parts_by_their_cleanliness_with_three_seeds() {
    let rows = experiment(&["denoising"]);
    assert_eq!(rows.len(), 3);
    rows.iter().for_each(check_denoising);
}

const LANGUAGES: [&str; 8] = [
    "dutch",
    "english",
    "french",
    "german",
    "italian",
    "portuguese",
    "spanish",
    "swedish",
];

fn check_languages(row: &BTreeMap<String, String>) {
    for language in LANGUAGES {
        if language != "english" {
            assert!(number(row, "english") > number(row, language), "{row:?}");
        }
    }
}

/// With one seed: the wanted language has the largest weight, and the mix that was learned trains a better model.
#[test]
fn languages_finds_the_wanted_language_and_gains_by_it() {
    let rows = experiment(&[
        "languages",
        "--seeds",
        "1",
        "--data",
        "examples/data/languages",
    ]);
    assert_eq!(rows.len(), 1);
    check_languages(&rows[0]);
    assert!(
        number(&rows[0], "test loss") + 0.3 < number(&rows[0], "of uniform"),
        "{rows:?}"
    );
}

/// Over three seeds: the gain is more than the spread.
#[test]
#[ignore = "minutes"]
fn languages_gains_more_than_the_spread_over_three_seeds() {
    let rows = experiment(&["languages"]);
    assert_eq!(rows.len(), 3);
    rows.iter().for_each(check_languages);
    let column = |name: &str| rows.iter().map(|row| number(row, name)).collect::<Vec<_>>();
    let highest = |values: &[f64]| values.iter().copied().fold(f64::MIN, f64::max);
    let lowest = |values: &[f64]| values.iter().copied().fold(f64::MAX, f64::min);
    let (learned, uniform) = (column("test loss"), column("of uniform"));
    let spread = (highest(&learned) - lowest(&learned)).max(highest(&uniform) - lowest(&uniform));
    assert!(lowest(&uniform) - highest(&learned) > spread, "{rows:?}");
}

/// In small: of two sources of answers, the one that is like the validation set gets more than half in every seed, though
/// it has a quarter of the records. The figures of docs/experiments.md are of data that do not ship.
#[test]
fn quality_prefers_the_better_and_smaller_source_in_every_seed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let write = |name: &str, answers: [&str; 3], range: std::ops::Range<usize>| {
        let line = |i: usize| {
            let instruction = format!("Describe number {i}.");
            let output = answers[i % 3];
            format!(
                "{}\n",
                serde_json::json!({"instruction": instruction, "output": output})
            )
        };
        let text: String = range.map(line).collect();
        fs::write(data.join(format!("{name}.jsonl")), text).unwrap();
    };
    let good = [
        "It follows the number before it, and so on.",
        "It is a whole number, like its neighbours.",
        "It can be counted to, given some time.",
    ];
    write("train_large", ["Yes.", "No idea.", "Number."], 0..60);
    write("train_better", good, 60..80);
    write("val", good, 80..100);
    let (data, out) = (data.to_str().unwrap(), folder.path().join("out"));
    let text = |record: Record| -> String {
        let segments = record.into_segments().into_iter();
        segments.map(|segment| segment.text).collect()
    };
    let records = Records::open(Path::new(data).join("val.jsonl")).unwrap();
    let texts: Vec<String> = records.map(|record| text(record.unwrap())).collect();
    let tokenizer = folder.path().join("tokenizer.json");
    Tokenizer::train(texts.iter(), 500)
        .unwrap()
        .save(&tokenizer)
        .unwrap();
    let settings = [
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--steps",
        "15",
        "--batch",
        "8",
        "--max-length",
        "96",
        "--alpha",
        "20",
        "--lr-lower",
        "4e-3",
        "--lr-upper",
        "6e-2",
    ];
    let arguments = ["quality", "--data", data, "--seeds", "0,1", "--out"];
    let rows = experiment(&[&arguments, &[out.to_str().unwrap()][..], &settings].concat());
    assert_eq!(rows.len(), 2);
    for row in &rows {
        assert!(number(row, "better") > 0.5, "{row:?}");
    }
    let config = fs::read(out.join("seed-1/config.json")).unwrap();
    let config: ReweightConfig = serde_json::from_slice(&config).unwrap();
    let expected = ReweightConfig {
        steps: 15,
        batch: 8,
        max_length: 96,
        tokenizer: Some(tokenizer),
        alpha: 20.0,
        lr_lower: 4e-3,
        lr_upper: 6e-2,
        seed: 1,
        ..ReweightConfig::new(data)
    };
    assert_eq!(config, expected);
}

/// Denoising takes a file of Alpaca records: instruction and input become the question, and every record is in one part or
/// in the validation set.
#[test]
fn denoising_cuts_alpaca_records_into_parts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("alpaca.json");
    let record = |i: usize| serde_json::json!({"instruction": "Say", "input": format!("{i}"), "output": format!("{i}!")});
    let records: Vec<Value> = (0..111).map(record).collect();
    fs::write(&file, serde_json::to_vec(&records).unwrap()).unwrap();
    let out = folder.path().join("out");
    let paths = [file.to_str().unwrap(), out.to_str().unwrap()];
    let arguments = ["denoising", "--data", paths[0], "--out", paths[1]];
    let short = ["--seeds", "5", "--steps", "1", "--batch", "10"];
    assert_eq!(experiment(&[&arguments[..], &short].concat()).len(), 1);
    let data = out.join("seed-5/data");
    let right = (0..111).map(|i| (format!("Say {i}"), format!("{i}!")));
    let wrong = replaced(&out.join("seed-5"), &right.collect());
    assert!(
        wrong[0] < 1e-9 && wrong[5..].iter().all(|&share| share > 1.0 - 1e-9),
        "{wrong:?}"
    );
    let lines = |name: &str| fs::read_to_string(data.join(name)).unwrap().lines().count();
    let parts: usize = (0..10)
        .map(|part| lines(&format!("train_part{part}.jsonl")))
        .sum();
    assert_eq!((parts, lines("val.jsonl")), (100, 11));
}
