//! How `w` trains in methods for language models: some of its layers at a time, with clipped gradients.

use std::fmt;

use burn::module::Module;
use burn::optim::GradientsParams;

use crate::Result;
use crate::sampler::{AllLayers, LayerSampler};
use crate::solver::Variable;
use crate::solver::gradients::{check_limit, clip};

/// The layers of `w` that train, and the limit of its gradient's norm.
pub(super) struct Training {
    pub layers: Box<dyn LayerSampler>,
    pub clip: Option<f64>,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            layers: Box::new(AllLayers),
            clip: None,
        }
    }
}

impl Training {
    pub fn validate(&self) -> Result<()> {
        self.layers.validate()?;
        check_limit(self.clip)
    }

    /// Draws the layers that train at step `k`. Moments of layers that are frozen again are dropped.
    pub fn draw_layers<W: Module>(&mut self, k: usize, w: &mut Variable<W>) {
        if let Some(active) = self.layers.sample(k) {
            w.activate(&active.lower, false);
        }
    }

    /// The gradient of `w`, of global norm `norm`, within the limit.
    pub fn clip<W: Module>(&self, w: &W, gradient: GradientsParams, norm: f64) -> GradientsParams {
        clip(w, gradient, norm, self.clip)
    }
}

impl fmt::Debug for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Training")
            .field("clip", &self.clip)
            .finish_non_exhaustive()
    }
}
