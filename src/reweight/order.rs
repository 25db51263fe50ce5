//! A reshuffled order: sampling without replacement, epoch after epoch.

use rand::Rng;
use rand::seq::SliceRandom;

/// Endless indices below `size`, each once an epoch, in a new random order every epoch: 4 bytes of memory each.
#[derive(Clone, Debug)]
pub(super) struct Order {
    order: Vec<u32>,
    position: usize,
}

impl Order {
    /// Largest size.
    pub const LARGEST: usize = u32::MAX as usize;

    /// An order of at most [`LARGEST`](Self::LARGEST) indices.
    pub fn new(size: usize) -> Self {
        Self {
            order: (0..size as u32).collect(),
            position: size, // so that the first draw shuffles
        }
    }

    pub fn next(&mut self, random: &mut impl Rng) -> usize {
        if self.position == self.order.len() {
            self.order.shuffle(random);
            self.position = 0;
        }
        self.position += 1;
        self.order[self.position - 1] as usize
    }
}
