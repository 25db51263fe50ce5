//! SOBA: the exact hypergradient, with the linear system solved along the way.

use burn::module::Module;

use super::differences::second_order;
use super::oracle::Oracle;
use super::progress::{Rule, iterate};
use super::vector::{linear, values, zeros};
use super::{Method, Progress};
use crate::solver::gradients::global_norm;
use crate::solver::{PerVariable, Step, Update, Variable};
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
/// is no penalty and no bias. `v` starts at 0. ///
/// When to use it: smooth, strongly convex lower problems, where the exact answer is wanted. Not for networks whose
/// Hessian is indefinite: `v` then diverges.
///
/// Memory: `w` and `v`. Gradients a step: 4.
///
/// # Reference
///
/// Dagréou et al., *A framework for bilevel optimization that enables stochastic and global variance reduction algorithms*,
/// NeurIPS 2022, arXiv 2201.13409, algorithm 1. The paper uses Hessian-vector products.
#[derive(Clone, Debug)]
#[must_use]
pub struct Soba {
    upper: Update,
    lower: Update,
    system: Update,
}

impl Soba {
    /// The method with update rules for `x` and for `w`. Default: `v` updates as `w` does.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self {
            upper,
            system: lower.clone(),
            lower,
        }
    }

    /// The update rule of `v`, which solves the linear system. Default: that of `w`.
    pub fn system(mut self, update: Update) -> Self {
        self.system = update;
        self
    }
}

struct SobaRule<X, W> {
    method: Soba,
    x: Variable<X>,
    w: Variable<W>,
    v: Variable<W>,
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
        self.system.validate("update of the linear system")?;
        let v = zeros(&lower);
        let rule = SobaRule {
            x: Variable::upper(upper, &self.upper)?,
            w: Variable::lower(lower, &self.lower)?,
            v: Variable::new(v, &self.system, "lower variable")?,
            method: *self,
        };
        Ok(iterate(problem, rule))
    }
}

impl<X: Module, W: Module> Rule<X, W> for SobaRule<X, W> {
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        let (x, w) = (self.x.module(), self.w.module());
        let v = values(self.v.module());
        let f = oracle.f(x, w)?;
        let g = oracle.g(x, w)?;
        let product = second_order(oracle, x, w, &v)?;

        let of_w = g.of_lower;
        let of_v = linear(w, &[(1.0, &product.of_lower), (-1.0, &f.of_lower)]);
        let of_x = linear(x, &[(1.0, &f.of_upper), (-1.0, &product.of_upper)]);
        let step = Step {
            rates: PerVariable {
                upper: self.method.upper.rate_at(k),
                lower: self.method.lower.rate_at(k),
                auxiliary: self.method.system.rate_at(k),
            },
            gradient_norms: PerVariable {
                upper: global_norm(x, &of_x),
                lower: global_norm(w, &of_w),
                auxiliary: global_norm(w, &of_v),
            },
            upper_loss: f.loss,
            lower_loss: g.loss,
            upper_parts: f.parts,
            lower_parts: g.parts,
            ..Step::at(k)
        };
        step.check_finite()?;
        self.w.step(step.rates.lower, of_w);
        self.v.step(step.rates.auxiliary, of_v);
        self.x.step(step.rates.upper, of_x);
        Ok(step)
    }

    fn upper(&self) -> &X {
        self.x.module()
    }

    fn lower(&self) -> &W {
        self.w.module()
    }
}
