//! The hyper-parameters of the method.

use burn::module::Module;

use super::gradients::check_limit;
use super::penalty::Penalty;
use super::run::{Run, Solution};
use super::update::Update;
use crate::collective::Ranks;
use crate::sampler::{AllLayers, LayerSampler};
use crate::{Bilevel, LowerObjective, Result, UpperObjective};

/// What happens to the optimizer's moments of a block that is frozen again, and to the float32 masters of its
/// parameters if they are stored in half precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moments {
    /// They are dropped: memory stays that of the active blocks, and a block starts afresh when it is
    /// drawn again, as in LISA.
    #[default]
    Reset,
    /// They are kept for the next time the block is drawn. Memory grows to that of all blocks.
    Keep,
}

/// The single-loop first-order bilevel method of ScaleBiO: its hyper-parameters.
///
/// One step, all gradients taken at `(x_k, u_k, w_k)`, with the same lower draw for `u` and `w`:
///
/// ```text
/// u <- update_u(alpha grad_u G(x, u))
/// w <- update_w(grad_w [F(x, w) + alpha G(x, w)])
/// x <- update_x(grad_x [F(x, w) + alpha (G(x, w) - G(x, u))])
/// ```
///
/// # Example
///
/// The solution of `min_x |w*(x) - 3|^2` subject to `w*(x) = argmin_w |w - x|^2` is `x = w = 3`:
///
/// ```
/// use burn::{module::Param, tensor::{Device, Tensor}};
/// use scalebio::{Bilevel, ScaleBio, Update};
///
/// type Vector = Param<Tensor<1>>;
///
/// let device = Device::flex().autodiff();
/// let problem = Bilevel {
///     upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
///     lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
/// };
/// let zeros = || Vector::from_data([0.0, 0.0], &device);
/// let solution = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02))
///     .penalty(10.0)
///     .solve(problem, zeros(), zeros(), 500)?;
/// assert!((solution.upper.val() - 3.0).abs().max().into_scalar::<f32>() < 1e-4);
/// # Ok::<(), scalebio::Error>(())
/// ```
///
/// # Reference
///
/// Pan et al., *ScaleBiO: Scalable Bilevel Optimization for LLM Data Reweighting*, ACL 2025,
/// arXiv 2406.19976, algorithm 1; the penalty hypergradient is that of Kwon et al., *A Fully
/// First-Order Method for Stochastic Bilevel Optimization*, arXiv 2301.10945.
#[must_use]
pub struct ScaleBio {
    pub(super) upper: Update,
    pub(super) lower: Update,
    pub(super) auxiliary: Update,
    pub(super) penalty: Penalty,
    pub(super) layers: Box<dyn LayerSampler>,
    pub(super) moments: Moments,
    pub(super) clip: Option<f64>,
    pub(super) ranks: Ranks,
}

impl ScaleBio {
    /// The method with update rules for the upper variable `x` and the lower variable `w`.
    ///
    /// Defaults: `u` updates as `w` does, penalty 10, all layers train, no clipping.
    pub fn new(upper: Update, lower: Update) -> Self {
        Self {
            upper,
            auxiliary: lower.clone(),
            lower,
            penalty: Penalty::default(),
            layers: Box::new(AllLayers),
            moments: Moments::default(),
            clip: None,
            ranks: Ranks::default(),
        }
    }

    /// The penalty `alpha`: a number, or [`Penalty::geometric`] stages. Default: 10.
    pub fn penalty(mut self, penalty: impl Into<Penalty>) -> Self {
        self.penalty = penalty.into();
        self
    }

    /// The update rule of the auxiliary variable `u`. Default: that of `w`.
    pub fn auxiliary(mut self, update: Update) -> Self {
        self.auxiliary = update;
        self
    }

    /// Which layers of `w` and `u` train at which step. Default: [`AllLayers`].
    pub fn layers(mut self, layers: impl LayerSampler + 'static) -> Self {
        self.layers = Box::new(layers);
        self
    }

    /// What happens to the moments of layers that are frozen again. Default: [`Moments::Reset`].
    pub fn moments(mut self, moments: Moments) -> Self {
        self.moments = moments;
        self
    }

    /// Clips the gradients of `u` and `w`, each to a global norm of at most `norm * alpha`, after the
    /// micro-batches are summed. Greater than 0. `x` is not clipped. Default: no clipping.
    pub fn clip(mut self, norm: f64) -> Self {
        self.clip = Some(norm);
        self
    }

    /// Takes the steps together with other ranks, each on its share of every draw; see [`collective`](crate::collective).
    /// The results depend on their number by rounding only. Each rank makes the same method, the same problem and the same
    /// variables; a difference is an error of the first step, and so is, later, one of the upper variable or of how far
    /// draws have come. Checkpoints do not know of ranks: one of them writes
    /// ([`Ranks::is_first`]), and any number resumes. Default: a run that is alone.
    pub fn collective(mut self, ranks: Ranks) -> Self {
        self.ranks = ranks;
        self
    }

    /// Starts a run at the upper variable `upper` and the lower variable `lower`; the auxiliary
    /// variable starts as a copy of `lower`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for a setting that cannot work, and for an objective that cannot be shared
    /// by several ranks;
    /// [`Error::NotTrainable`](crate::Error::NotTrainable) for a variable that is not on an autodiff device.
    pub fn start<F, G, X, W>(
        self,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Run<F, G, X, W>>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        self.start_apart(problem, upper, lower, Ok)
    }

    /// Starts a run whose auxiliary variable `u` lives elsewhere than `w`: `place` gets the copy of `lower` that `u` starts
    /// as and puts its parameters on other devices.
    ///
    /// With [`Run::in_parallel`] the two devices then work at the same time. The upper variable stays where it is: an
    /// objective that computes with it at `u` must bring it to `u`'s device, as
    /// [`WeightedSources`](crate::reweight::WeightedSources) does.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start) and of `place`.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::{module::{Module, Param}, tensor::{Device, Tensor}};
    /// use scalebio::{Bilevel, ScaleBio, Update};
    ///
    /// type Vector = Param<Tensor<1>>;
    ///
    /// let here = Device::flex().autodiff();
    /// let there = Device::flex().autodiff(); // Device::cuda(1).autodiff(), say
    /// let problem = Bilevel {
    ///     upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
    ///     lower: |x: &Vector, w: &Vector| (w.val() - x.val().to_device(&w.device())).square().sum(),
    /// };
    /// let zeros = || Vector::from_data([0.0, 0.0], &here);
    /// let method = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02));
    /// let mut run = method
    ///     .start_apart(problem, zeros(), zeros(), |u| Ok(u.fork(&there)))?
    ///     .in_parallel();
    /// for step in run.by_ref().take(100) {
    ///     step?;
    /// }
    /// # Ok::<(), scalebio::Error>(())
    /// ```
    pub fn start_apart<F, G, X, W>(
        self,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
        place: impl FnOnce(W) -> Result<W>,
    ) -> Result<Run<F, G, X, W>>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        self.validate()?;
        Run::new(self, problem, upper, lower, place)
    }

    /// Starts a run, takes `steps` steps and returns where it ended.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start) and of a step, see [`Run`].
    pub fn solve<F, G, X, W>(
        self,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
        steps: usize,
    ) -> Result<Solution<X, W>>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        let mut run = self.start(problem, upper, lower)?;
        for step in run.by_ref().take(steps) {
            step?;
        }
        Ok(run.finish())
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.upper.validate("update of the upper variable")?;
        self.lower.validate("update of the lower variable")?;
        self.auxiliary
            .validate("update of the auxiliary variable")?;
        self.penalty.validate()?;
        self.layers.validate()?;
        check_limit(self.clip)
    }
}

impl std::fmt::Debug for ScaleBio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScaleBio")
            .field("upper", &self.upper)
            .field("lower", &self.lower)
            .field("auxiliary", &self.auxiliary)
            .field("penalty", &self.penalty)
            .field("moments", &self.moments)
            .field("clip", &self.clip)
            .finish_non_exhaustive()
    }
}
