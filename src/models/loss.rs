//! The loss of a language model: a token's, a sample's.

use std::ops::Range;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::attention::widened;
#[cfg(feature = "flex")]
use crate::kernels;

/// The negative log-likelihood of each label given the tokens before it, in nats.
///
/// The label at position t is predicted from the logits at t - 1, so that there is one loss fewer than there are tokens;
/// the loss is 0 where the label is negative (-100: padding, a prompt). Labels must be below the size of the vocabulary.
///
/// # Shapes
/// - `logits` `[batch, length, vocabulary]`
/// - `labels` `[batch, length]`
/// - result `[batch, length - 1]`
pub fn token_losses(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<2> {
    let [batch, length, _] = logits.dims();
    if length < 2 {
        return Tensor::zeros([batch, 0], &logits.device());
    }
    // Labels move to the left, with nothing after the last one, rather than the logits to the right: cutting the last
    // row off the logits would copy them, forward and backward.
    let shifted = labels.slice([0..batch, 1..length]);
    let nothing = shifted.clone().slice([0..batch, 0..1]).zeros_like();
    let targets = Tensor::cat(vec![shifted.clone(), nothing], 1);

    let logits = widened(logits);
    let highest = logits.clone().detach().max_dim(2);
    let logits = logits - highest;
    let target = logits
        .clone()
        .gather(2, targets.clamp_min(0).reshape([batch, length, 1]));
    (logits.exp().sum_dim(2).log() - target)
        .reshape([batch, length])
        .slice([0..batch, 0..length - 1])
        .mask_fill(ignored(shifted), 0.0)
}

/// The mean loss over the label tokens of each sample, never over its padding; 0 for a sample without labels.
///
/// # Shapes
/// - `token_losses` `[batch, length - 1]`, see [`token_losses`]
/// - `labels` `[batch, length]`, not shifted
/// - result `[batch]`
pub fn sample_losses(token_losses: Tensor<2>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [batch, length] = labels.dims();
    if length < 2 {
        return Tensor::zeros([batch], &token_losses.device());
    }
    let shifted = labels.slice([0..batch, 1..length]);
    let count = ignored(shifted)
        .bool_not()
        .float()
        .sum_dim(1)
        .clamp_min(1.0);
    (token_losses.sum_dim(1) / count).reshape([batch])
}

fn ignored(labels: Tensor<2, Int>) -> Tensor<2, Bool> {
    labels.lower_elem(0)
}

/// The positions of a batch that predict a label, and how their losses make up those of the samples.
pub(super) struct Targets {
    /// Rows of the flattened batch that predict a label.
    rows: Vec<i64>,
    /// The label that each row predicts.
    labels: Vec<i64>,
    /// The sample that each row belongs to.
    owners: Vec<usize>,
    /// Number of rows of each sample.
    counts: Vec<usize>,
}

impl Targets {
    /// Reads the labels `[batch, length]`, which are not shifted.
    pub fn of(labels: &Tensor<2, Int>) -> Self {
        let [samples, length] = labels.dims();
        let values: Vec<i64> = labels.to_data().iter::<i64>().collect();
        let (mut rows, mut targets, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        let mut counts = vec![0_usize; samples];
        for (sample, labels) in values.chunks(length.max(1)).enumerate() {
            for (position, &label) in labels.iter().enumerate().skip(1) {
                if label >= 0 {
                    rows.push((sample * length + position - 1) as i64);
                    targets.push(label);
                    owners.push(sample);
                    counts[sample] += 1;
                }
            }
        }
        Self {
            rows,
            labels: targets,
            owners,
            counts,
        }
    }

    /// Rows of the flattened batch that predict a label.
    pub fn rows(&self) -> &[i64] {
        &self.rows
    }

    /// The labels that all these rows predict.
    #[cfg(feature = "flex")]
    pub fn all_labels(&self) -> &[i64] {
        &self.labels
    }

    /// The labels that some of them predict, `[rows, 1]`.
    pub fn labels(&self, rows: Range<usize>, device: &Device) -> Tensor<2, Int> {
        let labels = self.labels[rows].to_vec();
        Tensor::from_data(TensorData::new(labels.clone(), [labels.len(), 1]), device)
    }

    /// The factor of each row's loss in `sum_j factor_j loss_j`, a sum over samples.
    pub fn row_factors(&self, factors: &[f64]) -> Vec<f32> {
        let owners = self.owners.iter();
        owners
            .map(|&sample| (factors[sample] / self.counts[sample] as f64) as f32)
            .collect()
    }

    /// The mean over each sample's rows; 0 for a sample without rows.
    pub fn means(&self, losses: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut means = vec![0.0; self.counts.len()];
        for (&sample, loss) in self.owners.iter().zip(losses) {
            means[sample] += loss / self.counts[sample] as f64;
        }
        means
    }

    /// The loss of each sample from the hidden states `[batch * length, width]` and the output head, which maps
    /// `[rows, width]` to `[rows, vocabulary]`.
    pub fn sample_losses(
        &self,
        hidden: Tensor<2>,
        head: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<1> {
        let device = hidden.device();
        let (samples, count) = (self.counts.len(), self.rows.len());
        if count == 0 {
            return Tensor::zeros([samples], &device);
        }
        let rows = Tensor::from_data(self.rows.as_slice(), &device);
        let logits = head(hidden.select(0, rows));
        let losses = row_losses(logits, &self.labels);
        let mut means = vec![0.0; samples * count];
        for (row, &sample) in self.owners.iter().enumerate() {
            means[sample * count + row] = 1.0 / self.counts[sample] as f32;
        }
        let means = Tensor::from_data(TensorData::new(means, [samples, count]), &device);
        means.matmul(losses).reshape([samples])
    }
}

/// The negative log-likelihood of one label a row, `[rows, 1]`, from logits `[rows, vocabulary]`.
pub(super) fn row_losses(logits: Tensor<2>, labels: &[i64]) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let Some(losses) = kernels::cross_entropy(&logits, labels) {
        return losses;
    }
    let device = logits.device();
    let logits = widened(logits);
    let highest = logits.clone().detach().max_dim(1);
    let logits = logits - highest;
    let labels = TensorData::new(labels.to_vec(), [labels.len(), 1]);
    let target = logits.clone().gather(1, Tensor::from_data(labels, &device));
    logits.exp().sum_dim(1).log() - target
}
