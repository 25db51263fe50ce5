//! What an architecture has to say; everything else about a language model is written once.

use std::{borrow::Cow, rc::Rc};

use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor},
};

use super::{
    attention::{Biases, Seen, widened},
    decoder::embed,
    linear,
    loss::Targets,
    offload::{Copies, Offloaded},
    pretrained::Naming,
    rotary::{Rope, Turns},
};

/// A causal language model, in the pieces that are differentiated one at a time: the embedding, the blocks, the final norm
/// and the output head.
///
/// Between attentions, all positions of all sequences are rows of one matrix `[batch * length, width]`: one matmul a weight.
pub(super) trait Network {
    /// The vectors of the tokens, `[vocabulary, width]`.
    fn embedding(&self) -> &Param<Tensor<2>>;

    /// The token whose vector is not trained by looking it up.
    fn padding(&self) -> Option<i64> {
        None
    }

    /// The first hidden states, `[batch * length, width]`, from the vectors of tokens, `[batch, length, width]`, at the
    /// positions from `start` on.
    fn first(&self, vectors: Tensor<3>, start: usize) -> Tensor<2>;

    /// What the blocks share in a pass over the last `length` positions of `mask` `[batch, keys]`: 1 for tokens, 0 for
    /// padding.
    fn shared(&self, mask: Tensor<2, Int>, length: usize) -> Shared;

    /// Block `index`, `[batch * length, width]` to the same.
    fn block(
        &self,
        index: usize,
        x: Tensor<2>,
        shared: &Shared,
        seen: Option<&mut Seen>,
    ) -> Tensor<2>;

    /// The final norm, row by row.
    fn norm(&self, x: Tensor<2>) -> Tensor<2>;

    /// The output head's weight, `[vocabulary, width]`; the embedding's where they are tied.
    fn head_weight(&self) -> &Param<Tensor<2>>;

    /// The cap c of logits `c tanh(logits / c)`.
    fn cap(&self) -> Option<f64> {
        None
    }

    /// The device of the embedding, which takes the tokens.
    fn device(&self) -> Device {
        self.embedding().lazy_device()
    }

    /// The device of the parameters of block `index`, where nothing is offloaded.
    fn home(&self, index: usize) -> Device;

    /// Number of tokens.
    fn vocabulary(&self) -> usize;

    /// Longest sequence.
    fn longest(&self) -> usize;

    /// Number of blocks.
    fn blocks(&self) -> usize;

    /// What its parameters are called in checkpoints.
    fn naming(&self) -> &'static Naming;

    /// The last hidden states, after the final norm.
    ///
    /// `seen` holds an entry a block for the tokens that were read before, or nothing: then none were, and none are kept.
    ///
    /// # Shapes
    /// - `ids` `[batch, length]`
    /// - `mask` `[batch, seen + length]`: 1 for tokens, 0 for padding
    /// - result `[batch * length, width]`
    fn hidden(
        &self,
        offloaded: Option<&Offloaded>,
        ids: Tensor<2, Int>,
        mask: Tensor<2, Int>,
        seen: &mut [Seen],
    ) -> Tensor<2> {
        let ([_, length], [_, keys]) = (ids.dims(), mask.dims());
        let vectors = embed(self.embedding().val(), ids, self.padding());
        let mut x = self.first(vectors, keys - length);
        let copies = offloaded.map(Offloaded::copies);
        let places = Places::new(self, copies.as_ref(), mask, length);
        for index in 0..self.blocks() {
            let (device, shared) = places.of(index);
            x = self.block(index, moved(x, device), shared, seen.get_mut(index));
        }
        self.norm(moved(x, &self.head_weight().lazy_device()))
    }

    /// `[rows, width]` to logits `[rows, vocabulary]`.
    fn head(&self, rows: Tensor<2>) -> Tensor<2> {
        let logits = linear::head(self.head_weight().val(), rows);
        match self.cap() {
            None => logits,
            Some(cap) => (widened(logits) / cap).tanh() * cap,
        }
    }

    /// The logits of the next token at each position, `[batch, length, vocabulary]`.
    fn logits(
        &self,
        offloaded: Option<&Offloaded>,
        ids: Tensor<2, Int>,
        mask: Tensor<2, Int>,
    ) -> Tensor<3> {
        let [batch, length] = ids.dims();
        let logits = self.head(self.hidden(offloaded, ids, mask, &mut []));
        logits.reshape([batch, length, self.vocabulary()])
    }

    /// The mean loss over the labels of each sample, `[batch]`. Only rows that predict a label go through the head.
    fn sample_losses(
        &self,
        offloaded: Option<&Offloaded>,
        ids: Tensor<2, Int>,
        mask: Tensor<2, Int>,
        labels: Tensor<2, Int>,
    ) -> Tensor<1> {
        let targets = Targets::of(&labels);
        let hidden = self.hidden(offloaded, ids, mask, &mut []);
        targets.sample_losses(hidden, |rows| self.head(rows))
    }
}

/// The tensor on a device, with its tape or without, whatever the device's. One that is there already stays as it is.
pub(super) fn moved<const D: usize>(x: Tensor<D>, device: &Device) -> Tensor<D> {
    let here = x.device();
    if here == *device {
        return x;
    }
    x.to_device(&match here.is_autodiff() {
        true => device.clone().autodiff(),
        false => device.clone().inner(),
    })
}

/// Where each block of a pass is, with what the blocks there share.
pub(super) struct Places {
    shared: Vec<(Device, Shared)>,
    /// Index of each block's.
    blocks: Vec<usize>,
}

impl Places {
    /// For the last `length` positions of `mask` `[batch, keys]`.
    pub fn new<N: Network + ?Sized>(
        network: &N,
        copies: Option<&Rc<Copies>>,
        mask: Tensor<2, Int>,
        length: usize,
    ) -> Self {
        let mut shared: Vec<(Device, Shared)> = Vec::new();
        let mut place = |index: usize| {
            let device = match copies {
                Some(copies) => copies.device(index).clone(),
                None => network.home(index),
            };
            let found = shared.iter().position(|(known, _)| *known == device);
            found.unwrap_or_else(|| {
                let mask = mask.clone().to_device(&device);
                let of_blocks = network.shared(mask, length);
                let of_blocks = Shared {
                    copies: copies.cloned(),
                    ..of_blocks
                };
                shared.push((device, of_blocks));
                shared.len() - 1
            })
        };
        let blocks = (0..network.blocks()).map(&mut place).collect();
        Self { shared, blocks }
    }

    pub fn of(&self, index: usize) -> (&Device, &Shared) {
        let (device, shared) = &self.shared[self.blocks[index]];
        (device, shared)
    }
}

/// What the blocks of a pass share, computed once: which keys a query may look at, and how positions turn.
pub(super) struct Shared {
    pub biases: Biases,
    /// Nothing where positions are learned.
    pub turns: Option<Turns>,
    /// For blocks whose parameters may be elsewhere than the hidden states.
    pub copies: Option<Rc<Copies>>,
}

impl Shared {
    /// With rotary positions in the float type of `weight`; some blocks may look back no further than a window.
    pub fn rotary(
        rope: &Rope,
        window: Option<usize>,
        mask: Tensor<2, Int>,
        length: usize,
        weight: &Param<Tensor<2>>,
    ) -> Self {
        let [_, keys] = mask.dims();
        let dtype = weight.val().dtype().into();
        let turns = rope.at(keys - length, length, &mask.device(), dtype);
        Self {
            biases: Biases::new(mask, length, window),
            turns: Some(turns),
            copies: None,
        }
    }

    /// The block at an index as it can compute on `x`.
    pub fn here<'a, B: Module + 'static>(
        &self,
        index: usize,
        block: &'a B,
        x: &Tensor<2>,
    ) -> Cow<'a, B> {
        match &self.copies {
            None => Cow::Borrowed(block),
            Some(copies) => Cow::Owned(copies.of(index, block, x)),
        }
    }

    /// Turns queries or keys, `[batch, length, heads, head]`.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.turns {
            Some(turns) => turns.turn(x),
            None => x,
        }
    }
}
