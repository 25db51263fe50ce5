//! Gradients block by block: only the inputs of blocks are kept, and one block's tape at a time is in memory.
//!
//! A tape over the whole model holds the intermediate results of every block above the lowest one that trains. Here the
//! model runs without a tape and keeps the blocks' inputs from the lowest active block on; then, from the top down, each
//! block runs once more on a tape of its own, which takes the gradient from its output to its input. Blocks that are frozen
//! only pass it on, and below the lowest active block nothing is computed again. The price is one more forward pass over
//! the blocks from there on. A large batch goes through a block some samples at a time.
//!
//! Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).

use std::ops::Range;

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Gradients, IndexingUpdateOp, Int, Tensor, module::embedding},
};

use super::{
    CausalLm,
    head::{Head, HeadGradients},
    loss::Targets,
    network::{Network, Shared},
};

/// The samples on a block's tape make it about this large.
const TAPE_BYTES: usize = 32 << 20;
/// A tape of fewer rows is not worth a smaller one: matmuls get slower.
const FEWEST_ROWS: usize = 256;

/// The loss of each sample, and the gradient of `sum_j factor_j loss_j` in the parameters that require one.
///
/// # Shapes
/// - `ids`, `mask`, `labels` `[batch, length]`
pub(super) fn differentiate(
    model: &CausalLm,
    active: &Active,
    ids: Tensor<2, Int>,
    mask: Tensor<2, Int>,
    labels: Tensor<2, Int>,
    factors: &[f64],
) -> (Vec<f64>, GradientsParams) {
    let mut gradients = GradientsParams::new();
    let targets = Targets::of(&labels);
    if targets.rows().is_empty() {
        return (targets.means(std::iter::empty()), gradients);
    }
    let fixed = model.valid();
    let (taped, fixed) = (model.network(), fixed.network());

    let (ids, table) = (ids.inner(), taped.embedding());
    let mut vectors = embedding(table.val().inner(), ids.clone()).autodiff();
    if table.is_require_grad() {
        vectors = vectors.require_grad();
    }
    let embedded = taped.first(vectors.clone(), 0);
    let parts = Part::of(fixed, mask.inner(), &embedded);
    let mut x = split(embedded.clone().inner(), &parts);
    let embedded = Some(embedded).filter(Tensor::is_tracked);
    let lowest = match embedded {
        Some(_) => 0,
        None => active.lowest.unwrap_or(taped.blocks()),
    };
    let mut inputs = Vec::new();
    for index in 0..taped.blocks() {
        if index >= lowest {
            inputs.push(x.clone());
        }
        let run = |(x, part): (_, &Part)| fixed.block(index, x, &part.shared, None);
        x = x.into_iter().zip(&parts).map(run).collect();
    }

    let below = embedded.is_some() || lowest < taped.blocks();
    let x = Tensor::cat(x, 0);
    let (losses, of_x) = top(model, &mut gradients, x, &targets, factors, below);
    let Some(of_x) = of_x else {
        return (losses, gradients);
    };
    let mut of_x = split(of_x, &parts);
    for index in (lowest..taped.blocks()).rev() {
        let Some(inputs) = inputs.pop() else { break };
        let further = index > lowest || embedded.is_some();
        let mut of_inputs = Vec::new();
        for ((input, of_output), part) in inputs.into_iter().zip(of_x).zip(&parts) {
            let input = input.autodiff().set_require_grad(further);
            let output = taped.block(index, input.clone(), &part.shared, None);
            let mut found = pull_back(output, of_output);
            collect(model, &mut found, &mut gradients);
            of_inputs.extend(input.grad_remove(&mut found));
        }
        if !further {
            return (losses, gradients);
        }
        of_x = of_inputs;
    }
    if let Some(embedded) = embedded {
        let mut found = pull_back(embedded, Tensor::cat(of_x, 0));
        collect(model, &mut found, &mut gradients);
        if let Some(gradient) = vectors.grad_remove(&mut found) {
            add_rows(&mut gradients, table, ids, gradient, taped.padding());
        }
    }
    (losses, gradients)
}

/// Some samples of a batch, which go through the blocks together. Samples meet in the head's sums only, so that a block's
/// tape need not hold all of them at a time.
struct Part {
    /// Rows of the flattened batch.
    rows: Range<usize>,
    shared: Shared,
}

impl Part {
    /// The parts of a batch with the mask `[batch, length]` and hidden states `x`.
    fn of(network: &dyn Network, mask: Tensor<2, Int>, x: &Tensor<2>) -> Vec<Self> {
        let ([batch, length], [_, width]) = (mask.dims(), x.dims());
        let samples = samples_at_a_time(batch, length, width);
        let part = |start: usize| {
            let count = samples.min(batch - start);
            let mask = mask.clone().narrow(0, start, count);
            Self {
                rows: start * length..(start + count) * length,
                shared: network.shared(mask, length),
            }
        };
        (0..batch).step_by(samples).map(part).collect()
    }
}

/// How many samples of a batch go through a block together.
pub(super) fn samples_at_a_time(batch: usize, length: usize, width: usize) -> usize {
    // Of a row: sixteen vectors of its width, four of the feed-forward network's, and its scores, three times, in heads
    // that are 64 wide. No more than an estimate, but it grows as tapes do.
    let bytes = 4 * (32 * width + 3 * length * width.div_ceil(64));
    let rows = (TAPE_BYTES / bytes).max(FEWEST_ROWS);
    let groups = batch.div_ceil((rows / length.max(1)).max(1));
    batch.div_ceil(groups.max(1)).max(1)
}

/// The rows of each part.
fn split(x: Tensor<2>, parts: &[Part]) -> Vec<Tensor<2>> {
    let rows = parts.iter().map(|part| part.rows.clone());
    rows.map(|rows| x.clone().narrow(0, rows.start, rows.len()))
        .collect()
}

/// The losses; the gradients of head and final norm, which are collected; and that in the hidden states `x` that the last
/// block gives, if something `below` needs it.
fn top(
    model: &CausalLm,
    gradients: &mut GradientsParams,
    x: Tensor<2>,
    targets: &Targets,
    factors: &[f64],
    below: bool,
) -> (Vec<f64>, Option<Tensor<2>>) {
    let network = model.network();
    let predicting = Tensor::from_data(targets.rows(), &x.device());
    let mut rows = x.clone().select(0, predicting.clone()).autodiff();
    if below {
        rows = rows.require_grad();
    }
    let normed = network.norm(rows.clone());
    let weight = network.head_weight();
    let head = Head {
        weight: weight.val().inner(),
        cap: network.cap(),
        trains: weight.is_require_grad(),
    };
    let HeadGradients {
        losses,
        of_hidden,
        of_weight,
    } = head.differentiate(
        normed.clone().inner(),
        targets,
        &targets.row_factors(factors),
    );
    if let Some(gradient) = of_weight {
        gradients.register(weight.id, gradient);
    }
    let losses = targets.means(losses.into_iter());
    if !normed.is_tracked() {
        return (losses, None);
    }
    let mut found = pull_back(normed, of_hidden);
    collect(model, &mut found, gradients);
    let of_rows = rows.grad_remove(&mut found);
    let zeros = x.zeros_like();
    let of_x = of_rows.map(|g| zeros.select_assign(0, predicting, g, IndexingUpdateOp::Add));
    (losses, of_x)
}

/// Adds the gradient in the vectors of the tokens `ids` to that in the embedding, in place: a tied embedding has one from
/// the head already.
fn add_rows(
    gradients: &mut GradientsParams,
    table: &Param<Tensor<2>>,
    ids: Tensor<2, Int>,
    of_vectors: Tensor<3>,
    padding: Option<i64>,
) {
    let [batch, length, width] = of_vectors.dims();
    let ids = ids.reshape([batch * length]);
    let mut rows = of_vectors.reshape([batch * length, width]);
    if let Some(padding) = padding {
        let is_padding = ids.clone().equal_elem(padding).unsqueeze_dim::<2>(1);
        rows = rows.mask_fill(is_padding.expand([batch * length, width]), 0.0);
    }
    let before = gradients.remove::<2>(table.id);
    let before = before.unwrap_or_else(|| table.val().inner().zeros_like());
    let sum = before.select_assign(0, ids, rows, IndexingUpdateOp::Add);
    gradients.register(table.id, sum);
}

/// The gradients of whatever `output` depends on, from the gradient in `output`.
fn pull_back(output: Tensor<2>, gradient: Tensor<2>) -> Gradients {
    (output * gradient).sum().backward()
}

/// Moves the gradients of the model's parameters to those found before. A tied embedding gets one as a head and one as an
/// embedding.
fn collect(model: &CausalLm, found: &mut Gradients, gradients: &mut GradientsParams) {
    struct Collect<'a> {
        found: &'a mut Gradients,
        gradients: &'a mut GradientsParams,
    }

    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(mut gradient) = param.val().grad_remove(self.found) else {
                return;
            };
            if let Some(before) = self.gradients.remove::<D>(param.id) {
                gradient = before + gradient;
            }
            self.gradients.register(param.id, gradient);
        }
    }

    model.visit(&mut Collect { found, gradients });
}

/// Which parameters require a gradient.
#[derive(Default)]
pub(super) struct Active {
    /// The lowest block that has one.
    pub lowest: Option<usize>,
    /// Whether some parameter of the model requires none.
    pub frozen: bool,
}

impl Active {
    /// Looks at all parameters of a model.
    pub fn of(model: &CausalLm) -> Self {
        struct Walk {
            blocks: String,
            path: Vec<String>,
            active: Active,
        }

        impl ModuleVisitor for Walk {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                self.path.push(name.to_owned());
            }

            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.pop();
            }

            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Active { lowest, frozen } = &mut self.active;
                if !param.is_require_grad() {
                    *frozen = true;
                    return;
                }
                let path = self.path.join(".");
                let inside = path.strip_prefix(&self.blocks);
                let index = inside.and_then(|rest| rest.split('.').next()?.parse().ok());
                if let Some(index) = index {
                    *lowest = Some(lowest.map_or(index, |lowest: usize| lowest.min(index)));
                }
            }
        }

        let mut walk = Walk {
            blocks: format!("{}.", model.blocks_path()),
            path: Vec::new(),
            active: Self::default(),
        };
        model.visit(&mut walk);
        walk.active
    }
}
