//! Which devices hold the models of a run.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::config::ReweightConfig;
use crate::models::{CausalLm, MemoryPlan, ModelSize, Placement, PlanConfig};
use crate::{Error, Result, device};

/// How a run uses several devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlacementKind {
    /// `w` on one half of the devices and `u` on the other, which work at the same time; see [`Placement::Apart`].
    Apart,
    /// The blocks of both over all devices, which take turns; see [`Placement::Spread`].
    Spread,
}

/// The devices of a run, opened.
#[derive(Debug)]
pub(super) struct Devices {
    all: Vec<Device>,
}

impl Devices {
    /// Opens the devices that the settings name.
    pub fn open(config: &ReweightConfig) -> Result<Self> {
        let names = config.device_names();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(Error::setting(
                    "devices",
                    format!("{name} twice"),
                    "each device once",
                    "a device holds what falls to it at once",
                ));
            }
        }
        let open = |name: &&str| {
            let device = device(name)?.autodiff();
            config.dtype.check(&device)?;
            Ok(device)
        };
        let all: Vec<Device> = names.iter().map(open).collect::<Result<_>>()?;
        check(config, all.len())?;
        Ok(Self { all })
    }

    /// The first: that of the source weights.
    pub fn first(&self) -> &Device {
        &self.all[0]
    }

    /// The placement on these devices that the settings ask for or, if they leave it open, the planner's for this `run`.
    pub fn placement(
        &self,
        config: &ReweightConfig,
        run: impl FnOnce() -> Result<(ModelSize, PlanConfig)>,
    ) -> Result<Placement> {
        let devices = self.all.len();
        match config.placement {
            _ if devices == 1 => Ok(Placement::One),
            Some(PlacementKind::Apart) => Ok(Placement::Apart(devices)),
            Some(PlacementKind::Spread) => Ok(Placement::Spread(devices)),
            None => {
                let (size, plan) = run()?;
                let capacity = config.device_memory.map(|gigabytes| gigabytes * 1e9);
                MemoryPlan::place(&size, &plan, devices, capacity.map(|bytes| bytes as u64))
            }
        }
    }

    /// Those of `w`.
    pub fn of_w(&self, placement: Placement) -> &[Device] {
        match placement {
            Placement::Apart(devices) => &self.all[..Placement::of_w(devices)],
            _ => &self.all,
        }
    }

    /// Those of `u`, if they are others.
    pub fn of_u(&self, placement: Placement) -> Option<&[Device]> {
        match placement {
            Placement::Apart(devices) => Some(&self.all[Placement::of_w(devices)..]),
            _ => None,
        }
    }
}

/// Where a model is loaded before it is spread over these devices: in the memory of the host, since it may be larger than
/// each of them.
pub(super) fn loading(devices: &[Device]) -> Device {
    #[cfg(feature = "flex")]
    if devices.len() > 1 {
        return Device::flex().autodiff();
    }
    devices[0].clone()
}

/// The model on these devices; on several with so many blocks on each.
pub(super) fn placed(
    model: CausalLm,
    devices: &[Device],
    runs: impl FnOnce() -> Result<Vec<usize>>,
) -> Result<CausalLm> {
    match devices {
        [one] if model.device() == *one => Ok(model),
        [_] => model.spread(devices),
        several => model.spread_in_runs(several, &runs()?),
    }
}

/// Refuses a placement that these devices cannot have.
fn check(config: &ReweightConfig, devices: usize) -> Result<()> {
    if let Some(gigabytes) = config.device_memory
        && !(gigabytes > 0.0 && gigabytes.is_finite())
    {
        return Err(Error::setting(
            "device-memory",
            gigabytes,
            "a number of gigabytes greater than 0",
            "it is the memory of the smallest device; leave it out if all fits",
        ));
    }
    if config.placement.is_some() && devices == 1 {
        return Err(Error::setting(
            "placement",
            "one device",
            "two devices or more for `apart` and `spread`",
            "name them with --devices a,b",
        ));
    }
    Ok(())
}
