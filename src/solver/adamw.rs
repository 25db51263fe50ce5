//! Burn's AdamW, in one pass on the CPU device.

use burn::optim::{self, AdamWConfig, AdamWState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

#[cfg(feature = "flex")]
use crate::kernels;

/// AdamW as Burn computes it, with Burn's state; where there is a kernel, in place and without temporaries.
#[derive(Clone)]
// The numbers are for the kernel; without one, `plain` has its own.
#[cfg_attr(not(feature = "flex"), allow(dead_code))]
pub(super) struct AdamW {
    plain: optim::AdamW,
    betas: [f32; 2],
    epsilon: f32,
    decay: f32,
}

impl AdamW {
    pub fn new(betas: (f32, f32), epsilon: f32, decay: f32) -> Self {
        let config = AdamWConfig::new().with_beta_1(betas.0).with_beta_2(betas.1);
        Self {
            plain: config
                .with_epsilon(epsilon)
                .with_weight_decay(decay)
                .build(),
            betas: betas.into(),
            epsilon,
            decay,
        }
    }

    #[cfg(feature = "flex")]
    fn coefficients(&self, rate: LearningRate, time: usize) -> kernels::AdamW {
        kernels::AdamW {
            betas: self.betas,
            corrections: self.betas.map(|beta| 1.0 - beta.powi(time as i32)),
            epsilon: self.epsilon,
            rate: rate as f32,
            decay: self.decay,
        }
    }
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        // The first step is left to the plain formula, which makes the moments.
        #[cfg(feature = "flex")]
        let (tensor, gradient, state) = match state {
            None => (tensor, gradient, None),
            Some(mut state) => {
                let moments = state.momentum;
                let step = self.coefficients(rate, moments.time + 1);
                let tensors = [tensor, moments.moment_1, moments.moment_2];
                match kernels::adamw(tensors, gradient, step) {
                    Ok([tensor, first, second]) => {
                        let moments =
                            optim::AdaptiveMomentumState::new(moments.time + 1, first, second);
                        return (tensor, Some(AdamWState::new(moments)));
                    }
                    Err(([tensor, first, second], gradient)) => {
                        state.momentum =
                            optim::AdaptiveMomentumState::new(moments.time, first, second);
                        (tensor, gradient, Some(state))
                    }
                }
            }
        };
        self.plain.step(rate, tensor, gradient, state)
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        optim::AdamW::to_device(state, device)
    }
}
