//! SAMA and T1-T2: one model, and one difference along the gradient of `F`.

use burn::module::Module;

use super::differences::cross;
use super::oracle::Oracle;
use super::progress::{Rule, iterate};
use super::training::Training;
use super::vector::{full_precision, linear};
use super::{Method, Progress};
use crate::sampler::LayerSampler;
use crate::solver::gradients::{combine, global_norm};
use crate::solver::{PerVariable, Step, Update, Variable};
use crate::{Bilevel, LowerObjective, Result, UpperObjective};

/// SAMA: `w` descends `G` alone, and the inverse Hessian of the hypergradient is replaced by how the optimizer of `w`
/// answers to a gradient. One step, all at `(x_k, w_k)`:
///
/// ```text
/// v = D grad_w F
/// w <- update_w(grad_w G)
/// x <- update_x(grad_x F - [grad_x G(x, w + e v) - grad_x G(x, w - e v)] / 2 e)
/// ```
///
/// `D` is the derivative of Adam's update in its gradient (the rate of `w`, which would only scale the step of `x`, is
/// left out) and the identity for any other optimizer, which is the method T1-T2. Adam's first step of a parameter does
/// not depend on the size of its gradient, so there `D` is 0. `e` is such that the shift is small beside `w`.
///
/// When to use it: language models and other networks, where there is memory for one model only and the optimizer of
/// `x` is Adam, which does not care for the scale that a missing Hessian leaves behind. Where `F` depends on `w` alone,
/// and `D` is positive, it stops where `grad_w F = 0` as the exact method does; where `F` depends on `x` too, or no `x`
/// makes `grad_w F` vanish, it stops elsewhere: the terms that must cancel have the wrong ratio.
///
/// Memory: `w`, and for the time of a step `v` and the shifted copy of what trains. Gradients a step: 4, or 2 where `v`
/// is zero. Not in half precision: the difference would be rounding, and is an error.
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::{Device, Tensor}};
/// use scalebio::methods::{Sama, Method};
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
/// let mut run = Sama::new(Update::sgd(0.1), Update::sgd(0.2)).start(problem, zeros(), zeros())?;
/// for step in run.by_ref().take(200) {
///     step?;
/// }
/// assert!((run.upper().val() - 3.0).abs().max().into_scalar::<f32>() < 1e-3);
/// # Ok::<(), scalebio::Error>(())
/// ```
///
/// # Reference
///
/// Choe et al., *Making Scalable Meta Learning Practical*, NeurIPS 2023, arXiv 2310.05674. T1-T2: Luketina et al.,
/// *Scalable Gradient-Based Tuning of Continuous Regularization Hyperparameters*, ICML 2016, arXiv 1511.06727.
#[derive(Debug)]
#[must_use]
pub struct Sama {
    upper: Update,
    lower: Update,
    training: Training,
    preconditioned: bool,
}

impl Sama {
    /// The method with update rules for `x` and for `w`.
    ///
    /// Defaults: all layers train, no clipping.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self {
            upper,
            lower,
            training: Training::default(),
            preconditioned: true,
        }
    }

    /// T1-T2: `v = grad_w F` also where `w` is moved by Adam. Defaults as in [`new`](Self::new).
    pub fn t1_t2(upper: Update, lower: Update) -> Self {
        Self {
            preconditioned: false,
            ..Self::new(upper, lower)
        }
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
}

struct SamaRule<X, W> {
    method: Sama,
    x: Variable<X>,
    w: Variable<W>,
}

impl<F, G, X, W> Method<F, G, X, W> for Sama
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        if self.preconditioned { "sama" } else { "t1_t2" }
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        self.training.validate()?;
        full_precision("sama", &lower)?;
        let rule = SamaRule {
            x: Variable::upper(upper, &self.upper)?,
            w: Variable::lower(lower, &self.lower)?,
            method: *self,
        };
        Ok(iterate(problem, rule))
    }
}

impl<X: Module, W: Module> Rule<X, W> for SamaRule<X, W> {
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        self.method.training.draw_layers(k, &mut self.w);
        let Sama {
            upper,
            lower,
            training,
            preconditioned,
        } = &self.method;
        let (x, w) = (self.x.module(), self.w.module());
        let f = oracle.f(x, w)?;
        let g = oracle.g(x, w)?;
        let of_w = combine(w, vec![(1.0, g.of_lower)]);
        let norm = global_norm(w, &of_w);
        let of_w = training.clip(w, of_w, norm);
        let mut v = combine(w, vec![(1.0, f.of_lower)]);
        if *preconditioned {
            v = self.w.precondition(lower, &of_w, v);
        }
        let cross = cross(oracle, x, w, &v)?;
        drop(v);
        let of_x = linear(x, &[(1.0, &f.of_upper), (-1.0, &cross)]);
        let step = Step {
            rates: PerVariable {
                upper: upper.rate_at(k),
                lower: lower.rate_at(k),
                auxiliary: 0.0,
            },
            gradient_norms: PerVariable {
                upper: global_norm(x, &of_x),
                lower: norm,
                auxiliary: 0.0,
            },
            upper_loss: f.loss,
            lower_loss: g.loss,
            upper_parts: f.parts,
            lower_parts: g.parts,
            ..Step::at(k)
        };
        step.check_finite()?;
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
