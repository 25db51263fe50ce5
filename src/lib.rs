//! A first-order bilevel optimiser on Burn (work in progress).

pub use burn;

mod error;

pub use error::{Error, Result};
