//! Llama: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), and Llama 2, 3, 3.1 and 3.2.
//!
//! RMS norm before each sub-layer, rotary positions, grouped query heads, a gated feed-forward network with SiLU, no biases.
//! Yi and SmolLM2 are Llamas by name; Mistral (Jiang et al., 2023) is one whose blocks may look back no further than a
//! sliding window; Qwen-2 is one with some biases (qwen2.rs). Field names are the checkpoint's, except that its `layers` is
//! `blocks` here.

use burn::{
    module::{Module, Param},
    nn::Embedding,
    tensor::{Device, Int, Tensor},
};

use super::{
    activation::Activation,
    attention::Seen,
    decoder::{AttentionOptions, GatedMlp, Heads, SelfAttention},
    linear::Linear,
    network::{Network, Shared},
    norm::RmsNorm,
    pretrained::Naming,
    random::Draw,
    rotary::{Rope, RopeDefaults},
    settings::Settings,
};
use crate::error::Result;

/// The shape of a [`Llama`].
#[derive(Clone, Debug)]
pub(super) struct LlamaConfig {
    pub vocabulary: usize,
    pub longest: usize,
    pub heads: Heads,
    /// Width inside the feed-forward networks.
    pub inner: usize,
    pub query_key_value_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    pub activation: Activation,
    pub epsilon: f64,
    pub rope: Rope,
    /// How far back the blocks look that slide, the token itself included.
    pub window: Option<usize>,
    /// Whether a block slides, one entry a block.
    pub slides: Vec<bool>,
    /// The token for padding.
    pub padding: Option<i64>,
    pub tied: bool,
}

impl LlamaConfig {
    /// `model_type` "llama".
    pub fn llama(settings: &Settings) -> Result<Self> {
        let heads = Heads::read(settings, 4096, 32, None, None)?;
        let blocks = settings.blocks(32)?;
        let bias = settings.flag("attention_bias", false)?;
        Self {
            query_key_value_bias: bias,
            output_bias: bias,
            mlp_bias: settings.flag("mlp_bias", false)?,
            ..Self::without_biases(
                settings,
                heads,
                [32_000, 11_008, 2_048],
                vec![false; blocks],
            )?
        }
        .checked(settings)
    }

    /// `model_type` "mistral".
    pub fn mistral(settings: &Settings) -> Result<Self> {
        let heads = Heads::read(settings, 4096, 32, Some(8), None)?;
        let window = settings.size_or_off("sliding_window", Some(4096))?;
        // All blocks slide, or none.
        let slides = vec![window.is_some(); settings.blocks(32)?];
        Self {
            window,
            ..Self::without_biases(settings, heads, [32_000, 14_336, 131_072], slides)?
        }
        .checked(settings)
    }

    /// What all of them have, with the defaults for the vocabulary, the inner width and the longest sequence.
    pub fn without_biases(
        settings: &Settings,
        heads: Heads,
        [vocabulary, inner, longest]: [usize; 3],
        slides: Vec<bool>,
    ) -> Result<Self> {
        let vocabulary = settings.size("vocab_size", vocabulary)?;
        let longest = settings.size("max_position_embeddings", longest)?;
        Ok(Self {
            vocabulary,
            longest,
            heads,
            inner: settings.size("intermediate_size", inner)?,
            query_key_value_bias: false,
            output_bias: false,
            mlp_bias: false,
            activation: settings.activation("hidden_act", Activation::Silu)?,
            epsilon: settings.positive("rms_norm_eps", 1e-6)?,
            rope: Rope::read(settings, &RopeDefaults::LLAMA, heads.size, longest)?,
            window: None,
            slides,
            padding: settings.padding(vocabulary)?,
            tied: settings.flag("tie_word_embeddings", false)?,
        })
    }

    /// Refuses blocks that slide without a window.
    pub fn checked(self, settings: &Settings) -> Result<Self> {
        if self.window.is_none() && self.slides.contains(&true) {
            let allowed = "a size, for `layer_types` has sliding_attention";
            return Err(settings.refuse("sliding_window", allowed, "set one of them"));
        }
        Ok(self)
    }

    /// A model with random weights, drawn when they are first used.
    pub fn init(&self, draw: &mut Draw) -> Llama {
        const STD: f64 = 0.02;
        let width = self.heads.width;
        Llama {
            embed_tokens: draw.embedding(self.vocabulary, width, STD),
            blocks: (0..self.slides.len())
                .map(|index| Block::init(self, index, STD, draw))
                .collect(),
            norm: draw.rms_norm(width, self.epsilon, false),
            lm_head: (!self.tied).then(|| draw.projection(width, self.vocabulary, false, STD)),
            config: self.clone(),
        }
    }
}

/// A Llama, Mistral or Qwen-2 language model.
#[derive(Module, Debug)]
pub(super) struct Llama {
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// Only where it is not `embed_tokens`.
    lm_head: Option<Linear>,
    #[module(skip)]
    config: LlamaConfig,
}

impl Network for Llama {
    fn embedding(&self) -> &Param<Tensor<2>> {
        &self.embed_tokens.weight
    }

    fn padding(&self) -> Option<i64> {
        self.config.padding
    }

    fn first(&self, vectors: Tensor<3>, _start: usize) -> Tensor<2> {
        let [batch, length, width] = vectors.dims();
        vectors.reshape([batch * length, width])
    }

    fn shared(&self, mask: Tensor<2, Int>, length: usize) -> Shared {
        let window = self.config.window;
        let rope = &self.config.rope;
        Shared::rotary(rope, window, mask, length, &self.embed_tokens.weight)
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
        self.norm.forward(x)
    }

    fn head_weight(&self) -> &Param<Tensor<2>> {
        match &self.lm_head {
            Some(head) => &head.weight,
            None => &self.embed_tokens.weight,
        }
    }

    fn home(&self, index: usize) -> Device {
        self.blocks[index].input_layernorm.weight.lazy_device()
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

/// `x + self_attn(input_layernorm(x))`, then `x + mlp(post_attention_layernorm(x))`.
#[derive(Module, Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
    #[module(skip)]
    slides: bool,
}

impl Block {
    fn init(config: &LlamaConfig, index: usize, std: f64, draw: &mut Draw) -> Self {
        let heads = config.heads;
        let options = AttentionOptions {
            query_key_value_bias: config.query_key_value_bias,
            output_bias: config.output_bias,
            scale: (heads.size as f64).powf(-0.5),
            cap: None,
        };
        let (inner, bias, activation) = (config.inner, config.mlp_bias, config.activation);
        Self {
            input_layernorm: draw.rms_norm(heads.width, config.epsilon, false),
            self_attn: SelfAttention::init(heads, options, std, draw),
            post_attention_layernorm: draw.rms_norm(heads.width, config.epsilon, false),
            mlp: GatedMlp::init(heads.width, inner, bias, activation, std, draw),
            slides: config.slides[index],
        }
    }

    /// `[batch * length, width]` to the same.
    fn forward(&self, x: Tensor<2>, shared: &Shared, seen: Option<&mut Seen>) -> Tensor<2> {
        let normed = self.input_layernorm.forward(x.clone());
        let x = x + self.self_attn.forward(normed, shared, self.slides, seen);
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}

/// Also that of Gemma-2.
pub(super) const NAMING: Naming = Naming {
    base: "model.",
    blocks: "layers.",
    embedding: "embed_tokens.weight",
    head: "lm_head.",
    other_head: "lm_head.",
    buffers: &[".rotary_emb.inv_freq"],
};
