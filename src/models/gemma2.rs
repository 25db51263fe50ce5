//! Gemma-2: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size" (2024).
//!
//! RMS norms, stored as their difference from 1, before and after each sub-layer; embeddings scaled by the root of the
//! width; grouped query heads whose width is unrelated to the model's; scores and logits capped by a tanh; every other block
//! looks back no further than a sliding window; a gated feed-forward network with the tanh form of GELU. Field names are the
//! checkpoint's, except that its `layers` is `blocks` here.

use burn::{
    module::{Module, Param},
    nn::Embedding,
    tensor::{DType, Device, Int, Tensor, bf16},
};

use super::{
    activation::Activation,
    attention::Seen,
    decoder::{AttentionOptions, GatedMlp, Heads, SelfAttention},
    linear::Linear,
    llama::NAMING,
    network::{Network, Shared},
    norm::RmsNorm,
    pretrained::Naming,
    random::Draw,
    rotary::{Rope, RopeDefaults},
    settings::Settings,
};
use crate::error::Result;

/// The shape of a [`Gemma2`].
#[derive(Clone, Debug)]
pub(super) struct Gemma2Config {
    vocabulary: usize,
    longest: usize,
    heads: Heads,
    attention: AttentionOptions,
    /// Width inside the feed-forward networks.
    inner: usize,
    activation: Activation,
    epsilon: f64,
    rope: Rope,
    /// How far back the blocks look that slide, the token itself included.
    window: Option<usize>,
    /// Whether a block slides, one entry a block.
    slides: Vec<bool>,
    /// Cap of the logits.
    cap: Option<f64>,
    /// The token for padding.
    padding: Option<i64>,
    tied: bool,
}

impl Gemma2Config {
    /// `model_type` "gemma2".
    pub fn read(settings: &Settings) -> Result<Self> {
        let heads = Heads::read(settings, 2304, 8, Some(4), Some(256))?;
        let vocabulary = settings.size("vocab_size", 256_000)?;
        let longest = settings.size("max_position_embeddings", 8192)?;
        let window = settings.size_or_off("sliding_window", Some(4096))?;
        // transformers 4 does not list the layers: the first slides, and every other one.
        let slides = settings.sliding(settings.blocks(26)?, |block| block.is_multiple_of(2))?;
        if window.is_none() && slides.contains(&true) {
            let allowed = "a size, for some layers are sliding_attention";
            return Err(settings.refuse("sliding_window", allowed, "set it, or `layer_types`"));
        }
        let bias = settings.flag("attention_bias", false)?;
        Ok(Self {
            vocabulary,
            longest,
            heads,
            attention: AttentionOptions {
                query_key_value_bias: bias,
                output_bias: bias,
                scale: settings
                    .positive("query_pre_attn_scalar", 256.0)?
                    .powf(-0.5),
                cap: settings.positive_or_off("attn_logit_softcapping", 50.0)?,
            },
            inner: settings.size("intermediate_size", 9216)?,
            activation: settings.activation("hidden_activation", Activation::GeluNew)?,
            epsilon: settings.positive("rms_norm_eps", 1e-6)?,
            rope: Rope::read(settings, &RopeDefaults::LLAMA, heads.size, longest)?,
            window,
            slides,
            cap: settings.positive_or_off("final_logit_softcapping", 30.0)?,
            padding: settings.padding(vocabulary)?,
            tied: settings.flag("tie_word_embeddings", true)?,
        })
    }

    /// A model with random weights, drawn when they are first used.
    pub fn init(&self, draw: &mut Draw) -> Gemma2 {
        const STD: f64 = 0.02;
        let width = self.heads.width;
        Gemma2 {
            embed_tokens: draw.embedding(self.vocabulary, width, STD),
            blocks: self
                .slides
                .iter()
                .map(|slides| Block::init(self, *slides, STD, draw))
                .collect(),
            norm: draw.rms_norm(width, self.epsilon, true),
            lm_head: (!self.tied).then(|| draw.projection(width, self.vocabulary, false, STD)),
            config: self.clone(),
        }
    }
}

/// A Gemma-2 language model.
#[derive(Module, Debug)]
pub(super) struct Gemma2 {
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// Only where it is not `embed_tokens`.
    lm_head: Option<Linear>,
    #[module(skip)]
    config: Gemma2Config,
}

impl Network for Gemma2 {
    fn embedding(&self) -> &Param<Tensor<2>> {
        &self.embed_tokens.weight
    }

    fn padding(&self) -> Option<i64> {
        self.config.padding
    }

    fn first(&self, vectors: Tensor<3>, _start: usize) -> Tensor<2> {
        let [batch, length, width] = vectors.dims();
        // Rounded to the embeddings' type, as in transformers.
        let normalizer = match vectors.dtype() {
            DType::BF16 => bf16::from_f64((width as f64).sqrt()).to_f64(),
            _ => (width as f64).sqrt(),
        };
        let x = vectors * normalizer;
        x.reshape([batch * length, width])
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

    fn cap(&self) -> Option<f64> {
        self.config.cap
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

/// `x + post_attention_layernorm(self_attn(input_layernorm(x)))`, then
/// `x + post_feedforward_layernorm(mlp(pre_feedforward_layernorm(x)))`.
#[derive(Module, Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
    #[module(skip)]
    slides: bool,
}

impl Block {
    fn init(config: &Gemma2Config, slides: bool, std: f64, draw: &mut Draw) -> Self {
        let heads = config.heads;
        let norm = |draw: &Draw| draw.rms_norm(heads.width, config.epsilon, true);
        Self {
            input_layernorm: norm(draw),
            self_attn: SelfAttention::init(heads, config.attention, std, draw),
            post_attention_layernorm: norm(draw),
            pre_feedforward_layernorm: norm(draw),
            mlp: GatedMlp::init(
                heads.width,
                config.inner,
                false,
                config.activation,
                std,
                draw,
            ),
            post_feedforward_layernorm: norm(draw),
            slides,
        }
    }

    /// `[batch * length, width]` to the same.
    fn forward(&self, x: Tensor<2>, shared: &Shared, seen: Option<&mut Seen>) -> Tensor<2> {
        let normed = self.input_layernorm.forward(x.clone());
        let mixed = self.self_attn.forward(normed, shared, self.slides, seen);
        let x = x + self.post_attention_layernorm.forward(mixed);
        let inner = self
            .mlp
            .forward(self.pre_feedforward_layernorm.forward(x.clone()));
        x + self.post_feedforward_layernorm.forward(inner)
    }
}
