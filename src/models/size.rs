//! What a model is made of, from its config.json alone.

use std::path::Path;

use burn::tensor::Device;

use super::{CausalLm, pretrained::CONFIG, settings::Settings};
use crate::error::Result;

/// The sizes of a model: what a [`MemoryPlan`](super::MemoryPlan) has to know of it.
///
/// # Example
///
/// ```no_run
/// use scalebio::models::ModelSize;
///
/// let size = ModelSize::read("path/to/config.json")?;
/// println!("{} parameters, {} with two blocks", size.parameters(), size.trained(2, true));
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSize {
    pub(super) embedding: usize,
    pub(super) block: usize,
    pub(super) blocks: usize,
    pub(super) head: usize,
    pub(super) tied: bool,
    pub(super) width: usize,
    pub(super) vocabulary: usize,
    pub(super) longest: usize,
    /// Inputs of all matrices of a block.
    pub(super) inputs: usize,
    /// Their outputs.
    pub(super) outputs: usize,
}

impl ModelSize {
    /// Reads a config.json, or that of a folder. No weights are read, drawn or allocated.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) for a file that cannot be read; [`Error::File`](crate::Error::File) for a config.json
    /// that [`CausalLm::from_pretrained`] refuses.
    pub fn read(config: impl AsRef<Path>) -> Result<Self> {
        let path = config.as_ref();
        let path = match path.is_dir() {
            true => path.join(CONFIG),
            false => path.to_owned(),
        };
        let device = Device::default();
        CausalLm::untrained(&Settings::open(path)?, &device).map(|model| Self::of(&model))
    }

    /// The sizes of a model.
    pub fn of(model: &CausalLm) -> Self {
        let network = model.network();
        let (mut before, mut inside, mut after) = (0, 0, 0);
        let (mut inputs, mut outputs, mut tied) = (0, 0, true);
        let input_first = matches!(model.architecture(), "gpt2");
        for (path, shape) in model.parameters() {
            let count: usize = shape.iter().product();
            match path.strip_prefix("blocks.") {
                None if inside == 0 => before += count,
                None => {
                    after += count;
                    tied &= !path.starts_with("lm_head.");
                }
                Some(rest) => {
                    inside += count;
                    if let (true, [a, b]) = (rest.starts_with("0."), shape.as_slice()) {
                        let (input, output) = if input_first { (a, b) } else { (b, a) };
                        inputs += input;
                        outputs += output;
                    }
                }
            }
        }
        let blocks = network.blocks();
        let vocabulary = network.vocabulary();
        let width = network.embedding().lazy_shape()[1];
        Self {
            embedding: before,
            block: inside / blocks.max(1), // they are all alike
            blocks,
            head: after,
            tied,
            width,
            vocabulary,
            longest: network.longest(),
            inputs,
            outputs,
        }
    }

    /// All parameters.
    pub fn parameters(&self) -> usize {
        self.outside() + self.blocks * self.block
    }

    /// Parameters of a block.
    pub fn per_block(&self) -> usize {
        self.block
    }

    /// Parameters outside the blocks: embeddings, final norm, and the output head where it is not the embedding.
    pub fn outside(&self) -> usize {
        self.embedding + self.head
    }

    /// Parameters that train at a time: those of `blocks` blocks (of all, if there are fewer), and what lies outside if
    /// `others` trains.
    pub fn trained(&self, blocks: usize, others: bool) -> usize {
        let outside = if others { self.outside() } else { 0 };
        outside + blocks.min(self.blocks) * self.block
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Width of the hidden states.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of tokens.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary
    }

    /// Longest sequence, in tokens.
    pub fn longest_sequence(&self) -> usize {
        self.longest
    }
}
