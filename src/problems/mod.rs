//! Classical bilevel problems, with exact solutions where there are closed forms, and readers of their data.
//!
//! | problem | lower variable | upper variable | data |
//! |---|---|---|---|
//! | [`Simulated`] | a vector | a vector | rank-one quadratics, read from a safetensors file; every quantity is exact |
//! | [`Regularization`] | a linear classifier | strengths of regularization | [`Table`]s: LIBSVM or CSV |
//! | [`HyperCleaning`] | a linear classifier | a weight for each training sample | [`Images`]: IDX, as MNIST's |
//!
//! Each gives a [`Bilevel`](crate::Bilevel) problem, whole or by [`Minibatches`](crate::Minibatches), and the benchmark's
//! start. Gradients are in closed form. Minibatches of [`Order::FixedBatches`](crate::Order::FixedBatches) have a
//! [`Slot`](crate::Slot), for variance-reduced estimates. Give the two levels seeds of their own.

mod dense;
mod hyper_cleaning;
mod linear;
mod quadratics;
mod readers;
mod regularization;
mod simulated;

pub use hyper_cleaning::{CleaningLoss, HyperCleaning, Protocol};
pub use linear::{SampleBatch, ValidationLoss};
pub use quadratics::{QuadraticBatch, Quadratics};
pub use readers::{Images, Label, Table};
pub use regularization::{Regularization, RegularizedLoss};
pub use simulated::{Measured, Simulated};

use burn::module::Param;
use burn::tensor::Tensor;
use rand::{Rng, RngExt};

/// A vector that is trained: the upper variable of the problems here.
pub type Vector = Param<Tensor<1>>;

/// A matrix that is trained: a linear classifier, one row a feature and one column a class.
pub type Matrix = Param<Tensor<2>>;

/// A standard normal number, by Box and Muller.
fn normal(random: &mut impl Rng) -> f64 {
    let [radius, angle]: [f64; 2] = random.random();
    // Of 1 - u, which is never 0.
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}
