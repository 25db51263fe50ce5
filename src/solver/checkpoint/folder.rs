//! The folder of a run's checkpoints: each in a folder of its own, written under a temporary name, renamed when all of it is
//! on the disk. What is damaged is known by its checksums.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::{Checksum, sync_folder};
use crate::{Error, Result};

/// Says what the other files are; removed first and written last.
pub(super) const MANIFEST: &str = "checkpoint.json";
pub(super) const STATE: &str = "state.json";
pub(super) const TENSORS: &str = "tensors.safetensors";

const FORMAT: &str = "scalebio checkpoint";
/// Grows with every change that an older reader would misunderstand.
const SCHEMA_VERSION: u64 = 1;
/// Checkpoints of a run that are kept.
const KEPT: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: String,
    schema_version: u64,
    /// Name and version of the program; only to be read by people.
    written_by: String,
    /// The same for all checkpoints of a run, also after it was resumed, and different for every run.
    run: String,
    step: usize,
    files: BTreeMap<String, Sum>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sum {
    bytes: u64,
    checksum: String,
}

/// A checkpoint whose files are whole.
#[derive(Debug)]
pub(super) struct Whole {
    pub path: PathBuf,
    pub run: String,
    pub step: usize,
}

/// The newest checkpoint in `dir` whose files are whole, or the one that `dir` itself is. Beside it what is wrong with
/// newer ones.
pub(super) fn newest(dir: &Path) -> Result<(Whole, Vec<Error>)> {
    if dir.join(MANIFEST).exists() {
        return Ok((whole(dir)??, Vec::new()));
    }
    let mut damaged = Vec::new();
    for (_, path) in steps(dir)?.into_iter().rev() {
        match whole(&path)? {
            Ok(whole) => return Ok((whole, damaged)),
            Err(error) => damaged.push(error),
        }
    }
    if damaged.is_empty() {
        let message = "holds no checkpoint; name the folder to which a run writes its checkpoints";
        return Err(Error::file(dir, message));
    }
    Err(damaged.swap_remove(0))
}

/// Folders with the name of a checkpoint, by step.
fn steps(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name
            .strip_prefix("step-")
            .and_then(|step| step.parse().ok());
        if let Some(step) = step.filter(|step| name == step_name(*step)) {
            found.push((step, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn step_name(step: usize) -> String {
    format!("step-{step:08}")
}

/// Reads and compares all files. The inner error is damage; the outer one is a checkpoint of another version.
fn whole(path: &Path) -> Result<Result<Whole>> {
    let manifest = match manifest(path)? {
        Ok(manifest) => manifest,
        Err(damage) => return Ok(Err(damage)),
    };
    for name in [STATE, TENSORS] {
        let file = path.join(name);
        let Some(expected) = manifest.files.get(name) else {
            let message = format!("says nothing of `{name}`");
            return Ok(Err(damage(&path.join(MANIFEST), message)));
        };
        let found = match sum(&file) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        if found != *expected {
            let message = format!(
                "has {} bytes with the checksum {}, but had {} with {} when it was written",
                found.bytes, found.checksum, expected.bytes, expected.checksum
            );
            return Ok(Err(damage(&file, message)));
        }
    }
    Ok(Ok(Whole {
        path: path.to_owned(),
        run: manifest.run,
        step: manifest.step,
    }))
}

fn damage(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::file(path, format!("{message}; the checkpoint is damaged"))
}

fn sum(path: &Path) -> Result<Sum> {
    let io = |e| Error::io(path, e);
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let checksum = Checksum::of(file).map_err(io)?.text();
    Ok(Sum { bytes, checksum })
}

/// Errors as those of [`whole`].
fn manifest(folder: &Path) -> Result<Result<Manifest>> {
    let path = folder.join(MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) => return Ok(Err(Error::io(&path, error))),
    };
    let value: Value = match serde_json::from_slice(&text) {
        Ok(value) => value,
        Err(error) => return Ok(Err(damage(&path, error))),
    };
    if value["format"] != FORMAT {
        return Ok(Err(damage(&path, format!("its format is not `{FORMAT}`"))));
    }
    if value["schema_version"] != SCHEMA_VERSION {
        let message = format!(
            "has schema_version {}, but this version of scalebio reads {SCHEMA_VERSION}; resume with the version that \
             wrote it, {}",
            value["schema_version"], value["written_by"]
        );
        return Err(Error::file(&path, message));
    }
    Ok(serde_json::from_value(value).map_err(|error| damage(&path, error)))
}

/// A checkpoint that is being written. If it is not committed, its files are removed again.
pub(super) struct Staged {
    dir: PathBuf,
    path: PathBuf,
    manifest: Manifest,
}

impl Staged {
    /// Makes the folder `dir` if it is not there, and a temporary one in it.
    pub fn create(dir: &Path, run: &str, step: usize) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        for (_, path) in steps(dir)? {
            if let Ok(Ok(other)) = manifest(&path)
                && other.run != run
            {
                let message = "is of another run; choose another folder for the checkpoints of this one, or resume that \
                               run and go on with it";
                return Err(Error::file(&path, message));
            }
        }
        remove_abandoned(dir)?;
        let path = dir.join(format!(
            ".{}.partial-{}",
            step_name(step),
            std::process::id()
        ));
        fs::create_dir(&path).map_err(|e| Error::io(&path, e))?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            schema_version: SCHEMA_VERSION,
            written_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
            run: run.to_owned(),
            step,
            files: BTreeMap::new(),
        };
        Ok(Self {
            dir: dir.to_owned(),
            path,
            manifest,
        })
    }

    /// Writes a file of the checkpoint, down to the disk.
    pub fn write(
        &mut self,
        name: &str,
        write: impl FnOnce(&Path, &mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let path = self.path.join(name);
        let io = |e| Error::io(&path, e);
        let mut file = Summed {
            file: BufWriter::new(File::create(&path).map_err(io)?),
            bytes: 0,
            checksum: Checksum::default(),
        };
        write(&path, &mut file)?;
        file.file.flush().map_err(io)?;
        file.file.get_ref().sync_all().map_err(io)?;
        let sum = Sum {
            bytes: file.bytes,
            checksum: file.checksum.text(),
        };
        self.manifest.files.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Gives the checkpoint its name, and removes older ones of the run.
    pub fn commit(mut self) -> Result<PathBuf> {
        let manifest = serde_json::to_vec_pretty(&self.manifest);
        let manifest = manifest.map_err(|e| Error::file(&self.path, e))?;
        self.write(MANIFEST, |path, file| {
            file.write_all(&manifest).map_err(|e| Error::io(path, e))
        })?;
        sync_folder(&self.path)?;
        let path = self.dir.join(step_name(self.manifest.step));
        // Another one of this step: the same state, or what is left of it.
        remove(&path);
        fs::rename(&self.path, &path).map_err(|e| Error::io(&path, e))?;
        sync_folder(&self.dir)?;
        self.prune()?;
        Ok(path)
    }

    /// Removes the run's checkpoints of steps that it has not taken yet, having been resumed before them, and all but the
    /// last ones up to here.
    fn prune(&self) -> Result<()> {
        let is_ours = |path: &Path| {
            let manifest = manifest(path);
            manifest.is_ok_and(|manifest| manifest.is_ok_and(|m| m.run == self.manifest.run))
        };
        let mut ours = steps(&self.dir)?;
        for (step, path) in &ours {
            // A process that was killed while it removed one has left the rest of it.
            if *step < self.manifest.step && !path.join(MANIFEST).exists() {
                remove(path);
            }
        }
        ours.retain(|(_, path)| is_ours(path));
        let later = ours.partition_point(|(step, _)| *step <= self.manifest.step);
        let kept = later.saturating_sub(KEPT)..later;
        for (place, (_, path)) in ours.iter().enumerate() {
            if !kept.contains(&place) {
                remove(path);
            }
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        remove(&self.path); // not there any more if it was committed
    }
}

/// Removes the files of a checkpoint, and its folder if nothing else is in it. Best effort: what stays is not mistaken for
/// a checkpoint, since the manifest goes first.
fn remove(folder: &Path) {
    for name in [MANIFEST, STATE, TENSORS] {
        let _ = fs::remove_file(folder.join(name));
    }
    let _ = fs::remove_dir(folder);
}

/// Removes what processes that were killed have left.
fn remove_abandoned(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let parts = name
            .strip_prefix(".step-")
            .and_then(|rest| rest.split_once(".partial-"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if parts.is_some_and(|(step, process)| is_number(step) && is_number(process)) {
            remove(&path);
        }
    }
    Ok(())
}

/// What is written, counted and summed.
struct Summed {
    file: BufWriter<File>,
    bytes: u64,
    checksum: Checksum,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.checksum.add(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
