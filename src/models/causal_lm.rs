//! A causal language model of any architecture, as a checkpoint folder describes it.

use std::path::{Path, PathBuf};

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Int, Tensor, TensorData},
};
use serde_json::{Map, Value};

use super::{
    blockwise::{self, Active, tapes_kept},
    dtype::{Dtype, cast},
    gemma2::{Gemma2, Gemma2Config},
    gpt_neox::{GptNeox, GptNeoxConfig},
    gpt2::Gpt2,
    llama::{Llama, LlamaConfig},
    network::Network,
    offload::Offloaded,
    pretrained::{self, load},
    random::Draw,
    saving,
    settings::Settings,
    size::ModelSize,
};
use crate::error::{Error, Result};

/// A causal language model: GPT-2, GPT-NeoX, Llama (also Yi and SmolLM2), Mistral, Qwen-2 and 2.5, or Gemma-2.
///
/// # Example
///
/// ```no_run
/// use scalebio::{Lisa, burn::tensor::Device, models::CausalLm};
///
/// let model = CausalLm::from_pretrained("path/to/model", &Device::flex().autodiff())?;
/// let lisa = Lisa::over(&model, &model.blocks_path())?.active(2);
/// model.save_pretrained("path/to/copy", 5_000_000_000)?;
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct CausalLm {
    network: Architecture,
    #[module(skip)]
    origin: Origin,
    #[module(skip)]
    differentiation: Option<Differentiation>,
    #[module(skip)]
    pub(super) offloaded: Option<Offloaded>,
}

/// How the gradients of a [`CausalLm`] are computed. The results are equal up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differentiation {
    /// One tape over the whole model. Fastest, and the most memory: it holds the intermediate results of all blocks from
    /// the lowest one that trains on, and the logits three times.
    Plain,
    /// One block's tape at a time, from the top down, after a pass without a tape that keeps the blocks' inputs; head and
    /// loss in chunks of rows. Memory is that of one block and of one hidden state a block; the price is one more forward
    /// pass, from the lowest block that trains on.
    Blockwise,
    /// Block by block, with the tapes of the uppermost blocks kept from the first pass, so that these need not run again:
    /// as many as fit into the memory that the gradient and the two moments of what trains outside the blocks take. So
    /// nothing is kept where embeddings and head are frozen, and a small batch of a model with a large vocabulary is as
    /// fast as on one tape.
    Balanced,
}

/// The architectures, by the struct that computes them.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A model is one of them, and there are two or three models in a run.
enum Architecture {
    Gpt2(Gpt2),
    GptNeox(GptNeox),
    Llama(Llama),
    Gemma2(Gemma2),
}

impl Architecture {
    /// The model that a config.json describes, with random weights, drawn when they are first used.
    fn untrained(settings: &Settings, draw: &mut Draw) -> Result<Self> {
        settings.check_options()?;
        let llama = |config: LlamaConfig, draw: &mut Draw| Self::Llama(config.init(draw));
        Ok(match settings.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => Self::Gpt2(Gpt2::untrained(settings, draw.device())?),
            Some("gpt_neox") => Self::GptNeox(GptNeoxConfig::read(settings)?.init(draw)),
            Some("llama") => llama(LlamaConfig::llama(settings)?, draw),
            Some("mistral") => llama(LlamaConfig::mistral(settings)?, draw),
            Some("qwen2") => llama(LlamaConfig::qwen2(settings)?, draw),
            Some("gemma2") => Self::Gemma2(Gemma2Config::read(settings)?.init(draw)),
            _ => {
                let allowed = "gpt2, gpt_neox, llama, mistral, qwen2 or gemma2";
                let remedy = "no other architecture is supported";
                return Err(settings.refuse("model_type", allowed, remedy));
            }
        })
    }
}

/// Where a model comes from.
#[derive(Clone, Debug, Default)]
struct Origin {
    /// The folder, for the files that are copied when it is saved.
    folder: Option<PathBuf>,
    /// Its config.json.
    settings: Map<String, Value>,
}

impl CausalLm {
    /// Opens a checkpoint folder of the Hub: config.json, and model.safetensors or its shards with their index (float32,
    /// float16 or bfloat16, converted to float32). One tensor at a time is read and put on the device, so that no second
    /// copy of the model is held. [`from_pretrained_as`](Self::from_pretrained_as) reads it in bfloat16.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) for a file that cannot be read; [`Error::File`](crate::Error::File) for a config.json
    /// with a `model_type`, an activation, rotary positions or an option that is not supported, for a damaged file, and for
    /// tensors that are missing, not part of the model, of another shape (all listed), of another type or not finite.
    pub fn from_pretrained(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::from_pretrained_as(dir, device, Dtype::Float32)
    }

    /// Opens a checkpoint folder as [`from_pretrained`](Self::from_pretrained) does, to compute in `dtype`. A tensor is
    /// converted while it is read: a model in bfloat16 is at no time held in float32.
    ///
    /// # Errors
    /// Those of [`from_pretrained`](Self::from_pretrained), and [`Error::Setting`](crate::Error::Setting) for a device that
    /// does not have this type (ndarray has no bfloat16).
    pub fn from_pretrained_as(
        dir: impl AsRef<Path>,
        device: &Device,
        dtype: Dtype,
    ) -> Result<Self> {
        let dir = dir.as_ref();
        dtype.check(device)?;
        let settings = Settings::read(dir)?;
        let network = match Architecture::untrained(&settings, &mut Draw::new(0, device))? {
            Architecture::Gpt2(model) => {
                let naming = model.naming();
                Architecture::Gpt2(load(model, dir, naming, dtype)?)
            }
            Architecture::GptNeox(model) => {
                let naming = model.naming();
                Architecture::GptNeox(load(model, dir, naming, dtype)?)
            }
            Architecture::Llama(model) => {
                let naming = model.naming();
                Architecture::Llama(load(model, dir, naming, dtype)?)
            }
            Architecture::Gemma2(model) => {
                let naming = model.naming();
                Architecture::Gemma2(load(model, dir, naming, dtype)?)
            }
        };
        Ok(Self {
            network,
            origin: Origin {
                folder: Some(dir.to_owned()),
                settings: settings.values().clone(),
            },
            differentiation: None,
            offloaded: None,
        })
    }

    /// The model that a config.json describes, without a checkpoint: its weights are random, and drawn when they are first
    /// used.
    pub(super) fn untrained(settings: &Settings, device: &Device) -> Result<Self> {
        Ok(Self {
            network: Architecture::untrained(settings, &mut Draw::new(0, device))?,
            origin: Origin {
                folder: None,
                settings: settings.values().clone(),
            },
            differentiation: None,
            offloaded: None,
        })
    }

    /// Path in the architecture's module and shape of each parameter, in the order of a walk.
    pub(super) fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let prefix = format!("network.{}.", self.variant());
        let mut found = pretrained::parameters(self);
        for (path, _) in &mut found {
            if let Some(rest) = path.strip_prefix(&prefix) {
                *path = rest.to_owned();
            }
        }
        found
    }

    /// The model with all parameters rounded to `dtype`, one at a time; they stay trainable or frozen.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) for a device that does not have this type (ndarray has no bfloat16).
    pub fn cast(self, dtype: Dtype) -> Result<Self> {
        dtype.check(&self.device())?;
        if let Some(offloaded) = self.offloading() {
            dtype.check(&offloaded.host)?;
        }
        Ok(cast(self, dtype))
    }

    /// How gradients are computed. Default, `None`: [`Differentiation::Balanced`] where some parameters are frozen, as
    /// under LISA, else [`Differentiation::Plain`].
    #[must_use]
    pub fn with_differentiation(mut self, how: impl Into<Option<Differentiation>>) -> Self {
        self.differentiation = how.into();
        self
    }

    /// How gradients are computed, if that was chosen.
    pub fn differentiation(&self) -> Option<Differentiation> {
        self.differentiation
    }

    /// Writes a checkpoint folder as transformers does: config.json; the tensors, in bfloat16 if all of them are, else in
    /// float32, in one model.safetensors, or in files of at most `max_shard_bytes` with an index if one would be larger; and the tokenizer's files of the folder that
    /// the model came from. All files are complete before they get their names; tensors of a checkpoint that was there
    /// before are removed.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the folder or a file cannot be written.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>, max_shard_bytes: u64) -> Result<()> {
        let dir = dir.as_ref();
        let settings = || Value::Object(self.origin.settings.clone());
        let source = self.origin.folder.as_deref();
        let naming = self.network().naming();
        match &self.network {
            Architecture::Gpt2(model) => {
                let settings = model.settings(dir)?;
                saving::save(model, dir, naming, settings, max_shard_bytes, source)
            }
            Architecture::GptNeox(model) => {
                saving::save(model, dir, naming, settings(), max_shard_bytes, source)
            }
            Architecture::Llama(model) => {
                saving::save(model, dir, naming, settings(), max_shard_bytes, source)
            }
            Architecture::Gemma2(model) => {
                saving::save(model, dir, naming, settings(), max_shard_bytes, source)
            }
        }
    }

    pub(super) fn network(&self) -> &dyn Network {
        match &self.network {
            Architecture::Gpt2(model) => model,
            Architecture::GptNeox(model) => model,
            Architecture::Llama(model) => model,
            Architecture::Gemma2(model) => model,
        }
    }

    /// The architecture, as config.json calls it: `gpt2`, `gpt_neox`, `llama`, `mistral`, `qwen2` or `gemma2`.
    pub fn architecture(&self) -> &str {
        let given = self.origin.settings.get("model_type");
        given.and_then(Value::as_str).unwrap_or("gpt2")
    }

    /// The path of the list of blocks in the module, for [`Lisa::over`](crate::Lisa::over).
    pub fn blocks_path(&self) -> String {
        format!("network.{}.blocks", self.variant())
    }

    /// The checkpoint's name of the parameter at a module path, which begins with the architecture's:
    /// `network.Llama.blocks.0.mlp.up_proj.weight` is `model.layers.0.mlp.up_proj.weight`.
    pub fn checkpoint_name(&self, path: &str) -> String {
        let prefix = format!("network.{}.", self.variant());
        let path = path.strip_prefix(&prefix).unwrap_or(path);
        self.network().naming().name(path)
    }

    fn variant(&self) -> &'static str {
        match &self.network {
            Architecture::Gpt2(_) => "Gpt2",
            Architecture::GptNeox(_) => "GptNeox",
            Architecture::Llama(_) => "Llama",
            Architecture::Gemma2(_) => "Gemma2",
        }
    }

    /// The logits of the next token at each position.
    ///
    /// Sequences are padded on the right; the logits of padding have no meaning. The length must not exceed
    /// [`longest_sequence`](Self::longest_sequence), and ids must be below [`vocabulary_size`](Self::vocabulary_size).
    ///
    /// # Shapes
    /// - `ids` `[batch, length]`
    /// - `mask` `[batch, length]`: 1 for tokens, 0 for padding
    /// - result `[batch, length, vocabulary]`
    pub fn logits(&self, ids: Tensor<2, Int>, mask: Tensor<2, Int>) -> Tensor<3> {
        self.network().logits(self.offloading(), ids, mask)
    }

    /// The mean negative log-likelihood over the label tokens of each sample; 0 for a sample without any.
    ///
    /// The label at a position is predicted from the tokens before it; labels of -100 are ignored. Only the rows
    /// that predict a label go through the output head, which for long prompts is most of its cost.
    ///
    /// # Shapes
    /// - `ids`, `mask`, `labels` `[batch, length]`, see [`logits`](Self::logits)
    /// - result `[batch]`
    pub fn sample_losses(
        &self,
        ids: Tensor<2, Int>,
        mask: Tensor<2, Int>,
        labels: Tensor<2, Int>,
    ) -> Tensor<1> {
        let offloaded = self.offloading();
        self.network().sample_losses(offloaded, ids, mask, labels)
    }

    /// The losses of [`sample_losses`](Self::sample_losses), and the gradient of `sum_j factor_j loss_j` in the parameters
    /// that require one, computed as [`differentiation`](Self::differentiation) says.
    ///
    /// # Shapes
    /// - `ids`, `mask`, `labels` `[batch, length]`, see [`logits`](Self::logits)
    ///
    /// # Errors
    /// [`Error::Setting`] unless there is a factor a sample.
    pub fn gradients(
        &self,
        ids: Tensor<2, Int>,
        mask: Tensor<2, Int>,
        labels: Tensor<2, Int>,
        factors: &[f64],
    ) -> Result<(Vec<f64>, GradientsParams)> {
        let [batch, length] = ids.dims();
        if factors.len() != batch {
            return Err(Error::setting(
                "factors",
                format!("{} numbers", factors.len()),
                format!("{batch} numbers, one a sample"),
                "give a sample that does not count the factor 0",
            ));
        }
        let active = Active::of(self);
        let default = match active.frozen || self.offloaded.is_some() {
            true => Differentiation::Balanced,
            false => Differentiation::Plain,
        };
        let kept = match self.differentiation.unwrap_or(default) {
            Differentiation::Plain => None,
            Differentiation::Blockwise => Some(0),
            Differentiation::Balanced => {
                let number = self.network().embedding().val().dtype().size();
                let outputs = ModelSize::of(self).outputs;
                let kept = tapes_kept(active.outside, outputs, number, batch * length);
                Some(kept.min(self.blocks_at_home()))
            }
        };
        if let Some(kept) = kept {
            return Ok(blockwise::differentiate(
                self, &active, ids, mask, labels, factors, kept,
            ));
        }
        let losses = self.sample_losses(ids, mask, labels);
        let values = losses.clone().inner().into_data().iter::<f64>().collect();
        if !losses.is_tracked() {
            return Ok((values, GradientsParams::new()));
        }
        let factors = TensorData::from(factors).convert_dtype(losses.dtype());
        let factors = Tensor::from_data(factors, (&losses.device(), losses.dtype()));
        let gradients = (losses * factors).sum().backward();
        Ok((values, GradientsParams::from_grads(gradients, self)))
    }

    /// The device that holds the model.
    pub fn device(&self) -> Device {
        self.network().device()
    }

    /// Number of tokens.
    pub fn vocabulary_size(&self) -> usize {
        self.network().vocabulary()
    }

    /// Longest sequence, in tokens.
    pub fn longest_sequence(&self) -> usize {
        self.network().longest()
    }
}

impl From<Gpt2> for CausalLm {
    fn from(model: Gpt2) -> Self {
        Self {
            network: Architecture::Gpt2(model),
            origin: Origin::default(),
            differentiation: None,
            offloaded: None,
        }
    }
}
