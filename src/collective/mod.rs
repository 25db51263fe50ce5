//! Data-parallel runs: several ranks take the steps of one run together, each on its share of every draw.
//!
//! A rank is a process (`Mpi`, feature `mpi`) or a thread ([`Threads`]; `CudaDevices`, feature `cuda`). Each holds all of
//! `x`, `w` and `u`, computes the gradients of its share, and takes part in their sum; then all make the same updates. A
//! step's objective is the sum of its micro-batch losses, with normalizers of the whole draw, so the sum over ranks is exact
//! and a run depends on the number of ranks by rounding only. Give the [`Ranks`] of a [`Collective`] to
//! [`ScaleBio::collective`](crate::ScaleBio::collective), or those of a whole run to `Experiment::with_ranks` (feature `llm`).
//!
//! An error on one rank is an error on all of them, and so are ranks that differ in anything that must be equal. A rank that
//! is no longer there is an error after a time that is a setting. Nothing waits forever.
//!
//! # Example
//!
//! Two threads share the draws of the sources `zeros` and `twos`:
//!
//! ```
//! use std::{thread, time::Duration};
//! use burn::{module::Param, tensor::{Device, Tensor}};
//! use scalebio::collective::{Ranks, Threads};
//! use scalebio::reweight::{self, Draws, Pick, SampleLosses, Samples, SourceWeights};
//! use scalebio::{Result, ScaleBio, Update};
//!
//! type Point = Param<Tensor<1>>;
//!
//! struct Numbers(Vec<Vec<f32>>);
//! # struct Batch(Vec<f32>);
//! # impl Samples for Numbers {
//! #     type Batch = Batch;
//! #     fn sizes(&self) -> Vec<usize> { self.0.iter().map(Vec::len).collect() }
//! #     fn batch(&self, picks: &[Pick]) -> Result<Batch> {
//! #         Ok(Batch(picks.iter().map(|pick| self.0[pick.source][pick.index]).collect()))
//! #     }
//! # }
//! # impl SampleLosses<Batch> for Point {
//! #     fn sample_losses(&self, batch: &Batch) -> Tensor<1> {
//! #         (self.val() - Tensor::from_data(batch.0.as_slice(), &self.val().device())).square()
//! #     }
//! # }
//!
//! fn learn(ranks: Ranks) -> Result<Vec<f64>> {
//!     let device = Device::flex().autodiff();
//!     let problem = reweight::problem(
//!         Draws::new(Numbers(vec![vec![0.0; 90], vec![2.0; 10]]), 8).seed(0),
//!         Draws::new(Numbers(vec![vec![1.0; 20]]), 8).seed(1),
//!     )?;
//!     let weights = SourceWeights::uniform(["zeros", "twos"], &device)?;
//!     let solution = ScaleBio::new(Update::sgd(0.05), Update::sgd(0.02))
//!         .collective(ranks)
//!         .solve(problem, weights, Point::from_data([0.0], &device), 20)?;
//!     Ok(solution.upper.weights())
//! }
//!
//! let threads = Threads::new(2, Duration::from_secs(60))?;
//! let ranks: Vec<_> = threads
//!     .into_iter()
//!     .map(|rank| thread::spawn(|| learn(Ranks::new(rank))))
//!     .collect();
//! let learned: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Result<_>>()?;
//! assert_eq!(learned[0], learned[1]);
//! assert!((learned[0][0] - learn(Ranks::default())?[0]).abs() < 1e-6);
//! # Ok::<(), scalebio::Error>(())
//! ```

#[cfg(feature = "cuda")]
mod devices;
#[cfg(feature = "mpi")]
mod mpi;
mod ranks;
mod threads;

use std::time::Duration;

use burn::tensor::{DType, Device, Tensor, TensorData};

#[cfg(feature = "cuda")]
pub use self::devices::CudaDevices;
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
pub use self::ranks::Ranks;
pub use self::threads::Threads;
use crate::{Error, Result};

/// What the ranks of a run need of the engine that connects them.
///
/// All ranks call the same methods in the same order. After an error a collective is of no more use.
pub trait Collective: Send {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are, at least 1.
    fn ranks(&self) -> usize;

    /// The sum over all ranks of a tensor of float32 or float64, the same bits on each of them, on the device of `tensor`.
    ///
    /// # Shapes
    ///
    /// - `tensor`: `[n]`, with the same `n` and float type on all ranks
    /// - output: `[n]`
    ///
    /// # Errors
    ///
    /// A rank that does not take part: [`Error::Timeout`] or [`Error::Rank`]. Another float type.
    fn sum(&mut self, tensor: Tensor<1>) -> Result<Tensor<1>>;

    /// The bytes of all ranks, by rank; `bytes` are those of this one, and may differ in length.
    ///
    /// # Errors
    ///
    /// A rank that does not take part: [`Error::Timeout`] or [`Error::Rank`].
    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;
}

/// The numbers of a tensor on their way through the host.
#[derive(Clone, Debug)]
enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Numbers {
    fn of(tensor: Tensor<1>) -> Result<Self> {
        let data = tensor.into_data();
        let numbers = match data.dtype() {
            DType::F32 => data.try_into_vec().map(Self::F32).ok(),
            DType::F64 => data.try_into_vec().map(Self::F64).ok(),
            other => {
                let allowed = "float32 or float64";
                let remedy = "widen numbers in half precision before they are summed";
                return Err(Error::setting(
                    "sum over ranks",
                    format!("{other:?}"),
                    allowed,
                    remedy,
                ));
            }
        };
        numbers.ok_or_else(|| {
            let given = "a tensor whose data cannot be read";
            Error::setting(
                "sum over ranks",
                given,
                "float32 or float64",
                "please report it",
            )
        })
    }

    fn into_tensor(self, device: &Device) -> Tensor<1> {
        match self {
            Self::F32(numbers) => {
                let size = numbers.len();
                Tensor::from_data(TensorData::new(numbers, [size]), (device, DType::F32))
            }
            Self::F64(numbers) => {
                let size = numbers.len();
                Tensor::from_data(TensorData::new(numbers, [size]), (device, DType::F64))
            }
        }
    }
}

/// An error for a timeout that cannot work.
fn check_timeout(timeout: Duration) -> Result<()> {
    if timeout.is_zero() {
        return Err(Error::setting(
            "rank-timeout",
            "0 s",
            "greater than 0",
            "it must cover the slowest step and the writing of a checkpoint; the default is 600 s",
        ));
    }
    Ok(())
}
