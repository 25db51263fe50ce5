//! Devices by the name that a user types.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// Each kind of device, and whether it is part of this build.
const KINDS: [(&str, bool); 7] = [
    ("flex", cfg!(feature = "flex")),
    ("ndarray", cfg!(feature = "ndarray")),
    // The others are wgpu with the graphics API settled.
    (
        "wgpu",
        cfg!(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu"
        )),
    ),
    ("vulkan", cfg!(feature = "vulkan")),
    ("metal", cfg!(feature = "metal")),
    ("webgpu", cfg!(feature = "webgpu")),
    ("cuda", cfg!(feature = "cuda")),
];

/// The device that a command line names: `flex`, `ndarray`, `wgpu[:cpu|:N]` (also `vulkan`, `metal`, `webgpu`, for wgpu on
/// that graphics API) or `cuda[:N]`.
///
/// N counts from 0, in the order in which the driver lists its devices; `wgpu:cpu` is a software GPU. Each kind needs the
/// cargo feature of its name. The device has no gradients yet: call `.autodiff()` on it for training.
///
/// # Errors
/// [`Error::Device`] for a name that is not known, a feature that is not part of this build, and hardware or a driver that
/// this machine does not have: it is looked for here, since the first tensor would panic without it.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// let device = scalebio::device("flex")?.autodiff();
/// # }
/// # Ok::<(), scalebio::Error>(())
/// ```
pub fn device(name: &str) -> Result<Device> {
    let (kind, selector) = match name.split_once(':') {
        None => (name, None),
        Some((kind, selector)) => (kind, Some(selector)),
    };
    match KINDS.iter().find(|(known, _)| *known == kind) {
        None => return Err(unknown(name)),
        Some((_, true)) => {}
        Some((_, false)) => {
            let message = format!("not part of this build; build with `--features {kind}`");
            return Err(unusable(name, message));
        }
    }
    match (kind, selector) {
        #[cfg(feature = "flex")]
        ("flex", None) => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", None) => {
            // Deprecated in favor of flex, against which we test it.
            #[allow(deprecated)]
            let device = Device::ndarray();
            Ok(device)
        }
        #[cfg(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu"
        ))]
        ("wgpu", _) => gpu::wgpu(name, selector, gpu::DeviceType::Wgpu, Device::wgpu),
        #[cfg(feature = "vulkan")]
        ("vulkan", _) => gpu::wgpu(name, selector, gpu::DeviceType::Vulkan, Device::vulkan),
        #[cfg(feature = "metal")]
        ("metal", _) => gpu::wgpu(name, selector, gpu::DeviceType::Metal, Device::metal),
        #[cfg(feature = "webgpu")]
        ("webgpu", _) => gpu::wgpu(name, selector, gpu::DeviceType::WebGpu, Device::webgpu),
        #[cfg(feature = "cuda")]
        ("cuda", _) => gpu::cuda(name, selector),
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    let message = "not known; the devices are `flex`, `ndarray`, `wgpu[:cpu|:N]` (also `vulkan`, `metal`, `webgpu`) \
                   and `cuda[:N]`";
    unusable(name, message.to_owned())
}

fn unusable(name: &str, message: String) -> Error {
    Error::Device {
        device: name.to_owned(),
        message,
    }
}

/// Looking for GPUs. Listing them is safe without any; opening one that is not there panics.
#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda"
))]
mod gpu {
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
}
