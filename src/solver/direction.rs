//! The direction of an update.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamState, AdamWState, AdaptiveMomentumState, GradientsParams};
use burn::tensor::Tensor;

use super::gradients::widened;
use super::optimizer::Optimizer;
use super::update::{Adam, Update};

/// The direction against which a step along `gradient` would move the module, a unit of the rate: with Adam's moments `m`, `s`
/// before that step, which has number `t` from 1,
///
/// ```text
/// [(b1 m + (1 - b1) g) / (1 - b1^t)] / [sqrt((b2 s + (1 - b2) g^2) / (1 - b2^t)) + epsilon]
/// ```
///
/// and for another optimizer the gradient itself. Decay is left out: it does not depend on the gradient. Moments stay as they
/// are.
pub(super) fn direction<M: Module>(
    module: &M,
    update: &Update,
    optimizer: &Optimizer,
    gradient: GradientsParams,
) -> GradientsParams {
    let Some((adam, decoupled)) = update.adam_family() else {
        return gradient;
    };
    let mut walk = Walk {
        adam,
        decoupled,
        optimizer,
        gradient,
        direction: GradientsParams::new(),
    };
    module.visit(&mut walk);
    walk.direction
}

struct Walk<'a> {
    adam: Adam,
    decoupled: bool,
    optimizer: &'a Optimizer,
    gradient: GradientsParams,
    direction: GradientsParams,
}

impl ModuleVisitor for Walk<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradient.remove::<D>(param.id) else {
            return;
        };
        let moments = self.optimizer.moments(&param.id);
        let moments = moments.map(|moments| match self.decoupled {
            true => &moments.downcast_ref::<AdamWState<D>>().momentum,
            false => &moments.downcast_ref::<AdamState<D>>().momentum,
        });
        let direction = along(&self.adam, moments, widened(gradient));
        self.direction.register(param.id, direction);
    }
}

fn along<const D: usize>(
    adam: &Adam,
    moments: Option<&AdaptiveMomentumState<D>>,
    gradient: Tensor<D>,
) -> Tensor<D> {
    let (b1, b2) = (f64::from(adam.betas.0), f64::from(adam.betas.1));
    let square = gradient.clone().square() * (1.0 - b2);
    let gradient = gradient * (1.0 - b1);
    let (time, first, second) = match moments {
        None => (0, gradient, square),
        Some(moments) => (
            moments.time,
            moments.moment_1.clone() * b1 + gradient,
            moments.moment_2.clone() * b2 + square,
        ),
    };
    let t = time as f64 + 1.0;
    let root = (second / (1.0 - b2.powf(t))).sqrt() + f64::from(adam.epsilon);
    first / (root * (1.0 - b1.powf(t)))
}
