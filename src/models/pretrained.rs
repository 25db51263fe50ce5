//! Reading checkpoint folders of the Hugging Face Hub, for any module.
//!
//! The parameters of a module are walked with their paths; an architecture says with a [`Naming`] what a path is called in
//! a checkpoint, and adds nothing else. Parameters have the checkpoint's layout.

use std::{collections::BTreeMap, path::Path};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, Tensor},
};

use super::{dtype::Dtype, shards::Shards};
use crate::error::{Error, Result};

/// The file with a model's shape.
pub(super) const CONFIG: &str = "config.json";

/// So many tensors of each kind are named in an error; a wrong folder would name hundreds.
const LISTED: usize = 20;

/// What an architecture's parameters are called in its checkpoints.
#[derive(Debug)]
pub(super) struct Naming {
    /// Before every name but the head's. Some files on the Hub leave it out.
    pub base: &'static str,
    /// What the checkpoint calls `blocks.`.
    pub blocks: &'static str,
    /// The token embedding, after `base`: what a tied head equals.
    pub embedding: &'static str,
    /// What the checkpoint calls `lm_head.`.
    pub head: &'static str,
    /// What else it may be called.
    pub other_head: &'static str,
    /// Endings of stored tensors that are not parameters.
    pub buffers: &'static [&'static str],
}

impl Naming {
    /// The checkpoint's name of the parameter at a module path.
    pub fn name(&self, path: &str) -> String {
        let path = match path.rsplit_once('.') {
            Some((norm, "gamma")) => &format!("{norm}.weight"),
            Some((norm, "beta")) => &format!("{norm}.bias"),
            _ => path,
        };
        if let Some(rest) = path.strip_prefix("lm_head.") {
            return format!("{}{rest}", self.head);
        }
        match path.strip_prefix("blocks.") {
            Some(rest) => format!("{}{}{rest}", self.base, self.blocks),
            None => format!("{}{path}", self.base),
        }
    }

    /// The name that a stored tensor stands for; `None` for one that is not a parameter.
    fn stored(&self, name: &str) -> Option<String> {
        if self.buffers.iter().any(|buffer| name.ends_with(buffer)) {
            return None;
        }
        for head in [self.head, self.other_head] {
            if let Some(rest) = name.strip_prefix(head) {
                return Some(format!("{}{rest}", self.head));
            }
        }
        let has_base = name.starts_with(self.base);
        Some(format!("{}{name}", if has_base { "" } else { self.base }))
    }
}

/// Fills the module with a folder's tensors, as `dtype`.
///
/// The parameters should not be initialized yet: then nothing but one tensor at a time is held besides the model itself.
pub(super) fn load<M: Module>(module: M, dir: &Path, naming: &Naming, dtype: Dtype) -> Result<M> {
    let mut shards = Shards::open(dir)?;
    let path = shards.path().to_owned();
    let matched = match_names(&module, &shards, naming).map_err(|m| Error::file(&path, m))?;
    if let Some((head, embedding)) = matched.tied
        && !shards.same(&head, &embedding)?
    {
        let message = format!(
            "{CONFIG} says that `{head}` is `{embedding}` (tie_word_embeddings), but they differ; \
             correct {CONFIG} to use both, or remove `{head}`"
        );
        return Err(Error::file(&path, message));
    }
    let mut load = Load {
        names: matched.names.into_iter(),
        shards,
        dtype,
        failed: None,
    };
    let module = module.map(&mut load);
    match load.failed {
        None => Ok(module),
        Some(error) => Err(error),
    }
}

/// Path and shape of each parameter, in the order of a walk, without initializing them.
pub(super) fn parameters<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    let mut list = List::default();
    module.visit(&mut list);
    list.found
}

/// What a checkpoint's tensors are for.
struct Matched {
    /// The tensor of each parameter, in the order of a walk.
    names: Vec<String>,
    /// The head and the embedding, if the head is stored although it is the embedding.
    tied: Option<(String, String)>,
}

/// The tensors of the parameters; or everything that does not fit.
fn match_names<M: Module>(
    module: &M,
    shards: &Shards,
    naming: &Naming,
) -> std::result::Result<Matched, String> {
    let mut stored = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, shape) in shards.tensors() {
        if let Some(meant) = naming.stored(&name)
            && let Some((twice, _)) = stored.insert(meant, (name, shape))
        {
            unknown.push(twice);
        }
    }
    let (mut names, mut missing, mut misshapen) = (Vec::new(), Vec::new(), Vec::new());
    let mut embedding = None;
    for (path, shape) in parameters(module) {
        let wanted = naming.name(&path);
        match stored.remove(&wanted) {
            None => missing.push(wanted),
            Some((name, found)) => {
                if found != shape {
                    misshapen.push(format!("{name} is {found:?} instead of {shape:?}"));
                }
                if path == naming.embedding {
                    embedding = Some(name.clone());
                }
                names.push(name);
            }
        }
    }
    // Without a head of its own, a model's head is its embedding, which some files store a second time.
    let tied = stored
        .remove(&format!("{}weight", naming.head))
        .and_then(|(name, _)| Some((name, embedding?)));
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
        return Ok(Matched { names, tied });
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
    shards: Shards,
    dtype: Dtype,
    failed: Option<Error>,
}

impl ModuleMapper for Load {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(name) = self.names.next().filter(|_| self.failed.is_none()) else {
            return param;
        };
        match self.shards.read(&name, self.dtype) {
            Ok(data) => {
                let options = (&param.lazy_device(), DType::from(self.dtype));
                let tensor = Tensor::from_data(data, options);
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
