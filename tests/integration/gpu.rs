//! The GPU path, on Mesa's software device (docs/architecture.md says how to install it). Skips with a message
//! where there is none.

use std::path::Path;

use burn::tensor::Device;
use scalebio::{Bilevel, ScaleBio, Update};

use crate::zoo::Vector;

fn software_gpu() -> Option<Device> {
    match scalebio::device("wgpu:cpu") {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("SCALEBIO_GPU").is_none(), "{error}");
            crate::zoo::say(&format!("skipped: {error}"));
            None
        }
    }
}

#[test]
fn gpu_solves_the_quadratic() {
    let Some(device) = software_gpu() else { return };
    let device = device.autodiff();
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    };
    let zeros = || Vector::from_data([0.0, 0.0], &device);
    let solution = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02))
        .solve(problem, zeros(), zeros(), 500)
        .unwrap();
    for x in solution.upper.val().into_data().iter::<f64>() {
        assert!((x - 3.0).abs() < 1e-3, "{x}");
    }
}

#[test]
#[cfg(feature = "llm")]
fn gpu_runs_gpt2_as_transformers_does() {
    let Some(device) = software_gpu() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/gpt2");
    let expected = folder.join("expected.safetensors");
    let report = crate::compare::compare(&folder, &expected, &device).unwrap();
    assert!(report.within(1e-3), "{report:?}");
}

#[test]
fn gpu_trains_a_small_gpt2_as_the_cpu_does() {
    let Some(gpu) = software_gpu() else { return };
    let trained = |device: Device| {
        let mut run = crate::lisa_gpt2::start_small(&device.autodiff());
        run.by_ref().take(3).for_each(|step| drop(step.unwrap()));
        run.upper().weights()
    };
    let (ours, cpu) = (trained(gpu), trained(Device::flex()));
    assert!((cpu[0] - 0.5).abs() > 1e-3, "{cpu:?}");
    assert!(
        crate::zoo::largest_difference(&ours, &cpu) < 1e-3,
        "{ours:?} {cpu:?}"
    );
}

/// Blocks on the CPU and on the GPU: the weights after twenty steps are those of the CPU alone.
#[test]
#[cfg(feature = "llm")]
fn gpu_and_cpu_share_a_model() {
    let Some(gpu) = software_gpu() else { return };
    let weights = |devices: &[Device]| {
        let mut run = crate::lisa_gpt2::start_spread(devices);
        run.by_ref().take(20).for_each(|step| drop(step.unwrap()));
        run.upper().weights()
    };
    let cpu = Device::flex().autodiff();
    let (both, alone) = (weights(&[cpu.clone(), gpu.autodiff()]), weights(&[cpu]));
    assert!(
        crate::zoo::largest_difference(&both, &alone) < 1e-3,
        "{both:?} {alone:?}"
    );
}

/// u on the GPU and w on the CPU: the weights after twenty steps are those of the CPU alone.
#[test]
#[cfg(feature = "llm")]
fn gpu_and_cpu_hold_a_model_each() {
    let Some(gpu) = software_gpu() else { return };
    let cpu = Device::flex().autodiff();
    let weights = |of_u: &Device| {
        let mut run = crate::lisa_gpt2::start_apart(&cpu, of_u).in_parallel();
        run.by_ref().take(20).for_each(|step| drop(step.unwrap()));
        run.upper().weights()
    };
    let (both, alone) = (weights(&gpu.autodiff()), weights(&cpu));
    assert!((alone[0] - 0.5).abs() > 1e-3, "{alone:?}");
    assert!(
        crate::zoo::largest_difference(&both, &alone) < 1e-3,
        "{both:?} {alone:?}"
    );
}

/// Frozen blocks in the memory of the CPU: the run of the GPU alone, bit for bit, with the active blocks on the GPU.
#[test]
fn gpu_trains_with_its_frozen_blocks_on_the_cpu() {
    let Some(gpu) = software_gpu() else { return };
    let (gpu, cpu) = (gpu.autodiff(), Device::flex().autodiff());
    for of in crate::offload::PLACES {
        crate::offload::check(&gpu, &cpu, of);
    }
}
