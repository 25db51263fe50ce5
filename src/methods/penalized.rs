//! The penalty method with variance-reduced estimates and Polyak's steps.

use burn::module::Module;

use super::joint::{Direction, Directions, Joint, Parts, Point, Settings};
use super::oracle::Oracle;
use super::progress::iterate;
use super::vector::linear;
use super::{Estimator, Method, Polyak, Progress};
use crate::solver::{PerVariable, Step, Update};
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective};

/// The penalty method of [`ScaleBio`](crate::ScaleBio) for finite sums. One step, all at `(x_k, u_k, w_k)`, each
/// direction estimated by an [`Estimator`]:
///
/// ```text
/// u <- update_u(alpha grad_w G(x, u))
/// w <- update_w(grad_w F(x, w) + alpha grad_w G(x, w))
/// x <- update_x(grad_x F(x, w) + alpha (grad_x G(x, w) - grad_x G(x, u)))
/// ```
///
/// When to use it: finite sums small enough for [`Estimator::Saga`], or draws so noisy that plain estimates at the penalty
/// which the bias allows stall; and to be spared learning rates ([`Polyak`]). Otherwise use
/// [`ScaleBio`](crate::ScaleBio), which also has stages, clipping and layers.
///
/// Memory: `w` and `u`, and the estimator's. Gradients a step: 3 (with STORM 6).
///
/// # Reference
///
/// Pan et al., *ScaleBiO*, ACL 2025, arXiv 2406.19976, algorithm 1; for the estimates see [`Estimator`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Penalized {
    alpha: f64,
    settings: Settings,
}

impl Penalized {
    /// The method with a constant penalty `alpha`, greater than 0, and update rules for `x` and for `w`.
    ///
    /// Defaults: `u` updates as `w` does, [`Estimator::Plain`], no Polyak steps.
    pub fn new(alpha: f64, upper: Update, lower: Update) -> Self {
        let settings = Settings {
            upper,
            auxiliary: lower.clone(),
            lower,
            estimator: Estimator::Plain,
            polyak: None,
        };
        Self { alpha, settings }
    }

    /// How directions are estimated from draws. Default: [`Estimator::Plain`].
    pub fn estimator(mut self, estimator: Estimator) -> Self {
        self.settings.estimator = estimator;
        self
    }

    /// Polyak's steps for `x`, `w` and `u`, the updates' rates being caps. Default: the updates' rates.
    pub fn polyak(mut self, polyak: Polyak) -> Self {
        self.settings.polyak = Some(polyak);
        self
    }
}

impl<F, G, X, W> Method<F, G, X, W> for Penalized
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "penalized"
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        let alpha = valid_penalty(self.alpha)?;
        let auxiliary = lower.clone();
        let rule = Joint::new(ByPenalty { alpha }, self.settings, upper, lower, auxiliary)?;
        Ok(iterate(problem, rule))
    }
}

/// `alpha`, if it is a penalty.
pub(super) fn valid_penalty(alpha: f64) -> Result<f64> {
    if alpha > 0.0 && alpha.is_finite() {
        return Ok(alpha);
    }
    Err(Error::setting(
        "penalty",
        alpha,
        "a finite number greater than 0",
        "10 to 100 is usual; the bias falls as 1 / penalty",
    ))
}

struct ByPenalty {
    alpha: f64,
}

impl<X: Module, W: Module> Directions<X, W> for ByPenalty {
    fn at<F, G>(
        &self,
        k: usize,
        point: Point<'_, X, W>,
        oracle: &Oracle<F, G, X, W>,
    ) -> Result<Parts>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        let Point { x, w, auxiliary: u } = point;
        let alpha = self.alpha;
        let mut f = oracle.f(x, w)?;
        let mut at_w = oracle.g(x, w)?;
        let at_u = oracle.g(x, u)?;
        // At the start u = w: no gap. Rounding would be a full step in a random direction under Adam.
        let gap = if k == 0 { 0.0 } else { alpha };
        let of_g = Direction {
            x: linear(x, &[(gap, &at_w.of_upper), (-gap, &at_u.of_upper)]),
            w: linear(w, &[(alpha, &at_w.of_lower)]),
            auxiliary: linear(u, &[(alpha, &at_u.of_lower)]),
        };
        let step = Step {
            penalty: alpha,
            auxiliary_loss: Some(at_u.loss),
            auxiliary_parts: at_u.parts,
            ..Parts::losses(k, &mut f, &mut at_w)
        };
        let of_f = Direction {
            x: f.of_upper,
            w: f.of_lower,
            ..Direction::default()
        };
        Ok(Parts { of_g, of_f, step })
    }

    fn excess(&self, step: &Step, polyak: &Polyak) -> PerVariable {
        PerVariable {
            upper: polyak.above_upper(step.upper_loss),
            // Of alpha G alone, where the curvature is: F has no lowest value while x is not at its solution.
            lower: self.alpha * polyak.above_lower(step.lower_loss),
            auxiliary: self.alpha * polyak.above_lower(step.auxiliary_loss()),
        }
    }
}
