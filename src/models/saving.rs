//! Writing checkpoint folders as transformers does, for any module.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use serde_json::{Value, json};

use super::{
    dtype::Dtype,
    pretrained::{CONFIG, Naming, parameters},
    safetensors::Writer,
    shards::{INDEX, Index, TENSORS},
};
use crate::error::{Error, Result};

/// What else belongs to a checkpoint, if the model came from a folder that has it.
const COPIED: [&str; 12] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Writes the module's tensors in files of at most `shard` bytes each, config.json, and the files of `source` beside them.
/// Tensors are written in bfloat16 if all are in it, else in float32. All files are written under temporary names first; then they get their own.
pub(super) fn save<M: Module>(
    module: &M,
    dir: &Path,
    naming: &Naming,
    config: Value,
    shard: u64,
    source: Option<&Path>,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let mut staged = Staged::new(dir);
    let dtype = Dtype::of(module);
    let parameters = parameters(module)
        .into_iter()
        .map(|(path, shape)| (naming.name(&path), shape))
        .collect();
    let width = dtype.width() as u64;
    let shards = split(parameters, shard, width);
    let names = shard_names(shards.len());

    let plan: Vec<_> = names
        .iter()
        .map(|name| staged.add(name))
        .zip(&shards)
        .collect();
    let mut save = Save {
        plan: plan.into_iter(),
        dtype,
        left: 0,
        writer: None,
        written: Ok(()),
    };
    module.visit(&mut save);
    save.finish()?;

    if let [_, _, ..] = shards.as_slice() {
        staged.write(INDEX, &index(&names, &shards, width))?;
    }
    for name in COPIED {
        let Some(from) = source
            .map(|source| source.join(name))
            .filter(|file| file.is_file())
        else {
            continue;
        };
        let to = staged.add(name);
        fs::copy(&from, &to).map_err(|e| Error::io(&from, e))?;
    }
    staged.write(CONFIG, &typed(config, dtype))?;
    staged.commit()?;
    remove_others(dir, &names)
}

/// config.json of a model that is stored as `dtype`, whatever it was read from. transformers 4 and 5 spell it differently.
fn typed(mut config: Value, dtype: Dtype) -> Value {
    let name: &str = dtype.into();
    let mut said = false;
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = Value::from(name);
            said = true;
        }
    }
    // Without the key transformers 4 reads everything as float32; 5 reads its old name too.
    if !said
        && dtype == Dtype::Bfloat16
        && let Some(config) = config.as_object_mut()
    {
        config.insert("torch_dtype".to_owned(), Value::from(name));
    }
    config
}

type Named = (String, Vec<usize>);

fn count((_, shape): &Named) -> u64 {
    shape.iter().map(|size| *size as u64).product()
}

/// Consecutive tensors of at most `largest` bytes together, `width` a number; a larger tensor is alone.
fn split(tensors: Vec<Named>, largest: u64, width: u64) -> Vec<Vec<Named>> {
    let (mut shards, mut size) = (vec![Vec::new()], 0_u64);
    for tensor in tensors {
        let more = count(&tensor) * width;
        let full = size.saturating_add(more) > largest;
        match shards.last_mut().filter(|shard| !full || shard.is_empty()) {
            Some(shard) => shard.push(tensor),
            None => {
                shards.push(vec![tensor]);
                size = 0;
            }
        }
        size += more;
    }
    shards
}

/// The names of transformers.
fn shard_names(count: usize) -> Vec<String> {
    if count == 1 {
        return vec![TENSORS.to_owned()];
    }
    let name = |shard| format!("model-{shard:05}-of-{count:05}.safetensors");
    (1..=count).map(name).collect()
}

fn index(names: &[String], shards: &[Vec<Named>], width: u64) -> Value {
    let total: u64 = shards.iter().flatten().map(count).sum();
    let metadata = json!({"total_parameters": total, "total_size": total * width});
    let files = names.iter().zip(shards);
    let tensors = files.flat_map(|(file, shard)| {
        let named = move |(name, _): &Named| (name.clone(), file.clone());
        shard.iter().map(named)
    });
    let index = Index {
        metadata: metadata.as_object().cloned().unwrap_or_default(),
        weight_map: tensors.collect(),
    };
    json!(index)
}

/// Removes what an earlier checkpoint left in the folder, which a reader would take for a part of this one.
fn remove_others(dir: &Path, kept: &[String]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
        let is_index = name == INDEX && kept.len() == 1;
        if (is_shard || is_index || name == TENSORS) && !kept.iter().any(|file| *file == name) {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// Files under temporary names. Those that are not committed are removed again.
struct Staged<'a> {
    dir: &'a Path,
    files: Vec<(PathBuf, PathBuf)>,
}

impl<'a> Staged<'a> {
    fn new(dir: &'a Path) -> Self {
        let files = Vec::new();
        Self { dir, files }
    }

    /// The path under which to write the file that will be called `name`.
    fn add(&mut self, name: &str) -> PathBuf {
        let temporary = self.dir.join(format!(".{name}.{}", std::process::id()));
        self.files.push((temporary.clone(), self.dir.join(name)));
        temporary
    }

    fn write(&mut self, name: &str, value: &Value) -> Result<()> {
        let path = self.add(name);
        fs::write(&path, format!("{value:#}\n")).map_err(|e| Error::io(&path, e))
    }

    fn commit(mut self) -> Result<()> {
        while !self.files.is_empty() {
            let (from, to) = &self.files[0];
            fs::rename(from, to).map_err(|e| Error::io(to, e))?;
            self.files.remove(0);
        }
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        for (temporary, _) in &self.files {
            // Best effort: the error that matters is the one that brought us here.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Writes the parameters one by one, and goes to the next file when one has all its tensors.
struct Save<'a> {
    plan: std::vec::IntoIter<(PathBuf, &'a Vec<Named>)>,
    dtype: Dtype,
    /// Tensors that the present file still lacks.
    left: usize,
    writer: Option<Writer>,
    written: Result<()>,
}

impl Save<'_> {
    fn write<const D: usize>(&mut self, param: &Param<Tensor<D>>) -> Result<()> {
        if self.left == 0
            && let Some((path, tensors)) = self.plan.next()
        {
            self.finish_file()?;
            self.writer = Some(Writer::create(&path, tensors, self.dtype)?);
            self.left = tensors.len();
        }
        self.left -= 1;
        match &mut self.writer {
            Some(writer) => writer.write(param.val().into_data()),
            None => Ok(()),
        }
    }

    fn finish_file(&mut self) -> Result<()> {
        self.writer.take().map_or(Ok(()), Writer::finish)
    }

    fn finish(mut self) -> Result<()> {
        std::mem::replace(&mut self.written, Ok(()))?;
        self.finish_file()
    }
}

impl ModuleVisitor for Save<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.written.is_ok() {
            self.written = self.write(param);
        }
    }
}
