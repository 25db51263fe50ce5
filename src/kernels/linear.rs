//! `y = x W + b`, with the weight as the checkpoint stores it: `[in, out]`, or `[out, in]` for `x W^T + b`.
//!
//! The gradients are `g W^T` in x, `x^T g` in W, in the weight's own layout (plain Burn leaves a view that each later pass
//! copies again), and the sum over rows of g in b, which is added in place. A frozen weight's x is not saved.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::product::{Threads, product};
use super::simd::{change_rows, sum_rows, vectorized};
use super::{Kernel, apply, input, numbers, shape, tensor, turned};

/// `[rows, in]` to `[rows, out]`; `outputs_first` says that the weight is `[out, in]`.
pub(crate) fn linear(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    outputs_first: bool,
) -> Option<Tensor<2>> {
    let kernel = Linear { outputs_first };
    match bias {
        Some(bias) => apply(kernel, [input(x), input(weight), input(bias)]),
        None => apply(kernel, [input(x), input(weight)]),
    }
}

#[derive(Clone, Copy, Debug)]
struct Linear {
    outputs_first: bool,
}

/// What the gradients of the other one need.
#[derive(Clone, Debug)]
struct Saved {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
}

vectorized! {
    fn add_bias(y: &mut [f32], bias: &[f32]) {
        for y in y.chunks_exact_mut(bias.len()) {
            for (y, b) in y.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

vectorized! {
    fn add_rows(sum: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sum.len()) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

impl Linear {
    /// The weight as `[in, out]`.
    fn inward(self, weight: &FlexTensor) -> FlexTensor {
        match self.outputs_first {
            true => turned(weight),
            false => weight.clone(),
        }
    }

    fn forward(self, x: FlexTensor, weight: FlexTensor, wanted: [bool; 2]) -> (FlexTensor, Saved) {
        let inward = self.inward(&weight);
        let y = product(&x, &inward, Threads::All);
        let y = tensor(y, [shape::<2>(&x)[0], shape::<2>(&inward)[1]]);
        let saved = Saved {
            x: wanted[1].then_some(x),
            weight: wanted[0].then_some(weight),
        };
        (y, saved)
    }

    fn backward(self, saved: Saved, gradient: &FlexTensor) -> [Option<FlexTensor>; 2] {
        let times = |a: &FlexTensor, b: &FlexTensor| {
            let numbers = product(a, b, Threads::All);
            tensor(numbers, [shape::<2>(a)[0], shape::<2>(b)[1]])
        };
        let of_x = |weight| times(gradient, &turned(&self.inward(&weight)));
        let of_weight = |x| match self.outputs_first {
            true => times(&turned(gradient), &x),
            false => times(&turned(&x), gradient),
        };
        [saved.weight.map(of_x), saved.x.map(of_weight)]
    }
}

impl Kernel<2> for Linear {
    type Saved = Saved;

    fn forward(&self, [x, weight]: [FlexTensor; 2], wanted: [bool; 2]) -> (FlexTensor, Saved) {
        Linear::forward(*self, x, weight, wanted)
    }

    fn backward(
        &self,
        saved: Saved,
        gradient: FlexTensor,
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        Linear::backward(*self, saved, &gradient)
    }
}

impl Kernel<3> for Linear {
    type Saved = Saved;

    fn forward(
        &self,
        [x, weight, bias]: [FlexTensor; 3],
        wanted: [bool; 3],
    ) -> (FlexTensor, Saved) {
        let (mut y, saved) = Linear::forward(*self, x, weight, [wanted[0], wanted[1]]);
        let bias = bias.to_contiguous();
        let bias = numbers(&bias);
        let all: &mut [f32] = y.storage_mut();
        change_rows(all, bias.len(), |_, y| add_bias(y, bias));
        (y, saved)
    }

    fn backward(
        &self,
        saved: Saved,
        gradient: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let [of_x, of_weight] = Linear::backward(*self, saved, &gradient);
        let of_bias = wanted[2].then(|| {
            let [rows, width] = shape(&gradient);
            let all = numbers(&gradient);
            let sum = sum_rows(rows, width, |range, sum| {
                add_rows(sum, &all[range.start * width..range.end * width]);
            });
            tensor(sum, [width])
        });
        [of_x, of_weight, of_bias]
    }
}
