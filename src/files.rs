//! Writing files so that a reader never sees half of one, and knowing one that is damaged.

#[cfg(feature = "llm")]
use std::fs;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
#[cfg(feature = "llm")]
use std::io::{BufWriter, Write};
use std::path::Path;

use twox_hash::XxHash64;

use crate::{Error, Result};

/// The checksum of bytes that come piece by piece: XXH64 with seed 0, as `xxh64sum` prints it.
#[derive(Default)]
pub(crate) struct Checksum(XxHash64);

impl Checksum {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub fn text(&self) -> String {
        format!("{:016x}", self.0.finish())
    }

    /// That of what a reader gives.
    pub fn of(mut reader: impl Read) -> io::Result<Self> {
        let mut sum = Self::default();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(sum),
                read => sum.add(&buffer[..read]),
            }
        }
    }
}

/// Asks the system to write a folder's list of files to the disk. Only Unix can be asked.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = File::open(path).and_then(|folder| folder.sync_all());
        return synced.map_err(|source| Error::io(path, source));
    }
    Ok(())
}

/// Writes `bytes` beside `path` under a temporary name and renames it to `path`.
#[cfg(feature = "llm")]
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_with(path, |file| {
        file.write_all(bytes).map_err(|e| Error::io(path, e))
    })
}

/// As [`replace`], for a file that is too large to be in memory: `write` writes it bit by bit.
#[cfg(feature = "llm")]
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
