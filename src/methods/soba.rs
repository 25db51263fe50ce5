//! SOBA: the exact hypergradient, with the linear system solved along the way.

use burn::module::Module;

use super::differences::second_order;
use super::joint::{Direction, Directions, Joint, Parts, Point, Settings};
use super::oracle::Oracle;
use super::progress::iterate;
use super::vector::{full_precision, linear, values, zeros};
use super::{Estimator, Method, Polyak, Progress};
use crate::solver::{PerVariable, Step, Update};
use crate::{Bilevel, LowerObjective, Result, UpperObjective};

/// SOBA: `w` descends `G`, a vector `v` follows the solution of `H_ww v = grad_w F`, and `x` descends the hypergradient
/// that `v` gives. One step, all at `(x_k, v_k, w_k)`:
///
/// ```text
/// w <- update_w(grad_w G)
/// v <- update_v(H_ww v - grad_w F)
/// x <- update_x(grad_x F - H_xw v)
/// ```
///
/// `H_ww v` and `H_xw v` are central differences of `grad G`. Without noise the fixed point is the solution itself: there
/// is no penalty and no bias. `v` starts at 0.
///
/// When to use it: smooth, strongly convex lower problems, where the exact answer is wanted. Not for networks whose
/// Hessian is indefinite: `v` then diverges.
///
/// On finite sums with [`Estimator::Saga`] (then the method is SABA) it converges at constant steps as it does without
/// noise.
///
/// Memory: `w` and `v`, and the estimator's. Gradients a step: 4 (with STORM 8). Not in half precision: the differences
/// would be rounding, and are an error.
///
/// # Reference
///
/// Dagréou et al., *A framework for bilevel optimization that enables stochastic and global variance reduction algorithms*,
/// NeurIPS 2022, arXiv 2201.13409, algorithm 1 (SABA: algorithm 2). The paper uses Hessian-vector products.
#[derive(Clone, Debug)]
#[must_use]
pub struct Soba(Settings);

impl Soba {
    /// The method with update rules for `x` and for `w`.
    ///
    /// Defaults: `v` updates as `w` does, [`Estimator::Plain`], no Polyak steps.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self(Settings {
            upper,
            auxiliary: lower.clone(),
            lower,
            estimator: Estimator::Plain,
            polyak: None,
        })
    }

    /// The update rule of `v`, which solves the linear system. Default: that of `w`.
    pub fn system(mut self, update: Update) -> Self {
        self.0.auxiliary = update;
        self
    }

    /// How directions are estimated from draws. Default: [`Estimator::Plain`].
    pub fn estimator(mut self, estimator: Estimator) -> Self {
        self.0.estimator = estimator;
        self
    }

    /// Polyak's steps for `x` and `w`, the updates' rates being caps. Default: the updates' rates.
    pub fn polyak(mut self, polyak: Polyak) -> Self {
        self.0.polyak = Some(polyak);
        self
    }
}

impl<F, G, X, W> Method<F, G, X, W> for Soba
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "soba"
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        full_precision("soba", &lower)?;
        let v = zeros(&lower);
        let rule = Joint::new(BySystem, self.0, upper, lower, v)?;
        Ok(iterate(problem, rule))
    }
}

struct BySystem;

impl<X: Module, W: Module> Directions<X, W> for BySystem {
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
        let Point { x, w, auxiliary: v } = point;
        let mut f = oracle.f(x, w)?;
        let mut g = oracle.g(x, w)?;
        let product = second_order(oracle, x, w, &values(v))?;
        let step = Parts::losses(k, &mut f, &mut g);
        let of_g = Direction {
            x: linear(x, &[(-1.0, &product.of_upper)]),
            w: g.of_lower,
            auxiliary: product.of_lower,
        };
        let of_f = Direction {
            x: f.of_upper,
            auxiliary: linear(w, &[(-1.0, &f.of_lower)]),
            ..Direction::default()
        };
        Ok(Parts { of_g, of_f, step })
    }

    fn excess(&self, step: &Step, polyak: &Polyak) -> PerVariable {
        PerVariable {
            upper: polyak.above_upper(step.upper_loss),
            lower: polyak.above_lower(step.lower_loss),
            auxiliary: f64::INFINITY,
        }
    }
}
