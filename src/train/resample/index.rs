//! Where the records of a file are, so that any of them can be read again without holding the file in memory.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Duplicates;
use crate::data::{Places, RawRecords, Record};
use crate::{Error, Result};

/// Parts in which hashes are sorted, so that sorting takes a fraction of their memory.
const PARTS: u64 = 16;

/// The records of one file: some 3 bytes each, and 4 more if some are left out. While the index is made, 8 more for a hash.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    places: Places,
    /// Numbers of the records that may be drawn, if not all may.
    kept: Option<Vec<u32>>,
    /// The form of the first record.
    pub form: Form,
    /// Records that are in a held-out set too.
    pub held_out: usize,
    /// Records that were in the file before.
    pub duplicates: usize,
    /// Records that are none of the forms that are trained on here.
    pub other_form: usize,
}

/// What other programs have to be told about the records of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Alpaca,
    Messages,
    ShareGpt(&'static str),
    /// Something that is not trained on here.
    #[default]
    Other,
}

/// The content of every record of the files, as hashes. Of 64 bits: among ten million records and a thousand that are held
/// out, one is taken for another by mistake with a probability of 1e-9.
pub(in crate::train) fn contents<'a>(
    paths: impl Iterator<Item = &'a PathBuf>,
) -> Result<HashSet<u64>> {
    let mut hashes = HashSet::new();
    for path in paths {
        let (mut records, mut bytes) = (RawRecords::open(path)?, Vec::new());
        while let Some(place) = records.read(&mut bytes)? {
            let value = records.parse(&bytes, place)?;
            hashes.insert(content(value, &bytes).0);
        }
    }
    Ok(hashes)
}

/// A hash of what a record says, whatever its layout: of what is trained on, if it has one of the forms that are, or else of
/// all its fields. And whether it has.
pub(in crate::train) fn content(value: Value, bytes: &[u8]) -> (u64, bool) {
    let mut hasher = DefaultHasher::new();
    let record = Record::from_json(value);
    let known = record.is_ok();
    match record {
        Ok(record) => record.hash(&mut hasher),
        // Objects of serde_json are sorted by name. The bytes were JSON before.
        Err(_) => serde_json::from_slice::<Value>(bytes)
            .unwrap_or_default()
            .hash(&mut hasher),
    }
    (hasher.finish(), known)
}

impl Form {
    fn of(value: &Value) -> Self {
        let has = |name: &str| value.get(name).is_some();
        let share_gpt = ["conversations", "items"]
            .into_iter()
            .find(|name| has(name));
        match share_gpt {
            _ if Record::from_json(value.clone()).is_err() => Self::Other,
            _ if has("instruction") => Self::Alpaca,
            _ if has("text") => Self::Text,
            _ if has("messages") => Self::Messages,
            Some(name) => Self::ShareGpt(name),
            None => Self::Other,
        }
    }
}

impl Index {
    /// Reads the file once. Records that are in `held_out` are left out; so are repeated ones, if they are to be dropped.
    pub fn read(
        path: &Path,
        held_out: &HashSet<u64>,
        duplicates: Duplicates,
        column: Option<&str>,
    ) -> Result<Self> {
        let mut index = Self {
            path: path.to_owned(),
            places: Places::default(),
            kept: None,
            form: Form::default(),
            held_out: 0,
            duplicates: 0,
            other_form: 0,
        };
        let (mut hashes, mut dropped) = (Vec::new(), Vec::new());
        let (mut records, mut bytes) = (RawRecords::open(path)?, Vec::new());
        while let Some(place) = records.read(&mut bytes)? {
            let value = records.parse(&bytes, place)?;
            check(path, place.line, &value, column)?;
            if hashes.is_empty() {
                index.form = Form::of(&value);
            }
            let (hash, known) = content(value, &bytes);
            index.other_form += usize::from(!known);
            if u32::try_from(index.places.len()).is_err() {
                let message =
                    "more than four thousand million records are too many; split the file";
                return Err(Error::record(path, place.line, message));
            }
            let length = bytes.trim_ascii_end().len();
            index.places.push(place.offset, length);
            let is_held_out = held_out.contains(&hash);
            index.held_out += usize::from(is_held_out);
            dropped.push(is_held_out);
            hashes.push(hash);
        }
        index.duplicates = drop_repeated(&hashes, &mut dropped, duplicates);
        drop(hashes);
        if dropped.contains(&true) {
            let kept = (0_u32..).zip(&dropped).filter(|(_, dropped)| !**dropped);
            index.kept = Some(kept.map(|(number, _)| number).collect());
        }
        Ok(index)
    }

    /// Number of records in the file.
    pub fn records(&self) -> usize {
        self.places.len()
    }

    /// Number of records that may be drawn.
    pub fn available(&self) -> usize {
        self.kept.as_ref().map_or(self.places.len(), Vec::len)
    }

    /// Opens the file to read single records.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|e| Error::io(&self.path, e))
    }

    /// Puts the `pick`th record that may be drawn into `bytes`, on one line.
    pub fn record(&self, file: &mut File, pick: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let number = self.kept.as_ref().map_or(pick, |kept| kept[pick] as usize);
        let read = self.places.read(file, number, bytes);
        read.map_err(|e| Error::io(&self.path, e))?;
        // A line break of JSON is never part of a text, where it is written `\n`.
        for byte in bytes
            .iter_mut()
            .filter(|byte| matches!(**byte, b'\n' | b'\r'))
        {
            *byte = b' ';
        }
        if bytes.first() != Some(&b'{') || bytes.last() != Some(&b'}') {
            let message =
                "changed while it was read; leave the data alone until the resampling is over";
            return Err(Error::file(&self.path, message));
        }
        Ok(())
    }
}

fn check(path: &Path, line: usize, value: &Value, column: Option<&str>) -> Result<()> {
    let Some(fields) = value.as_object() else {
        return Err(Error::record(path, line, "a record must be an object"));
    };
    match column.filter(|name| fields.contains_key(*name)) {
        Some(name) => {
            let message = format!(
                "the record has a field `{name}` already, which the weight column would be; rename it, or leave the weight \
                 column out"
            );
            Err(Error::record(path, line, message))
        }
        None => Ok(()),
    }
}

/// Counts the records that are in the file for the second time or more, and marks them if they are to be dropped.
fn drop_repeated(hashes: &[u64], dropped: &mut [bool], duplicates: Duplicates) -> usize {
    let mut found = 0;
    let mut part: Vec<(u64, u32)> = Vec::new();
    for number in 0..PARTS {
        let here = |hash: &u64| hash % PARTS == number;
        part.clear();
        let candidates = (0_u32..).zip(hashes).zip(&*dropped);
        part.extend(
            candidates
                .filter(|((_, hash), dropped)| here(hash) && !**dropped)
                .map(|((index, hash), _)| (*hash, index)),
        );
        part.sort_unstable(); // by hash, then by place in the file: the first is kept
        for pair in part.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            found += 1;
            dropped[pair[1].1 as usize] |= duplicates == Duplicates::Drop;
        }
    }
    found
}
