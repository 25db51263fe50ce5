//! The index of a file on the disk, from one start of a program to the next.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::index::{Index, Stamp, Totals};
use super::places::{Counts, Places};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files::{Checksum, replace_with};

/// What the file begins with, and the version of what follows: another one is made again.
const MAGIC: &[u8; 16] = b"scalebio index 1";
/// Characters of a checksum.
const SUM: usize = 16;

/// What an index is made from. One that was made from something else is made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    /// The version of the program, which may count otherwise than another.
    written_by: String,
    path: String,
    #[serde(flatten)]
    stamp: Stamp,
    tokenizer: String,
    max_length: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    totals: Totals,
    /// Bytes of the places; those of the counts follow up to the checksum.
    places: usize,
}

/// The index of the file `data`, from the folder `cache` if it is there and right; else it is made, and put there.
pub(super) fn index(
    data: &Path,
    tokenizer: &Tokenizer,
    max_length: usize,
    cache: Option<&Path>,
) -> Result<Index> {
    let Some(cache) = cache else {
        return Index::make(data, tokenizer, max_length);
    };
    let full = data.canonicalize().map_err(|e| Error::io(data, e))?;
    let key = Key {
        written_by: concat!("scalebio ", env!("CARGO_PKG_VERSION")).to_owned(),
        path: full.to_string_lossy().into_owned(),
        stamp: Stamp::of(data)?,
        tokenizer: tokenizer.fingerprint()?,
        max_length,
    };
    let file = cache.join(key.file_name(&full));
    if let Some(index) = read(&file, &key) {
        return Ok(index);
    }
    let index = Index::make(data, tokenizer, max_length)?;
    // A folder that cannot be written to costs time at the next start, not this run. The key is older than the data read: if
    // they changed in between, nothing will ever match it.
    let _ = fs::create_dir_all(cache)
        .map_err(|e| Error::io(cache, e))
        .and_then(|()| save(&file, key, &index));
    Ok(index)
}

impl Key {
    /// One file for each path, tokenizer and length, so that runs with other settings do not take turns in one.
    fn file_name(&self, path: &Path) -> PathBuf {
        let mut sum = Checksum::default();
        let length = self.max_length.to_string();
        for part in [&self.path, &self.tokenizer, &length] {
            sum.add(part.as_bytes());
            sum.add(b"\n");
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        PathBuf::from(format!("{stem}-{}.index", sum.text()))
    }
}

fn save(file: &Path, key: Key, index: &Index) -> Result<()> {
    let (places, counts) = (index.places.bytes(), index.counts.bytes());
    let header = Header {
        key,
        totals: index.totals.clone(),
        places: places.len(),
    };
    let header = serde_json::to_vec(&header).map_err(|e| Error::file(file, e))?;
    let mut sum = Checksum::default();
    replace_with(file, |out| {
        for part in [&MAGIC[..], &header, b"\n", places, counts] {
            sum.add(part);
            out.write_all(part).map_err(|e| Error::io(file, e))?;
        }
        let sum = sum.text();
        out.write_all(sum.as_bytes())
            .map_err(|e| Error::io(file, e))
    })
}

/// `None` for a file that is not there, is damaged, or is of something else.
fn read(file: &Path, key: &Key) -> Option<Index> {
    let bytes = fs::read(file).ok()?;
    let (bytes, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
    if Checksum::of(bytes).ok()?.text().as_bytes() != sum {
        return None;
    }
    let rest = bytes.strip_prefix(MAGIC)?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&rest[..end]).ok()?;
    let (places, counts) = rest[end + 1..].split_at_checked(header.places)?;
    let index = Index {
        stamp: header.key.stamp,
        totals: header.totals,
        places: Places::from_bytes(places)?,
        counts: Counts::from_bytes(counts)?,
    };
    let totals = &index.totals;
    let fits = header.key == *key
        && index.places.len() == totals.records
        && index.counts.records() == totals.records
        && index.counts.samples() == totals.samples
        && index.places.end() <= key.stamp.size();
    fits.then_some(index)
}
