//! A run on a language model that was stopped and resumed writes the files of one that was not; what is not that run's is
//! refused.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use scalebio::burn::module::Param;
use scalebio::burn::tensor::Tensor;
use scalebio::models::{Dtype, Offloading};
use scalebio::train::{Experiment, OptimizerKind, ReweightConfig, Reweighting};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::evaluate::stories;

/// Three sources of short texts, and a validation set.
pub fn data() -> TempDir {
    let folder = tempdir().unwrap();
    let words = [
        "the cat",
        "a dog",
        "Lily",
        "ran to",
        "saw",
        "the park",
        "and",
        "was happy",
    ];
    for (seed, name) in ["train_a", "train_b", "train_c", "val"].iter().enumerate() {
        let line = |record: usize| {
            let word = |i: usize| words[(i * i + i * seed + 3 * record) % words.len()];
            let text: Vec<&str> = (0..7).map(word).collect();
            json!({"text": text.join(" ")}).to_string() + "\n"
        };
        let lines: String = (0..9 + seed).map(line).collect();
        fs::write(folder.path().join(format!("{name}.jsonl")), lines).unwrap();
    }
    folder
}

pub const STEPS: usize = 9;

pub fn config(data: &Path) -> ReweightConfig {
    let mut config = ReweightConfig::new(data);
    config.model = Some(stories());
    (config.steps, config.batch, config.max_length) = (STEPS, 4, 12);
    config.lr_lower = 1e-3;
    config.checkpoint_minutes = None;
    config
}

fn start(config: &ReweightConfig, out: &Path) -> Reweighting {
    Experiment::open(config.clone())
        .unwrap()
        .reweight(out)
        .unwrap()
}

/// From the files of the run alone.
fn resume(out: &Path) -> scalebio::Result<Reweighting> {
    Experiment::open(ReweightConfig::read(out)?)?.resume(out)
}

fn take(run: &mut Reweighting, steps: usize) {
    for step in run.by_ref().take(steps) {
        step.unwrap();
    }
}

/// The lines of `metrics.jsonl` in every field but `seconds`.
pub fn metrics(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let without_seconds = |line: &str| {
        let (before, after) = line.split_once("\"seconds\":").expect("a whole line");
        format!("{before}{}", after.split_once(',').unwrap().1)
    };
    text.lines().map(without_seconds).collect()
}

/// `weights.json`, the metrics, and the bytes of `w`, `u` and the logits.
fn end(run: &Reweighting, out: &Path) -> (String, Vec<String>, Vec<Vec<u8>>) {
    use scalebio::burn::module::{Module, ModuleVisitor};
    struct Bytes(Vec<Vec<u8>>);
    impl ModuleVisitor for Bytes {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().into_data().as_bytes().to_vec());
        }
    }
    let mut bytes = Bytes(Vec::new());
    run.run().lower().visit(&mut bytes);
    run.run().auxiliary().visit(&mut bytes);
    run.run().upper().visit(&mut bytes);
    let weights = fs::read_to_string(out.join("weights.json")).unwrap();
    (weights, metrics(out), bytes.0)
}

/// Steps that are lost with the process: they and half a line are in the log, and gone after resuming.
fn lose_steps(run: &mut Reweighting, out: &Path, steps: usize) {
    take(run, steps);
    let mut log = OpenOptions::new()
        .append(true)
        .open(out.join("metrics.jsonl"))
        .unwrap();
    log.write_all(b"{\"step\":99,\"l1_w\":2.").unwrap();
}

type Change = fn(&mut ReweightConfig);

/// Both optimizers, LISA, micro-batches, bfloat16, two threads and blocks in host memory: stopped twice, with steps and half a line lost each time,
/// a run writes the files of one that was not, and its variables have the same bits.
#[test]
fn a_resumed_run_writes_the_files_of_an_uninterrupted_one() {
    let data = data();
    let changes: [Change; 7] = [
        |_| {},
        |c| (c.optimizer, c.lr_lower, c.lr_upper) = (OptimizerKind::Sgd, 1e-2, 1.0),
        |c| (c.lisa_blocks, c.lisa_period, c.micro_batch) = (Some(1), 2, Some(3)),
        |c| (c.dtype, c.lisa_blocks, c.lisa_period) = (Dtype::Bfloat16, Some(2), 3),
        |c| (c.parallel, c.micro_batch, c.clip) = (true, Some(2), Some(0.05)),
        |c| (c.model, c.lr_upper) = (None, 0.123_456_789_012_345_68),
        |c| {
            (c.lisa_blocks, c.lisa_period) = (Some(1), 2);
            (c.device, c.offload) = ("ndarray".to_owned(), Some(Offloading::FrozenAndMoments));
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let folder = tempdir().unwrap();
        let out = |name: &str| folder.path().join(name);
        let mut config = config(data.path());
        change(&mut config);
        let mut whole = start(&config, &out("whole"));
        take(&mut whole, STEPS);
        let expected = end(&whole, &out("whole"));
        assert_eq!(expected.1.len(), STEPS);

        let out = out("stopped");
        let mut run = start(&config, &out);
        for (steps, lost) in [(1 + number % 3, 2), (3, 1)] {
            take(&mut run, steps);
            run.checkpoint().unwrap();
            lose_steps(&mut run, &out, lost);
            drop(run);
            run = resume(&out).unwrap();
            assert!(run.damaged().is_empty());
        }
        take(&mut run, STEPS);
        assert_eq!(run.run().steps(), STEPS);
        let found = end(&run, &out);
        assert_eq!(found.0, expected.0, "{number}");
        assert_eq!(found.1, expected.1, "{number}");
        assert!(found.2 == expected.2, "{number}");
    }
}

fn checkpoints(out: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(out.join("checkpoints")) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Checkpoints come by steps, by time, or not at all; the steps count from the last one.
#[test]
fn checkpoints_come_by_steps_or_by_minutes() {
    let data = data();
    for (steps, minutes, expected) in [
        (None, None, vec![]),
        (Some(2), None, vec!["step-00000005", "step-00000007"]),
        (Some(6), Some(1e9), vec!["step-00000001", "step-00000007"]),
        (None, Some(1e-9), vec!["step-00000007", "step-00000008"]),
        (None, Some(f64::MAX), vec!["step-00000001"]),
    ] {
        let folder = tempdir().unwrap();
        let out = folder.path().join("run");
        let mut config = config(data.path());
        (config.checkpoint_steps, config.checkpoint_minutes) = (steps, minutes);
        let mut run = start(&config, &out);
        take(&mut run, 1);
        if steps.is_some() || minutes == Some(f64::MAX) {
            run.checkpoint().unwrap();
        }
        take(&mut run, 7);
        assert_eq!(checkpoints(&out), expected, "{steps:?} {minutes:?}");
    }
}

/// A run that has taken its last step can be resumed too: nothing is left to do, and its files stay what they are.
#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let (data, folder) = (data(), tempdir().unwrap());
    let out = folder.path().join("run");
    let mut run = start(&config(data.path()), &out);
    take(&mut run, STEPS);
    run.checkpoint().unwrap();
    let expected = end(&run, &out);
    drop(run);
    let mut run = resume(&out).unwrap();
    assert!(run.next().is_none());
    assert!(end(&run, &out) == expected);
}

/// A run stopped after two steps, and the settings of it; `change` changes a file before it is resumed.
fn refused(change: impl FnOnce(&Path, &Path)) -> String {
    let (data, folder) = (data(), tempdir().unwrap());
    let (out, model) = (folder.path().join("run"), folder.path().join("model"));
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(stories().join(name), model.join(name)).unwrap();
    }
    let mut config = config(data.path());
    config.model = Some(model);
    let mut run = start(&config, &out);
    take(&mut run, 2);
    run.checkpoint().unwrap();
    drop(run);
    change(&out, data.path());
    let before = fs::read(out.join("metrics.jsonl")).unwrap();
    let error = resume(&out)
        .expect_err("a difference that is seen")
        .to_string();
    assert_eq!(
        fs::read(out.join("metrics.jsonl")).unwrap(),
        before,
        "{error}"
    );
    error
}

fn edit(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Messages for runs that cannot go on: rows for the table of bad input.
pub fn rows() -> Vec<(&'static str, &'static str, String)> {
    let setting = |key: &'static str, value: Value| {
        refused(|run, _| edit(run.join("config.json"), |config| config[key] = value))
    };
    let newest = "checkpoints/step-00000002";
    vec![
        (
            "a run to go on with that has other settings",
            "the setting batch is 4 in the checkpoint, but 5 here",
            setting("batch", json!(5)),
        ),
        (
            "a run to go on with that has another sample",
            "the source `b` is 15 samples with checksum",
            refused(|_, data| {
                let path = data.join("train_b.jsonl");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(path, text.replacen("cat", "dog", 1)).unwrap();
            }),
        ),
        (
            "a run to go on with that has a source more",
            "the source `d` is missing in the checkpoint",
            refused(|_, data| {
                fs::copy(data.join("train_a.jsonl"), data.join("train_d.jsonl")).unwrap();
            }),
        ),
        (
            "a run to go on with that has another base model",
            "the base model is ",
            refused(|run, _| {
                let path = run.parent().unwrap().join("model/model.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                let last = bytes.len() - 4;
                bytes[last] ^= 1;
                fs::write(path, bytes).unwrap();
            }),
        ),
        (
            "a run to go on with whose base model has another config.json",
            "the config.json of the base model is",
            refused(|run, _| {
                let path = run.parent().unwrap().join("model/config.json");
                edit(path, |config| config["rms_norm_eps"] = json!(1e-4));
            }),
        ),
        (
            "a run to go on with that has no checkpoint",
            "holds no checkpoint: the run ended before its first one",
            refused(|run, _| fs::remove_dir_all(run.join("checkpoints")).unwrap()),
        ),
        (
            "a run to go on with whose log lacks lines",
            "the run cannot go on without the lines that are missing",
            refused(|run, _| {
                let file = OpenOptions::new()
                    .write(true)
                    .open(run.join("metrics.jsonl"));
                file.unwrap().set_len(100).unwrap();
            }),
        ),
        (
            "a checkpoint of another version",
            "has schema_version 7, but this version of scalebio reads 1",
            refused(|run, _| {
                let path = run.join(newest).join("checkpoint.json");
                edit(path, |manifest| manifest["schema_version"] = json!(7));
            }),
        ),
        (
            "a checkpoint that is damaged",
            "the checkpoint is damaged",
            refused(|run, _| {
                let path = run.join(newest).join("tensors.safetensors");
                let file = OpenOptions::new().write(true).open(path);
                file.unwrap().set_len(5000).unwrap();
            }),
        ),
        (
            "a checkpoint that lacks a file",
            "state.json: No such file",
            refused(|run, _| fs::remove_file(run.join(newest).join("state.json")).unwrap()),
        ),
        (
            "a folder that is no run, to go on with",
            "config.json: No such file",
            refused(|run, _| fs::remove_file(run.join("config.json")).unwrap()),
        ),
        (
            "checkpoints every 0 steps",
            "checkpoint-steps is 0, but must be at least 1",
            {
                let mut config = config(Path::new("examples/data"));
                config.checkpoint_steps = Some(0);
                Experiment::open(config).unwrap_err().to_string()
            },
        ),
        (
            "checkpoints every 0 minutes",
            "checkpoint-minutes is 0, but must be greater than 0",
            {
                let mut config = config(Path::new("examples/data"));
                config.checkpoint_minutes = Some(0.0);
                Experiment::open(config).unwrap_err().to_string()
            },
        ),
    ]
}

/// Each difference is refused with what was found and what is there; nothing is cut off the log. The two settings that do
/// not change a run may differ, and the data may have moved.
#[test]
fn what_is_not_the_run_is_refused_with_the_difference() {
    for (kind, said, message) in rows() {
        assert!(message.contains(said), "{kind}: {message}");
    }
    let (data, folder) = (data(), tempdir().unwrap());
    let out = folder.path().join("run");
    let mut run = start(&config(data.path()), &out);
    take(&mut run, 2);
    run.checkpoint().unwrap();
    drop(run);
    let moved = folder.path().join("moved");
    fs::rename(data.path(), &moved).unwrap();
    let mut config = ReweightConfig::read(&out).unwrap();
    (config.data, config.checkpoint_steps) = (moved, Some(1));
    let mut run = Experiment::open(config).unwrap().resume(&out).unwrap();
    take(&mut run, 2);
    assert_eq!(checkpoints(&out), ["step-00000003", "step-00000004"]);
}

/// Two processes cannot write one run.
#[test]
fn a_run_that_is_being_written_is_not_resumed() {
    let (data, folder) = (data(), tempdir().unwrap());
    let out = folder.path().join("run");
    let mut run = start(&config(data.path()), &out);
    take(&mut run, 1);
    run.checkpoint().unwrap();
    let error = resume(&out).unwrap_err().to_string();
    assert!(
        error.contains("another process is writing this run"),
        "{error}"
    );
    drop(run);
    assert_eq!(resume(&out).unwrap().run().steps(), 1);
}

/// A newest checkpoint that is damaged is passed over, which the run says, and the end is the same.
#[test]
fn a_damaged_checkpoint_of_a_run_is_passed_over() {
    let (data, folder) = (data(), tempdir().unwrap());
    let out = folder.path().join("run");
    let mut config = config(data.path());
    config.checkpoint_steps = Some(2);
    let mut run = start(&config, &out);
    take(&mut run, STEPS);
    let expected = end(&run, &out);
    drop(run);
    let damaged = out.join("checkpoints/step-00000008/tensors.safetensors");
    fs::write(&damaged, "").unwrap();
    let mut run = resume(&out).unwrap();
    assert_eq!(run.run().steps(), 6);
    let [message] = run.damaged() else {
        panic!("{:?}", run.damaged())
    };
    assert!(message.contains("step-00000008"), "{message}");
    take(&mut run, STEPS);
    assert!(end(&run, &out) == expected);
}
