//! The program with a device of another process: tokens, and what it prints and leaves behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use scalebio::train::WeightsReport;
use tempfile::tempdir;

use super::{SOON, Server};
use crate::evaluate::stories;
use crate::examples::{command, printed};
use crate::resume_training::data;
use crate::zoo::largest_difference;

const TOKEN: &str = "a-secret-of-the-test";

fn with_token(name: &str, arguments: &[&str], token: Option<&str>) -> Command {
    let mut command = command(name, arguments);
    command.env_remove("SCALEBIO_TOKEN");
    command.envs(token.map(|token| ("SCALEBIO_TOKEN", token)));
    command
}

/// The one line that a program ends with.
fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let errors: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with("step "))
        .collect();
    assert!(
        errors.len() == 1 && errors[0].starts_with("error: "),
        "{text}"
    );
    errors[0].to_owned()
}

/// A run of short steps, with a checkpoint after each. Of two devices, w is on the first and u on the second.
fn arguments<'a>(data: &'a str, model: &'a str, out: &'a str, devices: &'a str) -> Vec<&'a str> {
    let short = ["--steps", "30", "--batch", "3", "--max-length", "8"];
    let kept = [
        "--lr-lower",
        "1e-3",
        "--checkpoint-steps",
        "1",
        "--no-compare",
    ];
    let places = [
        "--data",
        data,
        "--model",
        model,
        "--out",
        out,
        "--devices",
        devices,
    ];
    [&short[..], &kept, &places].concat()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn weights(out: &Path) -> Vec<f64> {
    let report = WeightsReport::read(out.join("weights.json")).unwrap();
    report.sources.iter().map(|source| source.weight).collect()
}

/// Files of a folder and those in it.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(fs::read(path).unwrap()),
        }
    }
    files
}

/// A token that is missing or wrong opens nothing; the right one does, and is in no file of the run.
#[test]
fn remote_tokens_are_asked_for_and_kept_secret() {
    let server = Server::start(&[], Some(TOKEN));
    let (data, model, folder) = (data(), stories(), tempdir().unwrap());
    let out = folder.path().join("run");
    let arguments = arguments(text(data.path()), text(&model), text(&out), &server.name);
    for (token, expected) in [
        (None, "the server asks for a token; set SCALEBIO_TOKEN"),
        (Some(""), "the server asks for a token; set SCALEBIO_TOKEN"),
        (
            Some("another"),
            "the server refuses the token; set SCALEBIO_TOKEN",
        ),
    ] {
        let output = with_token("reweight", &arguments, token).output().unwrap();
        let error = error(&output);
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists());
    }
    let output = with_token("reweight", &arguments, Some(TOKEN)).output();
    let shown = printed(&output.unwrap());
    assert!(shown.contains(&format!("on {}", server.name)), "{shown}");
    assert!(!shown.contains(TOKEN));
    let secret = |file: Vec<u8>| {
        file.windows(TOKEN.len())
            .any(|part| part == TOKEN.as_bytes())
    };
    assert!(!files(&out).into_iter().any(secret));
}

/// The server is killed in the middle of a run: one line says so and how to go on, and the run goes on from there on a server at
/// another address, or here, to the weights of a run that was left alone.
#[test]
fn remote_run_that_loses_its_server_says_how_to_go_on() {
    let (data, model, folder) = (data(), stories(), tempdir().unwrap());
    let (data, model) = (text(data.path()), text(&model));
    let whole = folder.path().join("whole");
    let here = with_token(
        "reweight",
        &arguments(data, model, text(&whole), "flex"),
        None,
    )
    .output();
    printed(&here.unwrap());

    for on_a_server in [true, false] {
        let out = folder.path().join(format!("lost-{on_a_server}"));
        let mut server = Server::start(&[], Some(TOKEN));
        let devices = format!("flex,{}", server.name);
        let arguments = arguments(data, model, text(&out), &devices);
        let mut run = with_token("reweight", &arguments, Some(TOKEN));
        let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let time = Instant::now();
        while !out.join("checkpoints/step-00000003").exists() {
            assert!(time.elapsed() < SOON, "no checkpoint");
            thread::sleep(Duration::from_millis(1));
        }
        server.kill();
        let error = error(&run.unwrap().wait_with_output().unwrap());
        assert!(time.elapsed() < 2 * SOON);
        let start = format!("error: device `{}`: the connection is lost", server.name);
        assert!(error.starts_with(&start), "{error}");
        let words = format!("--resume {}", text(&out));
        assert!(error.contains(&words), "{error}");

        let another = on_a_server.then(|| Server::start(&[], Some(TOKEN)));
        let device = match &another {
            Some(server) => format!("flex,{}", server.name),
            None => "flex".to_owned(),
        };
        let device = device.as_str();
        let again = ["--resume", text(&out), "--devices", device, "--no-compare"];
        let output = with_token("reweight", &again, Some(TOKEN)).output();
        let shown = printed(&output.unwrap());
        assert!(shown.contains("going on after"), "{shown}");
        let difference = largest_difference(&weights(&out), &weights(&whole));
        assert!(difference < 1e-4, "{difference}");
    }
}

/// A server without a token is refused, unless nobody but this machine can reach it and it was asked for.
#[test]
fn remote_servers_do_without_a_token_on_loopback_only() {
    let ends = |arguments: &[&str], token| {
        let output = with_token("device_server", arguments, token).output();
        error(&output.unwrap())
    };
    let local = "127.0.0.1:0";
    let text = ends(&["--listen", local], None);
    assert!(text.contains("set SCALEBIO_TOKEN to a secret"), "{text}");
    let text = ends(&["--listen", local], Some(""));
    assert!(text.contains("set SCALEBIO_TOKEN to a secret"), "{text}");
    let text = ends(&["--listen", "0.0.0.0:0", "--no-token"], None);
    assert!(text.contains("can be reached from others"), "{text}");
    let text = ends(&["--listen", local, "--no-token"], Some(TOKEN));
    assert!(
        text.contains("unset one") && !text.contains(TOKEN),
        "{text}"
    );
    let text = ends(&["--listen", "nowhere", "--no-token"], None);
    assert!(text.contains("cannot listen on nowhere"), "{text}");
    let text = ends(
        &["--listen", local, "--no-token", "--device", "flex,ndarray"],
        None,
    );
    assert!(text.contains("backend"), "{text}");
    let server = Server::start(&["--no-token"], None);
    let text = ends(
        &["--listen", local, "--no-token", "--device", &server.name],
        None,
    );
    assert!(text.contains("remote device cannot host"), "{text}");
}

/// Ctrl-C ends a server without a word of error.
#[test]
fn remote_servers_end_on_ctrl_c() {
    let mut server = Server::start(&["--no-token"], None);
    drop(server.device(0)); // so that it is past its start
    let id = server.child.id().to_string();
    let interrupted = Command::new("kill").args(["-INT", &id]).status();
    assert!(interrupted.unwrap().success());
    assert!(server.child.wait().unwrap().success());
}
