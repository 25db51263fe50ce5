//! Rotary positions: number i of a head turns with number i + half by an angle that depends on the position.
//!
//! `y_i = c x_i - s x_(i + half)` and `y_(i + half) = c x_(i + half) + s x_i`; the gradient turns back, with `-s`. One pass
//! each way and nothing saved but the table of angles; in plain Burn it is a matmul and three passes.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::simd::{change_rows, vectorized};
use super::{Kernel, apply, contiguous, input, shape};

/// Turns queries or keys `[batch, length, heads, head]`, at each position by the angles whose cosines and sines are in
/// `angles`, `[length, 2, half]`. Numbers of a head from `2 half` on do not turn.
pub(crate) fn turn(x: &Tensor<4>, angles: &Arc<[f32]>) -> Option<Tensor<4>> {
    apply(Turn(angles.clone()), [input(x)])
}

#[derive(Clone, Debug)]
struct Turn(Arc<[f32]>);

vectorized! {
    /// Turns the heads of a position.
    fn turn_heads(x: &mut [f32], angles: &[f32], head: usize, sign: f32) {
        let half = angles.len() / 2;
        let (cos, sin) = angles.split_at(half);
        for x in x.chunks_exact_mut(head) {
            let (low, rest) = x.split_at_mut(half);
            let pairs = low.iter_mut().zip(&mut rest[..half]);
            for (((low, high), c), s) in pairs.zip(cos).zip(sin) {
                let (a, b, s) = (*low, *high, sign * s);
                *low = c * a - s * b;
                *high = c * b + s * a;
            }
        }
    }
}

impl Turn {
    fn turned(&self, x: FlexTensor, sign: f32) -> FlexTensor {
        let [_, length, heads, head] = shape(&x);
        let (mut x, width) = (contiguous(x), heads * head);
        let angles = self.0.len() / length.max(1);
        change_rows(x.storage_mut(), width, |start, piece| {
            for (row, x) in (start..).zip(piece.chunks_exact_mut(width)) {
                let position = row % length;
                let angles = &self.0[position * angles..(position + 1) * angles];
                turn_heads(x, angles, head, sign);
            }
        });
        x
    }
}

impl Kernel<1> for Turn {
    type Saved = ();

    fn forward(&self, [x]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, ()) {
        (self.turned(x, 1.0), ())
    }

    fn backward(&self, (): (), gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(self.turned(gradient, -1.0))]
    }
}
