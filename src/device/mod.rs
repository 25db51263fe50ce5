//! Devices by the name that a user types.

#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda"
))]
mod gpu;
#[cfg(feature = "remote")]
mod remote;

use burn::tensor::Device;

use crate::error::{Error, Result};

/// Each kind of device, the cargo feature that it needs, and whether it is part of this build.
const KINDS: [(&str, &str, bool); 8] = [
    ("flex", "flex", cfg!(feature = "flex")),
    ("ndarray", "ndarray", cfg!(feature = "ndarray")),
    // The others are wgpu with the graphics API settled.
    (
        "wgpu",
        "wgpu",
        cfg!(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu"
        )),
    ),
    ("vulkan", "vulkan", cfg!(feature = "vulkan")),
    ("metal", "metal", cfg!(feature = "metal")),
    ("webgpu", "webgpu", cfg!(feature = "webgpu")),
    ("cuda", "cuda", cfg!(feature = "cuda")),
    ("ws", "remote", cfg!(feature = "remote")),
];

/// The device that a command line names: `flex`, `ndarray`, `wgpu[:cpu|:N]` (also `vulkan`, `metal`, `webgpu`, for wgpu on
/// that graphics API), `cuda[:N]` or `ws://HOST:PORT[/N]`, a device of another machine on which `scalebio serve` runs.
///
/// N counts from 0, in the order in which the driver, or the server, lists its devices; `wgpu:cpu` is a software GPU. Each
/// kind needs the cargo feature of its name, and `ws` the feature `remote`. The device has no gradients yet: call
/// `.autodiff()` on it for training.
///
/// The server asks for a token, which is taken from the environment variable `SCALEBIO_TOKEN`, so that it is in no file, no
/// shell history and no list of processes. Over the network it travels as unencrypted as everything else does: it keeps
/// strangers out of a network that is trusted, and no more; a tunnel (`ssh -L`) crosses one that is not. Where the connection
/// is lost later, see [`catch_lost_device`].
///
/// # Errors
/// [`Error::Device`] for a name that is not known, a feature that is not part of this build, and hardware or a driver that
/// this machine does not have: it is looked for here, since the first tensor would panic without it. For a device of another
/// machine: nothing that answers there within seconds, a token that the server refuses, a device that it does not have, and
/// another version of Burn.
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
    match KINDS.iter().find(|(known, ..)| *known == kind) {
        None => return Err(unknown(name)),
        Some((.., true)) => {}
        Some((_, feature, false)) => {
            let message = format!("not part of this build; build with `--features {feature}`");
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
        #[cfg(feature = "remote")]
        ("ws", Some(place)) => remote::open(name, place),
        _ => Err(unknown(name)),
    }
}

/// Runs `work`, and makes an error of what Burn does when a device of another machine is lost in it: it panics, wherever a
/// number of that device is read. Every other panic goes on.
///
/// A device is lost when its server ends or fails, or when the network between breaks; it then stays lost for this process,
/// and what was on it is gone. The steps of a [`Run`](crate::Run), its checkpoints, and trainings return this error by
/// themselves; what else reads numbers (losses on a test set, saving a model) can be wrapped. It asks the devices that
/// [`device`] has opened for a sign of life, so in a process that has lost one any later panic counts as its loss. Without
/// the feature `remote` it just runs `work`.
///
/// The message that a panic prints is up to the program's panic hook, which runs before this.
///
/// # Errors
/// [`Error::Device`] with the name of the device that is lost; those of `work`.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Tensor;
/// # use scalebio::burn;
///
/// let device = scalebio::device("flex")?; // or ws://HOST:PORT
/// let sum = scalebio::catch_lost_device(|| {
///     let sum = Tensor::<1>::from_data([1.0, 2.0], &device).sum();
///     Ok::<f32, scalebio::Error>(sum.into_scalar())
/// })?;
/// assert_eq!(sum, 3.0);
/// # }
/// # Ok::<(), scalebio::Error>(())
/// ```
pub fn catch_lost_device<T, E: From<Error>>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    #[cfg(feature = "remote")]
    return remote::catch(work);
    #[cfg(not(feature = "remote"))]
    work()
}

fn unknown(name: &str) -> Error {
    let message = "not known; the devices are `flex`, `ndarray`, `wgpu[:cpu|:N]` (also `vulkan`, `metal`, `webgpu`), \
                   `cuda[:N]` and `ws://HOST:PORT[/N]`";
    unusable(name, message.to_owned())
}

fn unusable(name: &str, message: String) -> Error {
    Error::Device {
        device: name.to_owned(),
        message,
    }
}
