//! Devices by name: what is not there is an error, never a panic.

use scalebio::Error;

fn message(name: &str) -> String {
    let error = scalebio::device(name).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error:?}");
    error.to_string()
}

#[cfg(feature = "flex")]
#[test]
fn flex_is_found_and_has_no_gradients_yet() {
    let device = scalebio::device("flex").unwrap();
    assert_eq!(device, scalebio::burn::tensor::Device::flex());
    assert!(!device.is_autodiff());
}

#[test]
fn unknown_names_are_refused_with_those_there_are() {
    for name in [
        "",
        "gpu",
        "FLEX",
        "flex:0",
        "flex:",
        ":",
        "ndarray:cpu",
        "CUDA:0",
    ] {
        let text = message(name);
        assert!(text.starts_with(&format!("device `{name}`: ")), "{text}");
        assert!(
            text.contains("not known") || text.contains("--features"),
            "{text}"
        );
    }
    assert!(message("gpu").contains("`wgpu[:cpu|:N]`"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_outside_the_build_names_its_feature() {
    assert_eq!(
        message("cuda:1"),
        "device `cuda:1`: not part of this build; build with `--features cuda`"
    );
}

#[cfg(not(feature = "remote"))]
#[test]
fn a_device_of_another_machine_names_its_feature() {
    assert_eq!(
        message("ws://127.0.0.1:3000"),
        "device `ws://127.0.0.1:3000`: not part of this build; build with `--features remote`"
    );
}

#[cfg(feature = "wgpu")]
#[test]
fn an_adapter_that_is_not_there_is_an_error() {
    assert!(message("wgpu:1000").contains("mesa-vulkan-drivers"));
    assert!(message("wgpu:first").contains("not known"));
}
