//! The blocks of a module: the entries of one list in it, found by the list's exact path.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::{Error, Result};

/// Paths of a module's float parameters, by block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Parameters of each block.
    pub blocks: Vec<Vec<String>>,
    /// Parameters outside the list: embeddings, final norm, head.
    pub others: Vec<String>,
}

impl Blocks {
    /// The entries of the list at `path` in `module`.
    pub fn find<M: Module>(module: &M, path: &str) -> Result<Self> {
        let mut walk = Walk::default();
        module.visit(&mut walk);
        let Some(&entries) = walk.lists.get(path) else {
            return Err(Error::UnknownBlocks {
                path: path.to_owned(),
                available: walk.lists.into_keys().collect(),
            });
        };
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}.")
        };
        let mut found = Self {
            blocks: vec![Vec::new(); entries],
            others: Vec::new(),
        };
        for parameter in walk.parameters {
            let block = parameter
                .strip_prefix(&prefix)
                .and_then(|rest| rest.split('.').next())
                .and_then(|index| index.parse::<usize>().ok());
            match block.and_then(|index| found.blocks.get_mut(index)) {
                Some(block) => block.push(parameter),
                None => found.others.push(parameter),
            }
        }
        Ok(found)
    }
}

#[derive(Default)]
struct Walk {
    path: Vec<String>,
    /// Path of each list, with its number of entries.
    lists: BTreeMap<String, usize>,
    parameters: Vec<String>,
}

impl ModuleVisitor for Walk {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        if matches!(container_type, "Vec" | "Array") {
            *self.lists.entry(self.path.join(".")).or_default() += 1;
        }
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        self.parameters.push(self.path.join("."));
    }
}
