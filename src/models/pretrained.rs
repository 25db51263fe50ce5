//! Checkpoint folders of the Hugging Face Hub, for any module.
//!
//! The parameters of a module are walked with their paths; an architecture says with a [`Naming`] what a path is called in
//! a checkpoint, and adds nothing else. (Weights whose layout differs from Burn's `[in, out]` would be turned in
//! [`Load::map_float`] and [`Save::visit_float`]; GPT-2 has none.)

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::Tensor,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::safetensors::{Reader, Writer};
use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const TENSORS: &str = "model.safetensors";

/// So many tensors of each kind are named in an error; a wrong folder would name hundreds.
const LISTED: usize = 20;

/// What an architecture's parameters are called in its checkpoints.
pub(super) struct Naming {
    /// The name for the parameter at a module path, whose norms already end in `.weight` and `.bias`.
    pub(super) checkpoint: fn(&str) -> String,
    /// The name that a stored tensor stands for (some files leave a prefix out); `None` for one that is not a parameter.
    pub(super) stored: fn(&str) -> Option<String>,
    /// Tensors that a file may hold although the model does not have them: a tied head, stored a second time.
    pub(super) spare: &'static [&'static str],
}

impl Naming {
    /// The checkpoint's name of the parameter at `path`.
    pub(super) fn name(&self, path: &str) -> String {
        let path = match path.rsplit_once('.') {
            Some((norm, "gamma")) => &format!("{norm}.weight"),
            Some((norm, "beta")) => &format!("{norm}.bias"),
            _ => path,
        };
        (self.checkpoint)(path)
    }
}

/// Reads a folder's config.json; also returns its path, for errors about its content.
pub(super) fn read_config<C: DeserializeOwned>(dir: &Path) -> Result<(PathBuf, C)> {
    let path = dir.join(CONFIG);
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let config = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))?;
    Ok((path, config))
}

/// Fills the module with a folder's tensors.
///
/// The parameters should not be initialized yet: then nothing but one tensor at a time is held besides the model itself.
pub(super) fn load<M: Module>(module: M, dir: &Path, naming: &Naming) -> Result<M> {
    let path = dir.join(TENSORS);
    let index = dir.join(format!("{TENSORS}.index.json"));
    if !path.exists() && index.exists() {
        let message =
            format!("sharded checkpoints cannot be read yet; save it as one {TENSORS} first");
        return Err(Error::file(&index, message));
    }
    let reader = Reader::open(&path)?;
    let names = match_names(&module, &reader, naming).map_err(|m| Error::file(&path, m))?;
    let mut load = Load {
        names: names.into_iter(),
        reader,
        failed: None,
    };
    let module = module.map(&mut load);
    match load.failed {
        None => Ok(module),
        Some(error) => Err(error),
    }
}

/// Writes config.json and model.safetensors under temporary names, then renames them.
pub(super) fn save<M: Module>(
    module: &M,
    dir: &Path,
    naming: &Naming,
    config: &impl Serialize,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let temporary = |name| dir.join(format!(".{name}.{}", std::process::id()));
    let (tensors, text) = (temporary(TENSORS), temporary(CONFIG));

    let written = write_tensors(module, &tensors, naming)
        .and_then(|()| write_config(config, &text))
        .and_then(|()| rename(&tensors, &dir.join(TENSORS)))
        .and_then(|()| rename(&text, &dir.join(CONFIG)));
    if written.is_err() {
        // Best effort: the error that matters is the one above.
        let _ = fs::remove_file(&tensors);
        let _ = fs::remove_file(&text);
    }
    written
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io(to, e))
}

fn write_config(config: &impl Serialize, path: &Path) -> Result<()> {
    let mut config = serde_json::to_value(config).map_err(|e| Error::file(path, e))?;
    // What is written is float32, whatever was read. transformers 4 and 5 spell it differently.
    for key in ["dtype", "torch_dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = Value::from("float32");
        }
    }
    let text = format!("{config:#}\n");
    fs::write(path, text).map_err(|e| Error::io(path, e))
}

fn write_tensors<M: Module>(module: &M, path: &Path, naming: &Naming) -> Result<()> {
    let named: Vec<_> = parameters(module)
        .into_iter()
        .map(|(path, shape)| (naming.name(&path), shape))
        .collect();
    let mut save = Save {
        writer: Writer::create(path, &named)?,
        written: Ok(()),
    };
    module.visit(&mut save);
    save.written?;
    save.writer.finish()
}

/// Path and shape of each parameter, in the order of a walk, without initializing them.
fn parameters<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    let mut list = List::default();
    module.visit(&mut list);
    list.found
}

/// For each parameter in the order of a walk, the name of its tensor in the file; or everything that does not fit.
fn match_names<M: Module>(
    module: &M,
    reader: &Reader,
    naming: &Naming,
) -> std::result::Result<Vec<String>, String> {
    let mut stored = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, shape) in reader.tensors() {
        if let Some(meant) = (naming.stored)(&name)
            && let Some((twice, _)) = stored.insert(meant, (name, shape))
        {
            unknown.push(twice);
        }
    }
    let (mut names, mut missing, mut misshapen) = (Vec::new(), Vec::new(), Vec::new());
    for (path, shape) in parameters(module) {
        let wanted = naming.name(&path);
        match stored.remove(&wanted) {
            None => missing.push(wanted),
            Some((name, found)) => {
                if found != shape {
                    misshapen.push(format!("{name} is {found:?} instead of {shape:?}"));
                }
                names.push(name);
            }
        }
    }
    stored.retain(|meant, _| !naming.spare.contains(&meant.as_str()));
    unknown.extend(stored.into_values().map(|(name, _)| name));

    let problems: Vec<_> = [
        ("missing", missing),
        ("not part of the model", unknown),
        ("of another shape", misshapen),
    ]
    .into_iter()
    .filter(|(_, tensors)| !tensors.is_empty())
    .map(|(problem, tensors)| format!("{problem}: {}", listed(&tensors)))
    .collect();
    if problems.is_empty() {
        return Ok(names);
    }
    Err(format!(
        "the tensors are not those that {CONFIG} describes; {}; check that both files belong together",
        problems.join("; ")
    ))
}

fn listed(tensors: &[String]) -> String {
    let shown = tensors.iter().take(LISTED).map(String::as_str);
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if tensors.len() > LISTED {
        text.push_str(&format!(" and {} more", tensors.len() - LISTED));
    }
    text
}

#[derive(Default)]
struct List {
    path: Vec<String>,
    found: Vec<(String, Vec<usize>)>,
}

impl ModuleVisitor for List {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = param.lazy_shape().as_slice().to_vec();
        self.found.push((self.path.join("."), shape));
    }
}

struct Load {
    names: std::vec::IntoIter<String>,
    reader: Reader,
    failed: Option<Error>,
}

impl ModuleMapper for Load {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(name) = self.names.next().filter(|_| self.failed.is_none()) else {
            return param;
        };
        match self.reader.read(&name) {
            Ok(data) => {
                let tensor = Tensor::from_data(data, &param.lazy_device());
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.failed = Some(error);
                param
            }
        }
    }
}

struct Save {
    writer: Writer,
    written: Result<()>,
}

impl ModuleVisitor for Save {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.written.is_ok() {
            self.written = self.writer.write(param.val().into_data());
        }
    }
}
