//! Seeded minibatches of a finite sum, with and without replacement, that resume from one number.

use rand::RngExt;
use rand::seq::SliceRandom;

use super::generator;
use crate::progress;
use crate::{Error, Result, Slot};

/// In which order [`Minibatches`] draws the samples of a finite sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Random reshuffling: every epoch draws each sample once, in a new random order.
    #[default]
    Reshuffle,
    /// Shuffle once: one random order, the same in every epoch.
    ShuffleOnce,
    /// One random partition into batches, which every epoch visits once each in a new random order. Its batches have a
    /// [`Slot`]: what a variance-reduced estimate (SAGA) with a memory a batch needs.
    FixedBatches,
    /// With replacement: every sample of every batch is drawn on its own.
    Independent,
}

/// Draws minibatches of a finite sum of `samples` terms: each draw is a function of the seed and of its number, so that
/// one number is all it takes to resume.
///
/// An epoch is `ceil(samples / batch)` draws. Where `batch` does not divide `samples`, one batch of an epoch is short;
/// all samples keep the same [weight](Minibatch::weight), so that the mean over an epoch's draws is the full sum's mean
/// exactly. (A single draw of [`Order::FixedBatches`] and of [`Order::Independent`] is unbiased too. In the other two
/// orders the short batch comes last, and a single draw is so only where `batch` divides `samples`.)
///
/// # Example
///
/// ```
/// use scalebio::{Minibatches, Order};
///
/// # fn main() -> scalebio::Result<()> {
/// let mut batches = Minibatches::new(10, 4).order(Order::ShuffleOnce).seed(7);
/// let sizes: Vec<usize> = (0..3).map(|_| Ok(batches.draw()?.samples.len())).collect::<scalebio::Result<_>>()?;
/// assert_eq!(sizes, [4, 4, 2]);
/// let mut resumed = Minibatches::new(10, 4).order(Order::ShuffleOnce).seed(7).resume_at(batches.position());
/// assert_eq!(resumed.draw()?, batches.draw()?);
/// # Ok(())
/// # }
/// ```
///
/// # Reference
///
/// Without replacement at both levels: *WiOR-BO*, arXiv 2411.05868.
#[derive(Clone, Debug)]
#[must_use]
pub struct Minibatches {
    samples: usize,
    batch: usize,
    order: Order,
    seed: u64,
    position: u64,
    /// The permutation of the epoch it was made for; recomputed when the epoch is another.
    current: Option<(u64, Vec<usize>)>,
    /// The partition of [`Order::FixedBatches`].
    partition: Vec<usize>,
}

/// What [`Minibatches`] draws.
#[derive(Clone, Debug, PartialEq)]
pub struct Minibatch {
    /// Indices of samples.
    pub samples: Vec<usize>,
    /// What the sum of the samples' losses is to be multiplied by, for an unbiased estimate of the mean loss.
    pub weight: f64,
    /// Which batch it is; only with [`Order::FixedBatches`].
    pub slot: Option<Slot>,
}

impl Minibatches {
    /// Batches of `batch` out of `samples` samples.
    ///
    /// Defaults: [`Order::Reshuffle`], seed 0.
    pub fn new(samples: usize, batch: usize) -> Self {
        Self {
            samples,
            batch,
            order: Order::default(),
            seed: 0,
            position: 0,
            current: None,
            partition: Vec::new(),
        }
    }

    /// In which order samples are drawn. Default: [`Order::Reshuffle`].
    pub fn order(self, order: Order) -> Self {
        Self {
            order,
            ..self.forgetful()
        }
    }

    /// Seed of all draws. Default: 0.
    pub fn seed(self, seed: u64) -> Self {
        Self {
            seed,
            ..self.forgetful()
        }
    }

    /// Goes on as if `draws` batches had been drawn. Default: 0.
    pub fn resume_at(mut self, draws: u64) -> Self {
        self.position = draws;
        self
    }

    /// How many batches have been drawn.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The position and the settings as text, for [`UpperObjective::progress`](crate::UpperObjective::progress).
    pub fn progress(&self) -> String {
        progress::progress(self.position, &self.settings())
    }

    /// Goes on where a text of [`progress`](Self::progress) says.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for draws with other settings.
    pub fn resume(&mut self, progress: &str) -> Result<()> {
        self.position = progress::draws(progress, &self.settings())?;
        Ok(())
    }

    fn settings(&self) -> String {
        let Self {
            samples,
            batch,
            order,
            seed,
            ..
        } = self;
        format!("minibatches of {batch} of {samples} samples, {order:?}, seed {seed}")
    }

    /// Number of samples that are drawn from.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Number of draws of an epoch.
    ///
    /// # Errors
    ///
    /// As [`draw`](Self::draw).
    pub fn batches(&self) -> Result<usize> {
        if self.batch == 0 || self.batch > self.samples {
            return Err(Error::setting(
                "batch",
                format!("{} samples", self.batch),
                format!("from 1 to {} samples, all there are", self.samples),
                "use a smaller batch or more data",
            ));
        }
        Ok(self.samples.div_ceil(self.batch))
    }

    /// Draws the next batch.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a batch of no samples or of more than there are.
    pub fn draw(&mut self) -> Result<Minibatch> {
        let batches = self.batches()?;
        let (epoch, turn) = (
            self.position / batches as u64,
            (self.position % batches as u64) as usize,
        );
        let weight = batches as f64 / self.samples as f64;
        let drawn = match self.order {
            Order::Independent => {
                let mut random = generator(self.seed, self.position);
                let pick = |_| random.random_range(0..self.samples);
                Minibatch {
                    samples: (0..self.batch).map(pick).collect(),
                    weight: 1.0 / self.batch as f64,
                    slot: None,
                }
            }
            Order::Reshuffle | Order::ShuffleOnce => {
                let epoch = if self.order == Order::Reshuffle {
                    epoch
                } else {
                    0
                };
                self.permute(epoch, self.samples);
                Minibatch {
                    samples: self.chunk(self.permutation(), turn),
                    weight,
                    slot: None,
                }
            }
            Order::FixedBatches => {
                if self.partition.is_empty() {
                    // The one permutation that no epoch has.
                    self.permute(u64::MAX, self.samples);
                    self.partition = self.permutation().to_vec();
                }
                self.permute(epoch, batches);
                let index = self.permutation()[turn];
                Minibatch {
                    samples: self.chunk(&self.partition, index),
                    weight,
                    slot: Some(Slot { index, of: batches }),
                }
            }
        };
        self.position += 1;
        Ok(drawn)
    }

    fn chunk(&self, of: &[usize], index: usize) -> Vec<usize> {
        let start = index * self.batch;
        of[start..self.samples.min(start + self.batch)].to_vec()
    }

    fn permutation(&self) -> &[usize] {
        self.current.as_ref().map_or(&[], |(_, order)| order)
    }

    /// Makes `permutation` the one number `epoch` of `0..size`.
    fn permute(&mut self, epoch: u64, size: usize) {
        if self
            .current
            .as_ref()
            .is_some_and(|(made, _)| *made == epoch)
        {
            return;
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.shuffle(&mut generator(self.seed, epoch));
        self.current = Some((epoch, order));
    }

    /// Itself without what was computed from the settings.
    fn forgetful(self) -> Self {
        Self {
            current: None,
            partition: Vec::new(),
            ..self
        }
    }
}
