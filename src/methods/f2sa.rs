//! F2SA: the penalty method with inner loops, a growing penalty and decaying steps.

use burn::module::Module;

use super::gap::{Directions, Weights, directions};
use super::oracle::Oracle;
use super::progress::{Rule, iterate};
use super::{Method, Progress};
use crate::solver::{PerVariable, Schedule, Step, Update, Variable, auxiliary_of};
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective};

/// F2SA: per step, `T` iterations of `u` and `w` at the same `x`, one of `x`, and the penalty grows. Step `k`:
///
/// ```text
/// T times:  w <- update_w(grad_w [F(x, w) + lam_k G(x, w)])
///           u <- update_u(grad_u G(x, u))
/// x <- update_x(grad_x [F(x, w) + lam_k (G(x, w) - G(x, u))])
/// lam_{k+1} = lam_k + d_k,    d_k = d / (k + 1)^q
/// ```
///
/// `u` starts as a copy of `w`. Each inner iteration draws anew, and so does the last line; `u` and `w` share each lower
/// draw. Learning rates are those of step `k` throughout. A [`Step`] reports losses and norms where `x` moves, after the
/// inner loop.
///
/// The theorem asks for a penalty that grows as `k^p` and for rates that fall: with `1 / K` after `K` steps, the
/// smallest squared norm of the hypergradient is of the order in the last column, up to a logarithm.
///
/// | noise | rate of `x` and `w` | rate of `u` | penalty `k^p`, so `q = 1 - p` | order |
/// |---|---|---|---|---|
/// | none | `k^(-1/3)` | constant | `p = 1/3` | `K^(-2/3)` |
/// | in `F` | `k^(-3/5)` | `k^(-2/5)` | `p = 1/5` | `K^(-2/5)` |
/// | in `F` and `G` | `k^(-5/7)` | `k^(-4/7)` | `p = 1/7` | `K^(-2/7)` |
///
/// When to use it: for the promise, with noise too. [`ScaleBio`](crate::ScaleBio) with a constant penalty is faster in
/// practice and as accurate as its penalty.
///
/// Memory: `w` and `u`. Gradients a step: `3 T + 3`.
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::{Device, Tensor}};
/// use scalebio::methods::{F2sa, Method};
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
/// // Without noise: the first line of the table.
/// let method = F2sa::new(Update::sgd(0.5).power(1.0 / 3.0), Update::sgd(0.1).power(1.0 / 3.0))
///     .auxiliary(Update::sgd(0.1))
///     .growth(0.3, 2.0 / 3.0);
/// let mut run = method.start(problem, zeros(), zeros())?;
/// for step in run.by_ref().take(100) {
///     step?;
/// }
/// assert!((run.upper().val() - 3.0).abs().max().into_scalar::<f32>() < 1e-2);
/// # Ok::<(), scalebio::Error>(())
/// ```
///
/// # Reference
///
/// Kwon et al., *A Fully First-Order Method for Stochastic Bilevel Optimization*, ICML 2023, arXiv 2301.10945,
/// algorithm 1 and theorem 4.1.
#[derive(Clone, Debug)]
#[must_use]
pub struct F2sa {
    upper: Update,
    lower: Update,
    auxiliary: Update,
    inner_steps: usize,
    penalty: f64,
    growth: f64,
    exponent: f64,
}

impl F2sa {
    /// The method with update rules for `x` and for `w`.
    ///
    /// Defaults: `u` updates as `w` does, 10 inner steps, a penalty of 1 that grows by `.01 / (k + 1)^(1/7)`.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self {
            upper,
            auxiliary: lower.clone(),
            lower,
            inner_steps: 10,
            penalty: 1.0,
            growth: 0.01,
            exponent: 1.0 / 7.0,
        }
    }

    /// The method as `benchmark_bilevel` runs it: gradient descent with rates `rate / (k + 1)^e`, where `e` is `5/7` for
    /// `w` and `4/7` for `u` and `x`; other settings at their defaults.
    pub fn schedule(rate: f64) -> Self {
        let fast = Update::sgd(rate).power(4.0 / 7.0);
        let slow = Update::sgd(rate).power(5.0 / 7.0);
        Self::new(fast.clone(), slow).auxiliary(fast)
    }

    /// The update rule of `u`. Default: that of `w`.
    pub fn auxiliary(mut self, update: Update) -> Self {
        self.auxiliary = update;
        self
    }

    /// Iterations `T` of `u` and `w` for one of `x`; at least 1. Default: 10.
    pub fn inner_steps(mut self, steps: usize) -> Self {
        self.inner_steps = steps;
        self
    }

    /// The penalty `lam_0` of the first step; greater than 0. Default: 1.
    pub fn penalty(mut self, initial: f64) -> Self {
        self.penalty = initial;
        self
    }

    /// The penalty grows by `growth / (k + 1)^exponent` after step `k`; both are at least 0. Default: .01 and 1/7.
    pub fn growth(mut self, growth: f64, exponent: f64) -> Self {
        self.growth = growth;
        self.exponent = exponent;
        self
    }

    fn validate(&self) -> Result<()> {
        self.auxiliary
            .validate("update of the auxiliary variable")?;
        if self.inner_steps == 0 {
            return Err(Error::setting(
                "inner steps",
                0,
                "at least 1",
                "the paper's experiments and this crate's default take 10",
            ));
        }
        if !(self.penalty > 0.0 && self.penalty.is_finite()) {
            return Err(Error::setting(
                "initial penalty",
                self.penalty,
                "a finite number greater than 0",
                "the default is 1",
            ));
        }
        let Self {
            growth, exponent, ..
        } = *self;
        if [growth, exponent]
            .iter()
            .all(|n| *n >= 0.0 && n.is_finite())
        {
            return Ok(());
        }
        Err(Error::setting(
            "growth of the penalty",
            format!("{growth} / (k + 1)^{exponent}"),
            "two finite numbers of at least 0",
            "use a growth of 0 for a constant penalty",
        ))
    }
}

struct F2saRule<X, W> {
    method: F2sa,
    x: Variable<X>,
    w: Variable<W>,
    u: Variable<W>,
    penalty: f64,
}

impl<F, G, X, W> Method<F, G, X, W> for F2sa
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "f2sa"
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        self.validate()?;
        let w = Variable::lower(lower, &self.lower)?;
        let u = auxiliary_of(w.module());
        let rule = F2saRule {
            x: Variable::upper(upper, &self.upper)?,
            u: Variable::new(u, &self.auxiliary, "lower variable")?,
            w,
            penalty: self.penalty,
            method: *self,
        };
        Ok(iterate(problem, rule))
    }
}

impl<X: Module, W: Module> F2saRule<X, W> {
    /// Draws, and computes the directions of step `k` where the variables stand.
    fn directions<F, G>(&self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Directions>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        let step = Step {
            penalty: self.penalty,
            rates: PerVariable {
                upper: self.method.upper.rate_at(k),
                lower: self.method.lower.rate_at(k),
                auxiliary: self.method.auxiliary.rate_at(k),
            },
            ..Step::at(k)
        };
        let weights = Weights {
            upper: 1.0,
            lower: self.penalty,
            gap: self.penalty,
        };
        let at = (self.x.module(), self.w.module(), self.u.module());
        directions(oracle, at, &weights, step)
    }
}

impl<X: Module, W: Module> Rule<X, W> for F2saRule<X, W> {
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        for _ in 0..self.method.inner_steps {
            let Directions {
                step, of_w, of_u, ..
            } = self.directions(k, oracle)?;
            self.w.step(step.rates.lower, of_w);
            self.u.step(step.rates.auxiliary, of_u);
        }
        let Directions { step, of_x, .. } = self.directions(k, oracle)?;
        self.x.step(step.rates.upper, of_x);
        let exponent = self.method.exponent;
        self.penalty += self.method.growth * Schedule::Power { exponent }.factor(k);
        Ok(step)
    }

    fn upper(&self) -> &X {
        self.x.module()
    }

    fn lower(&self) -> &W {
        self.w.module()
    }
}
