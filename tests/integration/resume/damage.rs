//! Files of a checkpoint that are damaged, cut or missing: an error that names the file, or the checkpoint before.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::tempdir;

use super::{PLAIN, after, checkpoint, variables};

const FILES: [&str; 3] = ["checkpoint.json", "state.json", "tensors.safetensors"];

fn error(dir: &Path) -> String {
    let (x, w) = PLAIN.variables();
    let run = PLAIN.method().resume(dir, PLAIN.problem(), x, w);
    run.expect_err("damage that is seen").to_string()
}

/// Each file of a checkpoint, in turn given to `damage`; then it is as it was.
fn each_file(path: &Path, damage: &mut dyn FnMut(&'static str, PathBuf, Vec<u8>)) {
    for name in FILES {
        let file = path.join(name);
        let bytes = fs::read(&file).unwrap();
        damage(name, file.clone(), bytes.clone());
        fs::write(file, bytes).unwrap();
    }
}

/// A file cut anywhere, with a changed byte anywhere, or missing is an error that names it.
#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let folder = tempdir().unwrap();
    let path = checkpoint(folder.path());
    each_file(&path, &mut |name, file, bytes| {
        let places = (0..bytes.len()).step_by(bytes.len() / 40);
        for place in places {
            fs::write(&file, &bytes[..place]).unwrap();
            let cut = error(folder.path());
            assert!(cut.contains(name), "{name} cut at {place}: {cut}");
            // In the manifest, text for people may change without harm: only its values are looked at.
            if name == FILES[0] {
                continue;
            }
            let mut changed = bytes.clone();
            changed[place] ^= 4;
            fs::write(&file, changed).unwrap();
            let changed = error(folder.path());
            assert!(
                changed.contains(name) && changed.contains("the checkpoint is damaged"),
                "{changed}"
            );
        }
        let longer = [&bytes[..], b" "].concat();
        fs::write(&file, longer).unwrap();
        if name != FILES[0] {
            assert!(error(folder.path()).contains(name));
        }
        fs::remove_file(&file).unwrap();
        let missing = error(folder.path());
        let expected = if name == FILES[0] {
            "No such file"
        } else {
            name
        };
        assert!(missing.contains(expected), "{missing}");
    });
    assert_eq!(PLAIN.resume(folder.path()).steps(), 3);
}

/// A manifest in which anything but its texts for people was changed is refused, and never panics.
#[test]
fn a_manifest_that_says_something_else_is_refused() {
    let folder = tempdir().unwrap();
    let path = checkpoint(folder.path());
    let file = path.join("checkpoint.json");
    let text = fs::read_to_string(&file).unwrap();
    for (from, to, says) in [
        (
            "scalebio checkpoint",
            "another",
            "its format is not `scalebio checkpoint`",
        ),
        (
            "\"schema_version\": 1",
            "\"schema_version\": 2",
            "has schema_version 2, but this version of scalebio reads 1",
        ),
        (
            "\"step\": 3",
            "\"step\": 4",
            "is of step 3, but the checkpoint is of step 4",
        ),
        ("state.json", "other.json", "says nothing of `state.json`"),
        ("\"bytes\"", "\"size\"", "missing field `bytes`"),
        ("\"run\"", "\"name\"", "missing field `run`"),
        ("{", "[", "the checkpoint is damaged"),
    ] {
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replacen(from, to, 1)).unwrap();
        let error = error(folder.path());
        assert!(error.contains(says) && error.contains(".json"), "{error}");
    }
}

/// The newest checkpoint that is whole is taken: a damaged one is passed over, whatever is wrong with it, and replaced when
/// the run gets there again.
#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let folder = tempdir().unwrap();
    let dir = folder.path();
    let mut run = PLAIN.start();
    after(&mut run, 3);
    run.checkpoint(dir).unwrap();
    after(&mut run, 2);
    let newest = run.checkpoint(dir).unwrap();
    let bits = variables(&run);
    assert_eq!(PLAIN.resume(dir).steps(), 5);
    each_file(&newest, &mut |name, file, bytes| {
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(PLAIN.resume(dir).steps(), 3, "{name}");
        fs::remove_file(&file).unwrap();
        let mut run = PLAIN.resume(dir);
        assert_eq!(run.steps(), 3, "{name}");
        after(&mut run, 2);
        run.checkpoint(dir).unwrap();
        let again = PLAIN.resume(dir);
        assert_eq!(again.steps(), 5);
        assert!(variables(&again) == bits);
    });
    // Both damaged: the error is that of the newest.
    for path in [&newest, &dir.join("step-00000003")] {
        fs::write(path.join("state.json"), "{}").unwrap();
    }
    let error = error(dir);
    assert!(
        error.contains("step-00000005") && error.contains("has 2 bytes"),
        "{error}"
    );
}

/// A folder without a checkpoint says so.
#[test]
fn a_folder_without_a_checkpoint_is_an_error() {
    let folder = tempdir().unwrap();
    assert!(error(folder.path()).contains("holds no checkpoint"));
    assert!(error(&folder.path().join("none")).contains("No such file"));
}
