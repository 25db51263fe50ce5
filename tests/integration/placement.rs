//! Where the models of a run are changes its results by rounding only.

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use scalebio::models::{MemoryPlan, ModelSize, Placement, PlanConfig};
use scalebio::train::{Experiment, PlacementKind, ReweightConfig};
use scalebio::{Bilevel, ScaleBio, Update};
use tempfile::tempdir;

use crate::evaluate::stories;
use crate::program::scalebio;
use crate::resume_training::data;
use crate::zoo::{Vector, largest_difference};

const STEPS: usize = 20;

/// LISA on a small pretrained Llama, on these devices.
fn config(data: &Path, devices: &[&str], placement: Option<PlacementKind>) -> ReweightConfig {
    let mut config = ReweightConfig::new(data);
    config.model = Some(stories());
    (config.steps, config.batch, config.max_length) = (STEPS, 4, 12);
    (config.lisa_blocks, config.lisa_period) = (Some(2), 5);
    (config.lr_lower, config.checkpoint_minutes) = (1e-3, None);
    config.devices = devices.iter().map(|name| (*name).to_owned()).collect();
    config.placement = placement;
    config
}

fn weights(config: ReweightConfig) -> Vec<f64> {
    let folder = tempdir().unwrap();
    let experiment = Experiment::open(config).unwrap();
    let mut run = experiment.reweight(folder.path().join("run")).unwrap();
    run.by_ref().for_each(|step| drop(step.unwrap()));
    run.run().upper().weights()
}

/// The devices that a model's parameters are on, in order.
fn places(model: &impl Module) -> Vec<Device> {
    struct Places(Vec<Device>);
    impl ModuleVisitor for Places {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let device = param.val().device().inner();
            if !self.0.contains(&device) {
                self.0.push(device);
            }
        }
    }
    let mut places = Places(Vec::new());
    model.visit(&mut places);
    places.0
}

/// The promise of `--devices`: u and w apart, or blocks spread, whichever device comes first, give the weights of one
/// device, and the models are where the placement says.
#[test]
fn two_devices_learn_the_weights_of_one() {
    #[allow(deprecated)]
    let (flex, ndarray) = (Device::flex(), Device::ndarray());
    let data = data();
    let alone = weights(config(data.path(), &[], None));
    assert!(
        (alone[0] - 1.0 / 3.0).abs() > 1e-3,
        "nothing was learned: {alone:?}"
    );
    for names in [["flex", "ndarray"], ["ndarray", "flex"]] {
        for kind in [PlacementKind::Apart, PlacementKind::Spread] {
            let config = config(data.path(), &names, Some(kind));
            let both = weights(config.clone());
            let difference = largest_difference(&both, &alone);
            assert!(difference < 1e-5, "{names:?} {kind:?}: {both:?} {alone:?}");

            let (folder, experiment) = (tempdir().unwrap(), Experiment::open(config).unwrap());
            let run = experiment.reweight(folder.path().join("run")).unwrap();
            let [of_w, of_u] = [run.run().lower(), run.run().auxiliary()].map(places);
            let [first, second] = match names[0] {
                "flex" => [flex.clone(), ndarray.clone()],
                _ => [ndarray.clone(), flex.clone()],
            };
            match kind {
                PlacementKind::Apart => assert_eq!((of_w, of_u), (vec![first], vec![second])),
                PlacementKind::Spread => {
                    assert_eq!(of_w, [first, second]);
                    assert_eq!(of_u, of_w);
                }
            }
        }
    }
}

/// A run with u and w apart goes on from its checkpoint bit for bit, and on one device up to rounding.
#[test]
fn a_run_on_two_devices_resumes_there_and_on_one() {
    let (data, folder) = (data(), tempdir().unwrap());
    let config = config(
        data.path(),
        &["flex", "ndarray"],
        Some(PlacementKind::Apart),
    );
    let whole = weights(config.clone());
    for devices in [config.devices.clone(), Vec::new()] {
        let out = folder.path().join(format!("run-{}", devices.len()));
        let experiment = Experiment::open(config.clone()).unwrap();
        let mut run = experiment.reweight(&out).unwrap();
        run.by_ref().take(7).for_each(|step| drop(step.unwrap()));
        run.checkpoint().unwrap();
        drop(run);

        let mut again = ReweightConfig::read(&out).unwrap();
        assert_eq!(again, config);
        if devices.is_empty() {
            (again.devices, again.placement) = (devices.clone(), None);
        }
        let experiment = Experiment::open(again).unwrap();
        let mut run = experiment.resume(&out).unwrap();
        run.by_ref().for_each(|step| drop(step.unwrap()));
        let found = run.run().upper().weights();
        match devices.len() {
            2 => assert_eq!(found, whole),
            _ => assert!(
                largest_difference(&found, &whole) < 1e-5,
                "{found:?} {whole:?}"
            ),
        }
    }
}

/// Any module: `u` on another device than `w` and `x` takes the steps of one device, and goes on there bit for bit.
#[test]
fn u_of_any_problem_can_be_elsewhere() {
    #[allow(deprecated)]
    let (here, there) = (Device::flex().autodiff(), Device::ndarray().autodiff());
    let problem = || Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val() - x.val().to_device(&w.device())).square().sum(),
    };
    let zeros = || Vector::from_data([0.0, 0.5], &here);
    let method = || ScaleBio::new(Update::adam(0.1), Update::adam(0.02));
    let place = |u: Vector| Ok(u.fork(&there));
    let values = |x: &Vector| -> Vec<f64> { x.val().into_data().iter().collect() };

    let mut alone = method().start(problem(), zeros(), zeros()).unwrap();
    let mut apart = method()
        .start_apart(problem(), zeros(), zeros(), place)
        .unwrap();
    let folder = tempdir().unwrap();
    for step in 0..20 {
        if step == 8 {
            apart.checkpoint(folder.path()).unwrap();
        }
        alone.next().unwrap().unwrap();
        apart.next().unwrap().unwrap();
    }
    assert_eq!(places(apart.auxiliary()), [there.clone().inner()]);
    assert!(largest_difference(&values(apart.upper()), &values(alone.upper())) < 1e-5);

    let again = method().resume_apart(folder.path(), problem(), zeros(), zeros(), place);
    let mut again = again.unwrap();
    again.by_ref().take(12).for_each(|step| drop(step.unwrap()));
    assert_eq!(places(again.auxiliary()), places(apart.auxiliary()));
    assert_eq!(values(again.upper()), values(apart.upper()));
    assert_eq!(values(again.auxiliary()), values(apart.auxiliary()));
}

/// The planner takes the faster placement, u and w apart, as long as it fits; then the one that fits; then the smaller.
#[test]
fn the_planner_takes_the_fastest_placement_that_fits() {
    let size = ModelSize::read(stories()).unwrap();
    let config = PlanConfig::default();
    let largest = |placement| {
        let config = PlanConfig {
            placement,
            ..config.clone()
        };
        MemoryPlan::new(&size, &config).unwrap().largest()
    };
    let (apart, spread) = (largest(Placement::Apart(4)), largest(Placement::Spread(4)));
    assert!(spread < apart);
    let place = |devices, capacity| MemoryPlan::place(&size, &config, devices, capacity).unwrap();
    assert_eq!(place(1, Some(1)), Placement::One);
    assert_eq!(place(4, None), Placement::Apart(4));
    assert_eq!(place(4, Some(apart)), Placement::Apart(4));
    assert_eq!(place(4, Some(apart - 1)), Placement::Spread(4));
    assert_eq!(place(4, Some(1)), Placement::Spread(4));
    // Five blocks: more devices than the blocks of one model, but not of both.
    assert_eq!(place(8, Some(1)), Placement::Apart(8));
    let without_u = PlanConfig {
        auxiliary: false,
        ..config.clone()
    };
    assert_eq!(
        MemoryPlan::place(&size, &without_u, 4, None).unwrap(),
        Placement::Spread(4)
    );
}

/// Processes on one machine divide the devices if each gets as many; the settings on the disk are the same for all.
#[test]
fn processes_divide_the_devices_of_their_machine() {
    let names = ["flex", "ndarray", "wgpu:0", "wgpu:1"];
    let mut config = config(Path::new("data"), &names, None);
    let whole = serde_json::to_string(&config).unwrap();
    for (share, part) in [
        (None, &names[..]),
        (Some((0, 1)), &names[..]),
        (Some((1, 2)), &names[2..]),
        (Some((3, 4)), &names[3..]),
        (Some((0, 3)), &names[..]),
        (Some((4, 4)), &names[..]),
    ] {
        config.device_share = share;
        assert_eq!(config.device_names(), part, "{share:?}");
        assert_eq!(serde_json::to_string(&config).unwrap(), whole);
    }
}

/// Devices that cannot be used as asked are errors that say what to do.
#[test]
fn impossible_devices_are_errors() {
    let data = data();
    let open = |config| Experiment::open(config).unwrap_err().to_string();
    let twice = config(data.path(), &["flex", "flex"], None);
    assert!(open(twice).contains("each device once"));
    let alone = config(data.path(), &["flex"], Some(PlacementKind::Apart));
    assert!(open(alone).contains("two devices or more"));
    for memory in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut config = config(data.path(), &["flex", "ndarray"], None);
        config.device_memory = Some(memory);
        assert!(open(config).contains("greater than 0"));
    }
}

/// The program says where the models are, and refuses a run that does not fit.
#[test]
fn the_program_prints_the_placement() {
    let (data, folder) = (data(), tempdir().unwrap());
    let (data, out) = (data.path().to_str().unwrap(), folder.path().join("run"));
    let model = stories();
    let flags = [
        "reweight",
        "--data",
        data,
        "--model",
        model.to_str().unwrap(),
        "--max-length",
        "12",
        "--batch",
        "4",
        "--steps",
        "2",
        "--no-compare",
        "--devices",
        "flex,ndarray",
        "--out",
        out.to_str().unwrap(),
    ];
    let run = |more: &[&str]| {
        let output = scalebio(&[&flags[..], more].concat());
        let texts =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8(text.clone()).unwrap());
        (output.status.success(), texts.concat())
    };
    let (well, text) = run(&["--device-memory", "0.001"]);
    assert!(
        !well && text.contains("more than --device-memory"),
        "{text}"
    );
    let (well, text) = run(&["--placement", "spread"]);
    assert!(
        well && text.contains("the blocks of w and u on devices: 0 is flex, 1 is ndarray"),
        "{text}"
    );

    let record = out.join("config.toml");
    let again = folder.path().join("again");
    let output = scalebio(&[
        "reweight",
        "--config",
        record.to_str().unwrap(),
        "--out",
        again.to_str().unwrap(),
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let weights = |out: &Path| std::fs::read_to_string(out.join("weights.json")).unwrap();
    assert_eq!(weights(&out), weights(&again));
}
