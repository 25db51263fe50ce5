//! The state of a run, and its step.

use std::fmt;

use burn::module::Module;

#[cfg(feature = "checkpoint")]
use super::checkpoint::{Drawn, new_name};
use super::gradients::{clip, combine, global_norm};
use super::scalebio::{Moments, ScaleBio};
use super::step::{PerVariable, Step};
use super::tasks::{Draws, Evaluation, Tasks, in_parallel, in_turn};
use super::variable::{Variable, auxiliary_of, untied};
use crate::collective::Ranks;
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective, catch_lost_device};

/// A run of [`ScaleBio`]: an endless iterator over its steps.
///
/// All that can fail (draws, losses, gradients) comes before any variable changes. After an error
/// the iterator ends and the run stands at its last good state, which can still be read. (Where the error is that a device of
/// another machine is lost, [`catch_lost_device`] says what can.)
///
/// # Example
///
/// ```
/// # use burn::{module::Param, tensor::{Device, Tensor}};
/// # use scalebio::{Bilevel, ScaleBio, Update};
/// # type Vector = Param<Tensor<1>>;
/// # let device = Device::flex().autodiff();
/// # let problem = Bilevel {
/// #     upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
/// #     lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
/// # };
/// # let zeros = || Vector::from_data([0.0, 0.0], &device);
/// # let method = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02));
/// let mut run = method.start(problem, zeros(), zeros())?;
/// for step in run.by_ref().take(100) {
///     let step = step?;
///     if step.upper_loss() < 1e-3 {
///         break;
///     }
/// }
/// println!("x = {}", run.upper().val().into_data());
/// # Ok::<(), scalebio::Error>(())
/// ```
#[must_use = "a run does nothing until its steps are taken"]
pub struct Run<F, G, X, W> {
    pub(super) problem: Bilevel<F, G>,
    pub(super) method: ScaleBio,
    pub(super) upper: Variable<X>,
    pub(super) lower: Variable<W>,
    pub(super) auxiliary: Variable<W>,
    pub(super) steps: usize,
    pub(super) reach: f64,
    pub(super) failed: bool,
    /// The first step that this process takes.
    pub(super) first: usize,
    /// Which run this is, to its checkpoints.
    #[cfg(feature = "checkpoint")]
    pub(super) name: String,
    /// How far the draws had come before the last step, which may fail after them.
    #[cfg(feature = "checkpoint")]
    pub(super) before: Drawn,
    /// [`Run::advance`] with the tasks in turn or in parallel.
    advance: fn(&mut Self) -> Result<Step>,
}

/// Where a run ended.
#[derive(Clone, Debug)]
pub struct Solution<X, W> {
    /// The upper variable `x`.
    pub upper: X,
    /// The lower variable `w`.
    pub lower: W,
    /// The auxiliary variable `u`, which follows `argmin_w G(x, w)`.
    pub auxiliary: W,
    /// Number of steps taken.
    pub steps: usize,
}

impl<F, G, X, W> Run<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    pub(super) fn new(
        method: ScaleBio,
        mut problem: Bilevel<F, G>,
        upper: X,
        lower: W,
        place: impl FnOnce(W) -> Result<W>,
    ) -> Result<Self> {
        share(&mut problem, &method.ranks)?;
        let (upper, lower) = (untied(upper), untied(lower));
        let auxiliary = untied(place(auxiliary_of(&lower))?);
        let upper = Variable::new(upper, &method.upper, "upper variable")?;
        let auxiliary = Variable::new(auxiliary, &method.auxiliary, "lower variable")?;
        let lower = Variable::new(lower, &method.lower, "lower variable")?;
        Ok(Self::of(method, problem, upper, lower, auxiliary))
    }

    /// The run of these variables, before its first step.
    pub(super) fn of(
        method: ScaleBio,
        problem: Bilevel<F, G>,
        upper: Variable<X>,
        lower: Variable<W>,
        auxiliary: Variable<W>,
    ) -> Self {
        Self {
            problem,
            method,
            upper,
            lower,
            auxiliary,
            steps: 0,
            reach: 0.0,
            failed: false,
            first: 0,
            #[cfg(feature = "checkpoint")]
            name: new_name(),
            #[cfg(feature = "checkpoint")]
            before: Drawn::default(),
            advance: |run| run.advance(in_turn),
        }
    }

    /// Computes the gradient of `u` on another thread than those of `w`. The results are the same, bit for bit; what the
    /// two need beside the model is in memory at the same time.
    ///
    /// Worth it where one model does not keep all cores busy. The objectives must not hold tensors that require
    /// gradients.
    pub fn in_parallel(mut self) -> Self
    where
        F: UpperObjective<X, W, Batch: Sync> + Sync,
        G: LowerObjective<X, W, Batch: Sync> + Sync,
    {
        self.advance = |run| run.advance(in_parallel);
        self
    }

    /// One step of algorithm 1: a Jacobi step, every gradient taken at `(x_k, u_k, w_k)`.
    fn advance(&mut self, tasks: Tasks<F, G, X, W>) -> Result<Step> {
        let k = self.steps;
        let alpha = self.method.penalty.at(k);
        let rates = self.rates(k);

        // One draw of the lower objective, which u and w share, and an independent one of the upper. Of several ranks
        // each draws its share.
        let draws = self.draw();
        let moved = self.bytes_moved();
        self.draw_layers(k);

        let (x, w, u) = (
            self.upper.module(),
            self.lower.module(),
            self.auxiliary.module(),
        );
        // A device that is lost is an error already here, of which the other ranks are told.
        let evaluation = draws
            .and_then(|(f, g)| catch_lost_device(|| tasks(&self.problem, &f, &g, alpha, x, w, u)));
        let Evaluation {
            drawn,
            f_w,     // F(x, w)
            g_w,     // G(x, w)
            mut g_u, // G(x, u)
            of_w,    // grad_w [F(x, w) + alpha G(x, w)]
            of_u,    // alpha grad_u G(x, u)
            bytes,
        } = self.over_ranks(evaluation)?;
        check_drawn(drawn, k)?;

        // At the start u = w, and alpha (G(x, w) - G(x, u)) is zero by definition. Its rounding noise
        // would be a full step in a random direction under Adam.
        let mut gap = alpha;
        if k == 0 {
            gap = 0.0;
            g_u.loss = g_w.loss;
            g_u.parts.clone_from(&g_w.parts);
        }

        let of_x = combine(
            x,
            vec![
                (gap, g_w.of_upper),
                (-gap, g_u.of_upper),
                (1.0, f_w.of_upper),
            ],
        );
        let norms = PerVariable {
            upper: global_norm(x, &of_x),
            lower: global_norm(w, &of_w),
            auxiliary: global_norm(u, &of_u),
        };
        let mut step = Step {
            index: k,
            penalty: alpha,
            rates,
            gradient_norms: norms,
            upper_loss: f_w.loss,
            lower_loss: g_w.loss,
            auxiliary_loss: Some(g_u.loss),
            upper_parts: f_w.parts,
            lower_parts: g_w.parts,
            auxiliary_parts: g_u.parts,
            gradient_calls: 3,
            bytes_moved: None,
            collective_bytes: bytes,
        };
        step.check_finite()?;

        let limit = self.method.clip.map(|norm| norm * alpha);
        let of_u = clip(u, of_u, norms.auxiliary, limit);
        let of_w = clip(w, of_w, norms.lower, limit);
        self.auxiliary.step(rates.auxiliary, of_u);
        self.lower.step(rates.lower, of_w);
        self.upper.step(rates.upper, of_x);
        self.steps += 1;
        self.reach += rates.upper;
        let after = self.bytes_moved();
        step.bytes_moved = after.zip(moved).map(|(after, before)| after - before);
        Ok(step)
    }

    /// Learning rates `tau^-i * schedule * rate` of step `k`.
    fn rates(&self, k: usize) -> PerVariable {
        let scale = self.method.penalty.scale(k);
        PerVariable {
            upper: self.method.upper.rate_at(k) / scale,
            lower: self.method.lower.rate_at(k) / scale,
            auxiliary: self.method.auxiliary.rate_at(k) / scale,
        }
    }

    /// The next draws of the upper and of the lower objective.
    fn draw(&mut self) -> Result<Draws<F, G, X, W>> {
        let lower = self.problem.lower.sample()?;
        Ok((self.problem.upper.sample()?, lower))
    }

    fn draw_layers(&mut self, k: usize) {
        if let Some(active) = self.method.layers.sample(k) {
            let keep = self.method.moments == Moments::Keep;
            self.lower.activate(&active.lower, keep);
            self.auxiliary.activate(&active.auxiliary, keep);
        } else if k == 0 {
            self.lower.settle();
            self.auxiliary.settle();
        }
    }

    /// The upper variable `x`.
    pub fn upper(&self) -> &X {
        self.upper.module()
    }

    /// The lower variable `w`.
    pub fn lower(&self) -> &W {
        self.lower.module()
    }

    /// The auxiliary variable `u`, which follows `argmin_w G(x, w)`.
    pub fn auxiliary(&self) -> &W {
        self.auxiliary.module()
    }

    /// The problem that is being solved.
    pub fn problem(&self) -> &Bilevel<F, G> {
        &self.problem
    }

    /// Number of steps taken.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Sum of the upper variable's learning rates so far. Adam moves an entry by about its learning
    /// rate a step at most, so this is how far an entry can have moved.
    pub fn reach(&self) -> f64 {
        self.reach
    }

    /// Bytes of the three optimizers' moments and of the float32 masters of parameters in half precision: for Adam 8 a
    /// number of a float32 parameter that trains, 12 of a bfloat16 one. Copies the moments once to count, so not for
    /// every step.
    pub fn moment_bytes(&self) -> usize {
        self.upper.moment_bytes() + self.lower.moment_bytes() + self.auxiliary.moment_bytes()
    }

    /// Ends the run and returns where it stands.
    pub fn finish(self) -> Solution<X, W> {
        Solution {
            upper: self.upper.into_module(),
            lower: self.lower.into_module(),
            auxiliary: self.auxiliary.into_module(),
            steps: self.steps,
        }
    }
}

impl<F, G, X, W> Iterator for Run<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    type Item = Result<Step>;

    /// Takes a step. `None` only after an error.
    fn next(&mut self) -> Option<Result<Step>> {
        if self.failed {
            return None;
        }
        #[cfg(feature = "checkpoint")]
        {
            self.before = self.drawn();
        }
        let step = catch_lost_device(|| (self.advance)(self));
        self.failed = step.is_err();
        Some(step)
    }
}

/// Without the problem, so that closures do as objectives.
impl<F, G, X, W> fmt::Debug for Run<F, G, X, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("method", &self.method)
            .field("steps", &self.steps)
            .field("reach", &self.reach)
            .finish_non_exhaustive()
    }
}

/// Lets both objectives draw this rank's share.
pub(super) fn share<F, G, X, W>(problem: &mut Bilevel<F, G>, ranks: &Ranks) -> Result<()>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    if ranks.count() > 1 {
        problem.upper.share(ranks.rank(), ranks.count())?;
        problem.lower.share(ranks.rank(), ranks.count())?;
    }
    Ok(())
}

/// An error for draws of the upper or of the lower objective in which no rank has a micro-batch.
fn check_drawn([upper, lower]: [u64; 2], step: usize) -> Result<()> {
    for (drawn, objective) in [(lower, "lower objective"), (upper, "upper objective")] {
        if drawn == 0 {
            return Err(Error::EmptyDraw { step, objective });
        }
    }
    Ok(())
}
