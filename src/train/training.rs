//! Training a model on fixed source weights.

use super::config::ReweightConfig;
use super::experiment::Experiment;
use crate::models::CausalLm;
use crate::problem::LowerObjective;
use crate::reweight::{SourceWeights, TokenSources, WeightedSources};
use crate::sampler::{LayerSampler, Lisa};
use crate::solver::gradients::{clip, combine, global_norm, total};
use crate::solver::{Update, Variable};
use crate::{Error, Result};

/// Training of the base model on weights that stay as they are: what the auxiliary variable `u` does in a
/// run whose upper variable stands still. An iterator over the losses `L2`, as many as the settings say.
#[derive(Debug)]
#[must_use = "training does nothing until its steps are taken"]
pub struct Training {
    model: Variable<CausalLm>,
    weights: SourceWeights,
    objective: WeightedSources<TokenSources>,
    update: Update,
    layers: Option<Lisa>,
    config: ReweightConfig,
    step: usize,
    failed: bool,
}

impl Training {
    pub(super) fn start(experiment: &Experiment, weights: SourceWeights) -> Result<Self> {
        let config = experiment.config().clone();
        let model = experiment.base_model()?;
        let update = config.lower();
        Ok(Self {
            layers: experiment.layers(&model)?,
            model: Variable::new(model, &update, "model")?,
            weights,
            objective: WeightedSources::new(experiment.training_draws())?,
            update,
            config,
            step: 0,
            failed: false,
        })
    }

    fn advance(&mut self) -> Result<f64> {
        if let Some(active) = self
            .layers
            .as_mut()
            .and_then(|layers| layers.sample(self.step))
        {
            self.model.activate(&active.auxiliary, false);
        }
        let (model, weights) = (self.model.module(), &self.weights);
        let draw = LowerObjective::<SourceWeights, CausalLm>::sample(&mut self.objective)?;
        let g = total(&draw, weights, model, |batch| {
            batch.weighted_gradients(weights, model)
        })?;
        // The factor alpha is u's, so that SGD and clipping act as they did there.
        let alpha = self.config.alpha;
        let gradients = combine(model, vec![(alpha, g.of_lower)]);
        let norm = global_norm(model, &gradients);
        if !norm.is_finite() {
            return Err(Error::NonFinite {
                step: self.step,
                quantity: "the norm of the gradient".to_owned(),
                value: norm,
            });
        }
        let gradients = clip(model, gradients, norm, self.config.clip.map(|c| c * alpha));
        self.model.step(self.update.rate_at(self.step), gradients);
        self.step += 1;
        Ok(g.loss)
    }

    /// The model as it stands.
    pub fn model(&self) -> &CausalLm {
        self.model.module()
    }
}

impl Iterator for Training {
    type Item = Result<f64>;

    /// Takes a step and returns the training loss before it. `None` after the last step, or after an error.
    fn next(&mut self) -> Option<Result<f64>> {
        if self.failed || self.step >= self.config.steps {
            return None;
        }
        let loss = self.advance();
        self.failed = loss.is_err();
        Some(loss)
    }
}
