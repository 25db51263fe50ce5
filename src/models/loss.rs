//! The loss of a language model: a token's, a sample's.

use burn::tensor::{Bool, Int, Tensor};

use super::attention::widened;

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
