//! What is drawn: the layers of the lower variable that train, and minibatches of finite sums.

mod blocks;
mod lisa;
mod minibatches;

use burn::module::ParamGroup;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

use crate::Result;
use crate::progress::nothing_drawn;

pub use lisa::Lisa;
pub use minibatches::{Minibatch, Minibatches, Order};

/// The generator number `stream` of a seed. Different uses need different seeds.
pub(crate) fn generator(seed: u64, stream: u64) -> Xoshiro256PlusPlus {
    // A bijection of the stream for every seed, so that no two streams are one; `seed_from_u64` spreads the bits.
    let start = Xoshiro256PlusPlus::seed_from_u64(seed).next_u64();
    Xoshiro256PlusPlus::seed_from_u64(start ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Chooses the parameters of `w` and `u` that train; the others stand still until the next choice.
///
/// # Example
///
/// ```
/// use burn::module::ParamGroup;
/// use scalebio::{ActiveLayers, LayerSampler};
///
/// /// Trains the head alone for 100 steps, then everything.
/// #[derive(Debug)]
/// struct HeadFirst;
///
/// impl LayerSampler for HeadFirst {
///     fn sample(&mut self, step: usize) -> Option<ActiveLayers> {
///         match step {
///             0 => Some(ActiveLayers::same(ParamGroup::from_path("head.weight"))),
///             100 => Some(ActiveLayers::same(ParamGroup::all())),
///             _ => None,
///         }
///     }
/// }
/// ```
pub trait LayerSampler: Send {
    /// Draws the layers that train from step `step` (from 0) on. `None` keeps the current ones, which
    /// before the first draw are all. Parameters that were frozen when the run started stay frozen.
    fn sample(&mut self, step: usize) -> Option<ActiveLayers>;

    /// Checks the settings. Called once, when the run starts.
    ///
    /// # Errors
    ///
    /// A setting that cannot work.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// How far the draws have come, in words from which [`resume`](Self::resume) goes on in another process; see
    /// [`UpperObjective::progress`](crate::UpperObjective::progress). A sampler without draws returns an empty text.
    ///
    /// Default: `None`, a sampler that cannot be resumed; a run with it has no checkpoints.
    fn progress(&self) -> Option<String> {
        None
    }

    /// Goes on as if the draws up to `progress` had been made. Which layers are active is in the checkpoint already.
    ///
    /// # Errors
    ///
    /// A text that is not of these draws. Default: an error for any text but the empty one.
    fn resume(&mut self, progress: &str) -> Result<()> {
        nothing_drawn(progress)
    }
}

/// The parameters that train. `u` has the module paths of `w` but parameter ids of its own, so name
/// parameters by path.
#[derive(Clone, Debug)]
pub struct ActiveLayers {
    /// Parameters of the lower variable `w`.
    pub lower: ParamGroup,
    /// Parameters of the auxiliary variable `u`.
    pub auxiliary: ParamGroup,
}

impl ActiveLayers {
    /// The same parameters for `w` and `u`.
    pub fn same(group: ParamGroup) -> Self {
        Self {
            lower: group.clone(),
            auxiliary: group,
        }
    }
}

/// Trains every layer at every step. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllLayers;

impl LayerSampler for AllLayers {
    fn sample(&mut self, _step: usize) -> Option<ActiveLayers> {
        None
    }

    fn progress(&self) -> Option<String> {
        Some(String::new())
    }
}
