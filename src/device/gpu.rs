//! Looking for GPUs. Listing them is safe without any; opening one that is not there panics.

pub(super) use burn::tensor::DeviceType;
use burn::tensor::{Device, Devices};

use super::{unknown, unusable};
use crate::error::Result;

#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu"
))]
pub(super) fn wgpu(
    name: &str,
    selector: Option<&str>,
    kind: DeviceType,
    open: fn(burn::tensor::DeviceKind) -> Device,
) -> Result<Device> {
    use burn::tensor::DeviceKind;

    const INSTALL: &str = "install its driver (for a software GPU: `apt-get install mesa-vulkan-drivers`, \
                           and set XDG_RUNTIME_DIR to any folder)";
    let found = Device::enumerate(kind);
    match selector {
        None if !found.is_empty() => Ok(open(DeviceKind::DefaultDevice)),
        None => Err(unusable(name, format!("no adapter found; {INSTALL}"))),
        Some("cpu") => {
            let software = open(DeviceKind::Cpu);
            if found.contains(&software) {
                return Ok(software);
            }
            let message = format!("no software adapter among {} found; {INSTALL}", found.len());
            Err(unusable(name, message))
        }
        Some(index) => nth(name, index, found, INSTALL),
    }
}

#[cfg(feature = "cuda")]
pub(super) fn cuda(name: &str, selector: Option<&str>) -> Result<Device> {
    let found = Device::enumerate(DeviceType::Cuda);
    let remedy = "install the NVIDIA driver (libcuda), or use `flex` or `wgpu`";
    nth(name, selector.unwrap_or("0"), found, remedy)
}

fn nth(name: &str, index: &str, found: Devices, remedy: &str) -> Result<Device> {
    let Ok(index) = index.parse::<usize>() else {
        return Err(unknown(name));
    };
    let count = found.len();
    found.into_iter().nth(index).ok_or_else(|| {
        let message = format!("{count} found, counted from 0; use one of those, or {remedy}");
        unusable(name, message)
    })
}
