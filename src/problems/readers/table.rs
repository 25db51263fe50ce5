//! Rows of numbers with a label each.

use std::path::Path;

use super::{csv, libsvm};
use crate::{Error, Result};

/// Largest number of values of a table: 8 GiB. A damaged index must not claim all memory.
const MAX_VALUES: usize = 1 << 30;

/// Samples with numeric features and a label each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Number of features.
    pub columns: usize,
    /// Features, `columns` a sample, sample after sample.
    pub features: Vec<f64>,
    /// Labels, one a sample, as the file gives them.
    pub labels: Vec<f64>,
}

/// Which column of a CSV file is the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// The first column.
    First,
    /// The last column.
    Last,
}

impl Table {
    /// Reads a file of the LIBSVM format, plain or gzipped: a line a sample, `label index:value index:value ...`, with
    /// ascending indices from 1. Features that a line does not name are 0; what follows `#` is a comment. There are as
    /// many columns as the largest index says.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Record`] with the line of a label, index or value that is none, of an index below 1 or
    /// not ascending, or above 65,536 (samples are kept with all their zeros); [`Error::File`] for a damaged gzip file or
    /// one without samples.
    pub fn read_libsvm(path: impl AsRef<Path>) -> Result<Self> {
        libsvm::read(path.as_ref())
    }

    /// Reads a CSV file of numbers, plain or gzipped, with the class or target in the column `label`. A first row
    /// without any number is a header.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Record`] with the line of a field that is not a finite number, or of a row of another
    /// length than the first; [`Error::File`] for a damaged gzip file or one without samples.
    pub fn read_csv(path: impl AsRef<Path>, label: Label) -> Result<Self> {
        csv::read(path.as_ref(), label)
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.labels.len()
    }

    /// A table of sparse rows: `(column, value)` each.
    pub(super) fn from_sparse(
        path: &Path,
        rows: &[Vec<(usize, f64)>],
        labels: Vec<f64>,
    ) -> Result<Self> {
        let last = |row: &Vec<(usize, f64)>| row.last().map_or(0, |(column, _)| column + 1);
        let columns = rows.iter().map(last).max().unwrap_or(0);
        let values = columns.saturating_mul(rows.len());
        if values > MAX_VALUES {
            let message = format!(
                "{} samples of {columns} features are {values} values, but at most {MAX_VALUES} can be kept; \
                 leave out rare features",
                rows.len()
            );
            return Err(Error::file(path, message));
        }
        let mut features = vec![0.0; values];
        for (row, sparse) in features.chunks_exact_mut(columns.max(1)).zip(rows) {
            for &(column, value) in sparse {
                row[column] = value;
            }
        }
        Self::new(path, columns, features, labels)
    }

    /// A table that has something in it.
    pub(super) fn new(
        path: &Path,
        columns: usize,
        features: Vec<f64>,
        labels: Vec<f64>,
    ) -> Result<Self> {
        if labels.is_empty() || columns == 0 {
            let message = format!(
                "has {} samples of {columns} features, but must have at least 1 of both",
                labels.len()
            );
            return Err(Error::file(path, message));
        }
        Ok(Self {
            columns,
            features,
            labels,
        })
    }
}
