//! What is written to the folder of a run's checkpoints, and what stays there.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use super::{PLAIN, after, variables};

pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The last two checkpoints of a run are kept. Nothing that is not its own is touched, be it in a checkpoint's folder; what
/// a killed process left is removed, but for what is not ours in it.
#[test]
fn the_last_two_are_kept_and_nothing_else_is_touched() {
    let folder = tempdir().unwrap();
    let dir = folder.path();
    for name in [
        "step-1",
        "step-00000001",
        "step-00000003",
        ".step-00000002.partial-77",
        ".step-x.partial-1",
    ] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("mine.txt"), "mine").unwrap();
    }
    let abandoned = dir.join(".step-00000009.partial-4711");
    fs::create_dir(&abandoned).unwrap();
    fs::write(abandoned.join("tensors.safetensors"), "half").unwrap();
    let half_removed = dir.join("step-00000000"); // its manifest went first
    fs::create_dir(&half_removed).unwrap();
    fs::write(half_removed.join("tensors.safetensors"), "rest").unwrap();
    let mut run = PLAIN.start();
    for step in 1..6 {
        run.next().unwrap().unwrap();
        if step == 3 {
            // A folder of this name is the user's.
            let error = run.checkpoint(dir).unwrap_err().to_string();
            assert!(error.contains("step-00000003"), "{error}");
            continue;
        }
        if step > 1 {
            run.checkpoint(dir).unwrap();
        }
        if step == 2 {
            fs::write(dir.join("step-00000002/note.txt"), "mine").unwrap();
        }
    }
    assert_eq!(
        names(dir),
        [
            ".step-00000002.partial-77",
            ".step-x.partial-1",
            "step-00000001",
            "step-00000002",
            "step-00000003",
            "step-00000004",
            "step-00000005",
            "step-1"
        ]
    );
    assert_eq!(names(&dir.join("step-00000002")), ["note.txt"]);
    assert_eq!(
        names(&dir.join("step-00000005")),
        ["checkpoint.json", "state.json", "tensors.safetensors"]
    );
    assert_eq!(PLAIN.resume(dir).steps(), 5);
    assert_eq!(PLAIN.resume(&dir.join("step-00000004")).steps(), 4);
}

/// A run that was resumed before checkpoints that it had written replaces them; another run is refused their folder.
#[test]
fn checkpoints_of_one_run_are_not_mixed_with_those_of_another() {
    let folder = tempdir().unwrap();
    let dir = folder.path();
    let mut run = PLAIN.start();
    for _ in 0..2 {
        after(&mut run, 4);
        run.checkpoint(dir).unwrap();
    }
    let mut resumed = PLAIN.resume(&dir.join("step-00000004"));
    after(&mut resumed, 1);
    resumed.checkpoint(dir).unwrap();
    assert_eq!(names(dir), ["step-00000004", "step-00000005"]);
    // Again at the same step: the same state.
    resumed.checkpoint(dir).unwrap();
    assert_eq!(names(dir), ["step-00000004", "step-00000005"]);
    let error = PLAIN.start().checkpoint(dir).unwrap_err().to_string();
    assert!(
        error.contains("of another run; choose another folder"),
        "{error}"
    );
    assert_eq!(names(dir), ["step-00000004", "step-00000005"]);
}

/// `u` starts as `w`, and frozen parameters of both stay what they are: what is equal is written once.
#[test]
fn values_that_u_shares_with_w_are_written_once() {
    let folder = tempdir().unwrap();
    let run = PLAIN.start();
    let tensors = run
        .checkpoint(folder.path())
        .unwrap()
        .join("tensors.safetensors");
    let text = String::from_utf8_lossy(&fs::read(tensors).unwrap()).into_owned();
    assert!(text.contains("lower/value/blocks.2"), "{text}");
    assert!(!text.contains("auxiliary"), "{text}");
    let resumed = PLAIN.resume(folder.path());
    assert!(variables(&resumed) == variables(&run));
}
