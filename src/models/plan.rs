//! How much memory a run will take, before anything is loaded.

use super::{
    Dtype, ModelSize,
    blockwise::samples_at_a_time,
    head::{CHUNK_BYTES, chunk_rows},
};
use crate::error::{Error, Result};

/// Bytes of a number of moments, masters and sums of gradients, which are always float32.
const SINGLE: usize = 4;
/// Hidden states `[rows, width]` beside the kept inputs of blocks: the embedded tokens, the last block's output, its norm,
/// and the gradients of these two.
const OTHER_STATES: usize = 5;
/// The logits of a pass are in memory so many times, with their exponentials and their gradient.
const LOGITS: usize = 3;
/// Far above any run, and low enough that sizes stay below 2^63.
const MOST: usize = 1 << 20;

/// Where the two models are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// All on one device.
    #[default]
    One,
    /// The model `w` on one device, the auxiliary model `u` on another.
    Apart,
    /// Blocks of both models in runs of about equal length on so many devices; the embedding on the first, with the head if
    /// that is tied to it; else the head on the last.
    Spread(usize),
    /// Both models on each of so many devices, which share the samples of a batch.
    Parallel(usize),
}

/// What a [`MemoryPlan`] is for. The defaults are one gradient of a batch of 1 on one device, all parameters training with
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
    /// Whether gradients are computed block by block; see [`Differentiation`](super::Differentiation). Default: where
    /// something is frozen.
    pub blockwise: Option<bool>,
    /// Whether the gradients of `u` and `w` are computed at the same time; see [`Run::in_parallel`](crate::Run::in_parallel).
    /// Default: no. On two devices it makes no difference.
    pub concurrent: bool,
    /// Whether there is an auxiliary model `u`: the penalty methods have one; BOME without it, and training on fixed
    /// weights, do not. Default: yes.
    pub auxiliary: bool,
    /// Where the models are. Default: on one device.
    pub placement: Placement,
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
        }
    }
}

/// Bytes on one device at the peak of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// The auxiliary model, as far as it does not share the memory of `w`.
    pub u: u64,
    /// The model.
    pub w: u64,
    /// float32 copies of parameters in half precision that train, in both models.
    pub masters: u64,
    /// What the optimizers remember of parameters that train, in both models.
    pub moments: u64,
    /// Gradients of parameters that train.
    pub gradients: u64,
    /// Block by block: the hidden states that are kept, and the masks of the samples.
    pub inputs: u64,
    /// Intermediate results of the model's blocks, or, block by block, of one block.
    pub tape: u64,
    /// The logits with their exponentials and gradient: of the batch, or, block by block, of a chunk of rows.
    pub logits: u64,
    /// The peak: of what is not in memory at the same time the larger one. Block by block these are tape and logits; with
    /// one tape, they and the last gradient, which grows as the tape is used up.
    pub total: u64,
}

/// The memory of a run on each device, predicted from the sizes of the model and the settings.
///
/// With A parameters training at a time (of `P` in all), in bytes, a model's column is the sum over what lies on the device:
///
/// | | |
/// |---|---|
/// | w | `P` numbers of the models' type |
/// | u | `P` numbers; beside `w` only what one of them has trained: what lies outside the blocks, unless it is frozen, and `2 lisa_blocks draws` blocks at most |
/// | masters | 4 `A` a model, in half precision |
/// | moments | 8 `A` a model with AdamW |
/// | gradients | 4 `A` for each of two: those of both objectives in `w`, which become one, then that and the one in `u`; one more where `u` and `w` are computed at the same time, and another of the models' type while micro-batches are summed |
/// | inputs | a hidden state a block and five more: `(blocks + 5) rows width` numbers; masks: `4 rows length` |
/// | tape | `rows` times inputs and outputs of all matrices of a block; block by block, for the rows that go through a block at a time |
/// | logits | `12 rows vocabulary`; block by block, for the rows of a chunk (24 MiB of logits, 64 rows at least), and a piece of the head's gradient, in half precision all of it in float32 |
///
/// `rows` is the number of tokens in a micro-batch. Of blocks that are spread over devices as many train on each as can, so
/// that each figure is that of the worst draw. The program itself, the data and the allocator come on top: on a GPU the
/// driver's some hundred MiB.
///
/// # Example
///
/// ```no_run
/// use scalebio::models::{Dtype, MemoryPlan, ModelSize, Placement, PlanConfig};
///
/// let size = ModelSize::read("path/to/config.json")?;
/// let plan = MemoryPlan::new(&size, &PlanConfig {
///     batch: 64,
///     micro_batch: Some(8),
///     dtype: Dtype::Bfloat16,
///     lisa_blocks: Some(2),
///     placement: Placement::Spread(8),
///     ..PlanConfig::default()
/// })?;
/// println!("{} GB on the fullest device", plan.largest() / 1_000_000_000);
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    devices: Vec<DeviceMemory>,
}

impl MemoryPlan {
    /// The plan of a run.
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes of 0, a length above the model's longest sequence, more blocks for LISA than there are,
    /// a micro-batch or devices without samples, more devices than blocks, and two devices for one model.
    pub fn new(size: &ModelSize, config: &PlanConfig) -> Result<Self> {
        config.check(size)?;
        let both = Share {
            u: config.auxiliary,
            w: true,
            embedding: true,
            head: true,
            blocks: size.blocks,
        };
        let shares = match config.placement {
            Placement::One => vec![both],
            Placement::Parallel(devices) => vec![both; devices],
            Placement::Apart => [true, false].map(|w| Share { u: !w, w, ..both }).into(),
            Placement::Spread(devices) => (0..devices)
                .map(|index| Share {
                    embedding: index == 0,
                    head: index + 1 == devices,
                    blocks: size.blocks * (index + 1) / devices - size.blocks * index / devices,
                    ..both
                })
                .collect(),
        };
        let memory = |share: Share| {
            Load {
                size,
                config,
                share,
            }
            .memory()
        };
        Ok(Self {
            devices: shares.into_iter().map(memory).collect(),
        })
    }

    /// What each device holds; with [`Placement::Apart`] that of `w` comes first.
    pub fn devices(&self) -> &[DeviceMemory] {
        &self.devices
    }

    /// Bytes on all devices.
    pub fn total(&self) -> u64 {
        self.devices.iter().map(|device| device.total).sum()
    }

    /// Bytes on the fullest device.
    pub fn largest(&self) -> u64 {
        let totals = self.devices.iter().map(|device| device.total);
        totals.max().unwrap_or(0)
    }
}

impl PlanConfig {
    fn check(&self, size: &ModelSize) -> Result<()> {
        let within = |name, given: usize, largest: usize, remedy| match given {
            given if (1..=largest).contains(&given) => Ok(()),
            given => Err(Error::setting(
                name,
                given,
                format!("from 1 to {largest}"),
                remedy,
            )),
        };
        within("batch", self.batch, MOST, "the paper uses 64 to 128")?;
        let micro_batch = self.micro_batch.unwrap_or(1);
        within(
            "micro-batch",
            micro_batch,
            MOST,
            "leave it out for the whole batch",
        )?;
        let longest = size.longest.min(MOST);
        let remedy = "positions end at the model's longest sequence";
        within("length", self.length, longest, remedy)?;
        let lisa = self.lisa_blocks.unwrap_or(1);
        within(
            "lisa blocks",
            lisa,
            size.blocks,
            "leave it out to train all blocks",
        )?;
        within(
            "draws",
            self.draws.unwrap_or(1),
            MOST,
            "leave it out for many",
        )?;
        if self.moments > 2 {
            let allowed = "from 0 to 2";
            let remedy = "SGD has none, AdamW 2";
            return Err(Error::setting("moments", self.moments, allowed, remedy));
        }
        match self.placement {
            Placement::One => Ok(()),
            Placement::Apart if self.auxiliary => Ok(()),
            Placement::Apart => Err(Error::setting(
                "placement",
                "two models apart",
                "another one, for a method without an auxiliary model",
                "one model can be spread over devices by its blocks",
            )),
            Placement::Spread(devices) => {
                let remedy = "each device holds a block at least";
                within("devices", devices, size.blocks, remedy)
            }
            Placement::Parallel(devices) => {
                let remedy = "each device takes a sample at least";
                within("devices", devices, self.batch, remedy)
            }
        }
    }

    fn is_blockwise(&self, size: &ModelSize) -> bool {
        let fewer = self.lisa_blocks.is_some_and(|active| active < size.blocks);
        self.blockwise.unwrap_or(fewer || self.freeze_others)
    }
}

/// What lies on a device.
#[derive(Clone, Copy)]
struct Share {
    u: bool,
    w: bool,
    embedding: bool,
    head: bool,
    blocks: usize,
}

/// A device with its share of a model.
struct Load<'a> {
    size: &'a ModelSize,
    config: &'a PlanConfig,
    share: Share,
}

impl Load<'_> {
    fn memory(&self) -> DeviceMemory {
        let Self {
            size,
            config,
            share,
        } = self;
        let half = config.dtype != Dtype::Float32;
        let number = config.dtype.width();
        let models = usize::from(share.u) + usize::from(share.w);
        let held = self.outside() + share.blocks * size.block;
        let trained = self.trained(config.lisa_blocks);
        let own = match share.w {
            true => self.trained(
                config
                    .draws
                    .and_then(|draws| Some(2 * config.lisa_blocks? * draws)),
            ),
            false => held,
        };
        let (samples, rows) = self.micro_batch();
        let (at_once, in_pieces) = (self.passes(), samples < self.samples());
        let sums = if share.w { 1 + at_once } else { 1 };
        let fresh = if in_pieces { at_once * number } else { 0 };
        let mut memory = DeviceMemory {
            u: bytes(&[usize::from(share.u), own, number]),
            w: bytes(&[usize::from(share.w), held, number]),
            masters: bytes(&[usize::from(half), models, trained, SINGLE]),
            moments: bytes(&[config.moments, models, trained, SINGLE]),
            gradients: bytes(&[trained, sums * SINGLE + fresh]),
            ..DeviceMemory::default()
        };
        self.activations(samples, rows, &mut memory);
        memory
    }

    /// Inputs, tape, logits and the total.
    fn activations(&self, samples: usize, rows: usize, memory: &mut DeviceMemory) {
        let Self {
            size,
            config,
            share,
        } = self;
        let (at_once, number) = (self.passes(), config.dtype.width());
        let masks = bytes(&[at_once, rows, config.length, SINGLE]);
        let has_head = if size.tied {
            share.embedding
        } else {
            share.head
        };
        let has_head = usize::from(has_head);
        let states = bytes(&[at_once, rows, size.width, number]);
        let state = memory.u + memory.w + memory.masters + memory.moments + memory.gradients;
        if config.is_blockwise(size) {
            let part = samples_at_a_time(samples, config.length, size.width) * config.length;
            let chunk = rows.min(chunk_rows(size.vocabulary));
            let head = match (config.freeze_others, config.dtype) {
                (true, _) => 0,
                (false, Dtype::Float32) => {
                    bytes(&[size.vocabulary, size.width, SINGLE]).min(CHUNK_BYTES as u64)
                }
                (false, Dtype::Bfloat16) => bytes(&[size.vocabulary, size.width, SINGLE]),
            };
            memory.inputs = masks + (share.blocks + OTHER_STATES) as u64 * states;
            memory.tape = bytes(&[at_once, part, size.features, number]);
            memory.logits = bytes(&[at_once, has_head, LOGITS * SINGLE, chunk, size.vocabulary]);
            memory.logits += (at_once * has_head) as u64 * head;
            memory.total = state + memory.inputs + memory.tape.max(memory.logits);
        } else {
            let fresh = if samples < self.samples() {
                number
            } else {
                SINGLE
            };
            let last = bytes(&[at_once, self.trained(config.lisa_blocks), fresh]);
            memory.inputs = masks + OTHER_STATES as u64 * states;
            memory.tape = bytes(&[at_once, share.blocks, rows, size.features, number]);
            memory.logits = bytes(&[at_once, has_head, LOGITS * SINGLE, rows, size.vocabulary]);
            memory.total = state - last + memory.inputs + last.max(memory.tape + memory.logits);
        }
    }

    /// Passes through a model at the same time.
    fn passes(&self) -> usize {
        let Share { u, w, .. } = self.share;
        if self.config.concurrent && u && w {
            2
        } else {
            1
        }
    }

    /// Samples of a step.
    fn samples(&self) -> usize {
        match self.config.placement {
            Placement::Parallel(devices) => self.config.batch.div_ceil(devices),
            _ => self.config.batch,
        }
    }

    /// Samples and rows of a micro-batch.
    fn micro_batch(&self) -> (usize, usize) {
        let samples = self.samples();
        let samples = self.config.micro_batch.unwrap_or(samples).min(samples);
        (samples, samples * self.config.length)
    }

    /// Parameters outside the blocks.
    fn outside(&self) -> usize {
        let ModelSize {
            embedding, head, ..
        } = self.size;
        let Share {
            embedding: first,
            head: last,
            ..
        } = self.share;
        usize::from(first) * embedding + usize::from(last) * head
    }

    /// Parameters that train if so many blocks do.
    fn trained(&self, blocks: Option<usize>) -> usize {
        let blocks = blocks.unwrap_or(self.share.blocks).min(self.share.blocks);
        let outside = if self.config.freeze_others {
            0
        } else {
            self.outside()
        };
        outside + blocks * self.size.block
    }
}

fn bytes(factors: &[usize]) -> u64 {
    let product = |product: u64, factor: &usize| product.saturating_mul(*factor as u64);
    factors.iter().fold(1, product)
}
