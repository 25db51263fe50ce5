//! What an architecture has to say; everything else about a language model is written once.

use burn::tensor::{Device, Int, Tensor};

use super::{
    attention::{Seen, widened},
    loss::Targets,
    pretrained::Naming,
};

/// A causal language model, in two parts: tokens to hidden states, and hidden states to logits.
pub(super) trait Network {
    /// The last hidden states, after the final norm.
    ///
    /// `seen` holds an entry a block for the tokens that were read before, or nothing: then none were, and none are kept.
    ///
    /// # Shapes
    /// - `ids` `[batch, length]`
    /// - `mask` `[batch, seen + length]`: 1 for tokens, 0 for padding
    /// - result `[batch * length, width]`
    fn hidden(&self, ids: Tensor<2, Int>, mask: Tensor<2, Int>, seen: &mut [Seen]) -> Tensor<2>;

    /// `[rows, width]` to logits `[rows, vocabulary]`.
    fn head(&self, rows: Tensor<2>) -> Tensor<2>;

    /// The device that holds the parameters.
    fn device(&self) -> Device;

    /// Number of tokens.
    fn vocabulary(&self) -> usize;

    /// Longest sequence.
    fn longest(&self) -> usize;

    /// Number of blocks.
    fn blocks(&self) -> usize;

    /// What its parameters are called in checkpoints.
    fn naming(&self) -> &'static Naming;

    /// The logits of the next token at each position, `[batch, length, vocabulary]`.
    fn logits(&self, ids: Tensor<2, Int>, mask: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = ids.dims();
        let logits = self.head(self.hidden(ids, mask, &mut []));
        logits.reshape([batch, length, self.vocabulary()])
    }

    /// The mean loss over the labels of each sample, `[batch]`. Only rows that predict a label go through the head.
    fn sample_losses(
        &self,
        ids: Tensor<2, Int>,
        mask: Tensor<2, Int>,
        labels: Tensor<2, Int>,
    ) -> Tensor<1> {
        let targets = Targets::of(&labels);
        let hidden = self.hidden(ids, mask, &mut []);
        targets.sample_losses(hidden, |rows| self.head(rows))
    }
}

/// `cap tanh(logits / cap)`, in at least float32, or the logits where there is no cap.
pub(super) fn capped(logits: Tensor<2>, cap: Option<f64>) -> Tensor<2> {
    match cap {
        None => logits,
        Some(cap) => (widened(logits) / cap).tanh() * cap,
    }
}
