//! Every kind of bad input gets a message that says what is wrong: the table of docs/formats.md, row by row.

use std::fs;
use std::path::Path;

use scalebio::data::{Corpus, CorpusConfig, Question, Records, Tokenizer};
use scalebio::reweight::Shortage;
use scalebio::train::{ResampleConfig, WeightsReport, resample};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::resample::{config as draw, folder, lines, weights};

mod checkpoints;
mod flags;
mod settings;

/// A kind of bad input, a part of its message as in the documentation, and the message.
type Row = (&'static str, &'static str, String);

fn message<T>(result: scalebio::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

/// The message for the content of a data file.
fn record(name: &str, content: impl AsRef<[u8]>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    message(Records::open(path).and_then(Iterator::collect::<scalebio::Result<Vec<_>>>))
}

fn line(content: &str) -> String {
    record("val.jsonl", content)
}

/// The message for a folder with these files.
fn data(files: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for name in files {
        fs::write(folder.path().join(name), lines("a", 2)).unwrap();
    }
    open(folder.path())
}

fn open(folder: &Path) -> String {
    let tokenizer = Tokenizer::train(std::iter::empty::<&str>(), 257).unwrap();
    message(Corpus::open(
        folder,
        CorpusConfig::new(8).tokenizer(tokenizer),
    ))
}

fn records() -> Vec<Row> {
    let text = "{\"text\": \"a\"}";
    vec![
        (
            "a record is not JSON",
            "not JSON: ",
            line("{\"text\": \"a\""),
        ),
        (
            "a file is not UTF-8",
            "not UTF-8: invalid byte at column 11",
            record("a.jsonl", b"{\"text\": \"\xff\"}"),
        ),
        (
            "a record is not an object",
            "a record must be an object, but this is an array",
            line("[1]"),
        ),
        (
            "a record has none of the forms",
            "neither `text` nor `instruction` is there",
            line("{\"txt\": \"a\"}"),
        ),
        (
            "a record has two forms",
            "`text` and `instruction` or `output` in one record",
            line("{\"text\": \"a\", \"output\": \"b\"}"),
        ),
        (
            "an instruction has no output",
            "the field `output` is missing",
            line("{\"instruction\": \"a\"}"),
        ),
        (
            "a field is not a string",
            "`text` must be a string, but is a number",
            line("{\"text\": 3}"),
        ),
        (
            "a conversation beside a text",
            "`messages` beside `text`",
            line("{\"text\": \"a\", \"messages\": []}"),
        ),
        (
            "a conversation is not a list of turns",
            "`messages` must be a list of",
            line("{\"messages\": \"a\"}"),
        ),
        (
            "nobody to learn from speaks",
            "has no turn of the assistant",
            line("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}"),
        ),
        (
            "a speaker is unknown",
            "`from` is `robot`, but must be human",
            line("{\"conversations\": [{\"from\": \"robot\", \"value\": \"a\"}]}"),
        ),
        (
            "an array does not end",
            "the file ends before the `]` of the array",
            record("a.json", format!("[{text}\n")),
        ),
        (
            "an array lacks a comma",
            "expected `,` or `]` after a record",
            record("a.json", format!("[{text}}}]")),
        ),
        (
            "an array lacks a record",
            "expected a record",
            record("a.json", "[,]"),
        ),
        (
            "something follows an array",
            "something follows the end of the array",
            record("a.json", format!("[{text}]\n{text}")),
        ),
    ]
}

fn folders() -> Vec<Row> {
    let folder = tempfile::tempdir().unwrap();
    for name in ["train_a.jsonl", "train_b.jsonl", "val.jsonl"] {
        fs::write(
            folder.path().join(name),
            "{\"instruction\": \"too long for eight tokens\", \"output\": \"b\"}",
        )
        .unwrap();
    }
    let unusable = open(folder.path());
    let chat = "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}";
    fs::write(folder.path().join("train_a.jsonl"), chat).unwrap();
    vec![
        (
            "the folder of data is not there",
            "not a folder; name one that holds",
            open(Path::new("no/such/folder")),
        ),
        (
            "there is no source",
            "no source; weights are learned between at least two",
            data(&["val.jsonl"]),
        ),
        (
            "there is one source",
            "only one source, `a`",
            data(&["train_a.json", "val.jsonl"]),
        ),
        (
            "a source is in two files",
            "is here, and again in",
            data(&["train_a.json", "train_a.jsonl", "val.jsonl"]),
        ),
        (
            "a source has no name",
            "the name of the source is empty",
            data(&["train_.json", "train_a.jsonl", "val.jsonl"]),
        ),
        (
            "there is no validation set",
            "no validation set; add it as `val.jsonl`",
            data(&["train_a.json", "train_b.jsonl"]),
        ),
        (
            "a file has nothing to learn",
            "no usable sample in 1 records",
            unusable,
        ),
        (
            "a conversation, and a model without a chat template",
            "a conversation needs the chat template of the model",
            open(folder.path()),
        ),
    ]
}

fn questions() -> Vec<Row> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("questions.jsonl");
    fs::write(&path, "{\"question\": \"a\", \"answer\": 3}\n").unwrap();
    vec![(
        "an answer to a question is not a string",
        "a question is {\"question\", \"answer\"}, each a string",
        message(Question::read(path)),
    )]
}

/// Two sources of three records each, with equal weights.
fn two() -> TempDir {
    let files =
        ["train_a.jsonl", "train_b.jsonl", "val.jsonl"].map(|name| (name, lines(&name[6..7], 3)));
    folder(&files, &[("a", 0.5), ("b", 0.5)])
}

fn drawn(
    samples: usize,
    weights: &Value,
    change: impl FnOnce(&Path, &mut ResampleConfig),
) -> String {
    let folder = two();
    fs::write(folder.path().join("weights.json"), weights.to_string()).unwrap();
    let mut config = draw(folder.path(), samples);
    change(folder.path(), &mut config);
    message(resample(&config, folder.path().join("out")))
}

fn weight_files() -> Vec<Row> {
    let good = weights(&[("a", 0.5), ("b", 0.5)]);
    let unequal = weights(&[("a", 0.95), ("b", 0.05)]);
    let of = |sources: &[(&str, f64)]| drawn(2, &weights(sources), |_, _| ());
    let mut version = good.clone();
    version["schema_version"] = json!(2);
    let read = |value: Value| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.json");
        fs::write(&path, value.to_string()).unwrap();
        message(WeightsReport::read(path))
    };
    let column = drawn(2, &good, |folder, config| {
        config.weight_column = true;
        fs::write(
            folder.join("train_b.jsonl"),
            "{\"text\": \"b\", \"weight\": 1}\n",
        )
        .unwrap();
    });
    let array = drawn(2, &good, |folder, _| {
        fs::write(folder.join("train_b.jsonl"), "[1]\n").unwrap()
    });
    let held = drawn(2, &good, |folder, _| {
        fs::create_dir(folder.join("out"))
            .and_then(|()| fs::write(folder.join("out/mix.jsonl"), ""))
            .unwrap()
    });
    vec![
        (
            "weights.json is something else",
            "missing field `sources`",
            read(
                json!({"schema_version": 1, "step": 1, "seed": 0, "reach": 0.0, "status": "running"}),
            ),
        ),
        (
            "weights.json of another version",
            "has schema_version 2, but this version of scalebio reads 1",
            read(version),
        ),
        (
            "weights that do not add up to 1",
            "sum of the weights is 1.5, but must be 1",
            of(&[("a", 0.5), ("b", 1.0)]),
        ),
        (
            "a negative weight",
            "weight is -0.5 for source `a`, but must be a finite number of at least 0",
            of(&[("a", -0.5), ("b", 1.5)]),
        ),
        (
            "two weights for a source",
            "sources is `a` twice, but must be distinct names",
            of(&[("a", 0.5), ("a", 0.5)]),
        ),
        (
            "a weight without a source",
            "no file `train_<source>.jsonl` or `.json` for `c`",
            of(&[("a", 0.5), ("b", 0.3), ("c", 0.2)]),
        ),
        (
            "a source without a weight",
            "no weight for `b`, which",
            of(&[("a", 1.0)]),
        ),
        (
            "no sample to draw",
            "samples is 0, but must be at least 1",
            drawn(0, &good, |_, _| ()),
        ),
        (
            "more samples than 32 bits count",
            "samples is 100000000000, but must be at most 4294967295, for which 8 bytes of memory each are 32 GiB",
            drawn(100_000_000_000, &good, |_, config| {
                config.replacement = true
            }),
        ),
        (
            "a source that is too small",
            "samples is 8, 4 of them from source `a`, but must be so few that the source gives at most 3",
            drawn(8, &good, |_, _| ()),
        ),
        (
            "sources that are too small together",
            "samples is 8, but must be at most 6, all that the sources with a weight above 0 have",
            drawn(8, &good, |_, config| {
                config.shortage = Shortage::Redistribute
            }),
        ),
        (
            "a weight column, and too few samples for a source",
            "samples is 4, but must be so many with a weight column that source `b`, of weight 0.05, gives one: 20 are enough",
            drawn(4, &unequal, |_, config| {
                (config.weight_column, config.replacement) = (true, true)
            }),
        ),
        (
            "a weight column, and a source without a record to draw",
            "weight-column is asked for, but must be left out where source `b`, of weight 0.05, has no record to draw from",
            drawn(3, &unequal, |folder, config| {
                (config.weight_column, config.shortage) = (true, Shortage::Redistribute);
                fs::write(folder.join("val.jsonl"), lines("b", 3)).unwrap();
            }),
        ),
        (
            "a weight column that is there already",
            "the record has a field `weight` already",
            column,
        ),
        (
            "a record to draw that is not an object",
            "a record must be an object",
            array,
        ),
        (
            "a folder that holds a mix",
            "already holds a mix (`mix.jsonl`)",
            held,
        ),
    ]
}

/// Each row of the table is true, and each is documented; nothing else is.
#[test]
fn every_kind_of_bad_input_in_the_documentation_gets_its_message() {
    let rows = [
        records(),
        folders(),
        questions(),
        settings::rows(),
        flags::rows(),
        weight_files(),
        checkpoints::rows(),
    ]
    .concat();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats.md");
    let documented = fs::read_to_string(path).unwrap();
    let (_, table) = documented.split_once("## Bad input").unwrap();
    let table: Vec<&str> = table.lines().filter(|line| line.contains("``")).collect();
    assert!(rows.len() >= 40);
    for (kind, said, message) in &rows {
        assert!(message.contains(said), "{kind}: {message}");
        let row = format!("| {kind} | `` {} `` |", said.trim_end());
        assert!(
            table.contains(&row.as_str()),
            "docs/formats.md lacks: {row}"
        );
    }
    assert_eq!(table.len(), rows.len(), "rows that nothing tests");
}
