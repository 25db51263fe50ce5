//! A model whose blocks wait in host memory.

use std::{any::Any, cell::RefCell, fmt, rc::Rc, str::FromStr};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};

use serde::{Deserialize, Serialize};

use super::{CausalLm, dtype::Dtype};
use crate::error::{Error, Result};
use crate::offload::{Moved, Offload};

/// What of the models of a run waits in host memory.
///
/// # Example
///
/// ```
/// use scalebio::models::Offloading;
///
/// assert_eq!("frozen".parse::<Offloading>()?, Offloading::Frozen);
/// assert_eq!(Offloading::FrozenAndMoments.to_string(), "frozen,moments");
/// assert!("all".parse::<Offloading>().is_err());
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Offloading {
    /// Blocks that do not train: `frozen`.
    Frozen,
    /// These, and from step to step what the optimizer remembers of parameters that train, see
    /// [`Offload::moments`](crate::Offload::moments): `frozen,moments`.
    FrozenAndMoments,
}

impl From<Offloading> for &'static str {
    fn from(offloading: Offloading) -> Self {
        match offloading {
            Offloading::Frozen => "frozen",
            Offloading::FrozenAndMoments => "frozen,moments",
        }
    }
}

impl fmt::Display for Offloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad((*self).into())
    }
}

/// # Errors
/// [`Error::Setting`] for any other name.
impl FromStr for Offloading {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "frozen" => Ok(Self::Frozen),
            "frozen,moments" => Ok(Self::FrozenAndMoments),
            _ => Err(Error::setting(
                "offload",
                format!("`{name}`"),
                "frozen, or frozen,moments",
                "moments alone take less than the blocks that are frozen",
            )),
        }
    }
}

impl TryFrom<String> for Offloading {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

/// Of a model whose blocks may be on a host.
#[derive(Clone, Debug)]
pub(super) struct Offloaded {
    pub host: Device,
    /// Where each block is computed, and where it is while it trains.
    pub devices: Vec<Device>,
    /// What is moved between host and devices.
    pub moved: Moved,
}

impl CausalLm {
    /// The model with its blocks in the memory of `host`, beside GPUs usually `Device::flex()`, and all else on `devices` as
    /// [`spread`](Self::spread) would put it. To compute a block, in training, evaluation and generation alike, its
    /// parameters are copied to the block's device and dropped again: a device holds one block's copies at a time.
    ///
    /// In a run with [`Run::offload`](crate::Run::offload) the blocks that train move to their devices for as long as they
    /// do, so that a device holds these, and the host those that are frozen. Open a model that is larger than a device on
    /// the host, as in the example there.
    ///
    /// Gradients are computed [block by block](super::Differentiation::Balanced) unless one tape is asked for, which would hold the
    /// copies of all blocks; tapes are kept of blocks that train only. With
    /// [`Differentiation::Blockwise`](super::Differentiation::Blockwise) results are those of the model that is not
    /// offloaded, bit for bit; else up to rounding. [`PlanConfig::offload`](super::PlanConfig::offload) says what this takes.
    ///
    /// # Errors
    /// Those of [`spread`](Self::spread), and [`Error::Setting`] for a host that does not have the
    /// model's type.
    pub fn offload(self, devices: &[Device], host: &Device) -> Result<Self> {
        Dtype::of(&self).check(host)?;
        let offloaded = Offloaded {
            host: host.clone(),
            devices: Vec::new(),
            moved: Moved::default(),
        };
        let runs = self.equal_runs(devices.len());
        self.place(devices, &runs, Some(offloaded))
    }

    /// Where the blocks of an [offloaded](Self::offload) model belong, for [`Run::offload`](crate::Run::offload). Counts what
    /// the model copies, together with its clones.
    pub fn offloaded(&self) -> Option<Offload> {
        let Offloaded {
            host,
            devices,
            moved,
        } = self.offloaded.as_ref()?;
        let prefix = format!("{}.", self.blocks_path());
        let home = |(path, _): (String, Vec<usize>)| {
            let block: usize = path
                .strip_prefix("blocks.")?
                .split('.')
                .next()?
                .parse()
                .ok()?;
            let path = format!("{prefix}{}", path.strip_prefix("blocks.")?);
            Some((path, devices.get(block)?.clone()))
        };
        let homes = self.parameters().into_iter().filter_map(home);
        Some(Offload::new(host, homes).counted_by(moved))
    }

    pub(super) fn offloading(&self) -> Option<&Offloaded> {
        self.offloaded.as_ref()
    }

    /// How many of the uppermost blocks are where they are computed: up to the first that is not.
    pub(super) fn blocks_at_home(&self) -> usize {
        let Some(Offloaded { devices, .. }) = &self.offloaded else {
            return self.network().blocks();
        };
        let mut away = Away {
            prefix: format!("{}.", self.blocks_path()),
            path: Vec::new(),
            devices,
            uppermost: None,
        };
        self.visit(&mut away);
        away.uppermost
            .map_or(devices.len(), |block| devices.len() - 1 - block)
    }
}

/// Looks for the uppermost block with a parameter that is not where the block is computed.
struct Away<'a> {
    prefix: String,
    path: Vec<String>,
    devices: &'a [Device],
    uppermost: Option<usize>,
}

impl ModuleVisitor for Away<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        let inside = path.strip_prefix(&self.prefix);
        let block = inside.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        if let Some(block) = block
            && param.lazy_device() != self.devices[block]
        {
            self.uppermost = self.uppermost.max(Some(block));
        }
    }
}

/// The copies of one pass through the blocks: those of the block that is computed.
#[derive(Debug)]
pub(super) struct Copies {
    devices: Vec<Device>,
    moved: Moved,
    held: RefCell<Option<Held>>,
}

/// A block that is kept for the next samples: its index, whether it is on a tape's device, and itself.
#[derive(Debug)]
struct Held {
    key: (usize, bool),
    block: Box<dyn Any>,
}

impl Offloaded {
    /// For a pass.
    pub fn copies(&self) -> Rc<Copies> {
        Rc::new(Copies {
            devices: self.devices.clone(),
            moved: self.moved.clone(),
            held: RefCell::default(),
        })
    }
}

impl Copies {
    /// Where a block is computed.
    pub fn device(&self, index: usize) -> &Device {
        &self.devices[index]
    }

    /// The block at an index as it can compute on `x`, with copies of the parameters that are elsewhere. They stay until
    /// another block is asked for.
    pub fn of<B: Module + 'static>(&self, index: usize, block: &B, x: &Tensor<2>) -> B {
        let device = x.device();
        let key = (index, device.is_autodiff());
        let mut held = self.held.borrow_mut();
        if let Some(found) = held.take_if(|held| held.key != key) {
            drop(found); // before there are others
        }
        if let Some(found) = held
            .as_ref()
            .and_then(|held| held.block.downcast_ref::<B>())
        {
            return found.clone();
        }
        let mut bring = Bring {
            moved: &self.moved,
            device: &device,
            trains: false,
        };
        let brought = block.clone().map(&mut bring);
        // A copy of what trains is on a tape, which is used up with these samples.
        if !bring.trains {
            let block = Box::new(brought.clone());
            *held = Some(Held { key, block });
        }
        brought
    }

    /// Drops the copies.
    pub fn clear(&self) {
        self.held.take();
    }
}

struct Bring<'a> {
    moved: &'a Moved,
    device: &'a Device,
    /// Whether a parameter that was copied does.
    trains: bool,
}

impl ModuleMapper for Bring<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.lazy_device() == *self.device {
            return param;
        }
        let (id, value, mapper) = param.consume();
        self.trains |= value.is_require_grad();
        Param::from_mapped_value(id, self.moved.carry(value, self.device), mapper)
    }
}
