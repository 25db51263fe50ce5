//! The penalty method whose lower updates see losses only.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use rand::Rng;
use rand::rngs::Xoshiro256PlusPlus;

use super::oracle::Oracle;
use super::penalized::valid_penalty;
use super::progress::{Rule, iterate};
use super::vector::{full_precision, linear};
use super::{Method, Progress};
use crate::sampler::generator;
use crate::solver::gradients::global_norm;
use crate::solver::{PerVariable, Step, Update, Variable};
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective};

/// The penalty method with zeroth-order steps of `u` and `w`: each from two losses along one random direction of signs
/// `z`, instead of a gradient. One step:
///
/// ```text
/// s_u = alpha (G(x, u + e z) - G(x, u - e z)) / 2e                                u <- u - rate s_u z
/// s_w = (F + alpha G at (x, w + e z) - F + alpha G at (x, w - e z)) / 2e          w <- w - rate s_w z
/// x <- update_x(grad_x F(x, w) + alpha (grad_x G(x, w) - grad_x G(x, u)))
/// ```
///
/// In expectation `s z` is the gradient; its square is as many times as large as there are entries. So the stable `rate`
/// is smaller than a gradient's by the number of entries (by the effective dimension, where few directions are curved),
/// and as many times more steps are needed. `u` and `w` share `z`, as they share the draw: what it adds to both cancels in
/// the update of `x`.
///
/// When to use it: models whose tape does not fit in memory, from a good start, or losses of `w` that have no gradient.
/// Otherwise gradients are better in every way.
///
/// Memory: that of inference. Losses are taken on [`valid`](burn::module::Module::valid) modules, without a tape; `z` is
/// never stored but drawn anew from the seed and the step. Besides `w` and `u` one shifted copy is held. Gradients in
/// `x` leave `w` without gradients: their tape holds only what follows from `x`. A step takes 6 forward passes and 3
/// gradients in `x` alone. Not in half precision: `e` and the steps would be lost in rounding, and are an error.
///
/// # Reference
///
/// Zhang et al., *Revisiting zeroth-order optimization for memory-efficient LLM fine-tuning: a benchmark*, arXiv
/// 2402.11592; directions of signs: Spall, *SPSA*, 1992.
#[derive(Clone, Debug)]
#[must_use]
pub struct ZerothOrder {
    alpha: f64,
    upper: Update,
    rate: f64,
    smoothing: f64,
    seed: u64,
}

impl ZerothOrder {
    /// The method with penalty `alpha`, an update rule for `x`, and the learning rate of plain steps of `u` and `w`.
    ///
    /// Defaults: smoothing 1e-3, seed 0.
    pub fn new(alpha: f64, upper: Update, rate: f64) -> Self {
        Self {
            alpha,
            upper,
            rate,
            smoothing: 1e-3,
            seed: 0,
        }
    }

    /// `e`, by which every entry is shifted. Greater than 0. Default: 1e-3.
    pub fn smoothing(mut self, smoothing: f64) -> Self {
        self.smoothing = smoothing;
        self
    }

    /// Seed of the directions. Default: 0. The same seed gives [`Minibatches`](crate::Minibatches) other random numbers, so
    /// that directions and samples are independent.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

impl<F, G, X, W> Method<F, G, X, W> for ZerothOrder
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "zeroth_order"
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        valid_penalty(self.alpha)?;
        if !(self.smoothing > 0.0 && self.smoothing.is_finite()) {
            return Err(Error::setting(
                "smoothing",
                self.smoothing,
                "a finite number greater than 0",
                "1e-3 is the default",
            ));
        }
        full_precision("zeroth_order", &lower)?;
        let w = Variable::lower(lower, &Update::sgd(self.rate))?.into_module();
        let rule = ByLosses {
            x: Variable::upper(upper, &self.upper)?,
            u: w.clone(),
            entries: entries(&w),
            w,
            method: *self,
        };
        Ok(iterate(problem, rule))
    }
}

struct ByLosses<X, W> {
    method: ZerothOrder,
    x: Variable<X>,
    w: W,
    u: W,
    /// Number of entries of `w` that move: `|z|^2`.
    entries: usize,
}

impl<X: Module, W: Module> Rule<X, W> for ByLosses<X, W> {
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        let ZerothOrder {
            alpha,
            rate,
            smoothing: e,
            seed,
            ..
        } = self.method;
        let signs = Signs::new(seed, k);
        let x = self.x.module();
        let still = x.clone().valid();
        let slope = |loss: &dyn Fn(f64) -> Result<f64>| -> Result<f64> {
            Ok((loss(e)? - loss(-e)?) / (2.0 * e))
        };
        let of_u = |shift| oracle.g_loss(&still, &signs.added(&self.u, shift).valid());
        let of_w = |shift| {
            let w = signs.added(&self.w, shift).valid();
            Ok(oracle.f_loss(&still, &w)? + alpha * oracle.g_loss(&still, &w)?)
        };
        let (s_u, s_w) = (alpha * slope(&of_u)?, slope(&of_w)?);

        let (w, u) = (self.w.valid(), self.u.valid());
        let f = oracle.f(x, &w)?;
        let at_w = oracle.g(x, &w)?;
        let at_u = oracle.g(x, &u)?;
        let of_x = linear(
            x,
            &[
                (alpha, &at_w.of_upper),
                (-alpha, &at_u.of_upper),
                (1.0, &f.of_upper),
            ],
        );
        let length = (self.entries as f64).sqrt();
        let step = Step {
            penalty: alpha,
            rates: PerVariable {
                upper: self.method.upper.rate_at(k),
                lower: rate,
                auxiliary: rate,
            },
            gradient_norms: PerVariable {
                upper: global_norm(x, &of_x),
                lower: s_w.abs() * length,
                auxiliary: s_u.abs() * length,
            },
            upper_loss: f.loss,
            lower_loss: at_w.loss,
            auxiliary_loss: Some(at_u.loss),
            upper_parts: f.parts,
            lower_parts: at_w.parts,
            auxiliary_parts: at_u.parts,
            ..Step::at(k)
        };
        step.check_finite()?;
        self.u = signs.added(&self.u, -rate * s_u);
        self.w = signs.added(&self.w, -rate * s_w);
        self.x.step(step.rates.upper, of_x);
        Ok(step)
    }

    fn upper(&self) -> &X {
        self.x.module()
    }

    fn lower(&self) -> &W {
        &self.w
    }
}

/// The random direction of a step, entry by entry -1 or 1: a generator at its start, from which it is drawn each time.
struct Signs(Xoshiro256PlusPlus);

impl Signs {
    fn new(seed: u64, step: usize) -> Self {
        // Minibatches of the same seed must not be drawn from the same numbers: the slope along `z` depends on the
        // samples, and its product with a `z` that does so too is not the gradient on average.
        const OF_DIRECTIONS: u64 = 0x7369_676E_7320_6F66;
        Self(generator(seed ^ OF_DIRECTIONS, step as u64))
    }

    /// `module + factor z`, with gradients of its own. Frozen parameters stay.
    fn added<M: Module>(&self, module: &M, factor: f64) -> M {
        struct Added {
            random: Xoshiro256PlusPlus,
            factor: f64,
        }

        impl ModuleMapper for Added {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                if !param.is_require_grad() {
                    return param;
                }
                let (id, value, mapper) = param.consume();
                let value = value.inner();
                let count = value.shape().num_elements();
                let mut signs = Vec::with_capacity(count);
                while signs.len() < count {
                    let bits = self.random.next_u64();
                    let sign = |i: usize| if bits >> i & 1 == 1 { 1.0_f32 } else { -1.0 };
                    signs.extend((0..64.min(count - signs.len())).map(sign));
                }
                let data = TensorData::new(signs, value.shape());
                let signs = Tensor::from_data(data, (&value.device(), value.dtype()));
                let moved = Tensor::from_inner(value + signs.mul_scalar(self.factor));
                Param::from_mapped_value(id, moved.set_require_grad(true), mapper)
            }
        }

        module.clone().map(&mut Added {
            random: self.0.clone(),
            factor,
        })
    }
}

/// Number of entries that require a gradient.
fn entries<M: Module>(module: &M) -> usize {
    struct Entries(usize);

    impl burn::module::ModuleVisitor for Entries {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0 += param.val().shape().num_elements();
            }
        }
    }

    let mut entries = Entries(0);
    module.visit(&mut entries);
    entries.0
}
