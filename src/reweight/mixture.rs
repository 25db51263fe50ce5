//! From source weights to whole numbers of samples.

use crate::{Error, Result};

/// How far the weights of a mixture may add up to something else than 1: the rounding of numbers that were printed.
const TOLERANCE: f64 = 1e-6;

/// What happens where a source has fewer samples than its weight asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "llm", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "llm", serde(rename_all = "lowercase"))]
pub enum Shortage {
    /// An error that names the source.
    #[default]
    Error,
    /// The source gives all it has, and the others the rest, by weight.
    Redistribute,
}

/// Sources and the share of each in a training set: what `weights.json` says.
///
/// # Example
///
/// ```
/// use scalebio::reweight::{Mixture, Shortage};
///
/// let mixture = Mixture::new([("cats", 0.5), ("dogs", 0.3), ("eels", 0.2)])?;
/// assert_eq!(mixture.counts(9), [4, 3, 2]); // 4.5, 2.7 and 1.8 without rounding
/// let counts = mixture.counts_within(10, &[2, 100, 100], Shortage::Redistribute)?;
/// assert_eq!(counts, [2, 5, 3]);
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    names: Vec<String>,
    weights: Vec<f64>,
}

impl Mixture {
    /// A mixture of named sources.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for no source, a name twice, a weight that is negative or not finite, and weights that do not
    /// add up to 1 within 1e-6.
    pub fn new<S: Into<String>>(sources: impl IntoIterator<Item = (S, f64)>) -> Result<Self> {
        let (names, weights): (Vec<String>, Vec<f64>) = sources
            .into_iter()
            .map(|(name, weight)| (name.into(), weight))
            .unzip();
        if names.is_empty() {
            return Err(Error::setting(
                "sources",
                0,
                "at least 1",
                "there is nothing to mix",
            ));
        }
        let bad = |weight: &f64| !(weight.is_finite() && *weight >= 0.0);
        if let Some(source) = weights.iter().position(bad) {
            return Err(Error::setting(
                "weight",
                format!("{} for source `{}`", weights[source], names[source]),
                "a finite number of at least 0",
                "take the weights of a run that ended well",
            ));
        }
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::setting(
                "sources",
                format!("`{}` twice", pair[0]),
                "distinct names",
                "leave one of the two out",
            ));
        }
        let sum: f64 = weights.iter().sum();
        if (sum - 1.0).abs() > TOLERANCE {
            return Err(Error::setting(
                "sum of the weights",
                sum,
                "1",
                "divide every weight by the sum",
            ));
        }
        Ok(Self { names, weights })
    }

    /// Names of the sources, in the order given.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Weights of the sources, in the order given.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// How many of `samples` each source gives, by largest remainder: first the whole part of `p_i N`, then one more for
    /// the largest fractions, until all `N` are given. They add up to `N`; each is less than 1 from `p_i N`; a larger weight
    /// never gives fewer.
    pub fn counts(&self, samples: usize) -> Vec<usize> {
        apportion(&self.weights, samples)
    }

    /// As [`counts`](Self::counts), with at most `available[i]` samples of source `i`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if a source has fewer than it should give, under [`Shortage::Error`]; if all sources of a weight
    /// above 0 together have fewer than `samples`; and for another number of sources than of weights.
    pub fn counts_within(
        &self,
        samples: usize,
        available: &[usize],
        shortage: Shortage,
    ) -> Result<Vec<usize>> {
        if available.len() != self.names.len() {
            return Err(Error::setting(
                "available samples",
                format!("{} numbers", available.len()),
                format!("{} numbers, one a source", self.names.len()),
                "count the samples of every source",
            ));
        }
        let counts = self.counts(samples);
        let short = (0..counts.len()).find(|&i| counts[i] > available[i]);
        let Some(source) = short else {
            return Ok(counts);
        };
        if shortage == Shortage::Error {
            return Err(Error::setting(
                "samples",
                format!(
                    "{samples}, {} of them from source `{}`",
                    counts[source], self.names[source]
                ),
                format!("so few that the source gives at most {}", available[source]),
                "ask for fewer, redistribute over the other sources, or draw with replacement",
            ));
        }
        self.redistributed(samples, available).ok_or_else(|| {
            let given = |i: &usize| self.weights[*i] > 0.0;
            let total: usize = (0..counts.len())
                .filter(given)
                .map(|i| available[i])
                .fold(0, usize::saturating_add);
            Error::setting(
                "samples",
                samples,
                format!("at most {total}, all that the sources with a weight above 0 have"),
                "ask for fewer, or draw with replacement",
            )
        })
    }

    /// Sources that cannot give their share give all they have; the rest is shared anew until all others can.
    fn redistributed(&self, samples: usize, available: &[usize]) -> Option<Vec<usize>> {
        let mut counts = vec![0; self.weights.len()];
        let mut open: Vec<usize> = (0..counts.len())
            .filter(|&i| self.weights[i] > 0.0)
            .collect();
        let mut left = samples;
        while !open.is_empty() {
            let weights: Vec<f64> = open.iter().map(|&i| self.weights[i]).collect();
            let shares = apportion(&weights, left);
            let (full, rest): (Vec<_>, Vec<_>) = open
                .iter()
                .zip(shares)
                .partition(|&(&i, share)| share > available[i]);
            if full.is_empty() {
                rest.into_iter().for_each(|(&i, share)| counts[i] = share);
                return Some(counts);
            }
            for (&i, _) in full {
                counts[i] = available[i];
                left -= available[i];
            }
            open = rest.into_iter().map(|(&i, _)| i).collect();
        }
        (left == 0).then_some(counts)
    }
}

/// Largest remainder (Hamilton's method); equal remainders go to the first.
fn apportion(weights: &[f64], samples: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let ideal: Vec<f64> = weights
        .iter()
        .map(|weight| samples as f64 * (weight / sum))
        .collect();
    let mut counts: Vec<usize> = ideal.iter().map(|ideal| ideal.floor() as usize).collect();
    let remainder = |i: &usize| ideal[*i] - ideal[*i].floor();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|a, b| remainder(b).total_cmp(&remainder(a)));
    let given: usize = counts.iter().sum();
    for &i in order.iter().cycle().take(samples.saturating_sub(given)) {
        counts[i] += 1;
    }
    // Products that were rounded up to a whole number may be one too many.
    let above = order.iter().rev().filter(|&&i| ideal[i] >= 1.0);
    for &i in above.take(given.saturating_sub(samples)) {
        counts[i] -= 1;
    }
    counts
}
