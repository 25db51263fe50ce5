//! The output head and its loss, with their gradients: the logits of a chunk of rows become their own gradient in place.
//!
//! With the softmax p of the logits, factor f and label y, that gradient is `f (p - 1_y)`, times the slope `1 - t^2` of a
//! cap `c t`, `t = tanh(h W^T / c)`. Plain Burn has three matrices of the logits' size in memory and passes over them ten
//! times on one thread; and its sum over chunks of the weight's gradient makes every term before it adds it.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::math::{exp, largest, sum, tanh};
use super::product::{Threads, add_product, product};
use super::simd::{change_rows_and, vectorized};
use super::{matrix, plain, shape, tensor, turned};

/// An output head: logits `c tanh(h W^T / c)`, without the tanh where there is no cap c.
pub(crate) struct Head<'a> {
    /// `[vocabulary, width]`
    pub weight: &'a Tensor<2>,
    pub cap: Option<f64>,
    /// Whether the gradient in the weight is wanted.
    pub trains: bool,
    /// Rows whose logits are in memory at a time.
    pub chunk: usize,
}

/// What [`Head::differentiate`] finds.
pub(crate) struct HeadGradients {
    /// The loss of each row.
    pub losses: Vec<f64>,
    /// `[rows, width]`
    pub of_hidden: Tensor<2>,
    /// `[vocabulary, width]`
    pub of_weight: Option<Tensor<2>>,
}

impl Head<'_> {
    /// The losses of rows of hidden states `[rows, width]` with a label below `vocabulary` each, and the gradients of
    /// `sum_j factor_j loss_j`.
    pub fn differentiate(
        &self,
        hidden: &Tensor<2>,
        labels: &[i64],
        factors: &[f32],
    ) -> Option<HeadGradients> {
        let (hidden, weight) = (plain(hidden)?.to_contiguous(), plain(self.weight)?);
        let ([rows, width], [vocabulary, _]) = (shape(&hidden), shape(&weight));
        let labels: Option<Vec<usize>> = labels.iter().map(|y| usize::try_from(*y).ok()).collect();
        let labels = labels.filter(|l| l.len() == rows && l.iter().all(|l| *l < vocabulary))?;

        let mut losses = vec![0.0; rows];
        let mut of_hidden = Vec::with_capacity(rows * width);
        let mut of_weight = self.trains.then(|| vec![0.0; vocabulary * width]);
        for start in (0..rows).step_by(self.chunk.max(1)) {
            let count = self.chunk.max(1).min(rows - start);
            let strides = [width as isize, 1];
            let h = matrix(&hidden, start * width, [count, width], strides);
            let mut z = product(&h, &turned(&weight), Threads::All);
            let of = |row: usize| (labels[start + row], factors[start + row]);
            self.loss(&mut z, vocabulary, &mut losses[start..start + count], of);
            let z: FlexTensor = tensor(z, [count, vocabulary]);
            of_hidden.extend(product(&z, &weight, Threads::All));
            if let Some(sum) = &mut of_weight {
                add_in_pieces(sum, &z, &h);
            }
        }
        let lifted = |numbers, shape| Tensor::from_primitive::<Flex>(tensor(numbers, shape));
        Some(HeadGradients {
            losses: losses.into_iter().map(f64::from).collect(),
            of_hidden: lifted(of_hidden, [rows, width]),
            of_weight: of_weight.map(|sum| lifted(sum, [vocabulary, width])),
        })
    }

    /// Turns `h W^T` into the gradient in it, and sets the losses; `of` has each row's label and factor.
    fn loss(
        &self,
        z: &mut [f32],
        vocabulary: usize,
        losses: &mut [f32],
        of: impl Fn(usize) -> (usize, f32) + Sync,
    ) {
        change_rows_and(z, vocabulary, losses, |start, z, losses| {
            for ((row, z), loss) in (start..).zip(z.chunks_exact_mut(vocabulary)).zip(losses) {
                let (label, factor) = of(row);
                *loss = match self.cap {
                    None => row_gradient(z, label, factor),
                    Some(cap) => capped_row_gradient(z, label, factor, cap as f32),
                };
            }
        });
    }
}

/// Adds `z^T h` to the weight's gradient, some tokens at a time: the matmul copies that much of `z` to its own order.
fn add_in_pieces(sum: &mut [f32], z: &FlexTensor, h: &FlexTensor) {
    const PIECE_BYTES: usize = 8 << 20;
    let ([rows, vocabulary], [_, width]) = (shape(z), shape(h));
    let tokens = (PIECE_BYTES / (4 * rows.max(1))).max(1);
    let pieces = sum.chunks_mut(tokens * width).zip((0..).step_by(tokens));
    for (sum, start) in pieces {
        let count = tokens.min(vocabulary - start);
        let of_tokens = matrix(z, start, [count, rows], [1, vocabulary as isize]);
        add_product(sum, &of_tokens, h, Threads::All);
    }
}

vectorized! {
    /// A row's logits become its gradient; returns its loss.
    fn row_gradient(z: &mut [f32], label: usize, factor: f32) -> f32 {
        let highest = largest(z, f32::MIN);
        let target = z[label];
        for z in z.iter_mut() {
            *z = exp(*z - highest);
        }
        let total = sum(z, |p| p);
        let scale = factor / total;
        for z in z.iter_mut() {
            *z *= scale;
        }
        z[label] -= factor;
        highest + total.ln() - target
    }

    /// The same for logits `cap tanh(z / cap)`.
    fn capped_row_gradient(z: &mut [f32], label: usize, factor: f32, cap: f32) -> f32 {
        for z in z.iter_mut() {
            *z = tanh(*z / cap);
        }
        let highest = cap * largest(z, f32::MIN);
        let t = z[label];
        let total = sum(z, |t| exp(cap * t - highest));
        let scale = factor / total;
        for z in z.iter_mut() {
            *z = exp(cap * *z - highest) * scale * (1.0 - *z * *z);
        }
        z[label] -= factor * (1.0 - t * t);
        highest + total.ln() - cap * t
    }
}
