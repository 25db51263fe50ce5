//! Sources that are larger than memory may be: indexed once, and read as they are drawn.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::corpus::samples_of;
use super::{Record, Sample, Tokenizer};
use crate::error::{Error, Result};
use index::Index;

mod cache;
mod index;
mod loader;
mod pass;
mod places;

pub(crate) use loader::Loader;
pub(super) use pass::each_record;
pub(crate) use places::Places;

/// The samples of a [`Source`](super::Source): in memory, or left in their file, from which they are read and tokenized as
/// they are drawn.
#[derive(Clone, Debug)]
pub struct SampleStore(Held);

#[derive(Clone, Debug)]
enum Held {
    Memory(Vec<Sample>),
    File(Arc<Streamed>),
}

/// The samples of a file, of which only the index is in memory.
#[derive(Debug)]
pub(crate) struct Streamed {
    path: PathBuf,
    tokenizer: Tokenizer,
    max_length: usize,
    index: Index,
}

impl SampleStore {
    pub(super) fn streamed_from(
        path: &Path,
        tokenizer: &Tokenizer,
        max_length: usize,
        cache: Option<&Path>,
    ) -> Result<Self> {
        Ok(Self(Held::File(Arc::new(Streamed {
            path: path.to_owned(),
            tokenizer: tokenizer.clone(),
            max_length,
            index: cache::index(path, tokenizer, max_length, cache)?,
        }))))
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Memory(samples) => samples.len(),
            Held::File(streamed) => streamed.index.totals.samples,
        }
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples, if they are in memory.
    pub fn in_memory(&self) -> Option<&[Sample]> {
        match &self.0 {
            Held::Memory(samples) => Some(samples),
            Held::File(_) => None,
        }
    }

    /// A number of tokens that no sample is longer than; that of the longest, if the samples are in memory.
    pub fn longest(&self) -> usize {
        match &self.0 {
            Held::Memory(samples) => samples.iter().map(|s| s.ids.len()).max().unwrap_or(0),
            Held::File(streamed) => streamed.index.totals.longest,
        }
    }

    pub(crate) fn streamed(&self) -> Option<&Streamed> {
        match &self.0 {
            Held::Memory(_) => None,
            Held::File(streamed) => Some(streamed),
        }
    }
}

impl From<Vec<Sample>> for SampleStore {
    fn from(samples: Vec<Sample>) -> Self {
        Self(Held::Memory(samples))
    }
}

impl Streamed {
    /// Number of records, and of samples without a label token.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.index.totals.records, self.index.totals.skipped)
    }

    /// What the samples are made from, as a text that is equal for equal samples.
    pub fn origin(&self) -> Result<String> {
        Ok(format!(
            "records with checksum {} and a tokenizer with checksum {}",
            self.index.totals.content,
            self.tokenizer.fingerprint()?
        ))
    }

    /// Reads a sample. `file` is opened unless it is open.
    pub fn sample(&self, file: &mut Option<File>, sample: usize) -> Result<Sample> {
        let io = |e| Error::io(&self.path, e);
        self.index.stamp.check(&self.path)?;
        let Some((record, piece, count)) = self.index.counts.find(sample) else {
            let message = format!("has no sample {sample}, but {}", self.index.totals.samples);
            return Err(Error::file(&self.path, message));
        };
        let file = match file {
            Some(file) => file,
            None => file.insert(File::open(&self.path).map_err(io)?),
        };
        let mut bytes = Vec::new();
        let read = self.index.places.read(file, record, &mut bytes);
        let samples = read
            .map_err(|e| e.to_string())
            .and_then(|()| self.samples(&bytes));
        match samples {
            Ok(mut samples) if samples.len() == count => Ok(samples.swap_remove(piece)),
            Ok(samples) => Err(self.changed(record, format!("{} samples", samples.len()))),
            Err(found) => Err(self.changed(record, found)),
        }
    }

    /// The samples with a label token of a record.
    fn samples(&self, bytes: &[u8]) -> std::result::Result<Vec<Sample>, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let record = Record::from_json(value)?;
        let samples = samples_of(record, &self.tokenizer, self.max_length);
        let mut samples = samples.map_err(|e| e.to_string())?;
        samples.retain(|sample| sample.label_tokens() > 0);
        Ok(samples)
    }

    fn changed(&self, record: usize, found: String) -> Error {
        let (start, _) = self.index.places.get(record).unwrap_or_default();
        let message = format!(
            "record {}, at byte {start}, changed since the records were indexed ({found}); leave the data alone until the \
             run is over",
            record + 1
        );
        Error::file(&self.path, message)
    }
}
