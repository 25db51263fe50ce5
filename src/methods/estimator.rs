//! Estimates of the directions of a finite sum from one draw at a time: plain, SAGA, STORM.

use std::collections::HashMap;

use burn::module::Module;

use super::joint::{Direction, Parts, Point};
use super::oracle::Oracle;
use crate::{Error, LowerObjective, Result, Slot, UpperObjective};

/// How the directions of a step are estimated from its draw. With constant steps, plain estimates stop at a distance
/// from the solution that the noise of a draw sets; the others go on.
///
/// Below, `d(p; i)` is the direction of a variable at the point `p` on the draw `i`, and `m` the number of fixed batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Estimator {
    /// `d(p; i)`: no memory.
    #[default]
    Plain,
    /// SAGA (SABA for bilevel problems): `d(p; i) - t_i + mean(t)`, and then `t_i <- d(p; i)`, with a table for each
    /// objective. Unbiased once every batch has been drawn (before, a batch that is new counts as plain), and without
    /// variance at the solution: it converges as if there were no noise.
    ///
    /// Both objectives must draw fixed batches, one at a time ([`slot`](UpperObjective::slot)): see
    /// [`Order::FixedBatches`](crate::Order::FixedBatches). Not with layers or a penalty that change.
    ///
    /// Memory: for each batch of `G` a vector like `x` and two like `w`, for each batch of `F` one like each (SOBA: two
    /// like `w`), and a mean of each. No further gradients.
    ///
    /// Dagréou et al., NeurIPS 2022, arXiv 2201.13409, algorithm 2; Defazio et al., *SAGA*, NeurIPS 2014, arXiv
    /// 1407.0202.
    Saga,
    /// STORM, or recursive momentum: `e_k = d(p_k; i_k) + (1 - decay) (e_{k-1} - d(p_{k-1}; i_k))`. The variance falls
    /// with `decay` and with the length of the steps. For any draws.
    ///
    /// Memory: the last point and the last estimate (two like `x`, four like `w`). Twice the gradients.
    ///
    /// *AdaFBiO* and *STABLE* among bilevel methods; Cutkosky and Orabona, *STORM*, NeurIPS 2019, arXiv 1905.10018.
    Storm {
        /// The weight of the newest draw, in (0, 1]. 1 is [`Plain`](Self::Plain) at twice its price.
        decay: f64,
    },
}

/// An [`Estimator`] with what it remembers.
pub(super) enum Memory<X, W> {
    Plain,
    /// Of `G` and of `F`.
    Saga(Box<[Table; 2]>),
    Storm {
        decay: f64,
        last: Option<Last<X, W>>,
    },
}

/// One direction for each batch that has been drawn, and their mean.
#[derive(Default)]
pub(super) struct Table {
    entries: HashMap<usize, Direction>,
    mean: Direction,
}

/// The last point and the estimate there.
pub(super) struct Last<X, W> {
    x: X,
    w: W,
    auxiliary: W,
    estimate: Direction,
}

impl<X: Module, W: Module> Memory<X, W> {
    pub fn new(estimator: Estimator) -> Result<Self> {
        match estimator {
            Estimator::Plain => Ok(Self::Plain),
            Estimator::Saga => Ok(Self::Saga(Box::default())),
            Estimator::Storm { decay } if decay > 0.0 && decay <= 1.0 => {
                Ok(Self::Storm { decay, last: None })
            }
            Estimator::Storm { decay } => Err(Error::setting(
                "decay of STORM",
                decay,
                "greater than 0 and at most 1",
                "0.1 averages over about ten draws",
            )),
        }
    }

    /// The estimate at `point`, from the directions `of_g` and `of_f` of the draw there. `again` computes those of the
    /// same draw at another point.
    pub fn estimate<F, G>(
        &mut self,
        point: Point<'_, X, W>,
        (of_g, of_f): (Direction, Direction),
        oracle: &Oracle<F, G, X, W>,
        again: impl Fn(Point<'_, X, W>) -> Result<Parts>,
    ) -> Result<Direction>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        match self {
            Self::Plain => Ok(point.linear(&[(1.0, &of_g), (1.0, &of_f)])),
            Self::Saga(tables) => {
                let [g, f] = tables.as_mut();
                let of_g = g.estimate(point, slot(oracle.lower_slot(), "lower")?, of_g);
                let of_f = f.estimate(point, slot(oracle.upper_slot(), "upper")?, of_f);
                Ok(point.linear(&[(1.0, &of_g), (1.0, &of_f)]))
            }
            Self::Storm { decay, last } => {
                let mut estimate = point.linear(&[(1.0, &of_g), (1.0, &of_f)]);
                if let Some(last) = last {
                    let before = again(last.point())?;
                    let keep = 1.0 - *decay;
                    estimate = point.linear(&[
                        (1.0, &estimate),
                        (keep, &last.estimate),
                        (-keep, &before.of_g),
                        (-keep, &before.of_f),
                    ]);
                }
                *last = Some(Last {
                    x: point.x.clone(),
                    w: point.w.clone(),
                    auxiliary: point.auxiliary.clone(),
                    estimate: point.linear(&[(1.0, &estimate)]),
                });
                Ok(estimate)
            }
        }
    }
}

impl<X, W> Last<X, W> {
    fn point(&self) -> Point<'_, X, W> {
        Point {
            x: &self.x,
            w: &self.w,
            auxiliary: &self.auxiliary,
        }
    }
}

impl Table {
    /// `new - old + mean`, and puts `new` in the place of `old`.
    fn estimate<X: Module, W: Module>(
        &mut self,
        point: Point<'_, X, W>,
        slot: Slot,
        new: Direction,
    ) -> Direction {
        let (estimate, weight) = match self.entries.get(&slot.index) {
            Some(old) => {
                let terms = [(1.0, &new), (-1.0, old), (1.0, &self.mean)];
                (point.linear(&terms), 1.0 / self.entries.len() as f64)
            }
            None => {
                let count = self.entries.len() as f64 + 1.0;
                (point.linear(&[(1.0, &new)]), 1.0 / count)
            }
        };
        // The mean of those that have been drawn: a new one counts from now on.
        let old = self.entries.get(&slot.index).unwrap_or(&self.mean);
        self.mean = point.linear(&[(1.0, &self.mean), (weight, &new), (-weight, old)]);
        self.entries.insert(slot.index, new);
        estimate
    }
}

fn slot(slot: Option<Slot>, level: &str) -> Result<Slot> {
    let slot = slot.ok_or_else(|| {
        Error::setting(
            "estimator",
            format!("Saga, while the {level} objective's draw is no fixed batch"),
            "Saga where each draw of both objectives is one micro-batch with a slot",
            "implement `slot` (`Minibatches` with `Order::FixedBatches` draws such batches), or use `Estimator::Storm`",
        )
    })?;
    if slot.index < slot.of {
        return Ok(slot);
    }
    Err(Error::setting(
        "slot",
        format!(
            "term {} of {} for the {level} objective's draw",
            slot.index, slot.of
        ),
        "a term from 0 to one less than there are",
        "count the terms from 0 in `slot`, and give their number in `of`",
    ))
}
