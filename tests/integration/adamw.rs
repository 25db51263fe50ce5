//! AdamW in one pass on the CPU device.

use approx::assert_relative_eq;
use burn::module::Param;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, TensorData};
use scalebio::{Bilevel, ScaleBio, Update};

type Vector = Param<Tensor<1>>;

/// The path of w under an update rule, from a start and towards a target with numbers of very different size.
fn path(update: Update) -> Vec<f32> {
    let device = Device::flex().autodiff();
    let numbers = |scale: f32| {
        let numbers: Vec<f32> = (0..40_000)
            .map(|i| scale * ((i * 37 % 101) as f32 - 50.0))
            .collect();
        Tensor::<1>::from_data(TensorData::new(numbers, [40_000]), &device)
    };
    let (start, target) = (numbers(0.01), numbers(-3.0));
    let away = move |w: &Vector| (w.val() - target.clone()).square().sum();
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| w.val().sum(),
        lower: move |x: &Vector, w: &Vector| away(w) * x.val().sum(),
    };
    let x = Vector::from_data([1.0], &device);
    let w = Param::from_tensor(start);
    let mut run = ScaleBio::new(Update::sgd(1e-9), update)
        .start(problem, x, w)
        .unwrap();
    for step in run.by_ref().take(7) {
        step.unwrap();
    }
    run.lower().val().into_data().try_into_vec().unwrap()
}

/// The fused step takes Burn's own path: moments, bias correction and decoupled decay.
#[test]
fn the_fused_step_is_burns_step() {
    let config = AdamWConfig::new()
        .with_beta_1(0.8)
        .with_beta_2(0.95)
        .with_epsilon(1e-6)
        .with_weight_decay(0.3);
    let plain = path(Update::new(config.build(), 1e-2));
    let fused = path(
        Update::adamw(1e-2)
            .betas(0.8, 0.95)
            .epsilon(1e-6)
            .weight_decay(0.3),
    );
    for (fused, plain) in fused.iter().zip(&plain) {
        assert_relative_eq!(*fused, *plain, max_relative = 1e-5, epsilon = 1e-6);
    }
}
