//! The negative log-likelihood of a label a row: `log(sum_j e^(z_j)) - z_label`.
//!
//! The gradient in the logits is `softmax(z) - onehot(label)` times that of the row's loss. The forward pass takes the
//! exponentials once and saves the probabilities, which the backward pass turns into the gradient in place: one matrix of
//! the size of the logits, where plain Burn holds three.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::math::{exp, largest, sum};
use super::simd::{change_rows, fill_both, vectorized};
use super::{Kernel, apply, input, numbers, shape, tensor};

/// The loss of each row, `[rows, 1]`, from logits `[rows, vocabulary]` and one label below `vocabulary` for each row.
pub(crate) fn cross_entropy(logits: &Tensor<2>, labels: &[i64]) -> Option<Tensor<2>> {
    let [rows, vocabulary] = logits.dims();
    let labels: Option<Vec<usize>> = labels
        .iter()
        .map(|label| usize::try_from(*label).ok())
        .collect();
    let labels = labels.filter(|l| l.len() == rows && l.iter().all(|l| *l < vocabulary))?;
    apply(CrossEntropy(labels), [input(logits)])
}

/// The labels.
#[derive(Clone, Debug)]
struct CrossEntropy(Vec<usize>);

vectorized! {
    /// Probabilities of one row from its logits; returns `log(sum_j e^(z_j))`.
    fn softmax(p: &mut [f32], z: &[f32]) -> f32 {
        let highest = largest(z, f32::MIN);
        for (p, z) in p.iter_mut().zip(z) {
            *p = exp(z - highest);
        }
        let total = sum(p, |p| p);
        let scale = 1.0 / total;
        for p in p.iter_mut() {
            *p *= scale;
        }
        highest + total.ln()
    }
}

vectorized! {
    fn scale(numbers: &mut [f32], factor: f32) {
        for x in numbers {
            *x *= factor;
        }
    }
}

impl Kernel<1> for CrossEntropy {
    type Saved = FlexTensor;

    fn forward(&self, [logits]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, FlexTensor) {
        let logits = logits.to_contiguous();
        let [rows, vocabulary] = shape(&logits);
        let z = numbers(&logits);
        let [p, losses] = fill_both(rows, [vocabulary, 1], |start, p, losses| {
            let lines = p.chunks_exact_mut(vocabulary).zip(losses);
            for (row, (p, loss)) in (start..).zip(lines) {
                let z = &z[row * vocabulary..(row + 1) * vocabulary];
                *loss = softmax(p, z) - z[self.0[row]];
            }
        });
        (tensor(losses, [rows, 1]), tensor(p, [rows, vocabulary]))
    }

    fn backward(
        &self,
        mut saved: FlexTensor,
        gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let [_, width] = shape(&saved);
        let gradients = numbers(&gradient);
        let all: &mut [f32] = saved.storage_mut();
        change_rows(all, width, |start, piece| {
            for (row, p) in (start..).zip(piece.chunks_exact_mut(width)) {
                p[self.0[row]] -= 1.0;
                scale(p, gradients[row]);
            }
        });
        [Some(saved)]
    }
}
