//! GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
//!
//! Learned positions, layer norm before each sub-layer, attention with merged q, k and v, a GELU network of four times the
//! width, and the token embedding used again as output head. Field names are the checkpoint's, except that its `h` is
//! `blocks` here. Linear weights are `[in, out]`, as the checkpoint's Conv1D has them.
//!
//! There is no dropout, whatever config.json says: the bilevel method compares losses of two copies of the model on the
//! same batch, and the paper's runs use 0.

use std::{collections::BTreeMap, path::Path};

use burn::{
    module::{Module, Param},
    nn::{Embedding, Linear},
    tensor::{Device, Int, Tensor},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    activation::Activation,
    attention::{Biases, Seen, attention, with_seen},
    dtype::Dtype,
    linear::linear,
    network::{Network, Shared},
    norm::LayerNorm,
    pretrained::{self, Naming},
    random::Draw,
    saving,
    settings::Settings,
};
use crate::error::{Error, Result};
#[cfg(feature = "flex")]
use crate::kernels;

/// The shape of a [`Gpt2`], spelled and with the defaults as in the Hub's config.json.
///
/// Keys that do not change the result (token ids, dropout, transformers' version ...) are kept in `other`, so that a saved
/// config.json means what the loaded one meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpt2Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest sequence.
    #[serde(alias = "max_position_embeddings")]
    pub n_positions: usize,
    /// Width.
    #[serde(alias = "hidden_size")]
    pub n_embd: usize,
    /// Number of blocks.
    #[serde(alias = "num_hidden_layers")]
    pub n_layer: usize,
    /// Number of attention heads, a divisor of the width.
    #[serde(alias = "num_attention_heads")]
    pub n_head: usize,
    /// Width inside the feed-forward networks; `None`: four times the width.
    pub n_inner: Option<usize>,
    /// The feed-forward networks' non-linearity.
    pub activation_function: Activation,
    /// Added to the variance in the layer norms.
    pub layer_norm_epsilon: f64,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Whether scores are divided by the root of the head's width.
    pub scale_attn_weights: bool,
    /// Whether the scores of block i (from 0) are divided by i + 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// All other keys of config.json.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Default for Gpt2Config {
    /// GPT-2 124M.
    fn default() -> Self {
        Self {
            vocab_size: 50_257,
            n_positions: 1_024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluNew,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            other: BTreeMap::new(),
        }
    }
}

impl Gpt2Config {
    /// A model of this shape, everything else as in GPT-2.
    pub fn new(
        vocab_size: usize,
        n_positions: usize,
        n_embd: usize,
        n_layer: usize,
        n_head: usize,
    ) -> Self {
        let named = [
            ("architectures", Value::from(["GPT2LMHeadModel"].as_slice())),
            ("dtype", "float32".into()),
            ("model_type", "gpt2".into()),
        ];
        Self {
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            other: named.map(|(key, value)| (key.to_owned(), value)).into(),
            ..Self::default()
        }
    }

    /// A model with random weights, as GPT-2 was initialized: normal with standard deviation `initializer_range`, divided
    /// by the root of twice the number of blocks for the projections back into the residual stream; biases are 0.
    ///
    /// The values are drawn on the host, so that a seed gives the same weights on every device. A parameter is drawn when
    /// it is first used.
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes or options that cannot work.
    pub fn init(&self, seed: u64, device: &Device) -> Result<Gpt2> {
        self.check()?;
        let mut draw = Draw::new(seed, device);
        let std = self.initializer_range;
        let width = self.n_embd;
        Ok(Gpt2 {
            wte: draw.embedding(self.vocab_size, width, std),
            wpe: draw.embedding(self.n_positions, width, std),
            blocks: (0..self.n_layer)
                .map(|index| Block::init(self, index, &mut draw))
                .collect(),
            ln_f: self.layer_norm(&draw),
            lm_head: (!self.tie_word_embeddings)
                .then(|| draw.embedding(self.vocab_size, width, std)),
            config: self.clone(),
        })
    }

    fn layer_norm(&self, draw: &Draw) -> LayerNorm {
        draw.layer_norm(self.n_embd, self.layer_norm_epsilon)
    }

    /// Refuses what cannot work, and every option that would change the result and is not supported.
    fn check(&self) -> Result<()> {
        // Far above any model, and low enough that no product of sizes overflows.
        const LARGEST: usize = 1 << 24;
        let sizes = [
            ("vocab_size", self.vocab_size, LARGEST),
            ("n_positions", self.n_positions, LARGEST),
            ("n_embd", self.n_embd, LARGEST),
            ("n_layer", self.n_layer, 10_000),
            ("n_head", self.n_head, LARGEST),
            ("n_inner", self.inner(), 4 * LARGEST),
        ];
        for (name, given, largest) in sizes {
            if given == 0 || given > largest {
                let allowed = format!("from 1 to {largest}");
                return Err(Error::setting(name, given, allowed, "correct the config"));
            }
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            let allowed = format!("a divisor of n_embd, which is {}", self.n_embd);
            let remedy = "all heads have the same width";
            return Err(Error::setting("n_head", self.n_head, allowed, remedy));
        }
        let numbers = [
            ("layer_norm_epsilon", self.layer_norm_epsilon),
            ("initializer_range", self.initializer_range),
        ];
        for (name, given) in numbers {
            if !(given.is_finite() && given > 0.0) {
                let allowed = "a positive number";
                return Err(Error::setting(name, given, allowed, "correct the config"));
            }
        }
        // `reorder_and_upcast_attn` only asks for a softmax in float32, which it always is here.
        let meaningless = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        for name in [
            "add_cross_attention",
            "is_encoder_decoder",
            "pruned_heads",
            "quantization_config",
        ] {
            if let Some(value) = self.other.get(name).filter(|v| !meaningless(v)) {
                let remedy = "this option is not supported";
                return Err(Error::setting(name, value, "absent or false", remedy));
            }
        }
        match self.other.get("model_type") {
            None => Ok(()),
            Some(Value::String(name)) if name == "gpt2" => Ok(()),
            Some(other) => {
                let remedy = "open the checkpoint as the architecture that it is";
                Err(Error::setting("model_type", other, "\"gpt2\"", remedy))
            }
        }
    }

    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }
}

/// A GPT-2 language model. See [`Gpt2Config::init`] and [`Gpt2::pretrained`].
#[derive(Module, Debug)]
pub struct Gpt2 {
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    /// Only where it is not `wte`; `[vocab_size, n_embd]` too, as checkpoints have it.
    lm_head: Option<Embedding>,
    #[module(skip)]
    config: Gpt2Config,
}

impl Gpt2 {
    /// Opens a checkpoint folder of the Hub: config.json and model.safetensors or its shards (float32, float16 or
    /// bfloat16, converted to float32). One tensor at a time is read and put on the device, so that no second copy of the model is held.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read; [`Error::File`] for a config.json with an option that would change the
    /// result and is not supported, for a damaged model.safetensors, and for tensors that are missing, not part of the
    /// model, of another shape (all listed), of another type or not finite.
    pub fn pretrained(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let model = Self::untrained(&Settings::read(dir)?, device)?;
        pretrained::load(model, dir, &NAMING, Dtype::Float32)
    }

    /// The model that a config.json describes, with random weights, drawn when they are first used.
    pub(super) fn untrained(settings: &Settings, device: &Device) -> Result<Self> {
        let refuse = |error| Error::file(settings.path(), error);
        let values = Value::Object(settings.values().clone());
        let config: Gpt2Config =
            serde_json::from_value(values).map_err(|e| Error::file(settings.path(), e))?;
        config.init(0, device).map_err(refuse)
    }

    /// Writes a checkpoint folder as transformers does: config.json and model.safetensors, in float32 (in bfloat16
    /// if all parameters are). Both files are complete before they get their names.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder or a file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        saving::save(self, dir, &NAMING, self.settings(dir)?, u64::MAX, None)
    }

    /// The content of config.json; `dir` is for an error.
    pub(super) fn settings(&self, dir: &Path) -> Result<Value> {
        serde_json::to_value(&self.config).map_err(|e| Error::file(dir, e))
    }

    /// The shape of the model.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// The checkpoint's name of the parameter at a module path: `blocks.0.ln_1.gamma` is `transformer.h.0.ln_1.weight`.
    pub fn checkpoint_name(path: &str) -> String {
        NAMING.name(path)
    }

    /// The logits of the next token at each position.
    ///
    /// Sequences are padded on the right; the logits of padding have no meaning. The length must not exceed
    /// `n_positions`, and ids must be below `vocab_size`.
    ///
    /// # Shapes
    /// - `ids` `[batch, length]`
    /// - `mask` `[batch, length]`: 1 for tokens, 0 for padding
    /// - result `[batch, length, vocab_size]`
    pub fn logits(&self, ids: Tensor<2, Int>, mask: Tensor<2, Int>) -> Tensor<3> {
        Network::logits(self, None, ids, mask)
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
        Network::sample_losses(self, None, ids, mask, labels)
    }

    /// The device that holds the model.
    pub fn device(&self) -> Device {
        Network::device(self)
    }
}

impl Network for Gpt2 {
    fn embedding(&self) -> &Param<Tensor<2>> {
        &self.wte.weight
    }

    fn first(&self, vectors: Tensor<3>, start: usize) -> Tensor<2> {
        let [batch, length, width] = vectors.dims();
        let position = self.wpe.weight.val();
        let position = position.slice([start..start + length, 0..width]);
        let x = vectors + position.unsqueeze();
        x.reshape([batch * length, width])
    }

    fn shared(&self, mask: Tensor<2, Int>, length: usize) -> Shared {
        Shared {
            biases: Biases::new(mask, length, None),
            turns: None,
            copies: None,
        }
    }

    fn block(
        &self,
        index: usize,
        x: Tensor<2>,
        shared: &Shared,
        seen: Option<&mut Seen>,
    ) -> Tensor<2> {
        let block = shared.here(index, &self.blocks[index], &x);
        block.forward(x, shared.biases.of(false), seen)
    }

    fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.ln_f.forward(x)
    }

    fn head_weight(&self) -> &Param<Tensor<2>> {
        &self.lm_head.as_ref().unwrap_or(&self.wte).weight
    }

    fn home(&self, index: usize) -> Device {
        self.blocks[index].ln_1.gamma.lazy_device()
    }

    fn vocabulary(&self) -> usize {
        self.config.vocab_size
    }

    fn longest(&self) -> usize {
        self.config.n_positions
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn naming(&self) -> &'static Naming {
        &NAMING
    }
}

/// `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))`.
#[derive(Module, Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn init(config: &Gpt2Config, index: usize, draw: &mut Draw) -> Self {
        let (width, inner) = (config.n_embd, config.inner());
        let std = config.initializer_range;
        let residual = std / (2.0 * config.n_layer as f64).sqrt();

        let mut scale = 1.0;
        if config.scale_attn_weights {
            scale /= ((width / config.n_head) as f64).sqrt();
        }
        if config.scale_attn_by_inverse_layer_idx {
            scale /= (index + 1) as f64;
        }
        Self {
            ln_1: config.layer_norm(draw),
            attn: Attention {
                c_attn: draw.linear(width, 3 * width, std),
                c_proj: draw.linear(width, width, residual),
                heads: config.n_head,
                scale,
            },
            ln_2: config.layer_norm(draw),
            mlp: Mlp {
                c_fc: draw.linear(width, inner, std),
                c_proj: draw.linear(inner, width, residual),
                activation: config.activation_function,
            },
        }
    }

    /// `[batch * length, width]` to the same.
    fn forward(&self, x: Tensor<2>, bias: &Tensor<4>, seen: Option<&mut Seen>) -> Tensor<2> {
        let normed = self.ln_1.forward(x.clone());
        let x = x + self.attn.forward(normed, bias, seen);
        let normed = self.ln_2.forward(x.clone());
        x + self.mlp.forward(normed)
    }
}

#[derive(Module, Debug)]
struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    scale: f64,
}

impl Attention {
    fn forward(&self, x: Tensor<2>, bias: &Tensor<4>, seen: Option<&mut Seen>) -> Tensor<2> {
        let [rows, width] = x.dims();
        let [batch, _, length, _] = bias.dims();
        let qkv = linear(&self.c_attn, x);
        #[cfg(feature = "flex")]
        if seen.is_none()
            && let Some(mixed) = kernels::merged_attention(&qkv, self.heads, bias, self.scale)
        {
            return linear(&self.c_proj, mixed.reshape([rows, width]));
        }
        let heads = |part: usize| {
            qkv.clone()
                .slice([0..rows, part * width..(part + 1) * width])
                .reshape([batch, length, self.heads, width / self.heads])
                .swap_dims(1, 2)
        };
        let (k, v) = with_seen(seen, heads(1), heads(2));
        let mixed = attention(heads(0), k, v, bias, self.scale, None);
        linear(&self.c_proj, mixed.swap_dims(1, 2).reshape([rows, width]))
    }
}

#[derive(Module, Debug)]
struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inner = self.activation.forward(linear(&self.c_fc, x));
        linear(&self.c_proj, inner)
    }
}

const NAMING: Naming = Naming {
    base: "transformer.",
    blocks: "h.",
    embedding: "wte.weight",
    head: "lm_head.",
    other_head: "lm_head.",
    // The causal mask.
    buffers: &[".attn.bias", ".attn.masked_bias"],
};
