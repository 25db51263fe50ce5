//! One model on several devices.

use std::iter::repeat_n;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor},
};

use super::{CausalLm, dtype::Dtype, network::moved, offload::Offloaded};
use crate::error::{Error, Result};

impl CausalLm {
    /// The model with its blocks in runs of about equal length on these devices, in order: the embedding on the first; the
    /// final norm and the output head on the last, or with the embedding if the head is tied to it. Parameters stay
    /// trainable or frozen, and are moved one at a time.
    ///
    /// Hidden states and their gradients are handed on from device to device; the results are those of one device up to
    /// rounding. [`MemoryPlan`](super::MemoryPlan) with [`Placement::Spread`](super::Placement::Spread) says what this takes
    /// on each.
    ///
    /// Blocks of a model that is [offloaded](Self::offload) stay on the host, and are computed on these devices.
    ///
    /// # Errors
    /// [`Error::Setting`] for no device, more devices than blocks, and a device that does not have the model's type.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use scalebio::{burn::tensor::Device, models::CausalLm};
    ///
    /// let devices = [scalebio::device("wgpu:0")?.autodiff(), scalebio::device("wgpu:1")?.autodiff()];
    /// let model = CausalLm::from_pretrained("path/to/model", &Device::flex().autodiff())?;
    /// let model = model.spread(&devices)?;
    /// # Ok::<(), scalebio::Error>(())
    /// ```
    pub fn spread(self, devices: &[Device]) -> Result<Self> {
        let runs = self.equal_runs(devices.len());
        self.spread_in_runs(devices, &runs)
    }

    /// The blocks of each of so many devices, about equally many.
    pub(super) fn equal_runs(&self, devices: usize) -> Vec<usize> {
        let blocks = self.network().blocks();
        let run = |index| blocks * (index + 1) / devices - blocks * index / devices;
        (0..devices).map(run).collect()
    }

    /// The model as by [`spread`](Self::spread), with `runs[k]` blocks on device `k`: those of
    /// [`DeviceMemory::blocks`](super::DeviceMemory::blocks), say.
    ///
    /// # Errors
    /// Those of [`spread`](Self::spread), and runs that are not one a device, of a block at least, all blocks together.
    pub fn spread_in_runs(self, devices: &[Device], runs: &[usize]) -> Result<Self> {
        let offloaded = self.offloaded.clone();
        self.place(devices, runs, offloaded)
    }

    /// The model on these devices, but for blocks that are offloaded.
    pub(super) fn place(
        mut self,
        devices: &[Device],
        runs: &[usize],
        offloaded: Option<Offloaded>,
    ) -> Result<Self> {
        let blocks = self.network().blocks();
        if !(1..=blocks).contains(&devices.len()) {
            return Err(Error::setting(
                "devices",
                format!("{} devices", devices.len()),
                format!("from 1 to {blocks}, the number of blocks"),
                "each device holds a block at least",
            ));
        }
        let sum: usize = runs.iter().sum();
        if runs.len() != devices.len() || runs.contains(&0) || sum != blocks {
            return Err(Error::setting(
                "runs of blocks",
                format!("{runs:?}"),
                format!("{} numbers from 1 on with the sum {blocks}", devices.len()),
                "each device holds a block at least, and each block is on one device",
            ));
        }
        let dtype = Dtype::of(&self);
        for device in devices {
            dtype.check(device)?;
        }
        let paths = self.parameters();
        let tied = !paths.iter().any(|(path, _)| path.starts_with("lm_head."));
        let prefix = format!("{}.", self.blocks_path());
        let runs = devices.iter().zip(runs);
        let of_blocks = runs.flat_map(|(device, &run)| repeat_n(device, run));
        self.offloaded = offloaded.map(|offloaded| Offloaded {
            devices: of_blocks.clone().cloned().collect(),
            ..offloaded
        });
        let host = self
            .offloaded
            .as_ref()
            .map(|offloaded| offloaded.host.clone());
        Ok(self.map(&mut Spread {
            device_of_block: of_blocks
                .map(|device| host.as_ref().unwrap_or(device))
                .collect(),
            before: &devices[0],
            after: if tied {
                &devices[0]
            } else {
                &devices[devices.len() - 1]
            },
            past_blocks: false,
            prefix,
            path: Vec::new(),
        }))
    }
}

struct Spread<'a> {
    device_of_block: Vec<&'a Device>,
    before: &'a Device,
    after: &'a Device,
    /// What lies outside the blocks is met before them or after them.
    past_blocks: bool,
    prefix: String,
    path: Vec<String>,
}

impl ModuleMapper for Spread<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let inside = path.strip_prefix(&self.prefix);
        let index: Option<usize> = inside.and_then(|rest| rest.split('.').next()?.parse().ok());
        let device = match index.and_then(|index| self.device_of_block.get(index)) {
            Some(device) => {
                self.past_blocks = true;
                device
            }
            None if self.past_blocks => self.after,
            None => self.before,
        };
        let (id, value, mapper) = param.consume();
        let require_grad = value.is_require_grad();
        let value = moved(value.detach().set_require_grad(false), device);
        Param::from_mapped_value(id, value.set_require_grad(require_grad), mapper)
    }
}
