//! GPT-NeoX: Black et al., "GPT-NeoX-20B: An Open-Source Autoregressive Language Model" (2022), and Pythia.
//!
//! Layer norms, rotary positions for a part of each head, attention with merged q, k and v, and a feed-forward network that
//! reads the same input as attention (parallel residual) or what attention gives (serial). Field names are the checkpoint's,
//! except that its `layers` is `blocks` and its `embed_out` is `lm_head` here.

use burn::{
    module::{Module, Param},
    nn::Embedding,
    tensor::{Device, Int, Tensor},
};

use super::{
    activation::Activation,
    attention::{Seen, attention, with_seen},
    linear::Linear,
    network::{Network, Shared},
    norm::LayerNorm,
    pretrained::Naming,
    random::Draw,
    rotary::{Rope, RopeDefaults},
    settings::Settings,
};
use crate::error::Result;

/// The shape of a [`GptNeox`].
#[derive(Clone, Debug)]
pub(super) struct GptNeoxConfig {
    vocabulary: usize,
    longest: usize,
    width: usize,
    /// Width inside the feed-forward networks.
    inner: usize,
    blocks: usize,
    heads: usize,
    attention_bias: bool,
    activation: Activation,
    epsilon: f64,
    parallel: bool,
    rope: Rope,
    tied: bool,
}

impl GptNeoxConfig {
    /// `model_type` "gpt_neox".
    pub fn read(settings: &Settings) -> Result<Self> {
        let width = settings.size("hidden_size", 6144)?;
        let heads = settings.size("num_attention_heads", 64)?;
        if !width.is_multiple_of(heads) {
            let allowed = format!("a divisor of hidden_size, which is {width}");
            let remedy = "all heads have the same width";
            return Err(settings.refuse("num_attention_heads", allowed, remedy));
        }
        let longest = settings.size("max_position_embeddings", 2048)?;
        let defaults = RopeDefaults {
            theta: "rotary_emb_base",
            part: ("rotary_pct", 0.25),
        };
        Ok(Self {
            vocabulary: settings.size("vocab_size", 50_432)?,
            longest,
            width,
            inner: settings.size("intermediate_size", 24_576)?,
            blocks: settings.blocks(44)?,
            heads,
            attention_bias: settings.flag("attention_bias", true)?,
            activation: settings.activation("hidden_act", Activation::Gelu)?,
            epsilon: settings.positive("layer_norm_eps", 1e-5)?,
            parallel: settings.flag("use_parallel_residual", true)?,
            rope: Rope::read(settings, &defaults, width / heads, longest)?,
            tied: settings.flag("tie_word_embeddings", false)?,
        })
    }

    /// A model with random weights, drawn when they are first used.
    pub fn init(&self, draw: &mut Draw) -> GptNeox {
        const STD: f64 = 0.02;
        GptNeox {
            embed_in: draw.embedding(self.vocabulary, self.width, STD),
            blocks: (0..self.blocks)
                .map(|_| Block::init(self, STD, draw))
                .collect(),
            final_layer_norm: self.layer_norm(draw),
            lm_head: (!self.tied).then(|| draw.projection(self.width, self.vocabulary, false, STD)),
            config: self.clone(),
        }
    }

    fn layer_norm(&self, draw: &Draw) -> LayerNorm {
        draw.layer_norm(self.width, self.epsilon)
    }
}

/// A GPT-NeoX language model.
#[derive(Module, Debug)]
pub(super) struct GptNeox {
    embed_in: Embedding,
    blocks: Vec<Block>,
    final_layer_norm: LayerNorm,
    /// Only where it is not `embed_in`.
    lm_head: Option<Linear>,
    #[module(skip)]
    config: GptNeoxConfig,
}

impl Network for GptNeox {
    fn embedding(&self) -> &Param<Tensor<2>> {
        &self.embed_in.weight
    }

    fn first(&self, vectors: Tensor<3>, _start: usize) -> Tensor<2> {
        let [batch, length, width] = vectors.dims();
        vectors.reshape([batch * length, width])
    }

    fn shared(&self, mask: Tensor<2, Int>, length: usize) -> Shared {
        Shared::rotary(&self.config.rope, None, mask, length, &self.embed_in.weight)
    }

    fn block(
        &self,
        index: usize,
        x: Tensor<2>,
        shared: &Shared,
        seen: Option<&mut Seen>,
    ) -> Tensor<2> {
        let block = shared.here(index, &self.blocks[index], &x);
        block.forward(x, shared, seen)
    }

    fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.final_layer_norm.forward(x)
    }

    fn head_weight(&self) -> &Param<Tensor<2>> {
        match &self.lm_head {
            Some(head) => &head.weight,
            None => &self.embed_in.weight,
        }
    }

    fn home(&self, index: usize) -> Device {
        self.blocks[index].input_layernorm.gamma.lazy_device()
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn longest(&self) -> usize {
        self.config.longest
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn naming(&self) -> &'static Naming {
        &NAMING
    }
}

/// Parallel: `x + attention(input_layernorm(x)) + mlp(post_attention_layernorm(x))`. Serial: `x + attention(...)`, then
/// `x + mlp(...)`.
#[derive(Module, Debug)]
struct Block {
    input_layernorm: LayerNorm,
    attention: Attention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
    #[module(skip)]
    parallel: bool,
}

impl Block {
    fn init(config: &GptNeoxConfig, std: f64, draw: &mut Draw) -> Self {
        let (width, inner, bias) = (config.width, config.inner, config.attention_bias);
        Self {
            input_layernorm: config.layer_norm(draw),
            attention: Attention {
                query_key_value: draw.projection(width, 3 * width, bias, std),
                dense: draw.projection(width, width, bias, std),
                heads: config.heads,
            },
            post_attention_layernorm: config.layer_norm(draw),
            mlp: Mlp {
                dense_h_to_4h: draw.projection(width, inner, true, std),
                dense_4h_to_h: draw.projection(inner, width, true, std),
                activation: config.activation,
            },
            parallel: config.parallel,
        }
    }

    /// `[batch * length, width]` to the same.
    fn forward(&self, x: Tensor<2>, shared: &Shared, seen: Option<&mut Seen>) -> Tensor<2> {
        let normed = self.input_layernorm.forward(x.clone());
        let attended = x.clone() + self.attention.forward(normed, shared, seen);
        let read = if self.parallel { x } else { attended.clone() };
        let normed = self.post_attention_layernorm.forward(read);
        attended + self.mlp.forward(normed)
    }
}

#[derive(Module, Debug)]
struct Attention {
    query_key_value: Linear,
    dense: Linear,
    #[module(skip)]
    heads: usize,
}

impl Attention {
    fn forward(&self, x: Tensor<2>, shared: &Shared, seen: Option<&mut Seen>) -> Tensor<2> {
        let [rows, width] = x.dims();
        let bias = shared.biases.of(false);
        let [batch, _, length, _] = bias.dims();
        let (heads, head) = (self.heads, width / self.heads);
        // Head by head: its q, its k, its v.
        let merged = self.query_key_value.forward(x);
        let merged = merged.reshape([batch, length, heads, 3 * head]);
        let part = |part: usize| {
            let (from, to) = (part * head, (part + 1) * head);
            merged
                .clone()
                .slice([0..batch, 0..length, 0..heads, from..to])
        };
        let q = shared.turn(part(0)).swap_dims(1, 2);
        let k = shared.turn(part(1)).swap_dims(1, 2);
        let (k, v) = with_seen(seen, k, part(2).swap_dims(1, 2));
        let mixed = attention(q, k, v, bias, (head as f64).powf(-0.5), None);
        self.dense
            .forward(mixed.swap_dims(1, 2).reshape([rows, width]))
    }
}

#[derive(Module, Debug)]
struct Mlp {
    dense_h_to_4h: Linear,
    dense_4h_to_h: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inner = self.dense_h_to_4h.forward(x);
        self.dense_4h_to_h.forward(self.activation.forward(inner))
    }
}

const NAMING: Naming = Naming {
    base: "gpt_neox.",
    blocks: "layers.",
    embedding: "embed_in.weight",
    head: "embed_out.",
    other_head: "lm_head.",
    buffers: &[
        ".attention.bias",
        ".attention.masked_bias",
        ".rotary_emb.inv_freq",
    ],
};
