//! The first-order bilevel methods of the field behind one trait, to compare them on the same problems and in the
//! same logs.
//!
//! | method | model-sized variables beside `w` | gradients a step | when |
//! |---|---|---|---|
//! | [`ScaleBio`] | `u` | 3 | the default: any scale, any optimizer, LISA |
//! | [`Soba`] | `v` | 4 | smooth problems, where the exact hypergradient matters; no penalty to choose |
//!
//! Second-order products are central differences of gradients (Burn has first derivatives only), so every method
//! needs nothing but the two objective traits.
//!
//! # Example
//!
//! ```
//! use burn::{module::Param, tensor::{Device, Tensor}};
//! use scalebio::methods::{Method, Soba};
//! use scalebio::{Bilevel, ScaleBio, Update};
//!
//! type Vector = Param<Tensor<1>>;
//!
//! let device = Device::flex().autodiff();
//! let problem = Bilevel {
//!     upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
//!     lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
//! };
//! let methods: [Box<dyn Method<_, _, Vector, Vector>>; 2] = [
//!     Box::new(ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02))),
//!     Box::new(Soba::new(Update::sgd(0.1), Update::sgd(0.2))),
//! ];
//! for method in methods {
//!     let zeros = || Vector::from_data([0.0, 0.0], &device);
//!     let mut run = method.start_boxed(problem, zeros(), zeros())?;
//!     for step in run.by_ref().take(500) {
//!         step?;
//!     }
//!     assert!((run.upper().val() - 3.0).abs().max().into_scalar::<f32>() < 1e-3);
//! }
//! # Ok::<(), scalebio::Error>(())
//! ```

mod differences;
mod oracle;
mod progress;
mod soba;
mod vector;

use burn::module::Module;

use crate::{Bilevel, LowerObjective, Result, UpperObjective};
use crate::{Run, ScaleBio, Step};

pub use soba::Soba;

/// A bilevel method as a value: its hyper-parameters.
pub trait Method<F, G, X, W>
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    /// Its name in logs and on command lines.
    fn name(&self) -> &'static str;

    /// Starts a run at the upper variable `upper` and the lower variable `lower`; for a method behind a pointer.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for a setting that cannot work,
    /// [`Error::NotTrainable`](crate::Error::NotTrainable) for a variable that is not on an autodiff device.
    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>>;

    /// Starts a run at the upper variable `upper` and the lower variable `lower`.
    ///
    /// # Errors
    ///
    /// Those of [`start_boxed`](Self::start_boxed).
    fn start(self, problem: Bilevel<F, G>, upper: X, lower: W) -> Result<Box<dyn Progress<X, W>>>
    where
        Self: Sized,
    {
        Box::new(self).start_boxed(problem, upper, lower)
    }
}

/// A run of some method: an endless iterator over its steps, which ends only after an error.
pub trait Progress<X, W>: Iterator<Item = Result<Step>> {
    /// The upper variable `x`.
    fn upper(&self) -> &X;

    /// The lower variable `w`.
    fn lower(&self) -> &W;
}

impl<F, G, X, W> Method<F, G, X, W> for ScaleBio
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    fn name(&self) -> &'static str {
        "penalty"
    }

    fn start_boxed(
        self: Box<Self>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Box<dyn Progress<X, W>>> {
        Ok(Box::new(ScaleBio::start(*self, problem, upper, lower)?))
    }
}

impl<F, G, X, W> Progress<X, W> for Run<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    fn upper(&self) -> &X {
        Run::upper(self)
    }

    fn lower(&self) -> &W {
        Run::lower(self)
    }
}
