//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use super::{Collective, Numbers, check_timeout};
use crate::{Error, Result};

/// One of several threads of a process that meet in its memory. Sums go through the host, so that any devices will do: one a
/// thread. A thread that ends, by a panic too, is an error on all others at once.
#[derive(Debug)]
pub struct Threads {
    room: Arc<Room>,
    rank: usize,
    timeout: Duration,
}

/// Where they meet.
#[derive(Debug)]
struct Room {
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Debug)]
struct Meeting {
    /// How many meetings are over.
    number: u64,
    /// What the ranks that are already there have brought.
    brought: Vec<Option<Parcel>>,
    /// What all had brought to the last meeting. It stays until all have seen it, since the next one needs them all.
    last: Arc<[Parcel]>,
    /// A rank that has ended.
    gone: Option<usize>,
}

#[derive(Clone, Debug)]
enum Parcel {
    Bytes(Vec<u8>),
    Numbers(Numbers),
}

impl Threads {
    /// A collective for each of `ranks` threads, by rank. A rank waits for the others up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for no rank or no time.
    pub fn new(ranks: usize, timeout: Duration) -> Result<Vec<Self>> {
        check_timeout(timeout)?;
        if ranks == 0 {
            return Err(Error::setting(
                "ranks",
                0,
                "at least 1",
                "1 for a run that is alone",
            ));
        }
        let room = Arc::new(Room {
            meeting: Mutex::new(Meeting {
                number: 0,
                brought: vec![None; ranks],
                last: Arc::from([]),
                gone: None,
            }),
            changed: Condvar::new(),
        });
        let of_rank = |rank| Self {
            room: Arc::clone(&room),
            rank,
            timeout,
        };
        Ok((0..ranks).map(of_rank).collect())
    }

    /// What all ranks have brought, once they are all there.
    fn meet(&self, parcel: Parcel) -> Result<Arc<[Parcel]>> {
        let mut meeting = self.room.lock();
        let number = meeting.number;
        meeting.brought[self.rank] = Some(parcel);
        if meeting.brought.iter().all(Option::is_some) {
            meeting.last = meeting
                .brought
                .iter_mut()
                .filter_map(Option::take)
                .collect();
            meeting.number += 1;
            self.room.changed.notify_all();
            return Ok(Arc::clone(&meeting.last));
        }
        let started = Instant::now();
        loop {
            if meeting.number > number {
                return Ok(Arc::clone(&meeting.last));
            }
            if let Some(rank) = meeting.gone {
                let message = "it has ended".to_owned();
                return Err(Error::Rank { rank, message });
            }
            let Some(left) = self.timeout.checked_sub(started.elapsed()) else {
                return Err(Error::Timeout {
                    rank: self.rank,
                    ranks: meeting.brought.len(),
                    seconds: self.timeout.as_secs_f64(),
                });
            };
            let waited = self.room.changed.wait_timeout(meeting, left);
            meeting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        // Nothing panics while it is held, and its state is whole between any two lines.
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.room.lock().gone.get_or_insert(self.rank);
        self.room.changed.notify_all();
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.room.lock().brought.len()
    }

    fn sum(&mut self, tensor: Tensor<1>) -> Result<Tensor<1>> {
        let device = tensor.device();
        let brought = self.meet(Parcel::Numbers(Numbers::of(tensor)?))?;
        let (first, others) = brought.split_first().ok_or_else(mixed)?;
        let Parcel::Numbers(mut sum) = first.clone() else {
            return Err(mixed());
        };
        // In the order of the ranks on each of them, so that all have the same bits.
        for other in others {
            match (&mut sum, other) {
                (Numbers::F32(sum), Parcel::Numbers(Numbers::F32(other))) => add(sum, other)?,
                (Numbers::F64(sum), Parcel::Numbers(Numbers::F64(other))) => add(sum, other)?,
                _ => return Err(mixed()),
            }
        }
        Ok(sum.into_tensor(&device))
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let brought = self.meet(Parcel::Bytes(bytes.to_vec()))?;
        let bytes = brought.iter().map(|parcel| match parcel {
            Parcel::Bytes(bytes) => Ok(bytes.clone()),
            Parcel::Numbers(_) => Err(mixed()),
        });
        bytes.collect()
    }
}

fn add<T: Copy + std::ops::AddAssign>(sum: &mut [T], other: &[T]) -> Result<()> {
    if sum.len() != other.len() {
        return Err(mixed());
    }
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += *other;
    }
    Ok(())
}

fn mixed() -> Error {
    Error::Disagreement {
        what: "they call different methods of the collective, or sum tensors of different sizes"
            .to_owned(),
    }
}
