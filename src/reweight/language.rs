//! Language models and text as sources: samples of tokens, and their losses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::draws::{Pick, Samples};
use super::objective::{SampleLosses, on_one_tape};
use crate::data::{Source, TokenBatch};
use crate::models::{CausalLm, Differentiation};
use crate::problem::has_frozen;
use crate::{Error, Result};

/// The tokenized samples of one or several [`Source`]s.
#[derive(Debug)]
pub struct TokenSources {
    sources: Arc<[Source]>,
    drawn: AtomicU64,
}

impl TokenSources {
    /// The samples of `sources`, which are shared and not copied.
    pub fn new(sources: impl Into<Arc<[Source]>>) -> Self {
        Self {
            sources: sources.into(),
            drawn: AtomicU64::new(0),
        }
    }

    /// Number of tokens drawn so far, without padding.
    pub fn tokens_drawn(&self) -> u64 {
        self.drawn.load(Ordering::Relaxed)
    }
}

impl Samples for TokenSources {
    type Batch = TokenBatch;

    fn sizes(&self) -> Vec<usize> {
        self.sources
            .iter()
            .map(|source| source.samples.len())
            .collect()
    }

    fn batch(&self, picks: &[Pick]) -> Result<TokenBatch> {
        let samples: Vec<_> = picks
            .iter()
            .map(|pick| &self.sources[pick.source].samples[pick.index])
            .collect();
        let tokens: usize = samples.iter().map(|sample| sample.ids.len()).sum();
        self.drawn.fetch_add(tokens as u64, Ordering::Relaxed);
        Ok(TokenBatch::new(&samples))
    }
}

/// The mean negative log-likelihood over each sample's own label tokens.
impl SampleLosses<TokenBatch> for CausalLm {
    fn sample_losses(&self, batch: &TokenBatch) -> Tensor<1> {
        let device = self.device();
        CausalLm::sample_losses(
            self,
            batch.ids(&device),
            batch.mask(&device),
            batch.labels(&device),
        )
    }

    fn differentiate(
        &self,
        batch: &TokenBatch,
        factors: &[f64],
    ) -> Result<(Vec<f64>, GradientsParams)> {
        let frozen = has_frozen(self);
        let default = match frozen {
            true => Differentiation::Blockwise,
            false => Differentiation::Plain,
        };
        if self.differentiation().unwrap_or(default) == Differentiation::Plain {
            return on_one_tape(self, batch, factors);
        }
        let device = self.device();
        let (ids, mask) = (batch.ids(&device), batch.mask(&device));
        let (losses, gradients) =
            self.blockwise_gradients(ids, mask, batch.labels(&device), factors)?;
        if gradients.is_empty() && !frozen {
            return Err(Error::NotDifferentiable);
        }
        Ok((losses, gradients))
    }
}
