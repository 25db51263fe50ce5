//! How much memory a run will take, before anything is loaded.

use super::{
    Differentiation, Dtype, ModelSize,
    blockwise::{samples_at_a_time, tapes_kept},
    head::{CHUNK_BYTES, KERNEL_CHUNK_BYTES, chunk_rows},
    plan_config::{Placement, PlanConfig},
};
use crate::error::Result;

/// Bytes of a number of moments, masters and sums of gradients, which are always float32.
pub(super) const SINGLE: usize = 4;
/// Hidden states `[rows, width]` beside the kept inputs of blocks: the embedded tokens, the last block's output, its norm,
/// and the gradients of these two.
const OTHER_STATES: usize = 5;
/// The logits of a chunk are in memory so many times, with their exponentials and their gradient, in half precision. In
/// float32 the CPU device has them once, and on one tape twice: its loss turns the probabilities into the gradient in place.
const LOGITS_OF_A_CHUNK: usize = 3;
const LOGITS_ON_TAPE: usize = 2;
/// Bytes on one device at the peak of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// Number of blocks, of each model that is here.
    pub blocks: usize,
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
    /// Intermediate results of the model's blocks, or, block by block, of one block and those whose tapes are kept.
    pub tape: u64,
    /// Copies of a block that waits in host memory, for the time of its run.
    pub copies: u64,
    /// The logits with their exponentials and gradient: of the batch, or, block by block, of a chunk of rows.
    pub logits: u64,
    /// The peak: of what is not in memory at the same time the larger one. Block by block these are one block's tape with its
    /// copies, and kept tapes with the logits; with one tape, they and the last gradient, which grows as the tape is used up.
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
/// | tape | `rows` times the outputs of all matrices of all blocks, and the inputs of those that train; block by block, of the uppermost blocks whose tapes are kept, or of one block that trains, for the rows that go through it at a time |
/// | copies | of offloaded blocks: a block's numbers of the models' type |
/// | logits | `8 rows vocabulary`; block by block `4 rows vocabulary` for the rows of a chunk (32 MiB of logits, 64 rows at least), in half precision `12 rows vocabulary` for 24 MiB of them and the head's gradient in float32 |
///
/// With [`offload`](PlanConfig::offload) devices hold the blocks that train, and [`host`](Self::host) the others.
///
/// `rows` is the number of tokens in a micro-batch. Of blocks that are spread over devices as many train on each as can, so
/// that each figure is that of the worst draw. The constants (five hidden states, the tape by matrices, two and three times the
/// logits) are those of the kernels of the CPU device in float32, with which predictions are compared in docs/performance.md;
/// where plain formulas run instead, a block's tape also holds scores and activations. The program itself, the data and the allocator come on top: on a GPU the
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
    host: Option<DeviceMemory>,
    moved: u64,
}

impl MemoryPlan {
    /// The plan of a run.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) for sizes of 0, a length above the model's longest sequence, more blocks for LISA than there are,
    /// a micro-batch or devices without samples, and more devices than blocks.
    pub fn new(size: &ModelSize, config: &PlanConfig) -> Result<Self> {
        config.check(size)?;
        let both = Share {
            u: config.auxiliary,
            w: true,
            embedding: true,
            head: true,
            blocks: size.blocks,
        };
        let load = |share| Load {
            size,
            config,
            share,
        };
        let memory = |share| load(share).memory();
        let spread = |share: Share, devices| share.spread(devices, |share| memory(share).0.total);
        let shares = match config.placement {
            Placement::One => vec![both],
            Placement::Parallel(devices) => vec![both; devices],
            Placement::Spread(devices) => spread(both, devices),
            Placement::Apart(devices) => {
                let of_w = Placement::of_w(devices);
                let mut shares = spread(Share { u: false, ..both }, of_w);
                shares.extend(spread(Share { w: false, ..both }, devices - of_w));
                shares
            }
        };
        let moved = |share: &Share| load(*share).moved(&memory(*share).1);
        let moved = shares.iter().map(moved).sum();
        let (devices, hosts): (Vec<_>, Vec<_>) = shares.into_iter().map(memory).unzip();
        let host = hosts.into_iter().reduce(|sum, host| DeviceMemory {
            u: sum.u + host.u,
            w: sum.w + host.w,
            masters: sum.masters + host.masters,
            moments: sum.moments + host.moments,
            total: sum.total + host.total,
            ..sum
        });
        Ok(Self {
            devices,
            host: host.filter(|_| config.offload.is_some()),
            moved,
        })
    }

    /// Where the models of a run go on so many devices: on two or more of them, `u` and `w` apart, which compute at the same
    /// time, or else, if that does not fit in `capacity` bytes of memory a device, the blocks of both spread over all. If
    /// neither fits, whichever takes less on its fullest device. The placement in `config` does not count.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn place(
        size: &ModelSize,
        config: &PlanConfig,
        devices: usize,
        capacity: Option<u64>,
    ) -> Result<Placement> {
        let largest = |placement| {
            let config = PlanConfig {
                placement,
                ..config.clone()
            };
            Self::new(size, &config).map(|plan| plan.largest())
        };
        let (apart, spread) = (Placement::Apart(devices), Placement::Spread(devices));
        if devices == 1 {
            return Ok(Placement::One);
        }
        if !config.auxiliary {
            return Ok(spread);
        }
        let of_apart = largest(apart)?;
        if capacity.is_none_or(|capacity| of_apart <= capacity) {
            return Ok(apart);
        }
        // A model of few blocks can be apart on more devices than it can be spread over.
        match largest(spread) {
            Ok(of_spread) if of_spread < of_apart => Ok(spread),
            _ => Ok(apart),
        }
    }

    /// What each device holds; with [`Placement::Apart`] those of `w` come first.
    pub fn devices(&self) -> &[DeviceMemory] {
        &self.devices
    }

    /// What waits in host memory for all devices, if something is offloaded: what the host computes with is not counted.
    pub fn host(&self) -> Option<&DeviceMemory> {
        self.host.as_ref()
    }

    /// Bytes that a step moves between the host and all devices, if something is offloaded: a frozen block's parameters twice
    /// for each gradient of a micro-batch (two gradients in `w`, one in `u`), and what the optimizer remembers there and back,
    /// where it waits on the host. A draw of other blocks moves their parameters once more.
    pub fn bytes_moved(&self) -> u64 {
        self.moved
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

/// What lies on a device.
#[derive(Clone, Copy)]
pub(super) struct Share {
    pub u: bool,
    pub w: bool,
    pub embedding: bool,
    pub head: bool,
    pub blocks: usize,
}

impl Share {
    /// The blocks in runs over devices: of about equal length, but that the fullest devices give blocks to the emptiest as
    /// long as their `total` falls.
    fn spread(self, devices: usize, total: impl Fn(Self) -> u64) -> Vec<Self> {
        let blocks = self.blocks;
        let share = |index| Self {
            embedding: index == 0,
            head: index + 1 == devices,
            blocks: blocks * (index + 1) / devices - blocks * index / devices,
            ..self
        };
        let mut shares: Vec<_> = (0..devices).map(share).collect();
        loop {
            let by_total = |&index: &usize| total(shares[index]);
            let (Some(fullest), Some(emptiest)) = (
                (0..devices).max_by_key(by_total),
                (0..devices).min_by_key(by_total),
            ) else {
                return shares;
            };
            let (mut giving, mut taking) = (shares[fullest], shares[emptiest]);
            (giving.blocks, taking.blocks) = (giving.blocks.saturating_sub(1), taking.blocks + 1);
            let before = total(shares[fullest]);
            if giving.blocks == 0 || total(giving).max(total(taking)) >= before {
                return shares;
            }
            (shares[fullest], shares[emptiest]) = (giving, taking);
        }
    }
}

/// A device with its share of a model.
pub(super) struct Load<'a> {
    pub size: &'a ModelSize,
    pub config: &'a PlanConfig,
    pub share: Share,
}

impl Load<'_> {
    /// Of the device, and of the host beside it.
    fn memory(&self) -> (DeviceMemory, DeviceMemory) {
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
            blocks: share.blocks,
            u: bytes(&[usize::from(share.u), own, number]),
            w: bytes(&[usize::from(share.w), held, number]),
            masters: bytes(&[usize::from(half), models, trained, SINGLE]),
            moments: bytes(&[config.moments, models, trained, SINGLE]),
            gradients: bytes(&[trained, sums * SINGLE + fresh]),
            ..DeviceMemory::default()
        };
        let host = self.offloaded(&mut memory);
        self.activations(samples, rows, &mut memory);
        (memory, host)
    }

    /// Blocks that train at a time.
    pub(super) fn active_blocks(&self) -> usize {
        let blocks = self.share.blocks;
        self.config.lisa_blocks.unwrap_or(blocks).min(blocks)
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
        if let Some(kept) = self.tapes_kept(rows) {
            let active = config.lisa_blocks.unwrap_or(share.blocks);
            let features = kept * size.outputs + active.min(kept) * size.inputs;
            let kept_tapes = bytes(&[at_once, rows, features, number]);
            let one = match kept == share.blocks {
                true => 0,
                false => samples_at_a_time(samples, config.length, size.width) * config.length,
            };
            let one_tape = bytes(&[at_once, one, size.inputs + size.outputs, number]);
            let (chunk, times) = match config.dtype {
                Dtype::Float32 => (KERNEL_CHUNK_BYTES, 1),
                Dtype::Bfloat16 => (CHUNK_BYTES, LOGITS_OF_A_CHUNK),
            };
            memory.inputs = masks + (share.blocks + OTHER_STATES) as u64 * states;
            memory.tape = one_tape.max(kept_tapes);
            let chunk = rows.min(chunk_rows(size.vocabulary, chunk));
            memory.logits = bytes(&[at_once, has_head, times * SINGLE, chunk, size.vocabulary]);
            if config.dtype == Dtype::Bfloat16 && !config.freeze_others {
                memory.logits += bytes(&[at_once, has_head, size.vocabulary, size.width, SINGLE]);
            }
            let one_block = one_tape + memory.copies;
            memory.total = state + memory.inputs + one_block.max(kept_tapes + memory.logits);
        } else {
            let fresh = if samples < self.samples() {
                number
            } else {
                SINGLE
            };
            let last = bytes(&[at_once, self.trained(config.lisa_blocks), fresh]);
            memory.inputs = masks + OTHER_STATES as u64 * states;
            let active = config.lisa_blocks.unwrap_or(share.blocks);
            let features = share.blocks * size.outputs + active.min(share.blocks) * size.inputs;
            memory.tape = bytes(&[at_once, rows, features, number]);
            memory.logits = bytes(&[
                at_once,
                has_head,
                LOGITS_ON_TAPE * SINGLE,
                rows,
                size.vocabulary,
            ]);
            memory.total = state - last + memory.inputs + last.max(memory.tape + memory.logits);
        }
        memory.total = memory.total.max(state + self.visiting());
    }

    /// Block by block, how many blocks' tapes are kept from the first pass.
    fn tapes_kept(&self, rows: usize) -> Option<usize> {
        let Self {
            size,
            config,
            share,
        } = self;
        match config.differentiation(size) {
            Differentiation::Plain => None,
            Differentiation::Blockwise => Some(0),
            Differentiation::Balanced if config.freeze_others => Some(0),
            Differentiation::Balanced => {
                let number = config.dtype.width();
                let kept = tapes_kept(size.outside(), size.outputs, number, rows);
                Some(match config.offload {
                    None => kept.min(share.blocks),
                    Some(_) => kept.min(self.active_blocks()),
                })
            }
        }
    }

    /// Passes through a model at the same time.
    pub(super) fn passes(&self) -> usize {
        let Share { u, w, .. } = self.share;
        if self.config.concurrent && u && w {
            2
        } else {
            1
        }
    }

    /// Samples of a step.
    pub(super) fn samples(&self) -> usize {
        match self.config.placement {
            Placement::Parallel(devices) => self.config.batch.div_ceil(devices),
            _ => self.config.batch,
        }
    }

    /// Samples and rows of a micro-batch.
    pub(super) fn micro_batch(&self) -> (usize, usize) {
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

pub(super) fn bytes(factors: &[usize]) -> u64 {
    let product = |product: u64, factor: &usize| product.saturating_mul(*factor as u64);
    factors.iter().fold(1, product)
}
