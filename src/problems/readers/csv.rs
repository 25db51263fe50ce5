//! CSV files of numbers.

use std::path::Path;

use csv_core::{ReadFieldResult, Reader};

use super::{Label, Table, number};
use crate::{Error, Result};

pub(super) fn read(path: &Path, label: Label) -> Result<Table> {
    let bytes = super::bytes(path)?;
    let mut rows = Rows {
        path,
        label,
        width: 0,
        features: Vec::new(),
        labels: Vec::new(),
    };
    let mut reader = Reader::new();
    let (mut rest, mut field, mut row) = (bytes.as_slice(), Vec::new(), Vec::new());
    let mut buffer = [0; 256];
    // A row may span lines, within quotes: it is where it starts that helps.
    let (mut line, mut record) = (1, rest);
    loop {
        let (result, read, written) = reader.read_field(rest, &mut buffer);
        rest = &rest[read..];
        field.extend_from_slice(&buffer[..written]);
        match result {
            // Empty input tells the reader that the file has ended.
            ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => {}
            ReadFieldResult::Field { record_end } => {
                row.push(String::from_utf8_lossy(&field).into_owned());
                field.clear();
                if record_end {
                    let blank = record.iter().take_while(|byte| b"\r\n".contains(byte));
                    rows.push(line + ends(blank), &row)?;
                    row.clear();
                    line += ends(&record[..record.len() - rest.len()]);
                    record = rest;
                }
            }
            ReadFieldResult::End => break,
        }
    }
    Table::new(
        path,
        rows.width.saturating_sub(1),
        rows.features,
        rows.labels,
    )
}

/// Number of line ends.
fn ends<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> usize {
    bytes.into_iter().filter(|&&byte| byte == b'\n').count()
}

struct Rows<'a> {
    path: &'a Path,
    label: Label,
    /// Of the first row; 0 before it.
    width: usize,
    features: Vec<f64>,
    labels: Vec<f64>,
}

impl Rows<'_> {
    fn push(&mut self, line: usize, row: &[String]) -> Result<()> {
        let fail = |message: String| Error::record(self.path, line, message);
        let first = self.width == 0;
        if first {
            self.width = row.len();
            if row.iter().all(|field| number(field).is_err()) {
                return Ok(()); // a header
            }
        }
        if row.len() != self.width {
            return Err(fail(format!(
                "{} fields, but the first row has {}",
                row.len(),
                self.width
            )));
        }
        let label = match self.label {
            Label::First => 0,
            Label::Last => row.len() - 1,
        };
        for (column, field) in row.iter().enumerate() {
            let value =
                number(field).map_err(|error| fail(format!("column {}: {error}", column + 1)))?;
            if column == label {
                self.labels.push(value);
            } else {
                self.features.push(value);
            }
        }
        Ok(())
    }
}
