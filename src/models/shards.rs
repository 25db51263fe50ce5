//! The tensors of a checkpoint folder: one safetensors file, or several with an index.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{dtype::Dtype, safetensors::Reader};
use crate::error::{Error, Result};

/// The one file.
pub(super) const TENSORS: &str = "model.safetensors";

/// The index of several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// What an index file holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    /// Sizes, for whoever wants them.
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// The file of each tensor.
    pub weight_map: BTreeMap<String, String>,
}

/// The open files of a checkpoint.
pub(super) struct Shards {
    /// The file, or the index.
    path: PathBuf,
    files: Vec<Reader>,
    /// In which of the files a tensor is.
    tensors: BTreeMap<String, usize>,
}

impl Shards {
    /// Opens model.safetensors, or without one the files that model.safetensors.index.json names.
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(TENSORS), dir.join(INDEX));
        if single.exists() || !index.exists() {
            let reader = Reader::open(&single)?;
            let tensors = reader.tensors().map(|(name, _)| (name, 0)).collect();
            return Ok(Self {
                path: single,
                files: vec![reader],
                tensors,
            });
        }
        let text = fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let Index { weight_map, .. } =
            serde_json::from_slice(&text).map_err(|e| Error::file(&index, e))?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let files = open_all(dir, &index, &names)?;
        let mut shards = Self {
            path: index,
            files,
            tensors: BTreeMap::new(),
        };
        shards.match_index(&weight_map)?;
        Ok(shards)
    }

    /// Notes in which file each tensor is; checks that the index says the same.
    fn match_index(&mut self, weight_map: &BTreeMap<String, String>) -> Result<()> {
        for (file, reader) in self.files.iter().enumerate() {
            for (name, _) in reader.tensors() {
                if let Some(other) = self.tensors.insert(name.clone(), file) {
                    let other = self.files[other].path().display();
                    let message = format!("tensor `{name}` is also in {other}; remove one of them");
                    return Err(Error::file(reader.path(), message));
                }
            }
        }
        for (name, file) in weight_map {
            let found = self.tensors.get(name).map(|file| self.files[*file].path());
            if found.and_then(Path::file_name) != Some(file.as_ref()) {
                let message = format!(
                    "says that tensor `{name}` is in {file}, which does not hold it; \
                     download the folder again"
                );
                return Err(Error::file(&self.path, message));
            }
        }
        Ok(())
    }

    /// The file, or the index: what errors about the tensors as a whole name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &[usize])> {
        self.files.iter().flat_map(Reader::tensors)
    }

    /// Reads one tensor as `dtype`. See [`Reader::read`].
    pub fn read(&mut self, name: &str, dtype: Dtype) -> Result<TensorData> {
        self.file(name)?.read(name, dtype)
    }

    /// Whether two tensors of one shape hold the same values, without holding either.
    pub fn same(&mut self, one: &str, other: &str) -> Result<bool> {
        let mut at = 0;
        loop {
            let a = self.file(one)?.part(one, at)?;
            let b = self.file(other)?.part(other, at)?;
            // Stored in different types, one part is longer.
            let both = a.len().min(b.len());
            if a[..both] != b[..both] {
                return Ok(false);
            }
            if both == 0 {
                return Ok(a.len() == b.len());
            }
            at += both;
        }
    }

    fn file(&mut self, name: &str) -> Result<&mut Reader> {
        let file = self.tensors.get(name);
        let missing = || Error::file(&self.path, format!("has no tensor `{name}`"));
        file.and_then(|file| self.files.get_mut(*file))
            .ok_or_else(missing)
    }
}

/// Opens the files of an index, which must lie beside it.
fn open_all(dir: &Path, index: &Path, names: &BTreeSet<&String>) -> Result<Vec<Reader>> {
    let is_plain = |name: &str| Path::new(name).file_name() == Some(name.as_ref());
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        let message = format!("names the file `{name}`, but must name files in its own folder");
        return Err(Error::file(index, message));
    }
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !dir.join(name).exists())
        .map(|name| name.as_str())
        .collect();
    if !missing.is_empty() {
        let message = format!(
            "names files that are not there: {}; download them too",
            missing.join(", ")
        );
        return Err(Error::file(index, message));
    }
    names
        .iter()
        .map(|name| Reader::open(&dir.join(name)))
        .collect()
}
