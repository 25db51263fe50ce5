//! Readers of data files, plain or gzipped.

mod csv;
mod idx;
mod libsvm;
mod table;

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

pub use idx::Images;
pub use table::{Label, Table};

/// All bytes of a file, decompressed if it starts as gzip does, whatever its name.
fn bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    match MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain) {
        Ok(_) => Ok(plain),
        Err(error) => {
            let message = format!("not a complete gzip file: {error}; copy or download it again");
            Err(Error::file(path, message))
        }
    }
}

/// A finite number.
fn number(text: &str) -> std::result::Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(format!("`{}` is not a finite number", shown(text))),
    }
}

/// The beginning of a text, for a message: a damaged file may have no end of line.
fn shown(text: &str) -> String {
    let mut start: String = text.chars().take(40).collect();
    if start.len() < text.len() {
        start.push_str("...");
    }
    start
}
