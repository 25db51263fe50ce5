//! Writing files so that a reader never sees half of one.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// Writes `bytes` beside `path` under a temporary name and renames it to `path`.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_with(path, |file| {
        file.write_all(bytes).map_err(|e| Error::io(path, e))
    })
}

/// As [`replace`], for a file that is too large to be in memory: `write` writes it bit by bit.
pub(crate) fn replace_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // With the process, so that two of them do not write one file.
    name.push(format!(".partial-{}", std::process::id()));
    let partial = path.with_file_name(name);
    let written = File::create(&partial)
        .map_err(|source| Error::io(&partial, source))
        .and_then(|file| {
            let mut file = BufWriter::new(file);
            write(&mut file)?;
            let flushed = file.flush().map_err(|source| Error::io(&partial, source));
            flushed
                .and_then(|()| fs::rename(&partial, path).map_err(|source| Error::io(path, source)))
        });
    if written.is_err() {
        // Best effort: the error that matters is the one above.
        let _ = fs::remove_file(&partial);
    }
    written
}
