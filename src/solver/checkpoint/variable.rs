//! A variable in a checkpoint: values, moments and masters by module path, since ids are new in every process.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::StateSink;
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::optimizer::Optimizer;
use super::super::variable::Variable;
use super::tensors::Tensors;
use crate::{Error, Result};

/// What the state of a run says of a variable, beside its tensors.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Parameters that required a gradient when the run started.
    trainable: BTreeSet<String>,
    /// Those of them that train at present.
    active: BTreeSet<String>,
    /// Numbers that the optimizer remembers of a parameter, by their names.
    numbers: BTreeMap<String, BTreeMap<String, Value>>,
}

/// A tensor of the checkpoint: its name, and its bits.
pub(super) type Put<'a> = dyn FnMut(String, TensorData) -> Result<()> + 'a;

/// Gives all tensors of `variable` to `put`, named `name/kind/path`, and returns the rest. A value that is still that of
/// `base` is left out.
pub(super) fn save<M: Module>(
    variable: &Variable<M>,
    name: &str,
    base: Option<&Variable<M>>,
    put: &mut Put,
) -> Result<Saved> {
    let mut base: HashMap<String, Parameter> = base.map_or_else(HashMap::new, |base| {
        let parameters = parameters(base.module());
        parameters
            .into_iter()
            .map(|p| (p.path.clone(), p))
            .collect()
    });
    let mut saved = Saved::default();
    for parameter in parameters(variable.module()) {
        let Parameter {
            path,
            id,
            active,
            data,
            device,
            ..
        } = parameter;
        if variable.trainable.contains(&id) {
            saved.trainable.insert(path.clone());
            if active {
                saved.active.insert(path.clone());
            }
        }
        let data = data();
        let is_shared = base
            .remove(&path)
            .is_some_and(|base| same((base.data)(), &data));
        if !is_shared {
            put(format!("{name}/value/{path}"), data)?;
        }
        let (moments, master) = variable.optimizer.taken_apart(&id);
        if !variable.optimizer.comes_back(&moments, &device) {
            return Err(Error::setting(
                "checkpoint",
                format!(
                    "asked of an optimizer of yours with moments of `{path}` in another type than the device's own"
                ),
                "of `Update::sgd`, `adam` or `adamw`, or of parameters in float32",
                "Burn would not restore the moments of another optimizer exactly",
            ));
        }
        for (leaf, data) in moments.tensors {
            put(format!("{name}/moments/{path}/{leaf}"), data)?;
        }
        if let Some(master) = master {
            put(format!("{name}/master/{path}"), master)?;
        }
        let numbers = moments.scalars.into_iter();
        let numbers: BTreeMap<_, _> = numbers
            .map(|(leaf, number)| {
                let number = number
                    .try_into()
                    .map(|flag: bool| Value::from(flag))
                    .or_else(|_| number.try_into().map(|n: u64| Value::from(n)))
                    .or_else(|_| number.try_into().map(|n: i64| Value::from(n)))
                    // As text, which comes back with all its bits.
                    .or_else(|_| number.try_into().map(|x: f64| Value::from(x.to_string())));
                (leaf, number.unwrap_or_default())
            })
            .collect();
        if !numbers.is_empty() {
            saved.numbers.insert(path, numbers);
        }
    }
    Ok(saved)
}

fn same(a: TensorData, b: &TensorData) -> bool {
    a.dtype() == b.dtype() && a.shape() == b.shape() && a.as_bytes() == b.as_bytes()
}

/// Puts the values of a checkpoint in the place of those of `variable`, and fills its optimizer. Values that the
/// checkpoint has not got stay if they may be `shared`.
pub(super) fn restore<M: Module>(
    variable: &mut Variable<M>,
    name: &str,
    saved: &Saved,
    tensors: &Tensors,
    shared: bool,
) -> Result<()> {
    compare(variable, name, saved, tensors, shared)?;
    let mut restored = Ok(());
    variable.replace(|module, optimizer| {
        let mut restore = Restore {
            name,
            saved,
            tensors,
            optimizer,
            path: Vec::new(),
            restored: Ok(()),
        };
        let module = module.map(&mut restore);
        restored = restore.restored;
        module
    });
    restored
}

/// Lets train what trained when the checkpoint was written.
pub(super) fn activate<M: Module>(variable: &mut Variable<M>, saved: &Saved) {
    if saved.active != saved.trainable {
        let active = saved.active.iter().cloned().collect();
        variable.activate(&ParamGroup::from_paths(active), true);
    }
}

/// An error that says what differs between the parameters of a variable and those of the checkpoint.
fn compare<M: Module>(
    variable: &Variable<M>,
    name: &str,
    saved: &Saved,
    tensors: &Tensors,
    shared: bool,
) -> Result<()> {
    let prefix = format!("{name}/value/");
    let mut unknown: BTreeSet<&str> = tensors.under(&prefix).into_iter().collect();
    let (mut missing, mut different) = (Vec::new(), Vec::new());
    for Parameter {
        path,
        id,
        shape,
        dtype,
        ..
    } in parameters(variable.module())
    {
        unknown.remove(path.as_str());
        match tensors.describe(&format!("{prefix}{path}")) {
            Some((found, found_type)) => {
                if (found, found_type) != (shape.as_slice(), dtype) {
                    different.push(format!(
                        "`{path}` is {found_type:?} {found:?} in the checkpoint, but {dtype:?} {shape:?} here"
                    ));
                }
            }
            None if shared => {}
            None => missing.push(format!("`{path}` is not in the checkpoint")),
        }
        let trains = variable.trainable.contains(&id);
        if trains != saved.trainable.contains(&path) {
            let words = if trains {
                ["frozen", "trains"]
            } else {
                ["trains", "is frozen"]
            };
            different.push(format!(
                "`{path}` {} in the checkpoint, but {} here",
                words[0], words[1]
            ));
        }
    }
    different.extend(missing);
    different.extend(
        unknown
            .iter()
            .map(|path| format!("`{path}` is only in the checkpoint")),
    );
    if different.is_empty() {
        return Ok(());
    }
    let count = different.len();
    different.truncate(5);
    let more = if count > 5 {
        format!(" and {} more", count - 5)
    } else {
        String::new()
    };
    let message = format!(
        "the {name} variable is another one: {}{more}; resume with the modules that the run was started with",
        different.join(", ")
    );
    Err(Error::file(tensors.path(), message))
}

/// A parameter, whatever its rank.
struct Parameter {
    path: String,
    id: ParamId,
    active: bool,
    /// Without gradients.
    device: Device,
    shape: Vec<usize>,
    /// As it is stored.
    dtype: DType,
    data: Box<dyn Fn() -> TensorData>,
}

fn parameters<M: Module>(module: &M) -> Vec<Parameter> {
    let mut list = List::default();
    module.visit(&mut list);
    list.found
}

#[derive(Default)]
struct List {
    path: Vec<String>,
    found: Vec<Parameter>,
}

impl ModuleVisitor for List {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        self.found.push(Parameter {
            path: self.path.join("."),
            id: param.id,
            active: param.is_require_grad(),
            device: value.device().inner(),
            shape: value.shape().to_vec(),
            dtype: match value.dtype() {
                DType::Flex32 => DType::F32,
                dtype => dtype,
            },
            data: Box::new(move || value.clone().into_data()),
        });
    }
}

struct Restore<'a> {
    name: &'a str,
    saved: &'a Saved,
    tensors: &'a Tensors,
    optimizer: &'a mut Optimizer,
    path: Vec<String>,
    restored: Result<()>,
}

impl Restore<'_> {
    fn optimizer<const D: usize>(&mut self, param: &Param<Tensor<D>>, path: &str) -> Result<()> {
        let name = self.name;
        let mut sink = StateSink::default();
        let prefix = format!("{name}/moments/{path}/");
        for leaf in self.tensors.under(&prefix) {
            if let Some(data) = self.tensors.read(&format!("{prefix}{leaf}"))? {
                sink.tensors.push((leaf.to_owned(), data));
            }
        }
        for (leaf, number) in self.saved.numbers.get(path).into_iter().flatten() {
            let number = match number {
                Value::Bool(flag) => (*flag).into(),
                Value::String(text) => text.parse().unwrap_or(f64::NAN).into(),
                number => match number.as_u64() {
                    Some(number) => number.into(),
                    None => number.as_i64().unwrap_or_default().into(),
                },
            };
            sink.scalars.push((leaf.clone(), number));
        }
        let master = self.tensors.read(&format!("{name}/master/{path}"))?;
        let fits = master.as_ref().is_none_or(|master| {
            master.rank() == 1 && master.num_elements() == param.val().shape().num_elements()
        });
        let device = param.val().device().inner();
        if fits
            && self
                .optimizer
                .put_together::<D>(param.id, &device, sink, master)
        {
            return Ok(());
        }
        let message = format!(
            "what the optimizer of the {name} variable remembers of `{path}` is not what this optimizer remembers; resume \
             with the optimizer of the run"
        );
        Err(Error::file(self.tensors.path(), message))
    }

    fn value<const D: usize>(
        &mut self,
        param: Param<Tensor<D>>,
        path: &str,
    ) -> Result<Param<Tensor<D>>> {
        let Some(data) = self.tensors.read(&format!("{}/value/{path}", self.name))? else {
            return Ok(param);
        };
        let (id, old, mapper) = param.consume();
        let checkpointing = old.gradient_checkpointing_strategy();
        let trains = old.is_require_grad();
        let mut value = Tensor::from_data(data, (&old.device(), old.dtype()));
        if let Some(strategy) = checkpointing {
            value = value.with_gradient_checkpointing_strategy(strategy);
        }
        let value = value.set_require_grad(trains);
        Ok(Param::from_mapped_value(id, value, mapper))
    }
}

impl ModuleMapper for Restore<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.restored.is_err() {
            return param;
        }
        let path = self.path.join(".");
        self.restored = self.optimizer(&param, &path);
        if self.restored.is_err() {
            return param;
        }
        let kept = param.clone();
        match self.value(param, &path) {
            Ok(param) => param,
            Err(error) => {
                self.restored = Err(error);
                kept
            }
        }
    }
}
