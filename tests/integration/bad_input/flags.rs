//! Flags of the program that cannot work, in a file and on the command line.

use std::fs;

use super::Row;
use crate::program::scalebio;

/// What the program says to these arguments. It says it in one go, with the status of a wrong usage or of a failure.
fn says(status: i32, arguments: &[&str]) -> String {
    let output = scalebio(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(error.starts_with("error: "), "{error}");
    error
}

/// What `subcommand` says to a file of flags with these lines after a comment.
fn file(subcommand: &str, lines: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flags.toml");
    fs::write(&path, format!("# flags\n{lines}\n")).unwrap();
    says(2, &[subcommand, "--config", path.to_str().unwrap()])
}

/// What `reweight` says to a folder that holds nothing but a config.toml; it leaves the file alone.
fn taken() -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, "steps = 1").unwrap();
    let (path, out) = (path.to_str().unwrap(), folder.path().to_str().unwrap());
    let error = says_after_work(&["reweight", "--config", path, "--out", out]);
    assert_eq!(fs::read_dir(out).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(path).unwrap(), "steps = 1");
    error
}

/// As [`says`], of what fails after the data are read and described.
fn says_after_work(arguments: &[&str]) -> String {
    let output = scalebio(arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

pub(super) fn rows() -> Vec<Row> {
    let reweight = |lines: &str| file("reweight", lines);
    let config = "tests/fixtures/hf/gpt2/config.json";
    [
        in_files(reweight),
        vec![
            (
                "a folder with a config.toml",
                "already holds a run (`config.toml`)",
                taken(),
            ),
            (
                "a flag that is not known",
                "unexpected argument '--stepz' found",
                says(2, &["reweight", "--stepz", "2"]),
            ),
            (
                "a flag that is needed and nowhere",
                "the following required arguments were not provided",
                says(2, &["resample", "--samples", "10"]),
            ),
            (
                "no subcommand of this name",
                "unrecognized subcommand 'train'",
                says(2, &["train"]),
            ),
            (
                "a model to plan for that is not there",
                "--model takes a folder with config.json, that file, or one of gpt2",
                says(1, &["plan", "--model", "no/such"]),
            ),
            (
                "two models to plan for",
                "the model is given twice, by --model and by --config",
                says(1, &["plan", "--model", "gpt2", "--config", config]),
            ),
        ],
    ]
    .concat()
}

fn in_files(reweight: impl Fn(&str) -> String) -> Vec<Row> {
    vec![
        (
            "a file of flags that is not there",
            "flags.toml: No such file",
            says(2, &["reweight", "--config", "no/such/flags.toml"]),
        ),
        (
            "a file of flags of another name",
            "a file of flags is named FILE.toml",
            says(2, &["reweight", "--config", "config.json"]),
        ),
        (
            "a file of flags that is not TOML",
            "flags.toml:3: not TOML: ",
            reweight("steps = 1\nalpha"),
        ),
        (
            "a flag that is in the file twice",
            "flags.toml:3: not TOML: duplicate key",
            reweight("steps = 1\nsteps = 2"),
        ),
        (
            "a key that is no flag",
            "flags.toml:2: `stepz` is no flag of reweight; did you mean `steps`?",
            reweight("stepz = 1"),
        ),
        (
            "a flag with underscores",
            "flags.toml:2: `lr_upper` is no flag of reweight; did you mean `lr-upper`?",
            reweight("lr_upper = 1"),
        ),
        (
            "a flag of another subcommand",
            "flags.toml:2: `samples` is no flag of reweight; see scalebio reweight --help",
            reweight("samples = 1"),
        ),
        (
            "a table of flags",
            "flags.toml:2: `reweight` is no flag of reweight",
            reweight("[reweight]\nsteps = 1"),
        ),
        (
            "a file of flags that names another",
            "flags.toml:2: `config` is no flag of reweight",
            reweight("config = \"other.toml\""),
        ),
        (
            "a number in quotation marks",
            "flags.toml:2: `steps` is a string, but must be a whole number of at least 0",
            reweight("steps = \"1\""),
        ),
        (
            "a number of steps that is not whole",
            "flags.toml:2: `steps` is a float, but must be a whole number of at least 0",
            reweight("steps = 1.5"),
        ),
        (
            "a negative number of steps",
            "flags.toml:2: `steps` is -1, but must be a whole number of at least 0",
            reweight("steps = -1"),
        ),
        (
            "a rate that is no number",
            "flags.toml:2: `lr-upper` is a boolean, but must be a number",
            reweight("lr-upper = true"),
        ),
        (
            "a path that is no string",
            "flags.toml:2: `data` is 7, but must be a string",
            reweight("data = 7"),
        ),
        (
            "a flag that stands alone with a number",
            "flags.toml:2: `save-model` is 1, but must be true or false",
            reweight("save-model = 1"),
        ),
        (
            "a list with something else than strings",
            "flags.toml:2: `files` is an array, but must be strings in brackets",
            file("evaluate", "files = [\"a.jsonl\", 1]"),
        ),
        (
            "an optimizer that is not known, in the file",
            "flags.toml:2: `optimizer` is \"adagrad\": use adamw or sgd",
            reweight("optimizer = \"adagrad\""),
        ),
        (
            "a number beyond 64 bits",
            "flags.toml:2: `seed` is 18446744073709551616: number too large",
            reweight("seed = 18446744073709551616"),
        ),
    ]
}
