//! Language models as Burn modules, from and to Hugging Face checkpoints.
//!
//! One file is one architecture and reads top to bottom like its paper; its fields are called as in the checkpoint.
//! What architectures share (attention, activations, the loss, reading and writing checkpoints) is written once, next to them.
//!
//! [`CausalLm`] is a checkpoint of any of them; [`Gpt2Config::init`] makes a small model from scratch.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use scalebio::models::{CausalLm, Gpt2Config};
//!
//! # fn main() -> scalebio::Result<()> {
//! let device = Device::flex().autodiff();
//! let small = CausalLm::from(Gpt2Config::new(1_000, 128, 64, 2, 4).init(0, &device)?); // from scratch
//! let pretrained = CausalLm::from_pretrained("path/to/llama", &device)?;
//! pretrained.save_pretrained("path/to/copy", 5_000_000_000)?;
//! # Ok(())
//! # }
//! ```

mod activation;
mod attention;
mod blockwise;
mod causal_lm;
mod decoder;
mod dtype;
mod gemma2;
mod generate;
mod gpt2;
mod gpt_neox;
mod head;
#[cfg(all(test, feature = "flex", feature = "ndarray"))]
mod kernel_tests;
mod linear;
mod linearized;
mod llama;
mod loss;
mod network;
mod norm;
mod offload;
mod plan;
mod plan_config;
mod plan_offload;
mod pretrained;
mod qwen2;
mod random;
mod rotary;
mod safetensors;
mod saving;
mod settings;
mod shards;
mod size;
mod spread;

pub use activation::Activation;
pub use causal_lm::{CausalLm, Differentiation};
pub use dtype::Dtype;
pub use generate::{Generation, Sampling};
pub use gpt2::{Gpt2, Gpt2Config};
pub use loss::{sample_losses, token_losses};
pub use offload::Offloading;
pub use plan::{DeviceMemory, MemoryPlan};
pub(crate) use plan_config::one_tape;
pub use plan_config::{Placement, PlanConfig};
pub use size::ModelSize;
