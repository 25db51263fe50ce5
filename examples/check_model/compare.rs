//! A model's logits, losses and gradients against a file of reference values.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use scalebio::{
    burn::{
        module::{Module, ModuleVisitor, Param},
        tensor::{Device, Gradients, Int, Tensor, TensorData},
    },
    models::{CausalLm, token_losses},
};
use serde::Serialize;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The line that the example prints.
#[derive(Debug, Serialize)]
pub struct Report {
    pub architecture: String,
    pub parameters: usize,
    pub max_abs_logit_error: f64,
    pub max_abs_nll_error: f64,
    pub max_rel_grad_error: f64,
    pub worst_grad: String,
}

impl Report {
    /// Whether logits and losses agree to `tolerance` and gradients to ten times that, relatively. NaN never agrees.
    pub fn within(&self, tolerance: f64) -> bool {
        self.max_abs_logit_error <= tolerance
            && self.max_abs_nll_error <= tolerance
            && self.max_rel_grad_error <= 10.0 * tolerance
    }
}

/// Runs the checkpoint in `dir` on the batch in `expected` and compares everything the file holds.
pub fn compare(dir: &Path, expected: &Path, device: &Device) -> Result<Report> {
    let bytes = fs::read(expected).map_err(|e| format!("{}: {e}", expected.display()))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| format!("{}: not usable: {e}", expected.display()))?;
    let device = device.clone().autodiff();
    let ids = ints(&file, "input_ids", &device)?;
    let mask = ints(&file, "attention_mask", &device)?;
    let labels = ints(&file, "labels", &device)?;

    let model = CausalLm::from_pretrained(dir, &device)?;
    let logits = model.logits(ids, mask.clone());
    let losses = token_losses(logits.clone(), labels.clone());
    let [batch, length] = labels.dims();
    let count = labels
        .slice([0..batch, 1..length])
        .greater_equal_elem(0)
        .float()
        .sum();
    let gradients = (losses.clone().sum() / count).backward();

    let gradients = named(&model, &gradients);
    let (max_rel_grad_error, worst_grad) = worst_gradient(&file, gradients)?;
    Ok(Report {
        architecture: model.architecture().to_owned(),
        parameters: model.num_params(),
        max_abs_logit_error: logit_error(logits, mask, &floats(&file.tensor("logits")?)?)?,
        max_abs_nll_error: largest_difference(
            &values(losses)?,
            &floats(&file.tensor("token_nll")?)?,
        )?,
        max_rel_grad_error,
        worst_grad,
    })
}

/// Only where the mask is 1: elsewhere logits have no meaning.
fn logit_error(logits: Tensor<3>, mask: Tensor<2, Int>, expected: &[f32]) -> Result<f64> {
    let [_, _, vocabulary] = logits.dims();
    let ours = values(logits)?;
    let mask = mask
        .into_data()
        .try_cast_as::<i64>()?
        .try_into_vec::<i64>()?;
    let shown = |all: &[f32]| -> Vec<f32> {
        let rows = all.chunks(vocabulary).zip(&mask);
        rows.filter(|(_, m)| **m == 1)
            .flat_map(|(row, _)| row)
            .copied()
            .collect()
    };
    if ours.len() != expected.len() {
        return largest_difference(&ours, expected);
    }
    largest_difference(&shown(&ours), &shown(expected))
}

/// The largest `max |a - b| / max |b|` over the gradients, and the name of the gradient that has it.
fn worst_gradient(
    file: &SafeTensors,
    mut gradients: BTreeMap<String, Option<Vec<f32>>>,
) -> Result<(f64, String)> {
    let mut worst = (0.0, String::new());
    for (name, tensor) in file.iter() {
        if !name.starts_with("grad.") {
            continue;
        }
        let Some(ours) = gradients.remove(name) else {
            return Err(
                format!("`{name}` is expected, but the model has no such parameter").into(),
            );
        };
        let ours = ours.ok_or(format!(
            "`{name}` is expected, but the loss does not reach it"
        ))?;
        let expected = floats(&tensor)?;
        let difference =
            largest_difference(&ours, &expected).map_err(|e| format!("{name}: {e}"))?;
        let error = match difference {
            0.0 => 0.0, // Also where the reference is 0 throughout.
            difference => difference / largest(expected.iter().map(|v| f64::from(v.abs()))),
        };
        if worst.1.is_empty() || larger(error, worst.0) {
            worst = (error, name.to_owned());
        }
    }
    match gradients.keys().next() {
        None => Ok(worst),
        Some(name) => Err(format!("the model has `{name}`, but the file does not").into()),
    }
}

fn largest_difference(ours: &[f32], expected: &[f32]) -> Result<f64> {
    if ours.len() != expected.len() {
        let (a, b) = (ours.len(), expected.len());
        return Err(format!("{a} values instead of {b}").into());
    }
    let pairs = ours.iter().zip(expected);
    Ok(largest(
        pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()),
    ))
}

/// The largest value, NaN if there is one.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, v| if larger(v, most) { v } else { most })
}

fn larger(a: f64, b: f64) -> bool {
    a.is_nan() || a > b
}

fn ints(file: &SafeTensors, name: &str, device: &Device) -> Result<Tensor<2, Int>> {
    let tensor = file.tensor(name)?;
    let &[batch, length] = tensor.shape() else {
        return Err(format!(
            "`{name}` has shape {:?} instead of [batch, length]",
            tensor.shape()
        )
        .into());
    };
    if tensor.dtype() != Dtype::I64 {
        return Err(format!("`{name}` is stored as {} instead of I64", tensor.dtype()).into());
    }
    let values: Vec<i64> = tensor
        .data()
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b))
        .collect();
    Ok(Tensor::from_data(
        TensorData::new(values, [batch, length]),
        device,
    ))
}

fn floats(tensor: &TensorView) -> Result<Vec<f32>> {
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("a tensor is stored as {} instead of F32", tensor.dtype()).into());
    }
    let values = tensor.data().as_chunks::<4>().0.iter();
    Ok(values.map(|b| f32::from_le_bytes(*b)).collect())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    Ok(tensor.into_data().try_cast_as::<f32>()?.try_into_vec()?)
}

/// Each parameter's gradient under `grad.` and its name in the checkpoint; `None` where the loss does not reach it.
fn named(model: &CausalLm, gradients: &Gradients) -> BTreeMap<String, Option<Vec<f32>>> {
    struct Walk<'a> {
        model: &'a CausalLm,
        path: Vec<String>,
        gradients: &'a Gradients,
        named: BTreeMap<String, Option<Vec<f32>>>,
    }

    impl ModuleVisitor for Walk<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            // transformers 5 calls this one head differently in memory and in files.
            let name = match self.model.checkpoint_name(&self.path.join(".")) {
                name if name == "embed_out.weight" => "lm_head.weight".to_owned(),
                name => name,
            };
            let gradient = param
                .val()
                .grad(self.gradients)
                .and_then(|g| values(g).ok());
            self.named.insert(format!("grad.{name}"), gradient);
        }
    }

    let mut walk = Walk {
        model,
        path: Vec::new(),
        gradients,
        named: BTreeMap::new(),
    };
    model.visit(&mut walk);
    walk.named
}
