//! The solver: hyper-parameters ([`ScaleBio`]), state ([`Run`]) and what happened ([`Step`]).

mod adamw;
#[cfg(feature = "checkpoint")]
mod checkpoint;
#[cfg(feature = "llm")]
mod direction;
pub(crate) mod gradients;
mod offload;
mod optimizer;
mod penalty;
mod precondition;
mod ranks;
mod run;
mod scalebio;
mod schedule;
mod step;
mod tasks;
mod update;
mod variable;

#[cfg(feature = "llm")]
pub(crate) use checkpoint::Checkpoint;
pub use penalty::Penalty;
pub use run::{Run, Solution};
pub use scalebio::{Moments, ScaleBio};
pub use schedule::Schedule;
pub use step::{PerVariable, Step};
pub use update::Update;
pub(crate) use variable::{Variable, auxiliary_of};
