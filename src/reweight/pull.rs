//! A pull of the source weights towards a prior.

use burn::tensor::{DType, Tensor, TensorData};

use super::weights::SourceWeights;
use crate::{Error, Result};

/// How far a prior may add up to something else than 1: the rounding of numbers that were printed.
const TOLERANCE: f64 = 1e-6;

/// A term of the upper objective that pulls the weights `p` to a prior `q`:
///
/// ```text
/// strength * KL(p | q) = strength * sum_i p_i ln(p_i / q_i)
/// ```
///
/// With a uniform prior that is `strength * (ln m - H(p))` for `m` sources: the entropy `H(p)` is kept up.
///
/// # Effect
///
/// It biases the answer, and is meant to. Without it the weights minimize `h(p) = L1(w*(p))`; with it a minimum in the
/// interior satisfies
///
/// ```text
/// p_i proportional to q_i exp(-(dh/dp_i) / strength)
/// ```
///
/// so that sources which are about as useful as each other get weights about as the prior has them, where noise would
/// decide otherwise, and no weight is 0. A strength far below the differences of `dh/dp_i` (in nats of validation loss for a unit of weight)
/// changes little, one far above returns the prior. The method's penalty hypergradient is smaller than the true one by a
/// factor that tends to 1 with the penalty (`alpha / (1 + alpha)` in the quadratic example of the tests), so that the pull
/// counts that much more.
#[derive(Clone, Debug, PartialEq)]
pub struct Pull {
    strength: f64,
    prior: Vec<f64>,
}

impl Pull {
    /// A pull to `prior`, one share a source in the order of the sources; each above 0, together 1 within 1e-6.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a strength that is negative or not finite, and for a prior that is none.
    pub fn new(strength: f64, prior: impl Into<Vec<f64>>) -> Result<Self> {
        let prior = prior.into();
        check_strength(strength)?;
        if let Some(share) = prior
            .iter()
            .find(|share| !(share.is_finite() && **share > 0.0))
        {
            return Err(Error::setting(
                "prior",
                share,
                "a finite number above 0 for every source",
                "a source of prior 0 could never have weight: leave it out, or give it a small share",
            ));
        }
        let sum: f64 = prior.iter().sum();
        if (sum - 1.0).abs() > TOLERANCE {
            return Err(Error::setting(
                "sum of the prior",
                sum,
                "1",
                "divide every share by the sum",
            ));
        }
        Ok(Self { strength, prior })
    }

    /// A pull to equal weights for `sources` sources.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); no source.
    pub fn uniform(strength: f64, sources: usize) -> Result<Self> {
        Self::new(strength, vec![1.0 / sources as f64; sources])
    }

    /// The strength.
    pub fn strength(&self) -> f64 {
        self.strength
    }

    /// The prior.
    pub fn prior(&self) -> &[f64] {
        &self.prior
    }

    /// `strength * KL(p | q)` at the given weights, differentiable.
    ///
    /// # Shapes
    ///
    /// - output: `[1]`
    pub fn loss(&self, weights: &SourceWeights) -> Tensor<1> {
        let p = weights.probabilities();
        let (device, dtype): (_, DType) = (p.device(), p.dtype());
        let prior = TensorData::from(self.prior.as_slice()).convert_dtype(dtype);
        let prior = Tensor::from_data(prior, (&device, dtype));
        // 0 ln 0 is 0, and not NaN.
        let logarithm = p.clone().clamp_min(f64::from(f32::MIN_POSITIVE)).log();
        (p * (logarithm - prior.log())).sum() * self.strength
    }

    /// `strength * KL(p | q)` and its gradient in the logits, in closed form: with `p = softmax(lambda)` it is
    /// `strength * p_i (ln(p_i / q_i) - KL(p | q))`, with a [floor](SourceWeights::with_floor) that of the chain rule.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another number of weights than of shares in the prior.
    pub fn gradient(&self, weights: &SourceWeights) -> Result<(f64, Vec<f64>)> {
        let p = weights.weights();
        if p.len() != self.prior.len() {
            return Err(Error::setting(
                "prior",
                format!("{} shares", self.prior.len()),
                format!("{}, one a source", p.len()),
                "name every source of the training set in the prior, and no other",
            ));
        }
        let slopes: Vec<f64> = p
            .iter()
            .zip(&self.prior)
            // Where a weight is 0 in double precision, its derivative is times 0 in what follows.
            .map(|(p, q)| self.strength * (p.max(f64::MIN_POSITIVE) / q).ln())
            .collect();
        let loss = p.iter().zip(&slopes).map(|(p, slope)| p * slope).sum();
        Ok((loss, weights.chain(&slopes)))
    }
}

pub(crate) fn check_strength(strength: f64) -> Result<()> {
    if strength.is_finite() && strength >= 0.0 {
        return Ok(());
    }
    Err(Error::setting(
        "pull",
        strength,
        "a finite number of at least 0",
        "0 is no pull",
    ))
}
