//! Training a model on fixed source weights, and the loop of every training here.

use burn::optim::GradientsParams;

use super::config::ReweightConfig;
use super::experiment::Experiment;
use crate::models::CausalLm;
use crate::problem::LowerObjective;
use crate::reweight::{SourceWeights, TokenSources, WeightedSources};
use crate::sampler::{LayerSampler, Lisa};
use crate::solver::gradients::{clip, combine, global_norm, total};
use crate::solver::{Update, Variable};
use crate::{Error, Gradients, Result, catch_lost_device};

/// A model and what moves it along the gradients it is given.
#[derive(Debug)]
pub(super) struct Trainer {
    model: Variable<CausalLm>,
    update: Update,
    layers: Option<Lisa>,
    /// What gradients are multiplied by.
    scale: f64,
    clip: Option<f64>,
    step: usize,
}

/// The loss before a step, and the norm of its gradient before clipping.
pub(super) struct Taken {
    pub loss: f64,
    pub gradient_norm: f64,
}

impl Trainer {
    pub fn new(
        model: CausalLm,
        update: Update,
        layers: Option<Lisa>,
        scale: f64,
        clip: Option<f64>,
    ) -> Result<Self> {
        let offload = model.offloaded();
        let mut model = Variable::new(model, &update, "model")?;
        model.offload(offload);
        if layers.is_none() {
            model.settle();
        }
        Ok(Self {
            model,
            update,
            layers,
            scale,
            clip,
            step: 0,
        })
    }

    /// Number of steps taken.
    pub fn steps(&self) -> usize {
        self.step
    }

    pub fn model(&self) -> &CausalLm {
        self.model.module()
    }

    pub fn rate(&self) -> f64 {
        self.update.rate_at(self.step)
    }

    /// The direction against which a step along these gradients of the model would go: with Adam, that of its moments after
    /// them. Nothing moves, and nothing is clipped.
    pub fn direction(&self, gradients: GradientsParams) -> GradientsParams {
        let gradients = combine(self.model(), vec![(self.scale, gradients)]);
        self.model.direction(&self.update, gradients)
    }

    /// Takes a step along the gradients of the model.
    pub fn advance(
        &mut self,
        gradients: impl FnOnce(&CausalLm) -> Result<Gradients>,
    ) -> Result<Taken> {
        catch_lost_device(|| self.step_along(gradients))
    }

    fn step_along(
        &mut self,
        gradients: impl FnOnce(&CausalLm) -> Result<Gradients>,
    ) -> Result<Taken> {
        if let Some(active) = self
            .layers
            .as_mut()
            .and_then(|layers| layers.sample(self.step))
        {
            self.model.activate(&active.auxiliary, false);
        }
        let model = self.model.module();
        let g = gradients(model)?;
        let gradients = combine(model, vec![(self.scale, g.of_lower)]);
        let norm = global_norm(model, &gradients);
        for (quantity, value) in [("the loss", g.loss), ("the norm of the gradient", norm)] {
            if !value.is_finite() {
                return Err(Error::NonFinite {
                    step: self.step,
                    quantity: quantity.to_owned(),
                    value,
                });
            }
        }
        let limit = self.clip.map(|limit| limit * self.scale);
        let gradients = clip(model, gradients, norm, limit);
        self.model.step(self.rate(), gradients);
        self.step += 1;
        Ok(Taken {
            loss: g.loss,
            gradient_norm: norm / self.scale,
        })
    }
}

/// Training of the base model on weights that stay as they are: what the auxiliary variable `u` does in a
/// run whose upper variable stands still. An iterator over the losses `L2`, as many as the settings say.
#[derive(Debug)]
#[must_use = "training does nothing until its steps are taken"]
pub struct Training {
    trainer: Trainer,
    weights: SourceWeights,
    objective: WeightedSources<TokenSources>,
    config: ReweightConfig,
    failed: bool,
}

impl Training {
    pub(super) fn start(experiment: &Experiment, weights: SourceWeights) -> Result<Self> {
        let config = experiment.config().clone();
        let model = experiment.base_model()?;
        let layers = experiment.layers(&model)?;
        // The factor alpha is u's, so that SGD and clipping act as they did there.
        let trainer = Trainer::new(model, config.lower(), layers, config.alpha, config.clip)?;
        Ok(Self {
            trainer,
            weights,
            objective: WeightedSources::new(experiment.training_draws())?,
            config,
            failed: false,
        })
    }

    fn advance(&mut self) -> Result<f64> {
        let (objective, weights) = (&mut self.objective, &self.weights);
        let taken = self.trainer.advance(|model| {
            let draw = LowerObjective::<SourceWeights, CausalLm>::sample(objective)?;
            total(&draw, weights, model, |batch| {
                batch.weighted_gradients(weights, model)
            })
        })?;
        Ok(taken.loss)
    }

    /// The model as it stands.
    pub fn model(&self) -> &CausalLm {
        self.trainer.model()
    }
}

impl Iterator for Training {
    type Item = Result<f64>;

    /// Takes a step and returns the training loss before it. `None` after the last step, or after an error.
    fn next(&mut self) -> Option<Result<f64>> {
        if self.failed || self.trainer.steps() >= self.config.steps {
            return None;
        }
        let loss = self.advance();
        self.failed = loss.is_err();
        Some(loss)
    }
}
