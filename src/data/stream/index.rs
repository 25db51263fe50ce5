//! What is known of the records of a file before any of them is drawn.

use std::fs::Metadata;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::pass::each_record;
use super::places::{Counts, Places};
use crate::data::corpus::count_samples;
use crate::data::{Record, Tokenizer};
use crate::error::{Error, Result};
use crate::files::Checksum;

/// By what a changed file is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Bytes.
    size: u64,
    /// When it was last written to: seconds and nanoseconds since 1970.
    modified: (u64, u32),
}

impl Stamp {
    pub fn of(path: &Path) -> Result<Self> {
        let read = |found: Metadata| Ok((found.len(), found.modified()?));
        let (size, modified) = path
            .metadata()
            .and_then(read)
            .map_err(|e| Error::io(path, e))?;
        let modified = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            size,
            modified: (modified.as_secs(), modified.subsec_nanos()),
        })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// An error for a file that is not as it was.
    pub fn check(&self, path: &Path) -> Result<()> {
        if Self::of(path)? == *self {
            return Ok(());
        }
        let message =
            "changed since its records were indexed; leave the data alone until the run is over";
        Err(Error::file(path, message))
    }
}

/// Numbers of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Totals {
    pub records: usize,
    pub samples: usize,
    /// Samples without a label token, which are left out.
    pub skipped: usize,
    /// No sample has more tokens.
    pub longest: usize,
    /// The checksum of all records, with the length of each before it.
    pub content: String,
}

/// Where the records of a file are, and how many samples each gives: some five bytes a record.
#[derive(Debug, PartialEq)]
pub(super) struct Index {
    pub stamp: Stamp,
    pub totals: Totals,
    pub places: Places,
    pub counts: Counts,
}

impl Index {
    /// Reads the whole file once.
    pub fn make(path: &Path, tokenizer: &Tokenizer, max_length: usize) -> Result<Self> {
        let mut index = Self {
            stamp: Stamp::of(path)?,
            totals: Totals::default(),
            places: Places::default(),
            counts: Counts::default(),
        };
        let (bounds, mut content) = (tokenizer.bounds(), Checksum::default());
        each_record(
            path,
            |bytes, place| {
                let record = Record::parse(path, bytes, place)?;
                count_samples(record, tokenizer, bounds.as_ref(), max_length)
                    .map_err(|error| Error::record(path, place.line, error))
            },
            |bytes, place, found| {
                content.add(&(bytes.len() as u64).to_le_bytes());
                content.add(bytes);
                index.places.push(place.offset, bytes.len());
                index.counts.push(found.samples);
                index.totals.skipped += found.skipped;
                index.totals.longest = index.totals.longest.max(found.longest);
                Ok(())
            },
        )?;
        index.stamp.check(path)?;
        index.totals.records = index.places.len();
        index.totals.samples = index.counts.samples();
        index.totals.content = content.text();
        Ok(index)
    }
}
