//! Random initial weights, the same on every device: drawn on the host from a seed.

use burn::{
    module::{Param, ParamId},
    nn::{Embedding, Linear},
    tensor::{Device, Tensor, TensorData},
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    linear,
    norm::{LayerNorm, RmsNorm},
};

/// Makes parameters that are drawn when they are first used. Each has a seed of its own, so that its values do not
/// depend on when, or whether, others are drawn.
pub(super) struct Draw<'a> {
    seeds: Xoshiro256PlusPlus,
    device: &'a Device,
}

impl<'a> Draw<'a> {
    pub(super) fn new(seed: u64, device: &'a Device) -> Self {
        let seeds = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self { seeds, device }
    }

    /// Where the parameters will be.
    pub(super) fn device(&self) -> &'a Device {
        self.device
    }

    /// A table of `count` rows of normal numbers.
    pub(super) fn embedding(&mut self, count: usize, width: usize, std: f64) -> Embedding {
        Embedding {
            weight: self.normal([count, width], std),
        }
    }

    /// Normal weights, and biases of 0.
    pub(super) fn linear(&mut self, input: usize, output: usize, std: f64) -> Linear {
        Linear {
            weight: self.normal([input, output], std),
            bias: Some(self.parameter([output], |len| vec![0.0; len])),
        }
    }

    /// Normal weights as checkpoints store them, and biases of 0 if there are any.
    pub(super) fn projection(
        &mut self,
        input: usize,
        output: usize,
        bias: bool,
        std: f64,
    ) -> linear::Linear {
        linear::Linear {
            weight: self.normal([output, input], std),
            bias: bias.then(|| self.parameter([output], |len| vec![0.0; len])),
        }
    }

    /// A norm that scales by 1 and shifts by 0.
    pub(super) fn layer_norm(&self, width: usize, epsilon: f64) -> LayerNorm {
        LayerNorm {
            gamma: self.parameter([width], |len| vec![1.0; len]),
            beta: self.parameter([width], |len| vec![0.0; len]),
            epsilon,
        }
    }

    /// A norm that scales by 1.
    pub(super) fn rms_norm(&self, width: usize, epsilon: f64, from_one: bool) -> RmsNorm {
        let weight = if from_one { 0.0 } else { 1.0 };
        RmsNorm {
            weight: self.parameter([width], move |len| vec![weight; len]),
            epsilon,
            from_one,
        }
    }

    fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<D>> {
        let seed = self.seeds.random();
        self.parameter(shape, move |len| normals(seed, std, len))
    }

    fn parameter<const D: usize>(
        &self,
        shape: [usize; D],
        values: impl Fn(usize) -> Vec<f32> + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        let init = move |device: &Device, train| {
            let data = TensorData::new(values(shape.iter().product()), shape);
            Tensor::from_data(data, device).set_require_grad(train)
        };
        Param::uninitialized(
            ParamId::new(),
            init,
            self.device.clone(),
            true,
            shape.into(),
        )
    }
}

/// Normal numbers by Box and Muller's method.
fn normals(seed: u64, std: f64, len: usize) -> Vec<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        // 1 - [0, 1) is never 0, so that its logarithm is finite.
        let radius = std * (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(len);
    values
}
