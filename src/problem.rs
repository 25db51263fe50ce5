//! A bilevel problem: its two objectives, and the one door through which the solver asks for their gradients.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::progress::nothing_drawn;
use crate::{Error, Result};

/// The upper objective `F(x, w)`: what the upper variable `x` is chosen for. `L1` in the paper.
///
/// A closure `Fn(&X, &W) -> Tensor<1>` is an upper objective without data.
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::Tensor};
/// use scalebio::{Result, UpperObjective};
///
/// type Vector = Param<Tensor<1>>;
///
/// /// Mean squared distance to a minibatch of targets.
/// #[derive(Debug)]
/// struct Targets(Vec<Tensor<1>>);
///
/// impl UpperObjective<Vector, Vector> for Targets {
///     type Batch = Tensor<1>;
///
///     fn sample(&mut self) -> Result<Vec<Tensor<1>>> {
///         Ok(self.0.clone()) // two micro-batches, whose losses are summed
///     }
///
///     fn loss(&self, _: &Vector, w: &Vector, batch: &Tensor<1>) -> Tensor<1> {
///         (w.val() - batch.clone()).square().sum() / self.0.len() as f64
///     }
/// }
/// ```
///
/// # Reference
///
/// Pan et al., *ScaleBiO*, ACL 2025, arXiv 2406.19976, equation (1).
pub trait UpperObjective<X: Module, W: Module> {
    /// The data of one micro-batch.
    type Batch;

    /// Draws the micro-batches of one step. The step's objective is the **sum** of their losses, so
    /// that normalizers (a batch size, a number of tokens) belong to the whole draw.
    ///
    /// # Errors
    ///
    /// Whatever prevents a draw; it ends the run before any variable has changed. An empty draw is
    /// an error of the run too.
    fn sample(&mut self) -> Result<Vec<Self::Batch>>;

    /// Loss of one micro-batch at `(upper, lower)`.
    ///
    /// # Shapes
    ///
    /// - output: `[1]`
    fn loss(&self, upper: &X, lower: &W, batch: &Self::Batch) -> Tensor<1>;

    /// Loss and gradients of one micro-batch. Differentiates [`loss`](Self::loss) unless overridden,
    /// for instance where a gradient is known in closed form or must be computed in pieces.
    ///
    /// # Errors
    ///
    /// The loss is not a single number or depends on no trainable parameter.
    fn gradients(&self, upper: &X, lower: &W, batch: &Self::Batch) -> Result<Gradients> {
        Gradients::of(&self.loss(upper, lower, batch), upper, lower)
    }

    /// Which term of a finite sum this micro-batch is, where an objective of data that is cut into fixed batches draws
    /// one of them at a time. Variance-reduced estimates (SAGA) remember one gradient for each term, and need it;
    /// everything else ignores it. Default: `None`, a draw that is like no other.
    ///
    /// Slots are `0..of`, each drawn equally often, and the mean of their losses is the objective. A micro-batch with
    /// a slot is the only one of its draw.
    fn slot(&self, batch: &Self::Batch) -> Option<Slot> {
        let _ = batch;
        None
    }

    /// How far the draws have come, in words from which [`resume`](Self::resume) goes on in another process: what a
    /// [checkpoint](crate::Run) holds of an objective. Asked before every step, so it should be short; for seeded draws
    /// their number will do ([`Minibatches::progress`](crate::Minibatches::progress)). An objective without draws
    /// returns an empty text.
    ///
    /// Default: `None`, an objective that cannot be resumed; a run with it has no checkpoints.
    fn progress(&self) -> Option<String> {
        None
    }

    /// Goes on as if the draws up to `progress`, a text of [`progress`](Self::progress), had been made. Called once,
    /// on an objective that has drawn nothing yet.
    ///
    /// # Errors
    ///
    /// A text that is not of these draws: of other data, say. Default: [`Error::Setting`] for any text but the empty one.
    fn resume(&mut self, progress: &str) -> Result<()> {
        nothing_drawn(progress)
    }

    /// Draws only the share of rank `rank` of `ranks` from now on: each sample of a draw belongs to one rank, and what
    /// counts once a draw, normalizers too, is as before, so that losses and gradients of all ranks add up to those of the
    /// whole draw. Called once, before the first draw, in a run over several ranks
    /// ([`ScaleBio::collective`](crate::ScaleBio::collective)). A draw may have no sample for a rank; progress is that of
    /// the whole draws.
    ///
    /// # Errors
    ///
    /// An objective that cannot be shared. Default: [`Error::Setting`], since an objective that does not know of ranks
    /// would count once on each of them.
    fn share(&mut self, rank: usize, ranks: usize) -> Result<()> {
        let _ = rank;
        not_shared(ranks)
    }
}

/// The lower objective `G(x, w)`: what the lower variable `w` minimizes, given `x`. `L2` in the paper.
///
/// The solver hands the same draw to `w` and to the auxiliary variable `u`. A closure
/// `Fn(&X, &W) -> Tensor<1>` is a lower objective without data. See [`UpperObjective`] for an
/// example: the methods are the same.
///
/// # Reference
///
/// Pan et al., *ScaleBiO*, ACL 2025, arXiv 2406.19976, equation (1).
pub trait LowerObjective<X: Module, W: Module> {
    /// The data of one micro-batch.
    type Batch;

    /// Draws the micro-batches of one step; see [`UpperObjective::sample`].
    ///
    /// # Errors
    ///
    /// Whatever prevents a draw; it ends the run before any variable has changed.
    fn sample(&mut self) -> Result<Vec<Self::Batch>>;

    /// Loss of one micro-batch at `(upper, lower)`.
    ///
    /// # Shapes
    ///
    /// - output: `[1]`
    fn loss(&self, upper: &X, lower: &W, batch: &Self::Batch) -> Tensor<1>;

    /// Loss and gradients of one micro-batch; see [`UpperObjective::gradients`].
    ///
    /// # Errors
    ///
    /// The loss is not a single number or depends on no trainable parameter.
    fn gradients(&self, upper: &X, lower: &W, batch: &Self::Batch) -> Result<Gradients> {
        Gradients::of(&self.loss(upper, lower, batch), upper, lower)
    }

    /// Which term of a finite sum this micro-batch is; see [`UpperObjective::slot`].
    fn slot(&self, batch: &Self::Batch) -> Option<Slot> {
        let _ = batch;
        None
    }

    /// How far the draws have come; see [`UpperObjective::progress`].
    fn progress(&self) -> Option<String> {
        None
    }

    /// Goes on as if the draws up to `progress` had been made; see [`UpperObjective::resume`].
    ///
    /// # Errors
    ///
    /// A text that is not of these draws.
    fn resume(&mut self, progress: &str) -> Result<()> {
        nothing_drawn(progress)
    }

    /// Draws only the share of rank `rank` of `ranks` from now on; see [`UpperObjective::share`].
    ///
    /// # Errors
    ///
    /// An objective that cannot be shared. Default: [`Error::Setting`].
    fn share(&mut self, rank: usize, ranks: usize) -> Result<()> {
        let _ = rank;
        not_shared(ranks)
    }
}

impl<X: Module, W: Module, T: Fn(&X, &W) -> Tensor<1>> UpperObjective<X, W> for T {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, upper: &X, lower: &W, _: &()) -> Tensor<1> {
        self(upper, lower)
    }

    fn progress(&self) -> Option<String> {
        Some(String::new())
    }
}

impl<X: Module, W: Module, T: Fn(&X, &W) -> Tensor<1>> LowerObjective<X, W> for T {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, upper: &X, lower: &W, _: &()) -> Tensor<1> {
        self(upper, lower)
    }

    fn progress(&self) -> Option<String> {
        Some(String::new())
    }
}

fn not_shared(ranks: usize) -> Result<()> {
    Err(Error::setting(
        "collective",
        format!("{ranks} ranks for an objective that does not say how it is shared"),
        "1 rank, or objectives that implement `share`",
        "see `UpperObjective::share`; those of `reweight` do",
    ))
}

/// A term of an objective that is the mean of `of` terms: see [`UpperObjective::slot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The term, from 0.
    pub index: usize,
    /// How many terms there are.
    pub of: usize,
}

/// A bilevel problem: `min_x F(x, w*(x))` subject to `w*(x) = argmin_w G(x, w)`.
#[derive(Clone, Copy, Debug)]
pub struct Bilevel<F, G> {
    /// The upper objective `F`, an [`UpperObjective`].
    pub upper: F,
    /// The lower objective `G`, a [`LowerObjective`].
    pub lower: G,
}

/// Loss and first derivatives of an objective on one micro-batch.
#[derive(Debug, Default)]
pub struct Gradients {
    /// The loss.
    pub loss: f64,
    /// Terms of the loss that are worth logging, such as one loss a source; summed over the
    /// micro-batches of a step. Empty by default.
    pub parts: Vec<f64>,
    /// Gradient in the upper variable. A parameter without an entry has gradient zero.
    pub of_upper: GradientsParams,
    /// Gradient in the lower variable. A parameter without an entry has gradient zero.
    pub of_lower: GradientsParams,
}

impl Gradients {
    /// Differentiates `loss` in the parameters of `upper` and `lower` that require a gradient. A loss that
    /// depends on frozen parameters only has gradient zero.
    ///
    /// # Shapes
    ///
    /// - `loss`: `[1]`
    ///
    /// # Errors
    ///
    /// [`Error::NotScalar`] or [`Error::NotDifferentiable`].
    pub fn of<X: Module, W: Module>(loss: &Tensor<1>, upper: &X, lower: &W) -> Result<Self> {
        let elements = loss.shape().num_elements();
        if elements != 1 {
            return Err(Error::NotScalar { elements });
        }
        let nothing_frozen = || !has_frozen(upper) && !has_frozen(lower);
        if !loss.is_tracked() {
            if nothing_frozen() {
                return Err(Error::NotDifferentiable);
            }
            return Ok(Self {
                loss: loss.clone().into_scalar::<f64>(),
                ..Self::default()
            });
        }
        let mut gradients = loss.backward();
        let of_upper = GradientsParams::from_module(&mut gradients, upper);
        let of_lower = GradientsParams::from_module(&mut gradients, lower);
        // A detached parameter is a leaf of its own in Burn: tracked, but no gradient gets here.
        if of_upper.is_empty() && of_lower.is_empty() && nothing_frozen() {
            return Err(Error::NotDifferentiable);
        }
        Ok(Self {
            loss: loss.clone().into_scalar::<f64>(),
            parts: Vec::new(),
            of_upper,
            of_lower,
        })
    }
}

/// Whether some parameter requires no gradient: then a loss without one may depend on that parameter, for instance on
/// a block that a layer sampler has frozen for now.
pub(crate) fn has_frozen<M: Module>(module: &M) -> bool {
    struct Frozen(bool);

    impl ModuleVisitor for Frozen {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= !param.is_require_grad();
        }
    }

    let mut frozen = Frozen(false);
    module.visit(&mut frozen);
    frozen.0
}
