//! Source weights: learning how much each source of the training data should count.
//!
//! ```text
//! min over lambda of L1(w*(lambda)),   w*(lambda) = argmin_w sum_i p_i l_i(w),   p = softmax(lambda)
//! ```
//!
//! where `l_i` is the mean loss of source `i` and `L1` the mean loss of a validation set. Bring the
//! samples ([`Samples`]) and a model that gives a loss a sample ([`SampleLosses`]); [`problem`] makes
//! a [`Bilevel`](crate::Bilevel) of them, whose upper variable is [`SourceWeights`].
//!
//! # Example
//!
//! Two sources of points; the model is one point, and the validation set lies in their middle:
//!
//! ```
//! use burn::{module::Param, tensor::{Device, Tensor}};
//! use scalebio::reweight::{self, Draws, Pick, SampleLosses, Samples, SourceWeights};
//! use scalebio::{Result, ScaleBio, Update};
//!
//! type Point = Param<Tensor<1>>;
//!
//! /// Numbers by source.
//! #[derive(Debug)]
//! struct Numbers(Vec<Vec<f32>>);
//!
//! struct Batch(Vec<f32>);
//!
//! impl Samples for Numbers {
//!     type Batch = Batch;
//!
//!     fn sizes(&self) -> Vec<usize> {
//!         self.0.iter().map(Vec::len).collect()
//!     }
//!
//!     fn batch(&self, picks: &[Pick]) -> Result<Batch> {
//!         Ok(Batch(picks.iter().map(|pick| self.0[pick.source][pick.index]).collect()))
//!     }
//! }
//!
//! impl SampleLosses<Batch> for Point {
//!     fn sample_losses(&self, batch: &Batch) -> Tensor<1> {
//!         let numbers = Tensor::from_data(batch.0.as_slice(), &self.val().device());
//!         (self.val() - numbers).square()
//!     }
//! }
//!
//! let device = Device::flex().autodiff();
//! let training = Numbers(vec![vec![0.0; 90], vec![2.0; 10]]);
//! let validation = Numbers(vec![vec![1.0; 20]]);
//! let problem = reweight::problem(
//!     Draws::new(training, 8).seed(0),
//!     Draws::new(validation, 8).seed(1),
//! )?;
//! let weights = SourceWeights::uniform(["zeros", "twos"], &device)?;
//! let mut run = ScaleBio::new(Update::sgd(0.05), Update::sgd(0.02))
//!     .start(problem, weights, Point::from_data([0.0], &device))?;
//! for step in run.by_ref().take(300) {
//!     step?;
//! }
//! assert!((run.upper().weights()[1] - 0.5).abs() < 0.02); // although the second source is a tenth of the data
//! # Ok::<(), scalebio::Error>(())
//! ```
//!
//! # Reference
//!
//! Pan et al., *ScaleBiO*, ACL 2025, arXiv 2406.19976, section 3.

mod draws;
#[cfg(feature = "llm")]
mod language;
mod mixture;
mod objective;
mod order;
mod pull;
mod weights;

pub use draws::{Draws, Pick, Samples, Sampling};
#[cfg(feature = "llm")]
pub use language::TokenSources;
pub use mixture::{Mixture, Shortage};
pub use objective::{SampleLosses, Validation, WeightedBatch, WeightedSources, problem};
pub use pull::Pull;
#[cfg(feature = "llm")]
pub(crate) use pull::check_strength;
pub use weights::SourceWeights;
