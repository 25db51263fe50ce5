//! BDA: the lower variable follows both objectives, and ever less of the upper one.

use burn::module::Module;

use super::gap::{Directions, Weights, directions};
use super::oracle::Oracle;
use super::progress::{Rule, iterate};
use super::{Method, Progress};
use crate::solver::{PerVariable, Schedule, Step, Update, Variable, auxiliary_of};
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective};

/// BDA in first-order form: the direction of `w` aggregates both objectives with a share `a_k` of the upper one that goes
/// to zero, which is a penalized step with penalty `alpha_k = (1 - a_k) / a_k` times `a_k`; `x` follows the penalty
/// hypergradient of that penalty. One step, all at `(x_k, w_k, u_k)`:
///
/// ```text
/// w <- update_w(a_k grad_w F + (1 - a_k) grad_w G),    a_k = a / (k + 1)^q
/// u <- update_u(grad_u G(x, u))
/// x <- update_x(grad_x [F(x, w) + alpha_k (G(x, w) - G(x, u))])
/// ```
///
/// `u` starts as a copy of `w`. The rates of `w` and `u` need not shrink with the penalty, because the direction of `w`
/// stays of one size. (The papers unroll the loop of `w` and differentiate through it instead of the last two lines.)
///
/// When to use it: lower objectives with many minimizers, among which `F` is to choose: `a_k` still tells them apart where
/// `grad_w G` is zero. Elsewhere it is the penalty method with a growing penalty. Noise grows with the penalty: batches
/// of both variables are shared, but keep `q` small.
///
/// Memory: `w` and `u`. Gradients a step: 3.
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::{Device, Tensor}};
/// use scalebio::methods::{Bda, Method};
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
/// let mut run = Bda::new(Update::sgd(0.1), Update::sgd(0.1)).start(problem, zeros(), zeros())?;
/// for step in run.by_ref().take(1000) {
///     step?;
/// }
/// assert!((run.upper().val() - 3.0).abs().max().into_scalar::<f32>() < 1e-2);
/// # Ok::<(), scalebio::Error>(())
/// ```
///
/// # Reference
///
/// Liu et al., *A Generic First-Order Algorithmic Framework for Bi-Level Programming Beyond Lower-Level Singleton*,
/// ICML 2020, arXiv 2006.04045; *A General Descent Aggregation Framework for Gradient-based Bi-level Optimization*,
/// arXiv 2102.07976.
#[derive(Clone, Debug)]
#[must_use]
pub struct Bda {
    upper: Update,
    lower: Update,
    auxiliary: Update,
    share: f64,
    exponent: f64,
}

impl Bda {
    /// The method with update rules for `x` and for `w`.
    ///
    /// Defaults: `u` updates as `w` does, a share of `.5 / (k + 1)^(1/2)`.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self {
            upper,
            auxiliary: lower.clone(),
            lower,
            share: 0.5,
            exponent: 0.5,
        }
    }

    /// The update rule of `u`. Default: that of `w`.
    pub fn auxiliary(mut self, update: Update) -> Self {
        self.auxiliary = update;
        self
    }

    /// The share `a_k = share / (k + 1)^exponent` of the upper objective in the direction of `w`: `share` is between 0 and
    /// 1, `exponent` at least 0. Default: .5 and .5.
    pub fn share(mut self, share: f64, exponent: f64) -> Self {
        self.share = share;
        self.exponent = exponent;
        self
    }

    fn validate(&self) -> Result<()> {
        self.auxiliary
            .validate("update of the auxiliary variable")?;
        let Self {
            share, exponent, ..
        } = *self;
        let possible = share > 0.0 && share < 1.0 && exponent >= 0.0 && exponent.is_finite();
        if possible {
            return Ok(());
        }
        Err(Error::setting(
            "share",
            format!("{share} / (k + 1)^{exponent}"),
            "a share greater than 0 and less than 1, with a finite exponent of at least 0",
            "the default is .5 / (k + 1)^.5",
        ))
    }
}

struct BdaRule<X, W> {
    method: Bda,
    x: Variable<X>,
    w: Variable<W>,
    u: Variable<W>,
}

impl<F, G, X, W> Method<F, G, X, W> for Bda
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "bda"
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
        let rule = BdaRule {
            x: Variable::upper(upper, &self.upper)?,
            u: Variable::new(u, &self.auxiliary, "lower variable")?,
            w,
            method: *self,
        };
        Ok(iterate(problem, rule))
    }
}

impl<X: Module, W: Module> Rule<X, W> for BdaRule<X, W> {
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        let exponent = self.method.exponent;
        let a = self.method.share * Schedule::Power { exponent }.factor(k);
        let penalty = (1.0 - a) / a;
        let step = Step {
            penalty,
            rates: PerVariable {
                upper: self.method.upper.rate_at(k),
                lower: self.method.lower.rate_at(k),
                auxiliary: self.method.auxiliary.rate_at(k),
            },
            ..Step::at(k)
        };
        let weights = Weights {
            upper: a,
            lower: 1.0 - a,
            gap: if k == 0 { 0.0 } else { penalty }, // u = w: the gap is zero, not rounding noise
        };
        let at = (self.x.module(), self.w.module(), self.u.module());
        let Directions {
            step,
            of_x,
            of_w,
            of_u,
        } = directions(oracle, at, &weights, step)?;
        self.w.step(step.rates.lower, of_w);
        self.u.step(step.rates.auxiliary, of_u);
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
