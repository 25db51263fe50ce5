//! A handle of a collective, and what is made of it: outcomes that all ranks share, and things they must agree on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;

use super::Collective;
use crate::{Error, Result};

/// The first byte of what a rank says of its outcome.
const DONE: u8 = 0;
const FAILED: u8 = 1;

/// The ranks of a run, as one of them sees them: a handle of a [`Collective`] that is shared by its clones.
///
/// By default a run is alone: one rank, and nothing to talk to.
#[derive(Clone, Default)]
pub struct Ranks {
    /// `None` for a rank that is alone.
    collective: Option<Arc<Mutex<Box<dyn Collective>>>>,
    rank: usize,
    /// How many others there are.
    others: usize,
}

impl Ranks {
    /// The ranks that `collective` connects. Of a collective of one rank, nothing is used.
    #[must_use]
    pub fn new(collective: impl Collective + 'static) -> Self {
        let (rank, ranks) = (collective.rank(), collective.ranks());
        if ranks <= 1 {
            return Self::default();
        }
        Self {
            collective: Some(Arc::new(Mutex::new(Box::new(collective)))),
            rank,
            others: ranks - 1,
        }
    }

    /// The number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are, at least 1.
    pub fn count(&self) -> usize {
        self.others + 1
    }

    /// Whether this is rank 0, the one that writes files and prints.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// The outcome of this rank if all have succeeded; else the first error, which names its rank, on all of them. For what
    /// each rank does for itself, such as opening data, or what one does for all, such as writing a file.
    ///
    /// An error that all ranks have already ([`Error::Rank`], [`Error::Disagreement`], [`Error::Timeout`]) is not told again,
    /// so that what was done together can be part of something that is.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`]; the error itself for a rank that is alone; those of [`Collective::exchange`].
    pub fn together<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(value) => self.gather(Ok(Vec::new())).map(|_| value),
            Err(error) => {
                self.gather(Err(error))?;
                let given = "a failure that the collective lost";
                Err(Error::setting(
                    "collective",
                    given,
                    "all bytes of all ranks",
                    "see `Collective::exchange`",
                ))
            }
        }
    }

    /// Whether the answer of any rank is yes.
    ///
    /// # Errors
    ///
    /// Those of [`Collective::exchange`].
    pub fn any(&self, answer: bool) -> Result<bool> {
        let answers = self.gather(Ok(vec![u8::from(answer)]))?;
        Ok(answers.iter().any(|answer| *answer == [1]))
    }

    /// Checks that facts, by their names, are the same on all ranks.
    ///
    /// # Errors
    ///
    /// [`Error::Disagreement`], with the first difference, on all ranks; those of [`Collective::exchange`].
    pub fn agree(&self, facts: &BTreeMap<String, String>) -> Result<()> {
        let mut bytes = Vec::new();
        for text in facts.iter().flat_map(|(name, fact)| [name, fact]) {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        let of_ranks = self.gather(Ok(bytes))?;
        let of_ranks: Vec<_> = of_ranks.iter().map(|bytes| read_facts(bytes)).collect();
        let Some((first, others)) = of_ranks.split_first() else {
            return Ok(());
        };
        let nothing = "nothing".to_owned();
        for (rank, other) in (1..).zip(others) {
            for name in first.keys().chain(other.keys()) {
                let [first, other] =
                    [first, other].map(|facts| facts.get(name).unwrap_or(&nothing));
                if first != other {
                    let what = format!("{name} is {other} on rank {rank}, but {first} on rank 0");
                    return Err(Error::Disagreement { what });
                }
            }
        }
        Ok(())
    }

    /// What each rank says if all have succeeded; else the first error on all of them.
    ///
    /// # Errors
    ///
    /// As [`together`](Self::together).
    pub fn gather(&self, outcome: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if self.collective.is_none() {
            return Ok(vec![outcome?]);
        }
        let (own, said) = match outcome {
            Ok(bytes) => (None, [&[DONE], &*bytes].concat()),
            Err(
                error @ (Error::Rank { .. } | Error::Disagreement { .. } | Error::Timeout { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => {
                let said = [&[FAILED], error.to_string().as_bytes()].concat();
                (Some(error), said)
            }
        };
        let said = match (self.exchange(&said), own) {
            (Ok(said), _) => said,
            // The others are gone: perhaps for the reason that this rank knows.
            (Err(_), Some(own)) => return Err(own),
            (Err(error), None) => return Err(error),
        };
        let outcomes = said
            .into_iter()
            .enumerate()
            .map(|(rank, said)| match said.split_first() {
                Some((&DONE, bytes)) => Ok(bytes.to_vec()),
                Some((_, message)) => Err(failure(rank, &String::from_utf8_lossy(message))),
                None => Err(failure(rank, "it said nothing")),
            });
        outcomes.collect()
    }

    /// Bytes from all ranks, by rank.
    fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        match &self.collective {
            None => Ok(vec![bytes.to_vec()]),
            Some(collective) => {
                let mut collective = collective.lock().unwrap_or_else(PoisonError::into_inner);
                collective.exchange(bytes)
            }
        }
    }

    /// The sum of a tensor over all ranks.
    pub(crate) fn sum(&self, tensor: Tensor<1>) -> Result<Tensor<1>> {
        match &self.collective {
            None => Ok(tensor),
            Some(collective) => {
                let mut collective = collective.lock().unwrap_or_else(PoisonError::into_inner);
                collective.sum(tensor)
            }
        }
    }
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.count())
    }
}

fn failure(rank: usize, message: &str) -> Error {
    Error::Rank {
        rank,
        message: message.to_owned(),
    }
}

fn read_facts(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let mut texts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = (u64::from_le_bytes(*length) as usize).min(rest.len());
        let (text, rest) = rest.split_at(length);
        texts.push(String::from_utf8_lossy(text).into_owned());
        bytes = rest;
    }
    let pairs = texts.chunks_exact(2);
    pairs
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}
