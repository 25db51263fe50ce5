//! Layer norm and root mean square norm of rows.
//!
//! `y = n w + b` with `n = (x - mean(x)) r` and `r = 1 / sqrt(var(x) + epsilon)`; without the mean and with
//! `mean(x^2)` for the variance it is the RMS norm. With `h = g w`, the gradient in x is
//! `r (h - mean(h) - n mean(h n))`, without the middle term for the RMS norm; in w and b it is the sum over rows of `g n`
//! and `g`. Saved are x, and two numbers a row; plain Burn records eight operations of the size of x.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::math::{sum, sum2};
use super::simd::{change_rows, fill_both, sum_rows, vectorized};
use super::{Kernel, apply, input, numbers, shape, tensor};

/// Layer norm of each row of `[rows, width]`: Ba et al., "Layer Normalization" (2016).
pub(crate) fn layer_norm(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    epsilon: f64,
) -> Option<Tensor<2>> {
    let kernel = Norm {
        epsilon: epsilon as f32,
        centred: true,
        from_one: false,
    };
    apply(kernel, [input(x), input(weight), input(bias)])
}

/// `x / sqrt(mean(x^2) + epsilon) w` of each row of `[rows, width]`, or with `1 + w` for `w`.
pub(crate) fn rms_norm(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    epsilon: f64,
    from_one: bool,
) -> Option<Tensor<2>> {
    let kernel = Norm {
        epsilon: epsilon as f32,
        centred: false,
        from_one,
    };
    apply(kernel, [input(x), input(weight)])
}

#[derive(Clone, Copy, Debug)]
struct Norm {
    epsilon: f32,
    centred: bool,
    from_one: bool,
}

#[derive(Clone, Debug)]
struct Saved {
    x: FlexTensor,
    weight: Vec<f32>,
    /// Mean and `r` of each row.
    rows: Vec<f32>,
}

vectorized! {
    /// Mean and `r` of each row.
    fn statistics(out: &mut [f32], x: &[f32], norm: Norm) {
        let width = x.len() / (out.len() / 2);
        for (out, x) in out.chunks_exact_mut(2).zip(x.chunks_exact(width)) {
            let mean = match norm.centred {
                true => sum(x, |x| x) / width as f32,
                false => 0.0,
            };
            let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
            out.copy_from_slice(&[mean, 1.0 / (variance + norm.epsilon).sqrt()]);
        }
    }
}

vectorized! {
    fn normalize(y: &mut [f32], x: &[f32], rows: &[f32], weight: &[f32], bias: &[f32]) {
        let width = weight.len();
        let lines = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((y, x), row) in lines.zip(rows.chunks_exact(2)) {
            let (mean, r) = (row[0], row[1]);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * r * w + b;
            }
        }
    }
}

vectorized! {
    /// From the gradient in the result to that in x.
    fn slopes(g: &mut [f32], x: &[f32], rows: &[f32], weight: &[f32], centred: bool) {
        let width = weight.len();
        let lines = g.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((d, x), row) in lines.zip(rows.chunks_exact(2)) {
            let (mean, r) = (row[0], row[1]);
            for (d, w) in d.iter_mut().zip(weight) {
                *d *= w;
            }
            let shift = match centred {
                true => sum(d, |h| h) / width as f32,
                false => 0.0,
            };
            let along = sum2(d, x, |h, x| h * (x - mean)) * r / width as f32;
            for (d, x) in d.iter_mut().zip(x) {
                *d = r * (*d - shift - (x - mean) * r * along);
            }
        }
    }
}

vectorized! {
    /// Adds up the gradients in the weight and, if `sum` is twice as wide, in the bias.
    fn parameter_slopes(sum: &mut [f32], x: &[f32], g: &[f32], rows: &[f32], width: usize) {
        let (of_weight, of_bias) = sum.split_at_mut(width);
        let lines = x.chunks_exact(width).zip(g.chunks_exact(width));
        for ((x, g), row) in lines.zip(rows.chunks_exact(2)) {
            let (mean, r) = (row[0], row[1]);
            for ((sum, x), g) in of_weight.iter_mut().zip(x).zip(g) {
                *sum += g * (x - mean) * r;
            }
            for (sum, g) in of_bias.iter_mut().zip(g) {
                *sum += g;
            }
        }
    }
}

impl Norm {
    fn forward(
        self,
        x: FlexTensor,
        weight: &FlexTensor,
        bias: Option<&FlexTensor>,
    ) -> (FlexTensor, Saved) {
        let x = x.to_contiguous();
        let [count, width] = shape(&x);
        let mut weight = numbers(&weight.to_contiguous()).to_vec();
        if self.from_one {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        let bias = match bias {
            Some(bias) => numbers(&bias.to_contiguous()).to_vec(),
            None => vec![0.0; width],
        };
        let all = numbers(&x);
        let [y, rows] = fill_both(count, [width, 2], |start, y, rows| {
            let x = &all[start * width..start * width + y.len()];
            statistics(&mut *rows, x, self);
            normalize(y, x, rows, &weight, &bias);
        });
        (tensor(y, [count, width]), Saved { x, weight, rows })
    }

    fn of_x(self, saved: &Saved, mut gradient: FlexTensor) -> FlexTensor {
        let (x, width) = (numbers(&saved.x), saved.weight.len());
        change_rows(gradient.storage_mut(), width, |start, g| {
            let x = &x[start * width..start * width + g.len()];
            let rows = &saved.rows[2 * start..2 * start + 2 * (g.len() / width)];
            slopes(g, x, rows, &saved.weight, self.centred);
        });
        gradient
    }

    /// The gradients in the weight and, if asked for, behind it in the bias.
    fn of_parameters(saved: &Saved, gradient: &FlexTensor, bias: bool) -> Vec<f32> {
        let [count, width] = shape(&saved.x);
        let (x, g) = (numbers(&saved.x), numbers(gradient));
        let parameters = width * (1 + usize::from(bias));
        sum_rows(count, parameters, |range, sum| {
            let (from, to) = (range.start * width, range.end * width);
            let rows = &saved.rows[2 * range.start..2 * range.end];
            parameter_slopes(sum, &x[from..to], &g[from..to], rows, width);
        })
    }
}

impl Kernel<2> for Norm {
    type Saved = Saved;

    fn forward(&self, [x, weight]: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        Norm::forward(*self, x, &weight, None)
    }

    fn backward(
        &self,
        saved: Saved,
        gradient: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let width = saved.weight.len();
        let of_weight = || tensor(Self::of_parameters(&saved, &gradient, false), [width]);
        let of_weight = wanted[1].then(of_weight);
        [wanted[0].then(|| self.of_x(&saved, gradient)), of_weight]
    }
}

impl Kernel<3> for Norm {
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        Norm::forward(*self, x, &weight, Some(&bias))
    }

    fn backward(
        &self,
        saved: Saved,
        gradient: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let width = saved.weight.len();
        let parameters = (wanted[1] || wanted[2]).then(|| {
            let mut of_weight = Self::of_parameters(&saved, &gradient, true);
            let of_bias = of_weight.split_off(width);
            (tensor(of_weight, [width]), tensor(of_bias, [width]))
        });
        let (of_weight, of_bias) = parameters.unzip();
        let of_x = wanted[0].then(|| self.of_x(&saved, gradient));
        [of_x, of_weight, of_bias]
    }
}
