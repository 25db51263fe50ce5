//! Language models and text as sources: samples of tokens, and their losses.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::draws::{Pick, Samples};
use super::objective::SampleLosses;
use crate::data::{Loader, Sample, Source, TokenBatch};
use crate::models::CausalLm;
use crate::problem::has_frozen;
use crate::{Error, Result};

/// Draws whose samples are read before they are needed, if they are not in memory: more than a step or two, so that a slow read
/// among fast ones is not waited for.
const LOOK_AHEAD: usize = 4;

/// The tokenized samples of one or several [`Source`]s. Those of streamed sources are read in the background, some draws ahead.
#[derive(Debug)]
pub struct TokenSources {
    sources: Arc<[Source]>,
    drawn: AtomicU64,
    /// Started when it is first needed, if it is.
    loader: OnceLock<Loader>,
}

impl TokenSources {
    /// The samples of `sources`, which are shared and not copied.
    pub fn new(sources: impl Into<Arc<[Source]>>) -> Self {
        Self {
            sources: sources.into(),
            drawn: AtomicU64::new(0),
            loader: OnceLock::new(),
        }
    }

    /// Number of tokens drawn so far, without padding.
    pub fn tokens_drawn(&self) -> u64 {
        self.drawn.load(Ordering::Relaxed)
    }

    fn loader(&self) -> &Loader {
        self.loader
            .get_or_init(|| Loader::start(Arc::clone(&self.sources)))
    }

    fn sample(&self, pick: &Pick) -> Result<Cow<'_, Sample>> {
        match self.sources[pick.source].samples.in_memory() {
            Some(samples) => Ok(Cow::Borrowed(&samples[pick.index])),
            None => self
                .loader()
                .sample((pick.source, pick.index))
                .map(Cow::Owned),
        }
    }

    fn is_streamed(&self, source: usize) -> bool {
        self.sources[source].samples.in_memory().is_none()
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
        let samples = picks.iter().map(|pick| self.sample(pick));
        let samples: Vec<_> = samples.collect::<Result<_>>()?;
        let samples: Vec<&Sample> = samples.iter().map(AsRef::as_ref).collect();
        let tokens: usize = samples.iter().map(|sample| sample.ids.len()).sum();
        self.drawn.fetch_add(tokens as u64, Ordering::Relaxed);
        Ok(TokenBatch::new(&samples))
    }

    fn look_ahead(&self) -> usize {
        match (0..self.sources.len()).any(|source| self.is_streamed(source)) {
            true => LOOK_AHEAD,
            false => 0,
        }
    }

    fn prefetch(&self, picks: &[Pick]) {
        let read = picks.iter().filter(|pick| self.is_streamed(pick.source));
        self.loader()
            .ask(read.map(|pick| (pick.source, pick.index)));
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
