//! Every kind of bad input gets a message that says what is wrong: the table of docs/formats.md, row by row.

use std::fs;
use std::path::{Path, PathBuf};

use scalebio::burn::tensor::Device;
use scalebio::data::{Corpus, CorpusConfig, Question, Records, Tokenizer};
use scalebio::models::{CausalLm, Sampling};
use scalebio::reweight::Shortage;
use scalebio::train::{
    EvaluateConfig, Experiment, FinetuneConfig, Finetuning, ResampleConfig, ReweightConfig,
    WeightsReport, evaluate, resample,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::evaluate::stories;
use crate::resample::{config as draw, folder, lines, weights};

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

/// The message for settings of `reweight`, which are checked before the data are read.
fn reweight(change: impl FnOnce(&mut ReweightConfig)) -> String {
    let mut config = ReweightConfig::new("examples/data");
    change(&mut config);
    message(Experiment::open(config))
}

fn finetune(change: impl FnOnce(&mut FinetuneConfig)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mix.jsonl");
    fs::write(&path, lines("a", 3)).unwrap();
    let mut config = FinetuneConfig::new(path);
    config.batch = 2;
    change(&mut config);
    let out = folder.path().join("out");
    let message = message(Finetuning::start(config, &out));
    assert!(!out.exists(), "{message}");
    message
}

fn measure(change: impl FnOnce(&mut EvaluateConfig)) -> String {
    let mut config = EvaluateConfig::new(stories(), [PathBuf::from("examples/data/val.jsonl")]);
    change(&mut config);
    message(evaluate(&config))
}

fn settings() -> Vec<Row> {
    let prompt = |tokens: &[u32]| {
        let model = CausalLm::from_pretrained(stories(), &Device::flex()).unwrap();
        message(model.generate(tokens, Sampling::Greedy))
    };
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/gpt2");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
    let full = {
        let mut config = FinetuneConfig::new("examples/data/val.jsonl");
        config.model = Some(stories());
        message(Finetuning::start(config, folder.path()))
    };
    vec![
        (
            "no step",
            "steps is 0, but must be at least 1",
            reweight(|c| c.steps = 0),
        ),
        (
            "a learning rate of the model that is not above 0",
            "learning rate of the model (lr-lower) is learning rate 0",
            reweight(|c| c.lr_lower = 0.0),
        ),
        (
            "a learning rate of the weights that is no number",
            "learning rate of the source weights (lr-upper) is learning rate NaN",
            reweight(|c| c.lr_upper = f64::NAN),
        ),
        (
            "a penalty that is not above 0",
            "penalty is ",
            reweight(|c| c.alpha = 0.0),
        ),
        (
            "a clipping norm that is not above 0",
            "clip is -1",
            reweight(|c| c.clip = Some(-1.0)),
        ),
        (
            "a sample of one token",
            "max length is 1, but must be at least 2",
            reweight(|c| c.max_length = 1),
        ),
        (
            "a device that is not known",
            "device `tpu`: ",
            reweight(|c| c.device = "tpu".to_owned()),
        ),
        (
            "a batch of more samples than there are",
            "batch is 4 samples, but must be from 1 to 3 samples",
            finetune(|c| c.batch = 4),
        ),
        (
            "a micro-batch of nothing",
            "micro-batch is 0, but must be at least 1",
            finetune(|c| c.micro_batch = Some(0)),
        ),
        (
            "a measurement every 0 steps",
            "evaluate-every is 0, but must be at least 1",
            finetune(|c| c.evaluate_every = Some(0)),
        ),
        (
            "measurements without a file",
            "evaluate-every is given without a validation file",
            finetune(|c| c.evaluate_every = Some(5)),
        ),
        (
            "more blocks for LISA than there are",
            "active is 3 blocks, but must be from 1 to 2",
            finetune(|c| c.lisa_blocks = Some(3)),
        ),
        (
            "a period of LISA of 0 steps",
            "period is 0 steps, but must be at least 1 step",
            finetune(|c| (c.lisa_blocks, c.lisa_period) = (Some(1), 0)),
        ),
        (
            "a tokenizer of another model",
            "the model's vocabulary is ",
            finetune(|c| {
                (c.model, c.tokenizer) = (Some(other), Some(stories().join("tokenizer.json")))
            }),
        ),
        (
            "samples longer than the model's positions",
            "max-length is 513, but must be at most 512",
            finetune(|c| (c.model, c.max_length) = (Some(stories()), 513)),
        ),
        (
            "a folder that holds a run",
            "already holds a run or a model",
            full,
        ),
        (
            "nothing to evaluate",
            "files is 0, but must be at least 1",
            measure(|c| c.files.clear()),
        ),
        (
            "an evaluation in batches of 0",
            "batch is 0, but must be at least 1",
            measure(|c| c.batch = 0),
        ),
        (
            "answers of 0 tokens",
            "answer-tokens is 0, but must be at least 1",
            measure(|c| c.answer_tokens = 0),
        ),
        (
            "a file that is not there",
            "No such file",
            measure(|c| c.files = vec!["no/such.jsonl".into()]),
        ),
        (
            "a prompt of no token",
            "prompt is 0, but must be from 1 to 512 tokens",
            prompt(&[]),
        ),
        (
            "a prompt with a token outside the vocabulary",
            "a token of the prompt is 512, but must be below 512",
            prompt(&[512]),
        ),
        (
            "a vocabulary without room for the bytes",
            "vocabulary is 256, but must be at least 257",
            message(Tokenizer::train([""].into_iter(), 256)),
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
        fs::create_dir(folder.join("out/mixing").parent().unwrap())
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

/// The message for a copy of stories260K after something was done to it.
fn damaged(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(stories().join(name), folder.path().join(name)).unwrap();
    }
    change(folder.path());
    let model = CausalLm::from_pretrained(folder.path(), &Device::flex());
    message(model.and_then(|_| Tokenizer::from_pretrained(folder.path())))
}

fn with_config(key: &str, value: Value) -> String {
    damaged(|folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    })
}

fn with_tensors(change: impl FnOnce(&mut Vec<u8>)) -> String {
    damaged(|folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    })
}

fn with_file(name: &str, content: &str) -> String {
    damaged(|folder| fs::write(folder.join(name), content).unwrap())
}

fn checkpoints() -> Vec<Row> {
    let nan = |bytes: &mut Vec<u8>| {
        let end = bytes.len() - 4;
        bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    vec![
        (
            "no config.json",
            "config.json: No such file",
            damaged(|folder| fs::remove_file(folder.join("config.json")).unwrap()),
        ),
        (
            "an architecture that is not supported",
            "but must be gpt2, gpt_neox, llama, mistral, qwen2 or gemma2",
            with_config("model_type", json!("t5")),
        ),
        (
            "an activation that is not supported",
            "hidden_act",
            with_config("hidden_act", json!("quick_gelu")),
        ),
        (
            "no tensors",
            "model.safetensors: No such file",
            damaged(|folder| fs::remove_file(folder.join("model.safetensors")).unwrap()),
        ),
        (
            "a file of tensors that is cut",
            "not a complete safetensors file",
            with_tensors(|bytes| bytes.truncate(5000)),
        ),
        (
            "tensors that are missing",
            "missing: ",
            with_config("num_hidden_layers", json!(6)),
        ),
        (
            "tensors that are not part of the model",
            "not part of the model: ",
            with_config("num_hidden_layers", json!(4)),
        ),
        (
            "tensors of another shape",
            "of another shape: ",
            with_config("intermediate_size", json!(171)),
        ),
        ("a value that is not finite", "holds NaN", with_tensors(nan)),
        (
            "a tokenizer.json that is none",
            "not a tokenizer.json of Hugging Face's `tokenizers`",
            with_file("tokenizer.json", "{}"),
        ),
        (
            "an end of text that is no token",
            "end of text is `<end>`, but must be a token in the vocabulary",
            with_file("tokenizer_config.json", "{\"eos_token\": \"<end>\"}"),
        ),
        (
            "a chat template that is none",
            "the chat template cannot be read",
            with_file("chat_template.jinja", "{% for %}"),
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
        settings(),
        weight_files(),
        checkpoints(),
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
