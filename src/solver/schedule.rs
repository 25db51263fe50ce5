//! Learning-rate schedules as pure functions of the step.

use std::f64::consts::PI;

use crate::{Error, Result};

/// The factor of a learning rate at step `t`, from 0.
///
/// A pure function, so that a resumed run needs no state for it and the sum of the rates to come is
/// known. (Burn's schedulers keep a counter, rise again past the end of a cosine, and refuse rates
/// above 1, which SGD on a penalized quadratic needs.)
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// 1.
    #[default]
    Constant,
    /// From 1 to 0 along half a cosine, after a linear warm-up. 0 past the end.
    Cosine {
        /// Steps of the run.
        steps: usize,
        /// Steps of warm-up, less than `steps`: the factor at step `t` is `(t + 1) / warmup`. 0 for none.
        warmup: usize,
    },
    /// From 1 to 0 along a line. 0 past the end.
    Linear {
        /// Steps of the run.
        steps: usize,
    },
    /// `decay^t`.
    Exponential {
        /// Factor of one step, in (0, 1].
        decay: f64,
    },
    /// `(t + 1)^-exponent`, as convergence theorems have it.
    Power {
        /// At least 0.
        exponent: f64,
    },
}

impl Schedule {
    /// The factor at step `step`, from 0.
    pub fn factor(&self, step: usize) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::Cosine { warmup, .. } if step < warmup => (step + 1) as f64 / warmup as f64,
            Self::Cosine { steps, warmup } => {
                let progress = progress(step - warmup, steps.saturating_sub(warmup));
                0.5 * (1.0 + (PI * progress).cos())
            }
            Self::Linear { steps } => 1.0 - progress(step, steps),
            Self::Exponential { decay } => decay.powf(step as f64),
            Self::Power { exponent } => ((step + 1) as f64).powf(-exponent),
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        match *self {
            Self::Cosine { steps, warmup } if warmup >= steps => Err(Error::setting(
                "cosine schedule",
                format!("{steps} steps with {warmup} of warm-up"),
                "at least 1 step, with fewer of warm-up",
                "give the number of steps of the whole run",
            )),
            Self::Linear { steps: 0 } => Err(Error::setting(
                "linear schedule",
                "0 steps",
                "at least 1 step",
                "give the number of steps of the whole run",
            )),
            Self::Exponential { decay } if !(decay > 0.0 && decay <= 1.0) => Err(Error::setting(
                "exponential schedule",
                decay,
                "a factor greater than 0 and at most 1",
                "0.999 halves the rate in 693 steps",
            )),
            Self::Power { exponent } if !(exponent >= 0.0 && exponent.is_finite()) => {
                Err(Error::setting(
                    "power schedule",
                    exponent,
                    "a finite exponent of at least 0",
                    "0.5 makes the rate fall with the square root of the step",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Share of `steps` that is done, at most 1.
fn progress(step: usize, steps: usize) -> f64 {
    (step as f64 / steps as f64).min(1.0)
}
