//! The program `scalebio`, run as a user runs it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use scalebio::train::{FinetuneConfig, ReweightConfig, WeightsReport};
use tempfile::TempDir;

use crate::examples::{example, printed};

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scalebio"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

pub(crate) fn scalebio(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn help(subcommand: &str) -> String {
    printed(&scalebio(&[subcommand, "--help"]))
}

/// The subcommands, as the first help lists them.
fn subcommands() -> Vec<String> {
    let text = printed(&scalebio(&["--help"]));
    let list = text.split("Commands:\n").nth(1).unwrap();
    let list = list.lines().take_while(|line| !line.is_empty());
    let names: Vec<_> = list
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect();
    assert!(names.len() >= 6, "{text}");
    names
}

/// The flags that a help or a script names.
fn flags(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let long = words.filter(|word| word.len() > 2 && word.starts_with("--"));
    long.collect()
}

/// The flags of a subcommand, as completion in bash knows them.
fn completed<'a>(script: &'a str, subcommand: &str) -> BTreeSet<&'a str> {
    let case = format!("        scalebio__subcmd__{subcommand})\n");
    let case = script
        .split(&case)
        .nth(1)
        .unwrap_or_else(|| panic!("{case} in {script}"));
    flags(case.lines().next().unwrap())
}

/// A file of flags in a folder.
fn write(folder: &TempDir, lines: &str) -> String {
    let path = folder.path().join("flags.toml");
    fs::write(&path, lines).unwrap();
    path.to_str().unwrap().to_owned()
}

fn config<T: serde::de::DeserializeOwned>(out: &Path) -> T {
    let text = fs::read_to_string(out.join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A run of a few steps on the shipped data.
const SHORT: [&str; 6] = ["reweight", "--no-compare", "--steps", "3", "--batch", "14"];

/// Each flag that there is has a line of its own in the help, with words that say what it does; no line is wider than a
/// terminal; the examples at the end use no other flags.
#[test]
fn the_help_of_every_subcommand_documents_each_of_its_flags() {
    let script = printed(&scalebio(&["completions", "bash"]));
    for subcommand in subcommands() {
        let text = help(&subcommand);
        let (list, examples) = text
            .split_once("\nExamples:\n")
            .unwrap_or_else(|| panic!("examples in {text}"));
        let expected = completed(&script, &subcommand);
        assert!(expected.contains("--help"), "{subcommand}: {expected:?}");
        for flag in &expected {
            let line = list.lines().find(|line| {
                let name = line.trim_start().trim_start_matches("-h, ");
                let rest = name.strip_prefix(flag);
                rest.is_some_and(|rest| rest.starts_with([' ', '[']))
            });
            let line = line.unwrap_or_else(|| panic!("{flag} in {text}"));
            let (_, said) = line.trim_start().split_once("  ").unwrap_or_default();
            assert!(said.split_whitespace().count() >= 2, "{subcommand}: {line}");
        }
        let used = flags(examples);
        assert!(used.is_subset(&expected), "{used:?} in {text}");
        let wide: Vec<_> = text.lines().filter(|line| line.len() > 104).collect();
        assert!(wide.is_empty(), "{wide:#?}");
        let takes_a_file = subcommand != "completions";
        assert_eq!(expected.contains("--config"), takes_a_file, "{subcommand}");
    }
}

/// The examples are the program's subcommands, with the same help.
#[test]
fn an_example_is_the_subcommand_of_its_name() {
    for (name, subcommand) in [
        ("reweight", "reweight"),
        ("resample", "resample"),
        ("finetune", "finetune"),
        ("evaluate", "evaluate"),
        ("memory_plan", "plan"),
        ("compare", "compare"),
        ("report", "report"),
    ] {
        let text = printed(&example(name, &["--help"]));
        let expected = help(subcommand).replace("Usage: scalebio ", "Usage: ");
        assert_eq!(text, expected);
    }
}

#[test]
fn completions_of_every_shell_know_every_subcommand() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&scalebio(&["completions", shell]));
        for name in subcommands() {
            assert!(script.contains(&name), "{name} in {shell}: {script}");
        }
        assert!(script.contains("lr-upper"), "{shell}: {script}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        fs::write(&path, script).unwrap();
        // Where the shell is here, it reads the script without running it.
        if ["bash", "fish", "zsh"].contains(&shell) {
            let read = Command::new(shell).arg("-n").arg(&path).output();
            assert!(read.is_err() || read.unwrap().status.success(), "{shell}");
        }
    }
}

/// config.toml of a run gives the same weights again, bit for bit, and itself; also to the example.
#[test]
fn the_config_of_a_run_repeats_it_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let first = out("first");
    let flags = ["--seed", "7", "--lr-upper", "5e-2", "--blockwise=false"];
    let more = ["--lisa-blocks", "1", "--clip", "0", "--out", &first];
    let output = scalebio(&[&SHORT[..], &flags, &more].concat());
    printed(&output);
    // No terminal, no progress bar.
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!log.contains(['\r', '\u{1b}']), "{log}");

    let toml = format!("{first}/config.toml");
    let second = out("second");
    printed(&scalebio(&[
        "reweight", "--config", &toml, "--out", &second,
    ]));
    let third = out("third");
    printed(&example("reweight", &["--config", &toml, "--out", &third]));
    let read = |out: &str, name: &str| fs::read(Path::new(out).join(name)).unwrap();
    for again in [&second, &third] {
        for name in ["weights.json", "config.json", "config.toml"] {
            assert_eq!(read(&first, name), read(again, name), "{name}");
        }
    }
    let text = fs::read_to_string(toml).unwrap();
    for line in [
        "seed = 7",
        "lr-upper = 0.05",
        "blockwise = false",
        "max-length = 64",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

/// The same for a mix and a training, whose data are an argument without a name.
#[test]
fn the_config_of_a_mix_and_of_a_training_repeat_them_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let again = |subcommand: &str, first: &str, file: &str| {
        let (config, second) = (format!("{first}/config.toml"), format!("{first}-again"));
        printed(&scalebio(&[
            subcommand, "--config", &config, "--out", &second,
        ]));
        let read = |out: &str, file: &str| fs::read(Path::new(out).join(file)).unwrap();
        assert_eq!(read(first, file), read(&second, file));
        assert_eq!(read(first, "config.toml"), read(&second, "config.toml"));
    };
    let run = out("run");
    printed(&scalebio(&[&SHORT[..], &["--out", &run]].concat()));
    let (weights, mix) = (format!("{run}/weights.json"), out("mix"));
    let draw = ["resample", "--weights", &weights, "--samples", "50"];
    let how = ["--replacement", "--seed", "3", "--out", &mix];
    printed(&scalebio(&[draw, how].concat()));
    again("resample", &mix, "mix.jsonl");
    let (data, tuned) = (format!("{mix}/mix.jsonl"), out("tuned"));
    let train = [
        "finetune", &data, "--steps", "2", "--batch", "7", "--out", &tuned,
    ];
    printed(&scalebio(&train));
    again("finetune", &tuned, "model/model.safetensors");
}

/// A flag of the command line comes before that of the file, also where it turns it off; the rest is the file's.
#[test]
fn the_command_line_comes_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "steps = 5\nbatch = 14 # of the file\nseed = 1\nalpha = 3\nno-compare = true\nsave-model = true\n";
    let file = write(&folder, lines);
    let out = folder.path().join("run");
    let here = ["reweight", "--seed=2", "--config", &file, "--steps", "2"];
    let off = ["--save-model=false", "--out", out.to_str().unwrap()];
    let text = printed(&scalebio(&[&here[..], &off].concat()));
    assert!(
        !text.contains("test loss"),
        "no-compare is the file's: {text}"
    );
    assert!(!out.join("model").exists());
    let expected = ReweightConfig {
        steps: 2,
        batch: 14,
        seed: 2,
        alpha: 3.0,
        ..ReweightConfig::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data"))
    };
    assert_eq!(config::<ReweightConfig>(&out), expected);
}

/// Flags that are left out have the defaults of the library.
#[test]
fn flags_have_the_defaults_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    let data = "examples/data/val.jsonl";
    let tuned = out("tuned");
    let short = ["--steps", "1", "--out", tuned.to_str().unwrap()];
    printed(&scalebio(&[&["finetune", data], &short[..]].concat()));
    let expected = FinetuneConfig {
        steps: 1,
        ..FinetuneConfig::new(data)
    };
    assert_eq!(config::<FinetuneConfig>(&tuned), expected);
    let run = out("run");
    let short = [
        "--steps",
        "1",
        "--no-compare",
        "--out",
        run.to_str().unwrap(),
    ];
    let named = ["reweight", "--data", "examples/data"];
    printed(&scalebio(&[&named[..], &short].concat()));
    let expected = ReweightConfig {
        steps: 1,
        ..ReweightConfig::new("examples/data")
    };
    assert_eq!(config::<ReweightConfig>(&run), expected);
}

/// Arguments without a name come from the file in their order, and from the command line if they are there.
#[test]
fn a_file_holds_arguments_without_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let [model, val, test] = [
        "tests/fixtures/stories260K",
        "examples/data/val.jsonl",
        "examples/data/test.jsonl",
    ];
    let evaluate = |arguments: &[&str]| {
        printed(&scalebio(
            &[&["evaluate", "--json", "-"], arguments].concat(),
        ))
    };
    let files = format!("files = [\"{val}\", \"{test}\"]\nmax-length = 32\n");
    let direct = evaluate(&[model, val, test, "--max-length", "32"]);
    let whole = write(&folder, &format!("{files}hf-dir = \"{model}\""));
    assert_eq!(evaluate(&["--config", &whole]), direct);
    let part = write(&folder, &files);
    assert_eq!(evaluate(&[model, "--config", &part]), direct);
    let other = evaluate(&[model, test, "--config", &part]);
    assert_eq!(other, evaluate(&[model, test, "--max-length", "32"]));
    assert_ne!(other, direct);
}

/// `plan` takes a model's config.json by `--config` too, as the example always did, and a file of flags.
#[test]
fn plan_takes_flags_and_the_config_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        &folder,
        "model = \"gpt2\"\nlength = 128\nfreeze-others = true\n",
    );
    let flags = [
        "plan",
        "--model",
        "gpt2",
        "--length",
        "128",
        "--freeze-others",
    ];
    let expected = printed(&scalebio(&flags));
    assert_eq!(printed(&scalebio(&["plan", "--config", &file])), expected);
    let gpt2 = "examples/memory_plan/configs/gpt2.json";
    for by in ["--model", "--config"] {
        let more = ["--length", "128", "--freeze-others"];
        let text = printed(&scalebio(&[&["plan", by, gpt2], &more[..]].concat()));
        assert_eq!(text, expected);
    }
}

/// 0 for what was asked for, 2 for a wrong usage, 1 for a failure; messages in one line on standard error, no panic.
#[test]
fn the_status_says_what_kind_of_end_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder, "stepz = 1\n");
    for (arguments, status) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["plan"], 0),
        (&[], 2),
        (&["reweight", "--steps", "two"], 2),
        (&["reweight", "--steps=1", "--steps=2"], 2),
        (&["reweight", "--config", &file], 2),
        (&["completions", "tcsh"], 2),
        (&["reweight", "--steps", "0"], 1),
        (&["reweight", "--data", "no/such/folder"], 1),
        (&["evaluate", "no/such/model", "examples/data/val.jsonl"], 1),
        (&["finetune", "no/such.jsonl", "--out", "no/such"], 1),
    ] {
        let output = scalebio(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        if status != 0 && !arguments.is_empty() {
            assert!(error.starts_with("error: "), "{arguments:?}: {error}");
            assert!(output.stdout.is_empty(), "{arguments:?}");
        }
        if status == 1 {
            assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        }
        assert!(!error.contains("panicked"), "{arguments:?}: {error}");
    }
}

/// A pipe that nobody reads is no error, and does not keep a run from writing its files.
#[test]
fn a_closed_pipe_stops_nothing() {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let ends = |arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).stdout(closed()).stderr(closed());
        command.status().unwrap().code()
    };
    assert_eq!(ends(&["plan"]), Some(0));
    assert_eq!(ends(&["reweight", "--help"]), Some(0));
    assert_eq!(ends(&["completions", "zsh"]), Some(0));
    assert_eq!(ends(&["reweight", "--steps", "0"]), Some(1));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let more = ["--save-model", "--out", out.to_str().unwrap()];
    assert_eq!(ends(&[&SHORT[..], &more].concat()), Some(0));
    let report = WeightsReport::read(out.join("weights.json")).unwrap();
    assert_eq!(report.step, 3);
    assert!(out.join("model/model.safetensors").exists());
}

/// A full disk behind standard output is an error, not a silent loss.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = command().arg("plan").stdout(full).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("error: standard output: "), "{error}");
}
