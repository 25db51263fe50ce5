//! Minibatches of several sources, each source in exact epochs.

use std::collections::VecDeque;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::order::Order;
use crate::progress;
use crate::{Error, Result};

/// The samples of one or several sources.
pub trait Samples {
    /// The data of one micro-batch.
    type Batch;

    /// Number of samples of each source.
    fn sizes(&self) -> Vec<usize>;

    /// Puts the picked samples together, in the order given.
    ///
    /// # Errors
    ///
    /// Whatever prevents it; it ends the run.
    fn batch(&self, picks: &[Pick]) -> Result<Self::Batch>;

    /// How many draws [`prefetch`](Self::prefetch) wants to know before they are made. Default: 0.
    fn look_ahead(&self) -> usize {
        0
    }

    /// Is told the samples that a later draw will pick, in the order of the draws, for instance to read them in the background.
    /// What fails then is an error of the [`batch`](Self::batch) that needs it. Default: nothing.
    fn prefetch(&self, _: &[Pick]) {}
}

/// One sample of a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Index of the source.
    pub source: usize,
    /// Index of the sample within the source.
    pub index: usize,
}

/// In which proportions `q_i` the sources are drawn. The learned weights do not depend on it in
/// expectation, since losses are divided by `q_i`; their noise does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sampling {
    /// `q_i = 1 / m`: in a batch of `B`, each source has `floor(B / m)` or `ceil(B / m)` samples, by
    /// systematic sampling with mean `B / m`.
    #[default]
    Stratified,
    /// `q_i = n_i / n`: all samples in one reshuffled order.
    Proportional,
}

/// Seeded minibatches of [`Samples`], without replacement within an epoch.
///
/// Stratified draws cycle through every source in an order of its own, proportional draws through all
/// samples in one; orders are reshuffled every epoch.
#[derive(Clone, Debug)]
#[must_use]
pub struct Draws<S> {
    samples: S,
    sizes: Vec<usize>,
    batch: usize,
    micro_batch: usize,
    sampling: Sampling,
    seed: u64,
    random: Xoshiro256PlusPlus,
    drawn: u64,
    /// One order a source, or one of all samples; made when the first batch is drawn.
    orders: Vec<Order>,
    /// This rank, and how many there are.
    share: (usize, usize),
    /// Draws that the samples were told of, and that are not made yet.
    ahead: VecDeque<Vec<Pick>>,
}

impl<S: Samples> Draws<S> {
    /// Draws of `batch` samples.
    ///
    /// Defaults: one micro-batch, [`Sampling::Stratified`], seed 0.
    pub fn new(samples: S, batch: usize) -> Self {
        Self {
            sizes: samples.sizes(),
            samples,
            batch,
            micro_batch: usize::MAX,
            sampling: Sampling::default(),
            seed: 0,
            random: Xoshiro256PlusPlus::seed_from_u64(0),
            drawn: 0,
            orders: Vec::new(),
            share: (0, 1),
            ahead: VecDeque::new(),
        }
    }

    /// Cuts every draw into micro-batches of at most `samples`, at least 1. Saves memory; changes
    /// results by rounding only. Default: no cut.
    pub fn micro_batch(mut self, samples: usize) -> Self {
        self.micro_batch = samples;
        self
    }

    /// In which proportions the sources are drawn. Default: [`Sampling::Stratified`].
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Seed of all draws. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.restart();
        self
    }

    /// Gets, of every draw, the share of rank `rank` of `ranks`: one sample of `ranks`, in the order of the draw, and none
    /// of a draw with fewer samples than that. Together the shares of all ranks are the draw, whose number of samples stays
    /// [`batch`](Self::batch). [`ScaleBio::collective`](crate::ScaleBio::collective) asks for it. Default: all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] unless `rank < ranks`.
    pub fn share(&mut self, rank: usize, ranks: usize) -> Result<()> {
        if rank >= ranks {
            return Err(Error::setting(
                "rank",
                rank,
                format!("below {ranks}, the number of ranks"),
                "ranks count from 0",
            ));
        }
        self.share = (rank, ranks);
        Ok(())
    }

    /// The samples that are drawn from.
    pub fn samples(&self) -> &S {
        &self.samples
    }

    /// The proportion `q_i` at which each source is drawn.
    pub fn proportions(&self) -> Vec<f64> {
        let sources = self.sizes.len() as f64;
        let total: usize = self.sizes.iter().sum();
        match self.sampling {
            Sampling::Stratified => vec![1.0 / sources; self.sizes.len()],
            Sampling::Proportional => {
                let share = |&size: &usize| size as f64 / total as f64;
                self.sizes.iter().map(share).collect()
            }
        }
    }

    /// Number of samples of a draw.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// This rank's share of the next draw, cut into micro-batches.
    pub(super) fn draw(&mut self) -> Result<Vec<(Vec<Pick>, S::Batch)>> {
        let look_ahead = self.samples.look_ahead();
        while look_ahead > 0 && self.ahead.len() <= look_ahead {
            let picks = self.next_picks();
            self.samples.prefetch(&self.share_of(&picks));
            self.ahead.push_back(picks);
        }
        let picks = self.picks();
        let picks = self.share_of(&picks);
        picks
            .chunks(self.micro_batch)
            .map(|chunk| Ok((chunk.to_vec(), self.samples.batch(chunk)?)))
            .collect()
    }

    /// The samples of a draw that this rank computes: every so many, since sources follow each other, so that each rank gets
    /// some of each.
    fn share_of(&self, picks: &[Pick]) -> Vec<Pick> {
        let (rank, ranks) = self.share;
        picks.iter().skip(rank).step_by(ranks).copied().collect()
    }

    fn restart(&mut self) {
        self.random = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        self.drawn = 0;
        self.orders.clear();
        self.ahead.clear();
    }

    pub(super) fn progress(&self) -> String {
        progress::progress(self.drawn, &self.settings())
    }

    /// Draws all again, without their data: a second for some ten million samples.
    pub(super) fn resume(&mut self, progress: &str) -> Result<()> {
        let draws = progress::draws(progress, &self.settings())?;
        self.restart();
        for _ in 0..draws {
            self.picks();
        }
        Ok(())
    }

    fn settings(&self) -> String {
        let Self {
            batch,
            sampling,
            seed,
            sizes,
            ..
        } = self;
        // One micro-batch is one micro-batch, however large it was allowed to be.
        let micro_batch = self.micro_batch.min(self.batch);
        format!(
            "batches of {batch} samples in micro-batches of {micro_batch}, {sampling:?}, seed {seed}, \
             from sources of {sizes:?} samples"
        )
    }

    /// The samples of the next draw.
    pub(crate) fn picks(&mut self) -> Vec<Pick> {
        self.drawn += 1;
        match self.ahead.pop_front() {
            Some(picks) => picks,
            None => self.next_picks(),
        }
    }

    /// The samples of the first draw that is not known yet.
    fn next_picks(&mut self) -> Vec<Pick> {
        if self.orders.is_empty() {
            self.orders = match self.sampling {
                Sampling::Stratified => self.sizes.iter().map(|&n| Order::new(n)).collect(),
                Sampling::Proportional => vec![Order::new(self.sizes.iter().sum())],
            };
        }
        match self.sampling {
            Sampling::Stratified => self.stratified(),
            Sampling::Proportional => self.proportional(),
        }
    }

    /// Systematic sampling: source `i` gets the integers in `[i B / m + U, (i + 1) B / m + U)`, with
    /// one uniform `U` a draw, so that its count is the floor or the ceiling of `B / m` with that mean.
    fn stratified(&mut self) -> Vec<Pick> {
        let sources = self.sizes.len();
        // In units of 1 / m all ends are integers, and no rounding can lose a sample.
        let offset = self.random.random_range(0..sources);
        let end = |source: usize| (source * self.batch + offset) / sources;
        let counts: Vec<usize> = (0..sources).map(|i| end(i + 1) - end(i)).collect();
        let mut picks = Vec::with_capacity(self.batch);
        for (source, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let index = self.orders[source].next(&mut self.random);
                picks.push(Pick { source, index });
            }
        }
        picks
    }

    fn proportional(&mut self) -> Vec<Pick> {
        (0..self.batch)
            .map(|_| {
                let mut index = self.orders[0].next(&mut self.random);
                let mut source = 0;
                while index >= self.sizes[source] {
                    index -= self.sizes[source];
                    source += 1;
                }
                Pick { source, index }
            })
            .collect()
    }

    pub(crate) fn validate(&self, name: &'static str) -> Result<()> {
        if self.sizes.is_empty() {
            return Err(Error::setting(
                name,
                "no source",
                "at least 1 source",
                "add samples",
            ));
        }
        if let Some(empty) = self.sizes.iter().position(|&size| size == 0) {
            return Err(Error::setting(
                name,
                format!("0 samples in source {empty}"),
                "at least 1 sample in every source",
                "leave the source out",
            ));
        }
        if self.micro_batch == 0 {
            return Err(Error::setting(
                "micro-batch",
                "0 samples",
                "at least 1 sample",
                "leave it out for a single micro-batch",
            ));
        }
        let total: usize = self.sizes.iter().sum();
        if total > Order::LARGEST {
            return Err(Error::setting(
                name,
                format!("{total} samples"),
                format!("at most {} samples", Order::LARGEST),
                "use a part of the data",
            ));
        }
        if self.batch == 0 || self.batch > total {
            return Err(Error::setting(
                "batch",
                format!("{} samples", self.batch),
                format!("from 1 to {total} samples, all there are for the {name}"),
                "use a smaller batch or more data",
            ));
        }
        Ok(())
    }
}
