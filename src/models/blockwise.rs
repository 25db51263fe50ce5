//! Gradients block by block: only the inputs of blocks are kept, and one block's tape at a time is in memory.
//!
//! A tape over the whole model holds the intermediate results of every block above the lowest one that trains. Here the
//! model runs without a tape and keeps the blocks' inputs from the lowest active block on; then, from the top down, each
//! block runs once more on a tape of its own, which takes the gradient from its output to its input. Blocks that are frozen
//! only pass it on, and below the lowest active block nothing is computed again. The price is one more forward pass over
//! the blocks from there on. A large batch goes through a block some samples at a time.
//!
//! Where memory allows, the uppermost blocks run on their tapes the first time, and need not run again.
//!
//! Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).

use std::{ops::Range, rc::Rc};

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Gradients, IndexingUpdateOp, Int, Tensor, module::embedding},
};

use super::{
    CausalLm,
    head::{Head, HeadGradients},
    loss::Targets,
    network::{Network, Places, moved},
    offload::{Copies, Offloaded},
};

/// The samples on a block's tape make it about this large.
const TAPE_BYTES: usize = 32 << 20;
/// A tape of fewer rows is not worth a smaller one: matmuls get slower.
const FEWEST_ROWS: usize = 256;

/// The loss of each sample, and the gradient of `sum_j factor_j loss_j` in the parameters that require one. The tapes of
/// the uppermost `kept` blocks are kept from the first pass.
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
    kept: usize,
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
    let lowest = match embedded.is_tracked() {
        true => 0,
        false => active.lowest.unwrap_or(taped.blocks()),
    };
    let first_kept = taped.blocks().saturating_sub(kept).max(lowest);
    // If all tapes are kept, parts would all be in memory at the same time.
    let whole = first_kept == lowest && lowest < taped.blocks();
    let copies = model.offloading().map(Offloaded::copies);
    let pass = Pass {
        model,
        fixed,
        parts: Part::of(fixed, copies.as_ref(), mask.inner(), &embedded, whole),
        lowest,
        first_kept,
        below: embedded.is_tracked(),
    };
    let (x, kept) = pass.up(embedded.clone().inner());
    if let Some(copies) = copies {
        copies.clear(); // the head needs the room
    }
    let below = pass.below || lowest < taped.blocks();
    let (losses, of_x) = top(model, &mut gradients, x, &targets, factors, below);
    let embedded = Some(embedded).filter(Tensor::is_tracked);
    let of_x = of_x.and_then(|of_x| pass.down(of_x, kept, &mut gradients));
    if let (Some(embedded), Some(of_x)) = (embedded, of_x) {
        let of_x = moved(of_x, &embedded.device());
        let mut found = pull_back(embedded, of_x);
        collect(model, &mut found, &mut gradients);
        if let Some(gradient) = vectors.grad_remove(&mut found) {
            add_rows(&mut gradients, table, ids, gradient, taped.padding());
        }
    }
    (losses, gradients)
}

/// A pass through the blocks, bottom up and then top down.
struct Pass<'a> {
    model: &'a CausalLm,
    /// The model without a tape.
    fixed: &'a dyn Network,
    parts: Vec<Part>,
    /// The lowest block that is differentiated.
    lowest: usize,
    /// The lowest block whose tape is kept on the way up.
    first_kept: usize,
    /// Whether something below the blocks needs a gradient.
    below: bool,
}

/// What is kept of a block on the way up, for some samples.
#[allow(clippy::large_enum_variant)] // One for a block and a part of the batch.
enum Kept {
    Input(Tensor<2>),
    Tape(Taped),
}

/// What a block has computed, on a tape of its own.
struct Taped {
    input: Tensor<2>,
    output: Tensor<2>,
}

impl Pass<'_> {
    /// The last block's output, and what is kept of each block from the lowest that is differentiated on, part by part.
    fn up(&self, x: Tensor<2>) -> (Tensor<2>, Vec<Vec<Kept>>) {
        let mut x = split(x, &self.parts);
        let mut stack = Vec::new();
        for index in 0..self.fixed.blocks() {
            let mut level = Vec::new();
            let run = |(input, part): (Tensor<2>, &Part)| {
                if index >= self.first_kept {
                    let tape = self.on_tape(index, input, part);
                    let output = tape.output.clone().inner();
                    level.push(Kept::Tape(tape));
                    return output;
                }
                let (device, shared) = part.places.of(index);
                let input = moved(input, device);
                if index >= self.lowest {
                    level.push(Kept::Input(input.clone()));
                }
                self.fixed.block(index, input, shared, None)
            };
            x = x.into_iter().zip(&self.parts).map(run).collect();
            if index >= self.lowest {
                stack.push(level);
            }
        }
        (Tensor::cat(x, 0), stack)
    }

    /// The gradient in the first block's input from that in the last one's output, if something below needs it; those of
    /// the blocks are collected. Tapes that were not kept are made again, one part's at a time.
    fn down(
        &self,
        of_x: Tensor<2>,
        mut stack: Vec<Vec<Kept>>,
        gradients: &mut GradientsParams,
    ) -> Option<Tensor<2>> {
        let mut of_x = split(of_x, &self.parts);
        for index in (self.lowest..self.fixed.blocks()).rev() {
            let level = stack.pop()?;
            let mut of_inputs = Vec::new();
            for ((kept, part), of_output) in level.into_iter().zip(&self.parts).zip(of_x) {
                let Taped { input, output } = match kept {
                    Kept::Tape(tape) => tape,
                    Kept::Input(input) => self.on_tape(index, input, part),
                };
                let of_output = moved(of_output, &output.device());
                let mut found = pull_back(output, of_output);
                collect(self.model, &mut found, gradients);
                of_inputs.extend(input.grad_remove(&mut found));
            }
            of_x = of_inputs;
        }
        self.below.then(|| Tensor::cat(of_x, 0))
    }

    fn on_tape(&self, index: usize, input: Tensor<2>, part: &Part) -> Taped {
        let further = index > self.lowest || self.below;
        let (device, shared) = part.places.of(index);
        let input = moved(input, device).autodiff().set_require_grad(further);
        let network = self.model.network();
        let output = network.block(index, input.clone(), shared, None);
        Taped { input, output }
    }
}

/// Some samples of a batch, which go through the blocks together. Samples meet in the head's sums only, so that a block's
/// tape need not hold all of them at a time.
struct Part {
    /// Rows of the flattened batch.
    rows: Range<usize>,
    places: Places,
}

impl Part {
    /// The parts of a batch with the mask `[batch, length]` and hidden states `x`; or all of it as the only one.
    fn of(
        network: &dyn Network,
        copies: Option<&Rc<Copies>>,
        mask: Tensor<2, Int>,
        x: &Tensor<2>,
        whole: bool,
    ) -> Vec<Self> {
        let ([batch, length], [_, width]) = (mask.dims(), x.dims());
        let samples = match whole {
            true => batch.max(1),
            false => samples_at_a_time(batch, length, width),
        };
        let part = |start: usize| {
            let count = samples.min(batch - start);
            let mask = mask.clone().narrow(0, start, count);
            Self {
                rows: start * length..(start + count) * length,
                places: Places::new(network, copies, mask, length),
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

/// How many blocks' tapes take no more memory than the gradient and the two moments of what trains outside the blocks:
/// `outside` parameters. A tape holds about what a block's matrices put out, `outputs` numbers of so many bytes a row.
pub(super) fn tapes_kept(outside: usize, outputs: usize, number: usize, rows: usize) -> usize {
    let budget = 3 * size_of::<f32>() * outside;
    budget / (rows * outputs * number).max(1)
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
    let x = moved(x, &network.head_weight().lazy_device());
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
    /// Number of parameters outside the blocks that have one.
    pub outside: usize,
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
                let Active {
                    lowest,
                    frozen,
                    outside,
                } = &mut self.active;
                if !param.is_require_grad() {
                    *frozen = true;
                    return;
                }
                let path = self.path.join(".");
                let inside = path.strip_prefix(&self.blocks);
                let index = inside.and_then(|rest| rest.split('.').next()?.parse().ok());
                match index {
                    Some(index) => {
                        *lowest = Some(lowest.map_or(index, |lowest: usize| lowest.min(index)));
                    }
                    None => *outside += param.lazy_shape().num_elements(),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::module::ParamGroup;
    use burn::tensor::{Device, TensorData};

    use super::super::Gpt2Config;
    use super::*;

    /// However many tapes are kept, losses and gradients are those of none kept.
    #[test]
    fn kept_tapes_change_nothing() {
        struct Numbers<'a>(&'a GradientsParams, Vec<f64>);

        impl ModuleVisitor for Numbers<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(gradient) = self.0.get::<D>(param.id) {
                    self.1.extend(gradient.into_data().iter::<f64>());
                }
            }
        }

        let device = Device::flex().autodiff();
        // Long enough to go through the blocks in two parts, unless all tapes are kept.
        let (batch, length, blocks) = (2, 300, 4);
        let model = CausalLm::from(
            Gpt2Config::new(20, length, 64, blocks, 2)
                .init(0, &device)
                .unwrap(),
        );
        let data = |f: fn(usize) -> i64| {
            let values: Vec<i64> = (0..batch * length).map(f).collect();
            Tensor::<2, Int>::from_data(TensorData::new(values, [batch, length]), &device)
        };
        let (ids, mask) = (data(|i| (i * i % 20) as i64), data(|_| 1));
        for frozen in [None, Some(1), Some(blocks)] {
            let (model, mut active) = (model.clone(), Active::of(&model));
            // Blocks below this one count as frozen.
            let model = match frozen {
                None => model,
                Some(lowest) => {
                    active.lowest = Some(lowest).filter(|&lowest| lowest < blocks);
                    let paths = (lowest..blocks).map(|i| format!("blocks.{i}."));
                    let group = ParamGroup::from_any_predicates(paths.collect::<Vec<_>>());
                    model.no_grad().set_require_grad_group(group, true)
                }
            };
            let by = |kept| {
                let (ids, mask) = (ids.clone(), mask.clone());
                let labels = ids.clone();
                let (losses, gradients) =
                    differentiate(&model, &active, ids, mask, labels, &[0.3, -2.0], kept);
                let mut numbers = Numbers(&gradients, losses);
                model.visit(&mut numbers);
                numbers.1
            };
            let expected = by(0);
            let scale = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            for kept in 1..=blocks + 1 {
                let found = by(kept);
                assert_eq!(found.len(), expected.len());
                let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * scale;
                assert!(found.iter().zip(&expected).all(close), "{frozen:?}, {kept}");
            }
        }
    }
}
