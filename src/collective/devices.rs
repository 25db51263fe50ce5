//! Several CUDA devices of one process, a thread each, through Burn's all-reduce (NCCL).

use std::time::Duration;

use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor};

use super::{Collective, Threads};
use crate::{Error, Result};

/// One of several CUDA devices of a process: each has a thread of its own, with models on that device, and gradients are
/// summed by NCCL without passing the host.
///
/// NCCL waits without end, so the threads meet before each sum, where one that has ended or hangs is an error. Compiled and
/// type-checked, but never run: there was no machine with two GPUs.
#[derive(Debug)]
pub struct CudaDevices {
    threads: Threads,
    devices: Vec<Device>,
}

impl CudaDevices {
    /// A collective for each of `devices`, by rank, for a thread whose variables are on that device. A rank waits for the
    /// others up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for no device or no time.
    pub fn new(devices: &[Device], timeout: Duration) -> Result<Vec<Self>> {
        let threads = Threads::new(devices.len(), timeout)?;
        // Gradients are without autodiff.
        let devices: Vec<_> = devices.iter().cloned().map(Device::inner).collect();
        let of_thread = |threads| Self {
            threads,
            devices: devices.clone(),
        };
        Ok(threads.into_iter().map(of_thread).collect())
    }
}

impl Collective for CudaDevices {
    fn rank(&self) -> usize {
        self.threads.rank()
    }

    fn ranks(&self) -> usize {
        self.threads.ranks()
    }

    fn sum(&mut self, tensor: Tensor<1>) -> Result<Tensor<1>> {
        let own = &self.devices[self.rank()];
        let found = tensor.device();
        let outcome = if found == *own {
            Vec::new()
        } else {
            format!("{found:?}").into_bytes()
        };
        // All meet also if one is wrong, so that none waits.
        for (rank, found) in self.threads.exchange(&outcome)?.iter().enumerate() {
            if !found.is_empty() {
                let found = String::from_utf8_lossy(found);
                let message = format!(
                    "its gradients are on {found}, but its device is {:?}",
                    self.devices[rank]
                );
                return Err(Error::Rank { rank, message });
            }
        }
        Ok(all_reduce(tensor, ReduceOperation::Sum, self.devices.clone()).resolve())
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.threads.exchange(bytes)
    }
}
