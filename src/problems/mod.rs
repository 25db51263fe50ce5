//! Classical bilevel problems, with exact solutions where there are closed forms, and readers of their data.
//!
//! | problem | lower variable | upper variable | data |
//! |---|---|---|---|
//! | [`Simulated`] | a vector | a vector | rank-one quadratics; every quantity is exact |

mod dense;
mod quadratics;
mod simulated;

pub use quadratics::{QuadraticBatch, Quadratics};
pub use simulated::{Measured, Simulated};

use burn::module::Param;
use burn::tensor::Tensor;

/// A vector that is trained: the variables of the problems here that are not matrices.
pub type Vector = Param<Tensor<1>>;
