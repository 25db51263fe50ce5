//! What a memory plan is for.

use super::{Differentiation, Dtype, ModelSize, offload::Offloading};
use crate::error::{Error, Result};

/// Far above any run, and low enough that sizes stay below 2^63.
const MOST: usize = 1 << 20;

/// Where the two models are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// All on one device.
    #[default]
    One,
    /// The model `w` on the first half of so many devices, or one more than half, and the auxiliary model `u` on the others;
    /// where that is more than one device for a model, its blocks as in [`Spread`](Self::Spread).
    Apart(usize),
    /// Blocks of both models in runs on so many devices; the embedding on the first, with the head if that is tied to it; else
    /// the head on the last. Devices with embedding or head have fewer blocks, so that the fullest device holds as little as
    /// possible.
    Spread(usize),
    /// Both models on each of so many devices, which share the samples of a batch.
    Parallel(usize),
}

/// What a [`MemoryPlan`](super::MemoryPlan) is for. The defaults are one gradient of a batch of 1 on one device, all parameters training with
/// AdamW in float32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// Samples of a step. Default: 1.
    pub batch: usize,
    /// Samples of a micro-batch. Default: the whole batch.
    pub micro_batch: Option<usize>,
    /// Tokens of a sample, all of which are learned. Default: 512.
    pub length: usize,
    /// Floating type of the models. Default: float32.
    pub dtype: Dtype,
    /// Numbers that the optimizer remembers of a parameter: 2 for AdamW (the default), 0 for SGD.
    pub moments: usize,
    /// Blocks that LISA trains at a time. Default: no LISA, all train.
    pub lisa_blocks: Option<usize>,
    /// How often LISA draws blocks in the run. `u` and `w` share the memory of what neither has trained yet, if they are on
    /// the same devices. Default: often enough that all blocks have trained.
    pub draws: Option<usize>,
    /// Whether embeddings, final norm and head are frozen. Default: no.
    pub freeze_others: bool,
    /// Whether gradients are computed block by block; see [`Differentiation`]. Default: where something is frozen, with
    /// the tapes of some blocks kept if they are small beside what trains outside the blocks.
    pub blockwise: Option<bool>,
    /// Whether the gradients of `u` and `w` are computed at the same time; see [`Run::in_parallel`](crate::Run::in_parallel).
    /// Default: no. On two devices it makes no difference.
    pub concurrent: bool,
    /// Whether there is an auxiliary model `u`: the penalty methods have one; BOME without it, and training on fixed
    /// weights, do not. Default: yes.
    pub auxiliary: bool,
    /// Where the models are. Default: on one device.
    pub placement: Placement,
    /// What waits in host memory, see [`CausalLm::offload`](super::CausalLm::offload). Default: nothing.
    pub offload: Option<Offloading>,
}

impl Placement {
    /// How many of so many devices hold `w` where the models are apart: `w` needs more memory than `u`, and its gradients
    /// take twice the time.
    pub(crate) fn of_w(devices: usize) -> usize {
        devices.div_ceil(2)
    }
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self {
            batch: 1,
            micro_batch: None,
            length: 512,
            dtype: Dtype::Float32,
            moments: 2,
            lisa_blocks: None,
            draws: None,
            freeze_others: false,
            blockwise: None,
            concurrent: false,
            auxiliary: true,
            placement: Placement::One,
            offload: None,
        }
    }
}

impl PlanConfig {
    /// Refuses what cannot work.
    pub(super) fn check(&self, size: &ModelSize) -> Result<()> {
        let within = |name, given: usize, what: &str, largest: usize, remedy| match given {
            given if (1..=largest).contains(&given) => Ok(()),
            given => {
                let allowed = format!("from 1 to {largest}");
                let given = format!("{given} {what}");
                Err(Error::setting(name, given, allowed, remedy))
            }
        };
        let remedy = "the paper uses 64 to 128";
        within("batch", self.batch, "samples", MOST, remedy)?;
        let remedy = "leave it out for the whole batch";
        let micro_batch = self.micro_batch.unwrap_or(1);
        within("micro-batch", micro_batch, "samples", MOST, remedy)?;
        let remedy = "positions end at the model's longest sequence";
        let longest = size.longest.min(MOST);
        within("length", self.length, "tokens", longest, remedy)?;
        let remedy = "leave it out to train all blocks";
        let active = self.lisa_blocks.unwrap_or(1);
        within("lisa blocks", active, "blocks", size.blocks, remedy)?;
        let remedy = "leave it out if all blocks will have trained";
        within("draws", self.draws.unwrap_or(1), "draws", MOST, remedy)?;
        if self.moments > 2 {
            let allowed = "from 0 to 2";
            let remedy = "SGD has none, AdamW 2";
            return Err(Error::setting("moments", self.moments, allowed, remedy));
        }
        if self.offload.is_some() && self.blockwise == Some(false) {
            return Err(one_tape());
        }
        match self.placement {
            Placement::One => Ok(()),
            Placement::Apart(devices) if self.auxiliary => {
                let allowed = 2..=2 * size.blocks;
                if allowed.contains(&devices) {
                    return Ok(());
                }
                Err(Error::setting(
                    "devices",
                    format!("{devices} devices for two models apart"),
                    format!("from 2 to {}", 2 * size.blocks),
                    "each device holds a block of one of them at least",
                ))
            }
            Placement::Apart(_) => Err(Error::setting(
                "placement",
                "two models apart",
                "another one, for a method without an auxiliary model",
                "one model can be spread over devices by its blocks",
            )),
            Placement::Spread(devices) => {
                let remedy = "each device holds a block at least";
                within("devices", devices, "devices", size.blocks, remedy)
            }
            Placement::Parallel(devices) => {
                let remedy = "each device takes a sample at least";
                within("devices", devices, "devices", self.batch, remedy)
            }
        }
    }

    /// How gradients are computed.
    pub(super) fn differentiation(&self, size: &ModelSize) -> Differentiation {
        let fewer = self.lisa_blocks.is_some_and(|active| active < size.blocks);
        match self.blockwise {
            Some(true) => Differentiation::Blockwise,
            Some(false) => Differentiation::Plain,
            None if fewer || self.freeze_others || self.offload.is_some() => {
                Differentiation::Balanced
            }
            None => Differentiation::Plain,
        }
    }
}

/// An error for offloaded blocks whose copies would all be on one tape.
pub(crate) fn one_tape() -> Error {
    Error::setting(
        "offload",
        "asked for with gradients on one tape",
        "gradients block by block",
        "one tape would hold the copies of all blocks; leave blockwise out or set it to true",
    )
}
