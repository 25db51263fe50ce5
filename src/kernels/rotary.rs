//! Rotary positions: number i of a head turns with number i + half by an angle that depends on the position.
//!
//! `y_i = c x_i - s x_(i + half)` and `y_(i + half) = c x_(i + half) + s x_i`; the gradient turns back, with `-s`. One pass
//! each way and nothing saved but the table of angles; in plain Burn it is a matmul and three passes.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::simd::{fill_rows, wide};
use super::{Kernel, apply, input, numbers, shape, tensor};

/// Turns queries or keys `[batch, length, heads, head]`, at each position by the angles whose cosines and sines are in
/// `angles`, `[length, 2, half]`. Numbers of a head from `2 half` on do not turn.
pub(crate) fn turn(x: &Tensor<4>, angles: &Arc<[f32]>) -> Option<Tensor<4>> {
    apply(Turn(angles.clone()), [input(x)])
}

#[derive(Clone, Debug)]
struct Turn(Arc<[f32]>);

#[inline(always)]
fn turn_heads((y, x, angles, head, sign): (&mut [f32], &[f32], &[f32], usize, f32)) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    for (y, x) in y.chunks_exact_mut(head).zip(x.chunks_exact(head)) {
        let (y_low, y_rest) = y.split_at_mut(half);
        let (y_high, y_fixed) = y_rest.split_at_mut(half);
        let (low, rest) = x.split_at(half);
        let (high, fixed) = rest.split_at(half);
        for i in 0..half {
            let (c, s) = (cos[i], sign * sin[i]);
            y_low[i] = c * low[i] - s * high[i];
            y_high[i] = c * high[i] + s * low[i];
        }
        y_fixed.copy_from_slice(fixed);
    }
}

impl Turn {
    fn turned(&self, x: FlexTensor, sign: f32) -> FlexTensor {
        let x = x.to_contiguous();
        let [batch, length, heads, head] = shape(&x);
        let (width, all) = (heads * head, numbers(&x));
        let angles = self.0.len() / length.max(1);
        let y = fill_rows(batch * length, width, |start, y| {
            for (row, y) in (start..).zip(y.chunks_exact_mut(width)) {
                let x = &all[row * width..(row + 1) * width];
                let position = row % length;
                let angles = &self.0[position * angles..(position + 1) * angles];
                wide(turn_heads, (y, x, angles, head, sign));
            }
        });
        tensor(y, [batch, length, heads, head])
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
