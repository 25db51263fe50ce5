//! A causal language model of any architecture, as a checkpoint folder describes it.

use std::path::{Path, PathBuf};

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use serde_json::{Map, Value};

use super::{
    dtype::{Dtype, cast},
    gemma2::{Gemma2, Gemma2Config},
    gpt_neox::{GptNeox, GptNeoxConfig},
    gpt2::Gpt2,
    llama::{Llama, LlamaConfig},
    network::Network,
    pretrained::load,
    random::Draw,
    saving,
    settings::Settings,
};
use crate::error::Result;

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
        settings.check_options()?;
        let mut draw = Draw::new(0, device);
        let llama = |config: LlamaConfig, draw: &mut Draw| {
            load(config.init(draw), dir, &super::llama::NAMING, dtype).map(Architecture::Llama)
        };
        let network = match settings.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => Architecture::Gpt2(Gpt2::pretrained_as(dir, device, dtype)?),
            Some("gpt_neox") => {
                let model = GptNeoxConfig::read(&settings)?.init(&mut draw);
                let naming = model.naming();
                Architecture::GptNeox(load(model, dir, naming, dtype)?)
            }
            Some("llama") => llama(LlamaConfig::llama(&settings)?, &mut draw)?,
            Some("mistral") => llama(LlamaConfig::mistral(&settings)?, &mut draw)?,
            Some("qwen2") => llama(LlamaConfig::qwen2(&settings)?, &mut draw)?,
            Some("gemma2") => {
                let model = Gemma2Config::read(&settings)?.init(&mut draw);
                let naming = model.naming();
                Architecture::Gemma2(load(model, dir, naming, dtype)?)
            }
            _ => {
                let allowed = "gpt2, gpt_neox, llama, mistral, qwen2 or gemma2";
                let remedy = "no other architecture is supported";
                return Err(settings.refuse("model_type", allowed, remedy));
            }
        };
        Ok(Self {
            network,
            origin: Origin {
                folder: Some(dir.to_owned()),
                settings: settings.values().clone(),
            },
        })
    }

    /// The model with all parameters rounded to `dtype`, one at a time; they stay trainable or frozen.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) for a device that does not have this type (ndarray has no bfloat16).
    pub fn cast(self, dtype: Dtype) -> Result<Self> {
        dtype.check(&self.device())?;
        Ok(cast(self, dtype))
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
        self.network().logits(ids, mask)
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
        self.network().sample_losses(ids, mask, labels)
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
        }
    }
}
