//! Indices that are kept on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use scalebio::data::Source;
use scalebio::reweight::{Pick, Samples, TokenSources};
use tempfile::tempdir;

use super::{compare, modified, records, set_modified, tokenizers};

/// A source with the index in a folder, and the only file in it.
fn indexed(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let (path, cache) = (folder.join("a.jsonl"), folder.join("runs/index"));
    fs::write(&path, records().join("\n")).unwrap();
    assert_eq!(compare(&path, 24, Some(&cache)), None);
    let file = fs::read_dir(&cache)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    (path, cache, file)
}

/// The index of a file is read and not made again as long as size, time, tokenizer and length are the same: a file that was
/// spoilt under it opens, and each draw of a sample that is not there any more is an error that says so.
#[test]
fn an_index_is_made_once() {
    let folder = tempdir().unwrap();
    let (path, cache, file) = indexed(folder.path());
    let (size, time, made) = (
        fs::metadata(&path).unwrap().len(),
        modified(&path),
        modified(&file),
    );
    fs::write(&path, vec![b' '; size as usize]).unwrap();
    let [other, tokenizer, _] = tokenizers();
    let open = |length| Source::stream("a", &path, tokenizer, length, Some(&cache));
    set_modified(&path, time);
    let source = open(24).unwrap();
    assert_eq!(modified(&file), made);
    assert!(open(25).is_err(), "another length");
    assert!(Source::stream("a", &path, other, 24, Some(&cache)).is_err());
    let source = TokenSources::new(vec![source]);
    let error = source
        .batch(&[Pick {
            source: 0,
            index: 0,
        }])
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("a.jsonl: record 1, at byte 0, changed since"),
        "{text}"
    );
    set_modified(&path, SystemTime::now());
    assert!(open(24).is_err(), "another time");
}

/// A cut or changed file of an index, one of another file, and a folder that cannot be one: the index is made again, and right.
#[test]
fn a_damaged_index_is_made_again() {
    let folder = tempdir().unwrap();
    let (path, cache, file) = indexed(folder.path());
    let whole = fs::read(&file).unwrap();
    let other = folder.path().join("b.jsonl");
    fs::write(&other, "{\"text\": \"something else\"}").unwrap();
    let elsewhere = folder.path().join("elsewhere");
    assert_eq!(compare(&other, 24, Some(&elsewhere)), None);
    let others = fs::read_dir(&elsewhere)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut damaged = vec![Vec::new(), whole[..8].to_vec(), fs::read(others).unwrap()];
    damaged.push([&whole[..], b"0"].concat());
    for place in (0..whole.len()).step_by(whole.len() / 40) {
        damaged.push(whole[..place].to_vec());
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        damaged.push(flipped);
    }
    for bytes in damaged {
        fs::write(&file, bytes).unwrap();
        assert_eq!(compare(&path, 24, Some(&cache)), None);
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
    assert_eq!(compare(&path, 24, Some(&path)), None); // a file, not a folder
}

/// Runs that start at the same time and make the same index all get it, and leave a whole one.
#[test]
fn indices_may_be_made_at_the_same_time() {
    let folder = tempdir().unwrap();
    let (path, cache, file) = indexed(folder.path());
    let whole = fs::read(&file).unwrap();
    for _ in 0..5 {
        fs::remove_file(&file).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(compare(&path, 24, Some(&cache)), None));
            }
        });
        let left = fs::read(&file).unwrap_or_default();
        assert_eq!(compare(&path, 24, Some(&cache)), None);
        assert!(left == whole || fs::read(&file).unwrap() == whole);
    }
}
