//! The command `reweight`, ended from outside: with SIGKILL at any moment, and with Ctrl-C.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use scalebio::train::WeightsReport;
use tempfile::tempdir;

use crate::evaluate::stories;
use crate::examples::{command, example, printed};
use crate::resume_training::{data, metrics};

fn start(arguments: &[&str]) -> Child {
    let mut command = command("reweight", arguments);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A checkpoint after each step, so that about as much time goes into checkpoints as into steps.
const OFTEN: [&str; 2] = ["--checkpoint-steps", "1"];

/// A run of a few short steps.
fn arguments<'a>(steps: &'a str, data: &'a str, model: &'a str, out: &'a str) -> Vec<&'a str> {
    let short = [
        "--steps",
        steps,
        "--batch",
        "3",
        "--max-length",
        "8",
        "--micro-batch",
        "2",
    ];
    let layers = ["--lisa-blocks", "1", "--lisa-period", "3"];
    let all = ["--no-compare", "--save-model", "--force"];
    let places = ["--data", data, "--model", model, "--out", out];
    [&short[..], &layers, &all, &places].concat()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn has_checkpoint(out: &Path) -> bool {
    let Ok(entries) = fs::read_dir(out.join("checkpoints")) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
}

/// `weights.json`, all of `metrics.jsonl` but the seconds, and the model.
fn files(out: &Path) -> (Vec<u8>, Vec<String>, Vec<u8>) {
    let read = |name: &str| fs::read(out.join(name)).unwrap();
    (
        read("weights.json"),
        metrics(out),
        read("model/model.safetensors"),
    )
}

/// Killed at twenty random moments, most of them in a step or while a checkpoint is being written, and resumed each time,
/// runs end in the files of one that was left alone.
#[test]
fn runs_that_are_killed_at_random_moments_end_in_the_same_files() {
    let (data, folder, model) = (data(), tempdir().unwrap(), stories());
    let (data, model) = (text(data.path()), text(&model));
    let out = |name: &str| -> PathBuf { folder.path().join(name) };
    let whole = out("whole");
    printed(&example(
        "reweight",
        &arguments("40", data, model, text(&whole)),
    ));
    let expected = files(&whole);
    assert_eq!(expected.1.len(), 40);

    let mut random = Xoshiro256PlusPlus::seed_from_u64(6);
    for number in 0..4 {
        let out = out(&format!("killed-{number}"));
        let mut steps = Vec::new();
        for kill in 0..5 {
            let first = [&arguments("40", data, model, text(&out))[..], &OFTEN].concat();
            let again = [
                "--resume",
                text(&out),
                "--no-compare",
                "--save-model",
                "--force",
            ];
            let mut run = start(if kill == 0 { &first } else { &again });
            while kill == 0 && !has_checkpoint(&out) {
                assert!(
                    run.try_wait().unwrap().is_none(),
                    "it ended before its first checkpoint"
                );
                sleep(Duration::from_millis(1));
            }
            // From its first moments, in which it reads files, up to some steps later.
            let longest = if kill == 0 { 60 } else { 300 };
            sleep(Duration::from_millis(random.random_range(0..longest)));
            run.kill().unwrap(); // SIGKILL
            run.wait().unwrap();
            let report = WeightsReport::read(out.join("weights.json")).unwrap();
            steps.push(report.step);
        }
        let end = [
            "--resume",
            text(&out),
            "--no-compare",
            "--save-model",
            "--force",
        ];
        let printed = printed(&example("reweight", &end));
        assert!(printed.contains("going on after"), "{printed}");
        assert!(files(&out) == expected, "killed after {steps:?} steps");
        // Two, and what a process left that was killed after the rename of the last one.
        assert!((2..=3).contains(&fs::read_dir(out.join("checkpoints")).unwrap().count()));
    }
}

fn interrupt(run: &Child) {
    let id = run.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
}

/// Waits until the run has printed a line that starts so; what follows can be read.
fn wait_for(run: &mut Child, start: &str) -> BufReader<ChildStdout> {
    let mut printed = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with(start) {
        line.clear();
        assert_ne!(
            printed.read_line(&mut line).unwrap(),
            0,
            "no line `{start}`"
        );
    }
    printed
}

fn rest(mut printed: BufReader<ChildStdout>) -> String {
    let mut rest = String::new();
    printed.read_to_string(&mut rest).unwrap();
    rest
}

/// Ctrl-C ends the run after the step it is in, with a checkpoint and the words to go on with; so it does.
#[test]
fn ctrl_c_writes_a_checkpoint_and_says_how_to_go_on() {
    let (data, folder, model) = (data(), tempdir().unwrap(), stories());
    let (data, model) = (text(data.path()), text(&model));
    let whole = folder.path().join("whole");
    printed(&example(
        "reweight",
        &arguments("300", data, model, text(&whole)),
    ));

    let out = folder.path().join("stopped");
    let mut run = start(&arguments("300", data, model, text(&out)));
    let output = wait_for(&mut run, "model with");
    interrupt(&run);
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let rest = rest(output);
    let lines = metrics(&out).len();
    assert!((1..300).contains(&lines));
    assert!(
        rest.contains(&format!("stopped after {lines} of 300 steps")),
        "{rest}"
    );
    let words = format!("--resume {}", text(&out));
    assert!(rest.contains(&words), "{rest}");
    let again: Vec<_> = words
        .split(' ')
        .chain(["--no-compare", "--save-model"])
        .collect();
    let end = printed(&example("reweight", &again));
    assert!(
        end.contains(&format!("going on after {lines} steps")),
        "{end}"
    );
    assert!(files(&out) == files(&whole));
}

/// A second Ctrl-C ends the run at once, in the middle of a step that would take long.
#[test]
fn a_second_ctrl_c_ends_the_run_at_once() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    let long = [
        "--batch",
        "400",
        "--max-length",
        "256",
        "--no-compare",
        "--force",
        "--out",
        text(&out),
    ];
    let mut run = start(&long);
    let output = wait_for(&mut run, "model with");
    // Two signals that wait at the same time are one, so there may have to be a third.
    while run.try_wait().unwrap().is_none() {
        interrupt(&run);
        sleep(Duration::from_millis(50));
    }
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let rest = rest(output);
    assert!(!rest.contains("stopped after"), "{rest}");
    assert!(metrics(&out).is_empty() && !out.join("checkpoints").exists());
}

/// Every flag that determines a run is refused beside --resume; the others are not.
#[test]
fn flags_that_would_change_a_run_are_refused_when_it_goes_on() {
    let help = printed(&example("reweight", &["--help"]));
    let flags = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"));
    let flags: Vec<_> = flags
        .map(|rest| rest.split([' ', '[', '=']).next().unwrap())
        .collect();
    assert!(flags.len() > 20, "{flags:?}");
    let free = [
        "resume",
        "checkpoint-steps",
        "checkpoint-minutes",
        "save-model",
        "no-compare",
        "force",
        "rank-timeout",
        "devices",
        "placement",
        "device-memory",
        "config",
    ];
    for flag in flags {
        let value = match flag {
            "blockwise" | "parallel" | "stream" | "save-model" | "no-compare" | "force" => None,
            "optimizer" => Some("sgd"),
            "dtype" => Some("bf16"),
            "prior" => Some("a=1"),
            "placement" => Some("spread"),
            "offload" => Some("frozen"),
            _ => Some("1"),
        };
        if flag == "resume" || flag == "config" {
            continue;
        }
        let flag_text = format!("--{flag}");
        let arguments: Vec<&str> = ["--resume", "no/such/run", &flag_text]
            .into_iter()
            .chain(value)
            .chain(
                ["placement", "device-memory"]
                    .contains(&flag)
                    .then_some("--devices=flex,ndarray"),
            )
            .collect();
        let output = example("reweight", &arguments);
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = if free.contains(&flag) {
            "no/such/run/config.json"
        } else {
            "cannot be used with"
        };
        assert!(error.contains(expected), "{flag}: {error}");
    }
}
