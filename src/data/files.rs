//! Which files of a folder are data, and what each of them is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The data files of a folder, the sources by name. Files with other names or endings are not data.
pub(crate) struct DataFiles {
    pub sources: BTreeMap<String, PathBuf>,
    pub validation: PathBuf,
    pub test: Option<PathBuf>,
}

impl DataFiles {
    pub fn find(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(
                folder,
                "not a folder; name one that holds `train_<source>.jsonl` for each source and `val.jsonl`",
            ));
        }
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
            let path = entry.map_err(|e| Error::io(folder, e))?.path();
            let extension = path.extension().unwrap_or_default();
            if extension != "jsonl" && extension != "json" {
                continue;
            }
            let stem = path.file_stem().unwrap_or_default();
            let stem = stem.to_string_lossy().into_owned();
            if stem != "val" && stem != "test" && !stem.starts_with("train_") {
                continue;
            }
            if let Some(other) = files.insert(stem.clone(), path.clone()) {
                return Err(twice(&stem, &path, &other));
            }
        }
        let validation = files.remove("val").ok_or_else(|| {
            Error::file(
                folder,
                "no validation set; add it as `val.jsonl` or `val.json`",
            )
        })?;
        let test = files.remove("test");
        let mut sources = BTreeMap::new();
        for (stem, path) in files {
            let name = stem["train_".len()..].to_owned();
            if name.is_empty() {
                return Err(Error::file(
                    &path,
                    "the name of the source is empty; call the file `train_<source>.jsonl`",
                ));
            }
            sources.insert(name, path);
        }
        let found = match sources.keys().next() {
            None => "no source".to_owned(),
            Some(name) if sources.len() == 1 => format!("only one source, `{name}`"),
            Some(_) => {
                return Ok(Self {
                    sources,
                    validation,
                    test,
                });
            }
        };
        let message = format!(
            "{found}; weights are learned between at least two, each a file `train_<source>.jsonl` or \
             `train_<source>.json`"
        );
        Err(Error::file(folder, message))
    }
}

fn twice(stem: &str, one: &Path, other: &Path) -> Error {
    let what = match stem.strip_prefix("train_") {
        Some(source) => format!("source `{source}`"),
        None => format!("`{stem}` set"),
    };
    // The folder lists its files in any order; the message is always the same.
    let (first, second) = (one.min(other), one.max(other));
    let message = format!(
        "the {what} is here, and again in {}; remove or rename one of them",
        second.display()
    );
    Error::file(first, message)
}
