//! The plan and the settings of runs that offload, and what is refused.

use scalebio::models::{
    CausalLm, DeviceMemory, Dtype, MemoryPlan, ModelSize, Offloading, PlanConfig,
};
use scalebio::train::Experiment;

use super::{PLACES, begin, devices, take};
use crate::blockwise::folders;
use crate::resume_training;

/// The memory plan's rows of parameters and moments are what a run holds, on the device and on the host, and the bytes that it says
/// a step moves are those.
#[test]
fn the_plan_is_what_a_run_holds() {
    let [device, host] = devices();
    for folder in folders("hf") {
        let model = CausalLm::from_pretrained(&folder, &device).unwrap();
        let size = ModelSize::of(&model);
        for (offload, of) in [Offloading::Frozen, Offloading::FrozenAndMoments]
            .into_iter()
            .zip(PLACES)
        {
            let plan = |offload| {
                let config = PlanConfig {
                    lisa_blocks: Some(1),
                    length: 8,
                    offload,
                    blockwise: Some(true),
                    ..PlanConfig::default()
                };
                MemoryPlan::new(&size, &config).unwrap()
            };
            let (plain, plan) = (plan(None), plan(Some(offload)));
            let model = model.clone().offload(std::slice::from_ref(&device), &host);
            let mut run = begin(model.unwrap()).offload(of);
            take(&mut run, 1);
            // A step that draws no other blocks.
            let moved = take(&mut run, 1)[0].bytes_moved();
            assert_eq!(
                moved,
                Some(plan.bytes_moved()),
                "{}, {offload}",
                folder.display()
            );
            assert_eq!(plain.bytes_moved(), 0);
            let of_x = 2 * (4 + 8);
            let held = |memory: &DeviceMemory| memory.u + memory.w + memory.moments;
            let (on_device, on_host) = (&plan.devices()[0], plan.host().unwrap());
            let what = format!("{}, {offload}", folder.display());
            let found = run.bytes_on(&device) as u64;
            assert_eq!(held(on_device), found - of_x, "{what}");
            // Until they have trained, frozen blocks are on the host once; the plan without `draws` has them twice.
            assert_eq!(held(on_host), run.bytes_on(&host) as u64, "{what}");

            let block = 4 * size.per_block() as u64;
            let frozen = 2 * (size.blocks() as u64 - 1) * block;
            assert_eq!(on_host.total, held(on_host));
            if offload == Offloading::Frozen {
                let falls = plain.largest() - plan.largest();
                assert_eq!(on_host.total, frozen, "{what}");
                assert!(
                    (frozen - block..=frozen).contains(&falls),
                    "{what}: {falls}"
                );
            } else {
                assert_eq!(on_device.moments, 0);
                assert_eq!(on_host.moments, plain.devices()[0].moments);
            }
        }
    }
}

/// With the settings of a run: weights, files and model are those of the run without, and the log has the price.
#[test]
fn settings_offload_a_run() {
    let data = resume_training::data();
    let folder = tempfile::tempdir().unwrap();
    let mut expected: Option<(String, Vec<String>)> = None;
    for (name, offload) in [
        ("plain", None),
        ("frozen", Some(Offloading::Frozen)),
        ("moments", Some(Offloading::FrozenAndMoments)),
    ] {
        let out = folder.path().join(name);
        let mut config = resume_training::config(data.path());
        (config.steps, config.lisa_blocks, config.lisa_period) = (4, Some(1), 2);
        (config.device, config.offload) = ("ndarray".to_owned(), offload);
        let experiment = Experiment::open(config).unwrap();
        assert_eq!(
            experiment.plan().unwrap().host().is_some(),
            offload.is_some()
        );
        let mut run = experiment.reweight(&out).unwrap();
        run.by_ref().for_each(|step| drop(step.unwrap()));
        let weights = std::fs::read_to_string(run.weights_path()).unwrap();
        let lines = resume_training::metrics(&out);
        let split = |line: &String| match line.split_once(",\"bytes_moved\":") {
            Some((line, _)) => (format!("{line}}}"), true),
            None => (line.clone(), false),
        };
        let (lines, priced): (Vec<_>, Vec<_>) = lines.iter().map(split).unzip();
        assert_eq!(priced, vec![offload.is_some(); 4], "{name}");
        match &expected {
            None => expected = Some((weights, lines)),
            Some(expected) => assert_eq!((weights, lines), *expected, "{name}"),
        }
        // Training afresh on fixed weights is offloaded too.
        let uniform = experiment.uniform_weights().unwrap();
        let losses: Vec<_> = experiment
            .train(uniform)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(losses.len(), 4, "{name}");
    }
}

/// A host without the model's type is refused before anything is moved, and so is a type that the host has not got.
#[test]
fn a_host_without_the_type_is_an_error() {
    let [ndarray, flex] = devices();
    let model = CausalLm::from_pretrained(&folders("hf")[0], &flex).unwrap();
    let half = model.clone().cast(Dtype::Bfloat16).unwrap();
    let error = half
        .offload(std::slice::from_ref(&flex), &ndarray)
        .unwrap_err();
    assert!(error.to_string().contains("dtype"), "{error}");
    let model = model
        .offload(std::slice::from_ref(&flex), &ndarray)
        .unwrap();
    let error = model.cast(Dtype::Bfloat16).unwrap_err();
    assert!(error.to_string().contains("dtype"), "{error}");
}
