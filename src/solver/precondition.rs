//! How Adam's update answers to its gradient.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamState, AdamWState, AdaptiveMomentumState, GradientsParams};
use burn::tensor::Tensor;

use super::optimizer::Optimizer;
use super::update::{Adam, Update};

/// `D v`, where the diagonal `D` is the derivative of Adam's update, without its rate, in the gradient `g` of the step
/// to come. With the moments `m`, `s` before that step, which has number `t` from 1, and epsilon small beside the root,
///
/// ```text
/// D = [(1 - b1) b2 s - b1 (1 - b2) g m] / [(1 - b1^t) (1 - b2^t) (root + epsilon)^3]
/// root = sqrt((b2 s + (1 - b2) g^2) / (1 - b2^t))
/// ```
///
/// It is zero where there are no moments yet: Adam's first step is the sign of its gradient, whatever its size. For
/// another optimizer `D` is the identity.
pub(super) fn precondition<M: Module>(
    module: &M,
    update: &Update,
    optimizer: &Optimizer,
    gradient: &GradientsParams,
    v: GradientsParams,
) -> GradientsParams {
    let Some((adam, decoupled)) = update.adam_family() else {
        return v;
    };
    let mut product = Product {
        adam,
        decoupled,
        optimizer,
        gradient,
        v,
        product: GradientsParams::new(),
    };
    module.visit(&mut product);
    product.product
}

struct Product<'a> {
    adam: Adam,
    decoupled: bool,
    optimizer: &'a Optimizer,
    gradient: &'a GradientsParams,
    v: GradientsParams,
    product: GradientsParams,
}

impl ModuleVisitor for Product<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (Some(v), Some(moments)) = (
            self.v.remove::<D>(param.id),
            self.optimizer.moments(&param.id),
        ) else {
            return;
        };
        let moments = if self.decoupled {
            &moments.downcast_ref::<AdamWState<D>>().momentum
        } else {
            &moments.downcast_ref::<AdamState<D>>().momentum
        };
        let m = &moments.moment_1;
        let gradient = match self.gradient.get::<D>(param.id) {
            Some(gradient) => gradient.cast(m.dtype()).to_device(&m.device()),
            None => m.zeros_like(),
        };
        let slope = slope(&self.adam, moments, gradient);
        let v = v.cast(m.dtype()).to_device(&m.device());
        self.product.register(param.id, slope * v);
    }
}

fn slope<const D: usize>(
    adam: &Adam,
    moments: &AdaptiveMomentumState<D>,
    gradient: Tensor<D>,
) -> Tensor<D> {
    let (b1, b2) = (f64::from(adam.betas.0), f64::from(adam.betas.1));
    let t = moments.time as f64 + 1.0;
    let (unbias1, unbias2) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));
    let (m, s) = (moments.moment_1.clone(), moments.moment_2.clone());
    let new = s.clone() * b2 + gradient.clone().square() * (1.0 - b2);
    let root = (new / unbias2).sqrt() + f64::from(adam.epsilon);
    let numerator = s * ((1.0 - b1) * b2) - gradient * m * (b1 * (1.0 - b2));
    // One division after the other: a cube would leave the range of float32.
    numerator / root.clone() / root.clone() / (root * (unbias1 * unbias2))
}
