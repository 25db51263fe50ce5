//! Training sets drawn by learned weights: what is drawn, what never is, and what is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use scalebio::reweight::{Mixture, Shortage};
use scalebio::train::{Duplicates, ResampleConfig, ResampleReport, resample};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A `weights.json` of these weights.
pub(crate) fn weights(sources: &[(&str, f64)]) -> Value {
    let source = |(name, weight): &(&str, f64)| json!({"name": name, "weight": weight, "logit": 0.0, "samples": 1});
    json!({
        "schema_version": 1, "step": 1, "seed": 0, "reach": 1.0, "status": "converged",
        "sources": sources.iter().map(source).collect::<Vec<_>>(),
    })
}

/// A folder of data with a `weights.json`.
pub(crate) fn folder(files: &[(&str, String)], sources: &[(&str, f64)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let text = weights(sources).to_string();
    fs::write(folder.path().join("weights.json"), text).unwrap();
    folder
}

/// Records of lengths of their own, one a line.
pub(crate) fn lines(name: &str, count: usize) -> String {
    let line = |i| format!("{{\"text\": \"{name} {i}{}\"}}\n", "!".repeat(i % 7));
    (0..count).map(line).collect()
}

/// Three sources of 200, 150 and 30 records.
fn three() -> TempDir {
    let files = [
        ("train_a.jsonl", lines("a", 200)),
        ("train_b.jsonl", lines("b", 150)),
    ];
    let small = [
        ("train_c.jsonl", lines("c", 30)),
        ("val.jsonl", lines("val", 3)),
    ];
    let all = [files, small].concat();
    folder(&all, &[("a", 0.51), ("b", 0.29), ("c", 0.2)])
}

pub(crate) fn config(folder: &Path, samples: usize) -> ResampleConfig {
    ResampleConfig::new(folder, folder.join("weights.json"), samples)
}

struct Mix {
    lines: Vec<String>,
    report: ResampleReport,
    out: PathBuf,
    _folder: TempDir,
}

fn draw(config: &ResampleConfig) -> Mix {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("mix");
    let report = resample(config, &out).unwrap();
    let text = fs::read_to_string(out.join("mix.jsonl")).unwrap();
    let written = fs::read_to_string(out.join("resample.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<ResampleReport>(&written).unwrap(),
        report
    );
    let files = fs::read_dir(&out).unwrap().count();
    assert_eq!(files, 3, "nothing but mix.jsonl, mixing and resample.json");
    Mix {
        lines: text.lines().map(str::to_owned).collect(),
        report,
        out,
        _folder: folder,
    }
}

fn refused(config: &ResampleConfig) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("mix");
    let error = resample(config, &out).unwrap_err().to_string();
    assert!(!out.exists(), "a failed draw leaves nothing behind");
    error
}

fn by_source(lines: &[String]) -> BTreeMap<char, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        let start = "{\"text\": \"".len();
        *counts
            .entry(line[start..].chars().next().unwrap())
            .or_default() += 1;
    }
    counts
}

/// Counts are those of the mixture, records are drawn once at most and stand as in their files.
#[test]
fn every_source_gives_its_share_of_different_records() {
    let folder = three();
    let mix = draw(&config(folder.path(), 101));
    let counts = Mixture::new([("a", 0.51), ("b", 0.29), ("c", 0.2)])
        .unwrap()
        .counts(101);
    assert_eq!(
        by_source(&mix.lines).into_values().collect::<Vec<_>>(),
        counts
    );
    let sources = &mix.report.sources;
    assert_eq!(
        sources.iter().map(|s| s.samples).collect::<Vec<_>>(),
        counts
    );
    assert_eq!(
        sources.iter().map(|s| s.records).collect::<Vec<_>>(),
        [200, 150, 30]
    );
    let all = [lines("a", 200), lines("b", 150), lines("c", 30)].concat();
    let mut drawn = mix.lines.clone();
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 101);
    assert!(
        drawn
            .iter()
            .all(|line| all.lines().any(|known| known == line))
    );
}

/// One seed, one file; and every record has its chance.
#[test]
fn a_seed_gives_the_same_bytes_and_another_one_others() {
    let folder = three();
    let with_seed = |seed| {
        draw(&ResampleConfig {
            seed,
            ..config(folder.path(), 60)
        })
    };
    let (first, again) = (with_seed(1), with_seed(1));
    for file in ["mix.jsonl", "resample.json"] {
        let read = |mix: &Mix| fs::read(mix.out.join(file)).unwrap();
        assert_eq!(read(&first), read(&again));
    }
    assert_ne!(first.lines, with_seed(2).lines);

    // 40 draws of 12 out of 30 records: that one is never drawn has probability 30 * 0.6^40, 4e-8.
    let mut seen: Vec<String> = (0..40).flat_map(|seed| with_seed(seed).lines).collect();
    seen.retain(|line| line.contains("\"c "));
    assert_eq!(seen.len(), 40 * 12);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 30);
}

/// The order is random unless it is asked to be that of the files.
#[test]
fn samples_are_shuffled_or_in_the_order_of_the_files() {
    let folder = three();
    let shuffled = draw(&config(folder.path(), 60)).lines;
    let ordered = draw(&ResampleConfig {
        shuffle: false,
        ..config(folder.path(), 60)
    })
    .lines;
    assert_ne!(shuffled, ordered);
    let (mut a, mut b) = (shuffled.clone(), ordered.clone());
    a.sort();
    b.sort();
    assert_eq!(a, b, "the same records");
    let number = |line: &String| -> (char, usize) {
        let mut words = line["{\"text\": \"".len()..].split([' ', '!', '"']);
        let source = words.next().unwrap().chars().next().unwrap();
        (source, words.next().unwrap().parse().unwrap())
    };
    assert!(ordered.iter().map(number).is_sorted());
    assert!(!shuffled.iter().map(number).is_sorted());
}

/// With replacement a source may give more than it has; without, that is an error, or the others give more.
#[test]
fn a_source_that_is_too_small_is_drawn_again_redistributed_or_refused() {
    let folder = three();
    let error = refused(&config(folder.path(), 300));
    for said in ["60 of them from source `c`", "at most 30"] {
        assert!(error.contains(said), "{error}");
    }
    let shortage = Shortage::Redistribute;
    let mix = draw(&ResampleConfig {
        shortage,
        ..config(folder.path(), 300)
    });
    assert_eq!(by_source(&mix.lines)[&'c'], 30);
    assert_eq!(mix.lines.len(), 300);
    let error = refused(&ResampleConfig {
        shortage,
        ..config(folder.path(), 381)
    });
    assert!(error.contains("at most 380"), "{error}");

    let mix = draw(&ResampleConfig {
        replacement: true,
        ..config(folder.path(), 1000)
    });
    assert_eq!(by_source(&mix.lines)[&'c'], 200);
    assert_eq!(mix.lines.len(), 1000);
}

/// Validation and test records are never drawn, whatever their layout; the report counts them.
#[test]
fn held_out_records_are_never_drawn() {
    let chat = |end: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"q{end}\"}}, {{\"content\": \"a\", \"role\": \"assistant\"}}]}}\n"
        )
    };
    let share_gpt = "{\"conversations\": [{\"from\": \"human\", \"value\": \"q1\"}, {\"from\": \"gpt\", \"value\": \"a\"}]}\n";
    let alpaca = "{\"instruction\": \"i\", \"output\": \"o\"}\n{\"instruction\": \"i2\", \"output\": \"o\"}\n";
    let other = "{\"prompt\": \"p\", \"completion\": {\"x\": 1, \"y\": 2}}\n{\"prompt\": \"p\"}\n";
    let files = [
        ("train_a.jsonl", [&lines("a", 10), alpaca].concat()),
        ("train_b.jsonl", [&chat("1"), &chat("2"), other].concat()),
        (
            "val.jsonl",
            [
                "{\"id\": 3, \"text\":\"a \\u0030\"}\n",
                "{\"output\": \"o\", \"input\": \"\", \"instruction\": \"i\"}\n",
                share_gpt,
            ]
            .concat(),
        ),
        (
            "test.json",
            "[{\"completion\": {\"y\": 2, \"x\": 1},\n \"prompt\": \"p\"},\n{\"text\": \"a 1!\"}]"
                .to_owned(),
        ),
    ];
    let folder = folder(&files, &[("a", 0.5), ("b", 0.5)]);
    let mix = draw(&ResampleConfig {
        shortage: Shortage::Redistribute,
        ..config(folder.path(), 11)
    });
    let [a, b] = &mix.report.sources[..] else {
        panic!()
    };
    assert_eq!(
        (a.records, a.held_out, a.available, a.other_form),
        (12, 3, 9, 0)
    );
    assert_eq!(
        (b.records, b.held_out, b.available, b.other_form),
        (4, 2, 2, 2)
    );
    for left_out in ["\"a 0\"", "\"a 1!\"", "\"i\"", "q1", "completion"] {
        assert!(
            !mix.lines.iter().any(|line| line.contains(left_out)),
            "{left_out}"
        );
    }
}

/// A record that is in its source again is counted, and drawn from once unless all are to be kept.
#[test]
fn repeated_records_are_dropped_or_kept_and_counted() {
    let repeated = "{\"text\": \"a 3!!!\", \"id\": 1}\n{\"text\":   \"a 3!!!\"}\n";
    let files = [
        ("train_a.jsonl", [&lines("a", 100), repeated].concat()),
        ("train_b.jsonl", [lines("b", 3), lines("a", 1)].concat()),
        ("val.jsonl", lines("val", 1)),
    ];
    let folder = folder(&files, &[("a", 1.0), ("b", 0.0)]);
    let dropped = draw(&config(folder.path(), 100));
    let [a, b] = &dropped.report.sources[..] else {
        panic!()
    };
    assert_eq!((a.records, a.duplicates, a.available), (102, 2, 100));
    // A record of another source is no duplicate: each source counts by its own weight.
    assert_eq!((b.duplicates, b.available), (0, 4));
    assert!(
        !dropped.lines.iter().any(|line| line.contains("id")),
        "the first is kept"
    );
    let kept = draw(&ResampleConfig {
        duplicates: Duplicates::Keep,
        ..config(folder.path(), 102)
    });
    assert_eq!(kept.report.sources[0].duplicates, 2);
    assert_eq!(
        kept.lines
            .iter()
            .filter(|line| line.contains("a 3!!!"))
            .count(),
        3
    );
}

/// With the weight column, the weighted mean over the samples is the weighted mean over the sources.
#[test]
fn the_weight_column_makes_the_weighted_mean_exact() {
    let folder = three();
    let config = ResampleConfig {
        weight_column: true,
        shortage: Shortage::Redistribute,
        ..config(folder.path(), 333)
    };
    let mix = draw(&config);
    let plain = draw(&ResampleConfig {
        weight_column: false,
        ..config.clone()
    });
    let mut sums = BTreeMap::<char, f64>::new();
    for (line, plain) in mix.lines.iter().zip(&plain.lines) {
        assert!(line.starts_with(plain.strip_suffix('}').unwrap()), "{line}");
        let record: Value = serde_json::from_str(line).unwrap();
        let source = record["text"].as_str().unwrap().chars().next().unwrap();
        *sums.entry(source).or_default() += record["weight"].as_f64().unwrap() / 333.0;
    }
    for (source, weight) in [('a', 0.51), ('b', 0.29), ('c', 0.2)] {
        assert!((sums[&source] - weight).abs() < 1e-12, "{sums:?}");
    }
    let used = folder.path().join("train_b.jsonl");
    fs::write(
        &used,
        "{\"text\": \"b\"}\n{\"text\": \"c\", \"weight\": 1}\n",
    )
    .unwrap();
    let error = refused(&config);
    assert!(
        error.starts_with(&format!("{}:2: ", used.display())),
        "{error}"
    );
}

/// Weights and sources must be of the same names.
#[test]
fn sources_and_weights_must_belong_together() {
    let folder = three();
    let write = |sources: &[(&str, f64)]| {
        fs::write(
            folder.path().join("weights.json"),
            weights(sources).to_string(),
        )
        .unwrap();
        refused(&config(folder.path(), 10))
    };
    let error = write(&[("a", 0.2), ("b", 0.2), ("c", 0.2), ("d", 0.2), ("e", 0.2)]);
    assert!(error.contains("for `d`, `e`"), "{error}");
    let error = write(&[("a", 0.5), ("c", 0.5)]);
    assert!(error.contains("no weight for `b`"), "{error}");
}

/// A folder that holds a mix keeps it.
#[test]
fn a_mix_is_never_overwritten() {
    let folder = three();
    let mix = draw(&config(folder.path(), 10));
    let error = resample(&config(folder.path(), 20), &mix.out).unwrap_err();
    assert!(error.to_string().contains("already holds a mix"), "{error}");
    let left = fs::read_to_string(mix.out.join("mix.jsonl")).unwrap();
    assert_eq!(left.lines().count(), 10);
}

/// The part of a snippet of YAML used here: a map or a list of maps, each value a scalar of JSON.
fn yaml(text: &str) -> Vec<BTreeMap<String, Value>> {
    let mut maps = vec![BTreeMap::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim_start().starts_with("- ") {
            maps.push(BTreeMap::new());
        }
        let (key, value) = line.trim_start_matches([' ', '-']).split_once(':').unwrap();
        if !value.is_empty() {
            let value = serde_json::from_str(value).unwrap();
            maps.last_mut().unwrap().insert(key.to_owned(), value);
        }
    }
    maps
}

/// Each program gets the weights under the names it knows; a source that gives nothing is left out.
#[test]
fn snippets_hold_the_weights_for_each_program() {
    let alpaca = |i: usize| format!("{{\"instruction\": \"do {i}\", \"output\": \"done\"}}\n");
    let chat = "{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"gpt\", \"value\": \"a\"}]}\n";
    let files = [
        ("train_a.jsonl", lines("a", 80)),
        ("train_b.jsonl", (0..50).map(alpaca).collect()),
        ("train_c.jsonl", chat.to_owned()),
        ("train_d.jsonl", lines("d", 10)),
        ("val.jsonl", lines("val", 1)),
    ];
    let folder = folder(&files, &[("a", 0.5), ("b", 0.4), ("c", 0.1), ("d", 0.0)]);
    let mix = draw(&config(folder.path(), 10));
    let mixing = mix.out.join("mixing");
    let read = |name: &str| fs::read_to_string(mixing.join(name)).unwrap();

    let llama = &yaml(&read("llama_factory.yaml"))[0];
    assert_eq!(llama["dataset"], "a,b,c");
    assert_eq!(llama["interleave_probs"], "0.5,0.4,0.1");
    assert_eq!(llama["mix_strategy"], "interleave_under");
    let listed = Path::new(llama["dataset_dir"].as_str().unwrap()).join("dataset_info.json");
    let sets: Value = serde_json::from_str(&fs::read_to_string(listed).unwrap()).unwrap();
    assert_eq!(sets["a"]["columns"]["prompt"], "text");
    assert_eq!(sets["c"]["formatting"], "sharegpt");
    for (name, set) in sets.as_object().unwrap() {
        let file = PathBuf::from(set["file_name"].as_str().unwrap());
        assert!(file.is_absolute() && file.ends_with(format!("train_{name}.jsonl")));
    }

    let axolotl = yaml(&read("axolotl.yaml"));
    let shares: Vec<f64> = axolotl[1..]
        .iter()
        .map(|set| set["weight"].as_f64().unwrap())
        .collect();
    assert_eq!(shares, [5.0 / 80.0, 4.0 / 50.0, 1.0]);
    let types: Vec<_> = axolotl[1..]
        .iter()
        .map(|set| set["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["completion", "alpaca", "chat_template"]);

    let python = read("hugging_face.py");
    let line = python
        .lines()
        .find_map(|line| line.strip_prefix("probabilities = "));
    assert_eq!(
        serde_json::from_str::<Vec<f64>>(line.unwrap()).unwrap(),
        [0.5, 0.4, 0.1]
    );
    assert!(python.contains("interleave_datasets("));
    let mosaic = read("mosaic_streaming.py");
    assert!(
        mosaic.contains("Stream(local=\"mds/b\", proportion=0.4)"),
        "{mosaic}"
    );
    assert!(mosaic.contains("epoch_size=10,"), "{mosaic}");
}

/// One record, in one of several layouts of the same content.
fn any_record() -> impl Strategy<Value = String> {
    ("[a-z]{0,9}", 0..3_usize).prop_map(|(text, layout)| match layout {
        0 => format!("{{\"text\": \"{text},]}}\"}}"),
        1 => format!("{{ \"n\" : [1, {{}}], \"text\":\"{text}\\\"\\n\" }}"),
        _ => format!("{{\"instruction\": \"{text}\", \"output\": \"ä€😀\"}}"),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the layout of a file, each record comes out byte by byte, one a line.
    #[test]
    fn records_are_found_again_in_any_layout(
        records in proptest::collection::vec(any_record(), 1..150),
        array in any::<bool>(),
        mark in any::<bool>(),
        space in prop_oneof![Just("\n"), Just("\r\n"), Just("\n\n  "), Just(" \t\r\n\n")],
    ) {
        let mut text = if mark { "\u{feff}".to_owned() } else { String::new() };
        if array {
            let between = format!("{space},{space}");
            text += &format!("{space}[{space}{}{space}]{space}", records.join(&between));
        } else {
            text += &records.join(space);
        }
        let name = if array { "train_a.json" } else { "train_a.jsonl" };
        let files = [(name, text), ("train_b.jsonl", lines("b", 1)), ("val.jsonl", lines("val", 1))];
        let folder = folder(&files, &[("a", 1.0), ("b", 0.0)]);
        let mix = draw(&ResampleConfig {
            shuffle: false,
            duplicates: Duplicates::Keep,
            ..config(folder.path(), records.len())
        });
        prop_assert_eq!(&mix.lines, &records);
        let once = draw(&ResampleConfig {
            shuffle: false,
            shortage: Shortage::Redistribute,
            ..config(folder.path(), 1)
        });
        let mut different = records.clone();
        different.sort();
        different.dedup();
        prop_assert_eq!(once.report.sources[0].available, different.len());
    }
}
