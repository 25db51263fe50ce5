//! BOME: a penalty that each step computes anew.

use burn::module::Module;

use super::oracle::Oracle;
use super::progress::{Rule, iterate};
use super::vector::{dot, full_precision, linear, shifted};
use super::{Method, Progress};
use crate::solver::gradients::global_norm;
use crate::solver::{PerVariable, Step, Update, Variable};
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective};

/// BOME: `x` and `w` descend `F` together, with just so much of the value gap's gradient that the gap falls. Step `k`:
///
/// ```text
/// u   = w after T steps of gradient descent on G(x, .)
/// q   = grad_(x, w) [G(x, w) - G(x, u)],  u held fixed
/// lam = max(0, (eta |q|^2 - <grad_(x, w) F, q>) / |q|^2)
/// x <- update_x(grad_x F + lam q_x)
/// w <- update_w(grad_w F + lam q_w)
/// ```
///
/// Norm and inner product are over `x` and `w` jointly; `lam` is 0 where `q` is. One draw a step serves all gradients,
/// so that `u` and `w` are compared on the same data. A [`Step`] reports `lam` as its penalty and `u`'s loss.
///
/// `u` is `T` steps of descent away from `w` and not at the minimizer: what these steps leave of the way is missing from
/// `q_x`, and the solution is biased by as much where `grad_w F` is not zero there. The share left is `(1 - rate h)^T`
/// along a direction of curvature `h`.
///
/// When to use it: where no penalty is known to work; there is none to choose. At the solution `q` vanishes and `lam`
/// grows, until constant rates are too large for it and the end is a small oscillation.
///
/// Memory: `w`, and `u` for the time of a step. Gradients a step: `T + 2`. Not in half precision: the way of `u` would be
/// lost in rounding, and is an error.
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::{Device, Tensor}};
/// use scalebio::methods::{Bome, Method};
/// use scalebio::{Bilevel, Update};
///
/// type Vector = Param<Tensor<1>>;
///
/// let device = Device::flex().autodiff();
/// let problem = Bilevel {
///     upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
///     lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
/// };
/// let zeros = || Vector::from_data([0.0, 0.0], &device);
/// let mut run = Bome::new(Update::sgd(0.1), Update::sgd(0.1)).start(problem, zeros(), zeros())?;
/// for step in run.by_ref().take(500) {
///     step?;
/// }
/// assert!((run.upper().val() - 3.0).abs().max().into_scalar::<f32>() < 1e-2);
/// # Ok::<(), scalebio::Error>(())
/// ```
///
/// # Reference
///
/// Liu et al., *BOME! Bilevel Optimization Made Easy: A Simple First-Order Approach*, NeurIPS 2022, arXiv 2209.08709,
/// algorithm 1 with the dynamic barrier `eta |q|^2`.
#[derive(Clone, Debug)]
#[must_use]
pub struct Bome {
    upper: Update,
    lower: Update,
    inner_steps: usize,
    inner_rate: Option<f64>,
    eta: f64,
}

impl Bome {
    /// The method with update rules for `x` and for `w`.
    ///
    /// Defaults: 10 inner steps at the rate of `w`, `eta` .5.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self {
            upper,
            lower,
            inner_steps: 10,
            inner_rate: None,
            eta: 0.5,
        }
    }

    /// Number `T` of inner steps, at least 1, and their rate, greater than 0. Default: 10 at the rate of `w`; if that
    /// falls, so does the way that `u` goes, and a rate of its own is better.
    pub fn inner(mut self, steps: usize, rate: f64) -> Self {
        self.inner_steps = steps;
        self.inner_rate = Some(rate);
        self
    }

    /// How fast the value gap is to fall, `eta`; greater than 0. Default: .5.
    pub fn eta(mut self, eta: f64) -> Self {
        self.eta = eta;
        self
    }

    fn validate(&self) -> Result<()> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if self.inner_steps == 0 || !self.inner_rate.is_none_or(positive) {
            return Err(Error::setting(
                "inner steps",
                format!("{} of rate {:?}", self.inner_steps, self.inner_rate),
                "at least 1 of a finite rate greater than 0",
                "leave it out for 10 steps at the rate of the lower variable",
            ));
        }
        if !positive(self.eta) {
            return Err(Error::setting(
                "eta",
                self.eta,
                "a finite number greater than 0",
                "the paper and the default take 0.5",
            ));
        }
        Ok(())
    }
}

struct BomeRule<X, W> {
    method: Bome,
    x: Variable<X>,
    w: Variable<W>,
}

impl<F, G, X, W> Method<F, G, X, W> for Bome
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "bome"
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        self.validate()?;
        full_precision("bome", &lower)?;
        let rule = BomeRule {
            x: Variable::upper(upper, &self.upper)?,
            w: Variable::lower(lower, &self.lower)?,
            method: *self,
        };
        Ok(iterate(problem, rule))
    }
}

impl<X: Module, W: Module> Rule<X, W> for BomeRule<X, W> {
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        let rates = PerVariable {
            upper: self.method.upper.rate_at(k),
            lower: self.method.lower.rate_at(k),
            auxiliary: self
                .method
                .inner_rate
                .unwrap_or(self.method.lower.rate_at(k)),
        };
        let (x, w) = (self.x.module(), self.w.module());
        let f = oracle.f(x, w)?;
        let g = oracle.g(x, w)?;
        let mut u = shifted(w, -rates.auxiliary, &g.of_lower);
        for _ in 1..self.method.inner_steps {
            u = shifted(&u, -rates.auxiliary, &oracle.g(x, &u)?.of_lower);
        }
        let g_u = oracle.g(x, &u)?;
        drop(u);

        let q_x = linear(x, &[(1.0, &g.of_upper), (-1.0, &g_u.of_upper)]);
        let q_w = &g.of_lower;
        let square = dot(x, &q_x, &q_x) + dot(w, q_w, q_w);
        let product = dot(x, &f.of_upper, &q_x) + dot(w, &f.of_lower, q_w);
        let mut penalty = 0.0;
        if square > 0.0 {
            penalty = ((self.method.eta * square - product) / square).max(0.0);
        }
        let of_x = linear(x, &[(1.0, &f.of_upper), (penalty, &q_x)]);
        let of_w = linear(w, &[(1.0, &f.of_lower), (penalty, q_w)]);
        let step = Step {
            penalty,
            rates,
            gradient_norms: PerVariable {
                upper: global_norm(x, &of_x),
                lower: global_norm(w, &of_w),
                auxiliary: global_norm(w, &g_u.of_lower),
            },
            upper_loss: f.loss,
            lower_loss: g.loss,
            auxiliary_loss: Some(g_u.loss),
            upper_parts: f.parts,
            lower_parts: g.parts,
            auxiliary_parts: g_u.parts,
            ..Step::at(k)
        };
        step.check_finite()?;
        self.x.step(rates.upper, of_x);
        self.w.step(rates.lower, of_w);
        Ok(step)
    }

    fn upper(&self) -> &X {
        self.x.module()
    }

    fn lower(&self) -> &W {
        self.w.module()
    }
}
