//! LISA: a few blocks at a time, redrawn every few steps.

use burn::module::{Module, ParamGroup};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::index;

use super::blocks::Blocks;
use super::{ActiveLayers, LayerSampler};
use crate::progress;
use crate::{Error, Result};

/// Randomized block coordinates: of the blocks of a model only a few train, drawn uniformly without
/// replacement every `period` steps. What lies outside the list of blocks (embeddings, final norm,
/// head) always trains.
///
/// `u` and `w` draw independently, as in the authors' code. Moments of a block that is frozen again
/// are dropped; see [`ScaleBio::moments`](crate::ScaleBio::moments).
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::{Device, Tensor}};
/// use scalebio::Lisa;
///
/// let device = Device::flex();
/// let model: Vec<Param<Tensor<1>>> = (0..4).map(|_| Param::from_data([0.0], &device)).collect();
/// let sampler = Lisa::over(&model, "")?.active(1).period(5).seed(7);
/// # Ok::<(), scalebio::Error>(())
/// ```
///
/// # Reference
///
/// Pan et al., *LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
/// Fine-Tuning*, NeurIPS 2024, arXiv 2403.17919, algorithm 1.
#[derive(Clone, Debug)]
pub struct Lisa {
    blocks: Blocks,
    active: usize,
    period: usize,
    shared: bool,
    freeze_others: bool,
    seed: u64,
    random: Xoshiro256PlusPlus,
    /// How often blocks have been drawn.
    drawn: u64,
}

impl Lisa {
    /// LISA over the list of blocks at `path` in `module`, for instance `blocks` in a GPT-2. The path
    /// is exact; the empty path is the module itself.
    ///
    /// Defaults: 2 active blocks, redrawn every 20 steps, independent draws for `u` and `w`, seed 0.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownBlocks`], which lists the paths there are.
    pub fn over<M: Module>(module: &M, path: &str) -> Result<Self> {
        Ok(Self {
            blocks: Blocks::find(module, path)?,
            active: 2,
            period: 20,
            shared: false,
            freeze_others: false,
            seed: 0,
            random: Xoshiro256PlusPlus::seed_from_u64(0),
            drawn: 0,
        })
    }

    /// Number of blocks that train at a time, `gamma` in the paper. From 1 to all. Default: 2.
    #[must_use]
    pub fn active(mut self, blocks: usize) -> Self {
        self.active = blocks;
        self
    }

    /// Steps between two draws, `K` in the paper. At least 1. Default: 20.
    #[must_use]
    pub fn period(mut self, steps: usize) -> Self {
        self.period = steps;
        self
    }

    /// Seed of the draws. Default: 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.random = Xoshiro256PlusPlus::seed_from_u64(seed);
        self.drawn = 0;
        self
    }

    /// Trains the same blocks in `u` and `w`. Default: each draws its own.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Freezes what lies outside the blocks too. In Llama-3-8B that is 70.7 % of what LISA trains.
    #[must_use]
    pub fn freeze_others(mut self) -> Self {
        self.freeze_others = true;
        self
    }

    /// Number of blocks in the list.
    pub fn blocks(&self) -> usize {
        self.blocks.blocks.len()
    }

    /// The next active blocks of `w` and of `u`.
    fn draw(&mut self) -> [Vec<usize>; 2] {
        self.drawn += 1;
        let (blocks, active) = (self.blocks(), self.active);
        let mut draw = || index::sample(&mut self.random, blocks, active).into_vec();
        let lower = draw();
        let auxiliary = if self.shared { lower.clone() } else { draw() };
        [lower, auxiliary]
    }

    fn settings(&self) -> String {
        format!(
            "{} of {} blocks every {} steps{}{}, seed {}",
            self.active,
            self.blocks(),
            self.period,
            if self.shared { ", shared" } else { "" },
            if self.freeze_others {
                ", nothing else"
            } else {
                ""
            },
            self.seed
        )
    }

    fn group(&self, active: &[usize]) -> ParamGroup {
        let always = if self.freeze_others {
            &[]
        } else {
            self.blocks.others.as_slice()
        };
        let blocks = active.iter().flat_map(|&block| &self.blocks.blocks[block]);
        ParamGroup::from_paths(always.iter().chain(blocks).cloned().collect())
    }
}

impl LayerSampler for Lisa {
    fn sample(&mut self, step: usize) -> Option<ActiveLayers> {
        if !step.is_multiple_of(self.period) {
            return None;
        }
        let [lower, auxiliary] = self.draw();
        Some(ActiveLayers {
            lower: self.group(&lower),
            auxiliary: self.group(&auxiliary),
        })
    }

    fn validate(&self) -> Result<()> {
        if self.active == 0 || self.active > self.blocks() {
            return Err(Error::setting(
                "active",
                format!("{} blocks", self.active),
                format!("from 1 to {}, the blocks of this model", self.blocks()),
                "use `AllLayers` to train everything at every step",
            ));
        }
        if self.period == 0 {
            return Err(Error::setting(
                "period",
                "0 steps",
                "at least 1 step",
                "the authors redraw every 20 steps",
            ));
        }
        Ok(())
    }

    fn progress(&self) -> Option<String> {
        Some(progress::progress(self.drawn, &self.settings()))
    }

    /// Draws all again, which takes a second for ten million draws.
    fn resume(&mut self, progress: &str) -> Result<()> {
        let draws = progress::draws(progress, &self.settings())?;
        self.random = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        self.drawn = 0;
        for _ in 0..draws {
            self.draw();
        }
        Ok(())
    }
}
