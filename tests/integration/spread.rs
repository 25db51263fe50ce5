//! A model on several devices computes what it computes on one.

use burn::tensor::Device;
use scalebio::models::{CausalLm, Differentiation};
use scalebio::reweight::SampleLosses;

use crate::blockwise::{FACTORS, batch, blocks_of, compare, folders, read, with_active};
use crate::lisa_gpt2::start_spread;
use crate::zoo::largest_difference;

/// Both CPU devices, as two.
fn devices() -> [Device; 2] {
    #[allow(deprecated)]
    let devices = [Device::flex().autodiff(), Device::ndarray().autodiff()];
    devices
}

/// The promise: for each of the seven checkpoints, whichever device comes first and however gradients are computed, losses
/// and gradients are those of one device, and a parameter's gradient is where the parameter is.
#[test]
fn a_spread_model_has_the_gradients_of_one_device() {
    let [flex, ndarray] = devices();
    for folder in folders("hf") {
        let model = CausalLm::from_pretrained(&folder, &flex).unwrap();
        let batch = batch(model.vocabulary_size());
        let lowest = blocks_of(&model) - 1;
        for frozen in [false, true] {
            let model = match frozen {
                true => with_active(&model, &|block, _| block == Some(lowest)),
                false => model.clone(),
            };
            let (losses, gradients) = model.differentiate(&batch, &FACTORS).unwrap();
            let expected = (losses, read(&model, &gradients));
            for devices in [[&flex, &ndarray], [&ndarray, &flex]] {
                let spread = model.clone().spread(&devices.map(Clone::clone)).unwrap();
                for how in [
                    Differentiation::Plain,
                    Differentiation::Blockwise,
                    Differentiation::Balanced,
                ] {
                    let what = format!("{}, frozen {frozen}, {how:?}", folder.display());
                    let spread = spread.clone().with_differentiation(how);
                    let (losses, gradients) = spread.differentiate(&batch, &FACTORS).unwrap();
                    compare((losses, read(&spread, &gradients)), &expected, &what);
                }
            }
        }
    }
}

/// Twenty steps of LISA with the blocks on two devices lead to the weights of one device.
#[test]
fn a_run_of_a_spread_model_learns_the_same_weights() {
    let weights = |devices: &[Device]| {
        let mut run = start_spread(devices);
        run.by_ref().take(20).for_each(|step| drop(step.unwrap()));
        run.upper().weights()
    };
    let [flex, ndarray] = devices();
    let (one, two) = (
        weights(std::slice::from_ref(&flex)),
        weights(&[flex.clone(), ndarray]),
    );
    assert!((one[0] - 0.5).abs() > 1e-3, "nothing was learned: {one:?}");
    assert!(largest_difference(&one, &two) < 1e-5, "{one:?} {two:?}");
}

/// No device, or more than blocks, is an error that says what is allowed.
#[test]
fn devices_without_blocks_are_refused() {
    let [flex, _] = devices();
    let folder = &folders("hf")[0];
    let model = CausalLm::from_pretrained(folder, &flex).unwrap();
    let many = vec![flex; blocks_of(&model) + 1];
    for devices in [&many[..0], &many[..]] {
        let error = model.clone().spread(devices).unwrap_err().to_string();
        assert!(error.contains("the number of blocks"), "{error}");
    }
    let blocks = blocks_of(&model);
    for runs in [
        &[blocks][..],
        &[blocks, 0],
        &[blocks, 1],
        &[1, 1, blocks - 2],
    ] {
        let error = model.clone().spread_in_runs(&many[..2], runs).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("runs of blocks"), "{error}");
    }
}
