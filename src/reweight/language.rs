//! Language models and text as sources: samples of tokens, and their losses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::draws::{Pick, Samples};
use super::objective::SampleLosses;
use crate::data::{Source, TokenBatch};
use crate::models::CausalLm;
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
        let device = self.device();
        let (ids, mask) = (batch.ids(&device), batch.mask(&device));
        let labels = batch.labels(&device);
        let (losses, gradients) = self.gradients(ids, mask, labels, factors)?;
        if gradients.is_empty() && !has_frozen(self) {
            return Err(Error::NotDifferentiable);
        }
        Ok((losses, gradients))
    }
}
