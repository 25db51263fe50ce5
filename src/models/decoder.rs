//! What Llama, Mistral, Qwen-2 and Gemma-2 share: the embedding, and the two halves of a block, attention with grouped heads
//! and the gated feed-forward network.

use burn::{
    module::Module,
    tensor::{Int, Tensor, module::embedding},
};

use super::{
    activation::Activation,
    attention::{Seen, attention, with_seen},
    linear::Linear,
    network::Shared,
    random::Draw,
    settings::Settings,
};
use crate::error::Result;

/// The embeddings of tokens, `[batch, length, width]`. As in PyTorch, looking up the padding token does not train its row.
pub(super) fn embed(table: Tensor<2>, ids: Tensor<2, Int>, padding: Option<i64>) -> Tensor<3> {
    let x = embedding(table, ids.clone());
    let Some(padding) = padding.filter(|_| x.is_tracked()) else {
        return x;
    };
    let is_padding = ids.equal_elem(padding).unsqueeze_dim::<3>(2);
    let constant = x.clone().detach();
    let shape = x.dims();
    x.mask_where(is_padding.expand(shape), constant)
}

/// The sizes of grouped-query attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Width of the residual stream.
    pub width: usize,
    /// Number of query heads.
    pub queries: usize,
    /// Number of key and value heads, a divisor of `queries`.
    pub keys: usize,
    /// Width of a head.
    pub size: usize,
}

impl Heads {
    /// Reads `hidden_size`, `num_attention_heads`, `num_key_value_heads` and `head_dim`, with these defaults; without one
    /// there are as many key heads as query heads, and the heads share the width.
    pub fn read(
        settings: &Settings,
        width: usize,
        queries: usize,
        keys: Option<usize>,
        size: Option<usize>,
    ) -> Result<Self> {
        let width = settings.size("hidden_size", width)?;
        let queries = settings.size("num_attention_heads", queries)?;
        // Null means the same as no default, also where the default is a number.
        let keys = settings.size_or_off("num_key_value_heads", keys)?;
        let keys = keys.unwrap_or(queries);
        if !queries.is_multiple_of(keys) {
            let allowed = format!("a divisor of num_attention_heads, which is {queries}");
            let remedy = "each key head serves the same number of query heads";
            return Err(settings.refuse("num_key_value_heads", allowed, remedy));
        }
        let size = match settings.size_or_off("head_dim", size)? {
            Some(size) => size,
            None if width.is_multiple_of(queries) => width / queries,
            None => {
                let allowed = format!("a divisor of hidden_size, which is {width}");
                let remedy = "heads without head_dim share the width";
                return Err(settings.refuse("num_attention_heads", allowed, remedy));
            }
        };
        Ok(Self {
            width,
            queries,
            keys,
            size,
        })
    }
}

/// Which projections of a block have a bias, and how its scores are scaled.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionOptions {
    pub query_key_value_bias: bool,
    pub output_bias: bool,
    /// Factor of the scores.
    pub scale: f64,
    /// Cap of the scores.
    pub cap: Option<f64>,
}

/// Causal attention with rotary positions, in which several query heads may share a key and value head.
#[derive(Module, Debug)]
pub(super) struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    options: AttentionOptions,
}

impl SelfAttention {
    pub fn init(heads: Heads, options: AttentionOptions, std: f64, draw: &mut Draw) -> Self {
        let (queries, keys) = (heads.queries * heads.size, heads.keys * heads.size);
        let bias = options.query_key_value_bias;
        Self {
            q_proj: draw.projection(heads.width, queries, bias, std),
            k_proj: draw.projection(heads.width, keys, bias, std),
            v_proj: draw.projection(heads.width, keys, bias, std),
            o_proj: draw.projection(queries, heads.width, options.output_bias, std),
            heads,
            options,
        }
    }

    /// `[batch * length, width]` to the same, of a block that does or does not slide.
    pub fn forward(
        &self,
        x: Tensor<2>,
        shared: &Shared,
        slides: bool,
        seen: Option<&mut Seen>,
    ) -> Tensor<2> {
        let [rows, _] = x.dims();
        let bias = shared.biases.of(slides);
        let [batch, _, length, _] = bias.dims();
        let Heads {
            queries,
            keys,
            size,
            ..
        } = self.heads;
        let split = |x: Tensor<2>, heads| x.reshape([batch, length, heads, size]);
        let q = shared.turn(split(self.q_proj.forward(x.clone()), queries));
        let k = shared.turn(split(self.k_proj.forward(x.clone()), keys));
        let v = split(self.v_proj.forward(x), keys);

        let (k, v) = with_seen(seen, k.swap_dims(1, 2), v.swap_dims(1, 2));
        let AttentionOptions { scale, cap, .. } = self.options;
        let mixed = attention(q.swap_dims(1, 2), k, v, bias, scale, cap);
        self.o_proj
            .forward(mixed.swap_dims(1, 2).reshape([rows, queries * size]))
    }
}

/// `down(activation(gate x) * (up x))`: Shazeer, "GLU Variants Improve Transformer" (2020).
#[derive(Module, Debug)]
pub(super) struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl GatedMlp {
    pub fn init(
        width: usize,
        inner: usize,
        bias: bool,
        activation: Activation,
        std: f64,
        draw: &mut Draw,
    ) -> Self {
        Self {
            gate_proj: draw.projection(width, inner, bias, std),
            up_proj: draw.projection(width, inner, bias, std),
            down_proj: draw.projection(inner, width, bias, std),
            activation,
        }
    }

    /// `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone());
        let up = self.up_proj.forward(x);
        self.down_proj.forward(self.activation.gated(gate, up))
    }
}
