//! Language models as Burn modules, from and to Hugging Face checkpoints.
//!
//! One file is one architecture and reads top to bottom like its paper; its fields are called as in the checkpoint.
//! What architectures share (attention, activations, the loss, reading and writing checkpoints) is written once, next to them.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use scalebio::models::{Gpt2, Gpt2Config};
//!
//! # fn main() -> scalebio::Result<()> {
//! let device = Device::flex().autodiff();
//! let small = Gpt2Config::new(1_000, 128, 64, 2, 4).init(0, &device)?; // from scratch
//! let pretrained = Gpt2::pretrained("path/to/gpt2", &device)?;
//! pretrained.save("path/to/copy")?;
//! # Ok(())
//! # }
//! ```

mod activation;
mod attention;
mod gpt2;
mod linearized;
mod loss;
mod pretrained;
mod random;
mod safetensors;

pub use activation::Activation;
pub use gpt2::{Gpt2, Gpt2Config};
pub use loss::{sample_losses, token_losses};
