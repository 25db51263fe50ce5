//! The penalty method without its auxiliary variable.

use burn::module::Module;

use super::oracle::Oracle;
use super::progress::{Rule, iterate};
use super::training::Training;
use super::{Method, Progress};
use crate::sampler::LayerSampler;
use crate::solver::gradients::{combine, global_norm};
use crate::solver::{PerVariable, Step, Update, Variable};
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective};

/// The penalty method with `u` dropped, as SEAL's memory-efficient variant has it: half the memory, and a bias. With the
/// share `s` of `F`, which is a penalty `alpha = (1 - s) / s`, one step, both at `(x_k, w_k)`:
///
/// ```text
/// w <- update_w(grad_w [s F(x, w) + (1 - s) G(x, w)])
/// x <- update_x(grad_x [F(x, w) + alpha G(x, w)])
/// ```
///
/// Where the sign and the scale of the second line come from: the penalty method's gradient of `x` is
/// `grad_x [F(x, w) + alpha (G(x, w) - G(x, u))]`, and the term of `u`, `-alpha grad_x min_w G(x, w)`, is left out. So
/// `x` and `w` descend one function, `F + alpha G`, together. For source weights, `grad_x G` is a function of the
/// source losses `l(w)` alone.
///
/// **Bias.** The dropped term pushes `x` away from where the training loss is easy to minimize; without it `x` goes there,
/// and more so the larger `alpha` is. Source weights go to the sources of the smallest loss: in the end to one of them.
/// Worse, `F + alpha G` need not be bounded below in `(x, w)` even where `G(x, .)` is strongly convex: on the benchmark
/// problem `simulated` the run goes to infinity (docs/theory.md, section 6).
/// There is no bias where the smallest training loss does not depend on `x`, for instance where `w` can fit
/// everything to a loss of zero.
///
/// When to use it: over-parameterized models that can fit all their sources, when a second model does not fit into memory.
/// Elsewhere prefer [`Sama`](super::Sama), which holds one model too.
///
/// Memory: `w`. Gradients a step: 2.
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::{Device, Tensor}};
/// use scalebio::methods::{NoU, Method};
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
/// let mut run = NoU::new(Update::sgd(0.01), Update::sgd(0.2)).start(problem, zeros(), zeros())?;
/// for step in run.by_ref().take(1000) {
///     step?;
/// }
/// assert!((run.upper().val() - 3.0).abs().max().into_scalar::<f32>() < 1e-2);
/// # Ok::<(), scalebio::Error>(())
/// ```
///
/// # Reference
///
/// Shen et al., *SEAL: Safety-enhanced Aligned LLM Fine-tuning via Bilevel Data Selection*, ICLR 2025, arXiv 2410.07471,
/// algorithm 2.
#[derive(Debug)]
#[must_use]
pub struct NoU {
    upper: Update,
    lower: Update,
    share: f64,
    training: Training,
}

impl NoU {
    /// The method with update rules for `x` and for `w`.
    ///
    /// Defaults: a share of .1, which is a penalty of 9; all layers train, no clipping.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self {
            upper,
            lower,
            share: 0.1,
            training: Training::default(),
        }
    }

    /// The share `s` of the upper objective in what `w` descends, between 0 and 1. Default: .1.
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Which layers of `w` train at which step; moments of layers that are frozen again are dropped. Default:
    /// [`AllLayers`](crate::AllLayers).
    pub fn layers(mut self, layers: impl LayerSampler + 'static) -> Self {
        self.training.layers = Box::new(layers);
        self
    }

    /// Clips the gradient of `w` to a global norm of at most `norm`, greater than 0. Default: no clipping.
    pub fn clip(mut self, norm: f64) -> Self {
        self.training.clip = Some(norm);
        self
    }

    fn validate(&self) -> Result<()> {
        if !(self.share > 0.0 && self.share < 1.0) {
            return Err(Error::setting(
                "share",
                self.share,
                "greater than 0 and less than 1",
                "a penalty alpha is a share of 1 / (1 + alpha)",
            ));
        }
        self.training.validate()
    }
}

struct NoURule<X, W> {
    method: NoU,
    x: Variable<X>,
    w: Variable<W>,
}

impl<F, G, X, W> Method<F, G, X, W> for NoU
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "no_u"
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        self.validate()?;
        let rule = NoURule {
            x: Variable::upper(upper, &self.upper)?,
            w: Variable::lower(lower, &self.lower)?,
            method: *self,
        };
        Ok(iterate(problem, rule))
    }
}

impl<X: Module, W: Module> Rule<X, W> for NoURule<X, W> {
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        self.method.training.draw_layers(k, &mut self.w);
        let s = self.method.share;
        let penalty = (1.0 - s) / s;
        let (x, w) = (self.x.module(), self.w.module());
        let f = oracle.f(x, w)?;
        let g = oracle.g(x, w)?;
        let of_x = combine(x, vec![(1.0, f.of_upper), (penalty, g.of_upper)]);
        let of_w = combine(w, vec![(s, f.of_lower), (1.0 - s, g.of_lower)]);
        let step = Step {
            penalty,
            rates: PerVariable {
                upper: self.method.upper.rate_at(k),
                lower: self.method.lower.rate_at(k),
                auxiliary: 0.0,
            },
            gradient_norms: PerVariable {
                upper: global_norm(x, &of_x),
                lower: global_norm(w, &of_w),
                auxiliary: 0.0,
            },
            upper_loss: f.loss,
            lower_loss: g.loss,
            upper_parts: f.parts,
            lower_parts: g.parts,
            ..Step::at(k)
        };
        step.check_finite()?;
        let of_w = self
            .method
            .training
            .clip(w, of_w, step.gradient_norms.lower);
        self.w.step(step.rates.lower, of_w);
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
