//! Causal attention, `softmax(c tanh(scale q k^T / c) + bias) v`, without a matrix of scores for the whole batch.
//!
//! A head of a sequence is one task, and takes its queries a chunk at a time against the keys up to the last query's: the
//! scores of a chunk stay in the cache, and half of them are never computed. Saved are q, k, v and two
//! numbers a row; the backward pass computes a chunk's weights p again, and with the gradient g of the result
//! takes `dv += p^T g`, `dp = g v^T`, `ds = p (dp - sum(p dp)) scale`, `dq = ds k`, `dk += ds^T q`. (As in Dao et al.,
//! "FlashAttention" (2022), but with whole rows of scores.) Plain Burn records some ten operations of the size of the scores.
//!
//! The result is laid out `[batch, length, heads, head]`, so that the heads of a position lie side by side for the
//! projection that follows; so are the gradients.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::math::{exp, largest, sum, sum2, tanh};
use super::product::{Threads, add_product, product};
use super::simd::{change_rows, vectorized};
use super::{Kernel, apply, input, matrix, numbers, shape, tensor, turned};

/// Queries that a task takes at a time.
const CHUNK: usize = 128;

/// Attention of `q` `[batch, heads, length, head]` to `k` and `v` `[batch, key_heads, keys, head]`; the queries are those of
/// the last `length` keys, and `bias` `[batch, 1, length, keys]` hides what comes later, at least. The result is
/// `[batch, length, heads, head]`.
pub(crate) fn attention(
    [q, k, v]: [&Tensor<4>; 3],
    bias: &Tensor<4>,
    scale: f64,
    cap: Option<f64>,
) -> Option<Tensor<4>> {
    let kernel = Attention::new(bias, scale, cap, None)?;
    apply(kernel, [input(q), input(k), input(v)])
}

/// [`attention`] of q, k and v that lie side by side in `[batch * length, 3 * width]`, as one projection made them.
pub(crate) fn merged_attention(
    qkv: &Tensor<2>,
    heads: usize,
    bias: &Tensor<4>,
    scale: f64,
) -> Option<Tensor<4>> {
    let kernel = Attention::new(bias, scale, None, Some(heads))?;
    apply(kernel, [input(qkv)])
}

#[derive(Clone, Debug)]
struct Attention {
    bias: FlexTensor,
    scale: f32,
    cap: Option<f32>,
    /// Number of heads where q, k and v are merged.
    heads: usize,
}

/// q, k and v with the sizes `[batch, heads, length or keys, head]`, as views, and what the softmax keeps,
/// `[batch, heads, length, 2]`.
#[derive(Clone, Debug)]
struct Saved {
    qkv: [FlexTensor; 3],
    kept: Vec<f32>,
}

/// One head of a sequence as a matrix, `[length, head]`.
fn head_of(x: &FlexTensor, sequence: usize, head: usize) -> FlexTensor {
    let [_, _, length, width] = shape(x);
    let strides = x.layout().strides();
    let start = sequence as isize * strides[0] + head as isize * strides[1];
    let start = x.layout().start_offset() + start as usize;
    matrix(x, start, [length, width], [strides[2], strides[3]])
}

/// Consecutive rows of a matrix.
fn rows(x: &FlexTensor, start: usize, count: usize) -> FlexTensor {
    let layout = x.layout().narrow(0, start, count);
    x.clone().with_layout(layout)
}

/// `c tanh(scale s / c) + bias` of a row.
#[inline(always)]
fn score_row(s: &mut [f32], bias: &[f32], scale: f32, cap: Option<f32>) {
    match cap {
        None => {
            for (s, b) in s.iter_mut().zip(bias) {
                *s = *s * scale + b;
            }
        }
        Some(cap) => {
            for (s, b) in s.iter_mut().zip(bias) {
                *s = cap * tanh(*s * scale / cap) + b;
            }
        }
    }
}

vectorized! {
    /// From scores to weights: rows of `width` keys, of the more that a row of the bias has. Keeps the largest score of each
    /// row, and the inverse of its sum of exponentials.
    fn softmax(s: &mut [f32], bias: &[f32], rows: &mut [f32], width: usize, scale: f32, cap: Option<f32>) {
        let keys = bias.len() / (rows.len() / 2);
        let lines = s.chunks_exact_mut(width).zip(bias.chunks_exact(keys));
        for ((s, bias), row) in lines.zip(rows.chunks_exact_mut(2)) {
            score_row(s, &bias[..width], scale, cap);
            let highest = largest(s, f32::MIN);
            for s in s.iter_mut() {
                *s = exp(*s - highest);
            }
            let inverse = 1.0 / sum(s, |s| s);
            for s in s.iter_mut() {
                *s *= inverse;
            }
            row.copy_from_slice(&[highest, inverse]);
        }
    }

    /// From scores to weights again, and from the gradient in the weights, `d`, to that in the product of q and k.
    fn slopes(
        s: &mut [f32],
        d: &mut [f32],
        bias: &[f32],
        rows: &[f32],
        width: usize,
        scale: f32,
        cap: Option<f32>,
    ) {
        let keys = bias.len() / (rows.len() / 2);
        let mut tangents = vec![0.0; if cap.is_some() { width } else { 0 }];
        let lines = s.chunks_exact_mut(width).zip(d.chunks_exact_mut(width));
        let lines = lines.zip(bias.chunks_exact(keys)).zip(rows.chunks_exact(2));
        for (((s, d), bias), row) in lines {
            let (highest, inverse) = (row[0], row[1]);
            if let Some(cap) = cap {
                for (t, s) in tangents.iter_mut().zip(s.iter()) {
                    *t = tanh(*s * scale / cap);
                }
            }
            score_row(s, &bias[..width], scale, cap);
            for s in s.iter_mut() {
                *s = exp(*s - highest) * inverse;
            }
            let mean = sum2(s, d, |p, d| p * d);
            for (s, d) in s.iter().zip(d.iter_mut()) {
                *d = *s * (*d - mean) * scale;
            }
            for (d, t) in d.iter_mut().zip(&tangents) {
                *d *= 1.0 - t * t;
            }
        }
    }
}

impl Attention {
    fn new(bias: &Tensor<4>, scale: f64, cap: Option<f64>, heads: Option<usize>) -> Option<Self> {
        let bias = match input(bias)? {
            super::Input::Plain(bias) => bias,
            super::Input::Recorded(bias) => bias.into_primitive(),
        };
        Some(Self {
            bias: bias.to_contiguous(),
            scale: scale as f32,
            cap: cap.map(|cap| cap as f32),
            heads: heads.unwrap_or(0),
        })
    }

    /// The rows of the bias of a sequence's queries.
    fn bias(&self, sequence: usize, from: usize, to: usize) -> &[f32] {
        let [_, _, length, keys] = shape(&self.bias);
        let start = sequence * length;
        &numbers(&self.bias)[(start + from) * keys..(start + to) * keys]
    }

    /// The chunks of the queries, each with the number of keys that it may look at.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let [_, _, length, keys] = shape(&self.bias);
        (0..length).step_by(CHUNK).map(move |from| {
            let to = (from + CHUNK).min(length);
            (from, to, keys - length + to)
        })
    }

    /// The result of one head, `[length, head]`, and what the softmax keeps of its rows.
    fn of_head(&self, [q, k, v]: &[FlexTensor; 3], sequence: usize) -> (Vec<f32>, Vec<f32>) {
        let [length, width] = shape(q);
        let mut kept = vec![0.0; 2 * length];
        let mut mixed = Vec::with_capacity(length * width);
        for (from, to, keys) in self.chunks() {
            let q = rows(q, from, to - from);
            let mut s = product(&q, &turned(&rows(k, 0, keys)), Threads::One);
            let bias = self.bias(sequence, from, to);
            let kept = &mut kept[2 * from..2 * to];
            softmax(&mut s, bias, kept, keys, self.scale, self.cap);
            let s = tensor(s, [to - from, keys]);
            mixed.extend(product(&s, &rows(v, 0, keys), Threads::One));
        }
        (mixed, kept)
    }

    /// The gradient in one head's q, `[length, head]`; adds those in k and v to `sums`.
    fn slopes_of_head(
        &self,
        [q, k, v]: &[FlexTensor; 3],
        kept: &[f32],
        gradient: &FlexTensor,
        sequence: usize,
        [of_k, of_v]: &mut [Vec<f32>; 2],
    ) -> Vec<f32> {
        let [length, width] = shape(q);
        let mut of_q = Vec::with_capacity(length * width);
        for (from, to, keys) in self.chunks() {
            let (k, v) = (rows(k, 0, keys), rows(v, 0, keys));
            let (q, g) = (rows(q, from, to - from), rows(gradient, from, to - from));
            let mut s = product(&q, &turned(&k), Threads::One);
            let mut d = product(&g, &turned(&v), Threads::One);
            let bias = self.bias(sequence, from, to);
            let kept = &kept[2 * from..2 * to];
            slopes(&mut s, &mut d, bias, kept, keys, self.scale, self.cap);
            let (s, d) = (tensor(s, [to - from, keys]), tensor(d, [to - from, keys]));
            add_product(of_v, &turned(&s), &g, Threads::One);
            add_product(of_k, &turned(&d), &q, Threads::One);
            of_q.extend(product(&d, &k, Threads::One));
        }
        of_q
    }

    fn forward(&self, qkv: [FlexTensor; 3]) -> (FlexTensor, Saved) {
        let [batch, heads, length, width] = shape(&qkv[0]);
        let [_, key_heads, _, _] = shape(&qkv[1]);
        let shared = heads / key_heads;
        let tasks = (0..batch * heads).into_par_iter().map(|task| {
            let (sequence, head) = (task / heads, task % heads);
            let [q, k, v] = &qkv;
            let views = [
                head_of(q, sequence, head),
                head_of(k, sequence, head / shared),
                head_of(v, sequence, head / shared),
            ];
            self.of_head(&views, sequence)
        });
        let (tiles, kept): (Vec<_>, Vec<_>) = tasks.collect::<Vec<_>>().into_iter().unzip();
        let columns: Vec<usize> = (0..heads).map(|head| head * width).collect();
        let mut mixed = vec![0.0; batch * length * heads * width];
        side_by_side(&mut mixed, &tiles, &columns, [length, width]);
        let kept = kept.concat();
        let mixed = tensor(mixed, [batch, length, heads, width]);
        (mixed, Saved { qkv, kept })
    }

    /// The gradients of all heads of q, k and v: tiles `[length or keys, head]`.
    fn backward(&self, saved: &Saved, gradient: &FlexTensor) -> [Vec<Vec<f32>>; 3] {
        let Saved { qkv, kept } = saved;
        let [batch, heads, length, _] = shape(&qkv[0]);
        let [_, key_heads, keys, width] = shape(&qkv[1]);
        let shared = heads / key_heads;
        let layout = gradient.layout().transpose(1, 2);
        let gradient = gradient.clone().with_layout(layout);
        let tasks = (0..batch * key_heads).into_par_iter().map(|task| {
            let (sequence, key_head) = (task / key_heads, task % key_heads);
            let [q, k, v] = qkv;
            let mut sums = [vec![0.0; keys * width], vec![0.0; keys * width]];
            let of_q = (key_head * shared..(key_head + 1) * shared).map(|head| {
                let views = [
                    head_of(q, sequence, head),
                    head_of(k, sequence, key_head),
                    head_of(v, sequence, key_head),
                ];
                let row = (sequence * heads + head) * length;
                let kept = &kept[2 * row..2 * (row + length)];
                let gradient = head_of(&gradient, sequence, head);
                self.slopes_of_head(&views, kept, &gradient, sequence, &mut sums)
            });
            (of_q.collect::<Vec<_>>(), sums)
        });
        let mut tiles = [Vec::new(), Vec::new(), Vec::new()];
        for (of_q, [of_k, of_v]) in tasks.collect::<Vec<_>>() {
            tiles[0].extend(of_q);
            tiles[1].push(of_k);
            tiles[2].push(of_v);
        }
        tiles
    }
}

/// Puts tiles `[length, width]`, those of one sequence after those of another, into the columns of a matrix whose rows are
/// the positions of all sequences.
fn side_by_side(
    matrix: &mut [f32],
    tiles: &[Vec<f32>],
    columns: &[usize],
    [length, width]: [usize; 2],
) {
    let sequences = tiles.len() / columns.len().max(1);
    let row_width = matrix.len() / (sequences * length).max(1);
    change_rows(matrix, row_width, |start, piece| {
        for (row, out) in (start..).zip(piece.chunks_exact_mut(row_width)) {
            let (sequence, position) = (row / length, row % length);
            let tiles = &tiles[sequence * columns.len()..];
            for (tile, column) in tiles.iter().zip(columns) {
                let from = &tile[position * width..(position + 1) * width];
                out[*column..column + width].copy_from_slice(from);
            }
        }
    });
}

impl Kernel<3> for Attention {
    type Saved = Saved;

    fn forward(&self, qkv: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        Attention::forward(self, qkv)
    }

    fn backward(
        &self,
        saved: Saved,
        gradient: FlexTensor,
        _: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let sizes: [[usize; 4]; 3] = saved.qkv.each_ref().map(shape);
        let tiles = Attention::backward(self, &saved, &gradient);
        let mut gradients = sizes.iter().zip(tiles).map(|(size, tiles)| {
            let [batch, heads, length, width] = *size;
            let columns: Vec<usize> = (0..heads).map(|head| head * width).collect();
            let mut sum = vec![0.0; batch * length * heads * width];
            side_by_side(&mut sum, &tiles, &columns, [length, width]);
            let sum = tensor(sum, [batch, length, heads, width]);
            let layout = sum.layout().transpose(1, 2);
            sum.with_layout(layout)
        });
        [gradients.next(), gradients.next(), gradients.next()]
    }
}

impl Kernel<1> for Attention {
    type Saved = Saved;

    fn forward(&self, [qkv]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        let qkv = qkv.to_contiguous();
        let [_, row] = shape(&qkv);
        let [batch, _, length, _] = shape(&self.bias);
        let (heads, width) = (self.heads, row / 3 / self.heads);
        let strides = [length * row, width, row, 1].map(|stride| stride as isize);
        let part = |part: usize| {
            let sizes = [batch, heads, length, width].into();
            let layout = Layout::new(
                sizes,
                strides.to_vec(),
                qkv.layout().start_offset() + part * row / 3,
            );
            qkv.clone().with_layout(layout)
        };
        Attention::forward(self, [part(0), part(1), part(2)])
    }

    fn backward(
        &self,
        saved: Saved,
        gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let [batch, heads, length, width] = shape(&saved.qkv[0]);
        let [of_q, of_k, of_v] = Attention::backward(self, &saved, &gradient);
        let row = 3 * heads * width;
        let mut tiles = Vec::with_capacity(3 * batch * heads);
        for sequence in 0..batch {
            for part in [&of_q, &of_k, &of_v] {
                tiles.extend_from_slice(&part[sequence * heads..(sequence + 1) * heads]);
            }
        }
        let columns: Vec<usize> = (0..3 * heads).map(|head| head * width).collect();
        let mut sum = vec![0.0; batch * length * row];
        side_by_side(&mut sum, &tiles, &columns, [length, width]);
        [Some(tensor(sum, [batch * length, row]))]
    }
}
