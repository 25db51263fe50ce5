//! The LIBSVM text format.

use std::path::Path;

use super::{Table, number, shown};
use crate::{Error, Result};

const MAX_COLUMNS: usize = 65_536;

pub(super) fn read(path: &Path) -> Result<Table> {
    let bytes = super::bytes(path)?;
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let parsed = std::str::from_utf8(line)
            .map_err(|error| format!("not UTF-8 text: {error}"))
            .and_then(sample)
            .map_err(|message| Error::record(path, index + 1, message))?;
        if let Some((label, row)) = parsed {
            labels.push(label);
            rows.push(row);
        }
    }
    Table::from_sparse(path, &rows, labels)
}

type Sample = (f64, Vec<(usize, f64)>);

/// The sample of a line, if there is one.
fn sample(line: &str) -> std::result::Result<Option<Sample>, String> {
    let text = line.split('#').next().unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    let Some(label) = words.next() else {
        return Ok(None);
    };
    let label = number(label).map_err(|error| format!("label: {error}"))?;
    let mut row: Vec<(usize, f64)> = Vec::new();
    for word in words {
        let (index, value) = word
            .split_once(':')
            .ok_or_else(|| format!("`{}` is not of the form index:value", shown(word)))?;
        let index = index
            .parse::<usize>()
            .ok()
            .filter(|index| (1..=MAX_COLUMNS).contains(index))
            .ok_or_else(|| format!("`{}` is not an index from 1 to {MAX_COLUMNS}", shown(index)))?;
        if row.last().is_some_and(|&(last, _)| index <= last + 1) {
            return Err(format!(
                "index {index} follows {}; indices must ascend",
                row[row.len() - 1].0 + 1
            ));
        }
        let value = number(value).map_err(|error| format!("feature {index}: {error}"))?;
        row.push((index - 1, value));
    }
    Ok(Some((label, row)))
}
