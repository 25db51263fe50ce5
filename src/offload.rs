//! Parameters that wait in host memory while they are frozen.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{Device, Tensor};

/// Where the parameters of a module are while they do not train: on a host device, beside a GPU usually `Device::flex()`. A
/// parameter goes to a device of its own when it is its turn to train, and back when it is frozen again; see
/// [`Run::offload`](crate::Run::offload).
///
/// A module must be able to compute with parameters that are on the host: it copies them to where it computes and drops the
/// copies afterwards. `CausalLm::offload` makes such a module, and `CausalLm::offloaded` gives this.
///
/// # Reference
///
/// The parameters' half of Ren et al., *ZeRO-Offload: Democratizing Billion-Scale Model Training*, USENIX ATC 2021, arXiv
/// 2101.06840. Updates are computed on the device, not on the host, so that results do not depend on what is offloaded.
#[derive(Clone, Debug)]
pub struct Offload {
    host: Device,
    homes: Arc<HashMap<String, Device>>,
    moments: bool,
    moved: Moved,
}

impl Offload {
    /// Parameters by module path, each with the device where it trains. Those that are not among them stay where they are.
    pub fn new(host: &Device, homes: impl IntoIterator<Item = (String, Device)>) -> Self {
        Self {
            host: host.clone(),
            homes: Arc::new(homes.into_iter().collect()),
            moments: false,
            moved: Moved::default(),
        }
    }

    /// Also keeps on the host, from one step to the next, what the optimizer remembers of every parameter that trains: its
    /// moments, and its float32 master if it is stored in half precision. They visit the device for the parameter's update,
    /// one parameter at a time. Default: they stay on the device.
    #[must_use]
    pub fn moments(self) -> Self {
        Self {
            moments: true,
            ..self
        }
    }

    /// The host device.
    pub fn host(&self) -> &Device {
        &self.host
    }

    /// Bytes that were moved between the host and other devices so far, both ways, counted by this and its clones:
    /// parameters, moments and masters.
    pub fn bytes_moved(&self) -> u64 {
        self.moved.bytes()
    }

    /// With a counter that counts further copies too.
    #[cfg(feature = "llm")]
    pub(crate) fn counted_by(self, moved: &Moved) -> Self {
        Self {
            moved: moved.clone(),
            ..self
        }
    }

    /// The counter.
    pub(crate) fn moved(&self) -> &Moved {
        &self.moved
    }

    /// Where the parameter at a path belongs while it trains or does not; nothing if it stays where it is.
    pub(crate) fn place(&self, path: &str, trains: bool) -> Option<&Device> {
        let home = self.homes.get(path)?;
        Some(if trains { home } else { &self.host })
    }

    /// Where what the optimizer remembers of a parameter on `device` belongs between steps.
    pub(crate) fn place_of_moments<'a>(&'a self, device: &'a Device) -> &'a Device {
        if self.moments { &self.host } else { device }
    }
}

/// Counts the bytes that are moved. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn count(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether the two count together.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The tensor on a device, with or without gradients as it is. One that is there already stays as it is.
    pub fn carry<const D: usize>(&self, tensor: Tensor<D>, device: &Device) -> Tensor<D> {
        if tensor.device() == *device {
            return tensor;
        }
        self.count(bytes_of(&tensor));
        tensor.to_device(device)
    }
}

/// Bytes of a tensor's numbers.
pub(crate) fn bytes_of<const D: usize>(tensor: &Tensor<D>) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}
