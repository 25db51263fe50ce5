//! `f(x)`, and the gated `f(x) u`, for the non-linearities of language models.
//!
//! Forward one pass; backward one pass, `g f'(x)`, from the saved input: neither the value nor the slope is stored. Plain
//! Burn takes five to ten passes for the tanh GELU, and calls `erff` or `expf` number by number.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::math::{exp, normal_below, normal_density, sigmoid};
use super::simd::{change_both, change_rows, fill_rows, vectorized};
use super::{Kernel, apply, input, numbers, tensor};

/// A non-linearity.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Curve {
    /// `x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`, the tanh approximation of GELU.
    GeluTanh,
    /// `x P(normal < x)`.
    Gelu,
    /// `max(0, x)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
}

/// `f(x)` of each number.
pub(crate) fn curve<const D: usize>(curve: Curve, x: &Tensor<D>) -> Option<Tensor<D>> {
    apply(curve, [input(x)])
}

/// `f(x) u` of each pair of numbers.
pub(crate) fn gated<const D: usize>(
    curve: Curve,
    x: &Tensor<D>,
    u: &Tensor<D>,
) -> Option<Tensor<D>> {
    apply(curve, [input(x), input(u)])
}

/// Value and slope of a curve at x.
trait Function {
    fn value(x: f32) -> f32;
    fn both(x: f32) -> (f32, f32);
}

struct GeluTanh;

impl GeluTanh {
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = Self::LINEAR * 0.044_715;
}

impl Function for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x * (Self::LINEAR + Self::CUBIC * x * x))
    }

    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        let gate = sigmoid(x * (Self::LINEAR + Self::CUBIC * x * x));
        let slope = Self::LINEAR + 3.0 * Self::CUBIC * x * x;
        (x * gate, gate + x * gate * (1.0 - gate) * slope)
    }
}

struct Gelu;

impl Function for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal_below(x)
    }

    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        let below = normal_below(x);
        (x * below, below + x * normal_density(x))
    }
}

struct Relu;

impl Function for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.max(0.0)
    }

    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 })
    }
}

struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x / (1.0 + exp(-x))
    }

    #[inline(always)]
    fn both(x: f32) -> (f32, f32) {
        let gate = sigmoid(x);
        (x * gate, gate + x * gate * (1.0 - gate))
    }
}

vectorized! {
    fn values<F: Function>(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = F::value(*x);
        }
    }

    /// From the gradient in the result to that in x.
    fn slopes<F: Function>(g: &mut [f32], x: &[f32]) {
        for (g, x) in g.iter_mut().zip(x) {
            *g *= F::both(*x).1;
        }
    }

    fn products<F: Function>(y: &mut [f32], x: &[f32], u: &[f32]) {
        for ((y, x), u) in y.iter_mut().zip(x).zip(u) {
            *y = F::value(*x) * u;
        }
    }

    /// From x and the gradient in the result to the gradients in x and u.
    fn gate_slopes<F: Function>(x: &mut [f32], g: &mut [f32], u: &[f32]) {
        for ((x, g), u) in x.iter_mut().zip(g).zip(u) {
            let (value, slope) = F::both(*x);
            *x = *g * u * slope;
            *g *= value;
        }
    }
}

/// Calls a function with the curve as a type, so that there is no choice within its loop.
macro_rules! by_curve {
    ($curve:expr, $function:ident($($argument:expr),+)) => {
        match $curve {
            Curve::GeluTanh => $function::<GeluTanh>($($argument),+),
            Curve::Gelu => $function::<Gelu>($($argument),+),
            Curve::Relu => $function::<Relu>($($argument),+),
            Curve::Silu => $function::<Silu>($($argument),+),
        }
    };
}

impl Kernel<1> for Curve {
    type Saved = Option<FlexTensor>;

    fn forward(&self, [x]: [FlexTensor; 1], [wanted]: [bool; 1]) -> (FlexTensor, Self::Saved) {
        let x = x.to_contiguous();
        let all = numbers(&x);
        let y = fill_rows(all.len(), 1, |start, y| {
            let x = &all[start..start + y.len()];
            by_curve!(self, values(y, x));
        });
        (tensor(y, x.layout().shape().clone()), wanted.then_some(x))
    }

    fn backward(
        &self,
        x: Self::Saved,
        mut gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let of_x = x.map(|x| {
            let all = numbers(&x);
            change_rows(gradient.storage_mut(), 1, |start, g| {
                let x = &all[start..start + g.len()];
                by_curve!(self, slopes(g, x));
            });
            gradient
        });
        [of_x]
    }
}

impl Kernel<2> for Curve {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [x, u]: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Self::Saved) {
        let (x, u) = (x.to_contiguous(), u.to_contiguous());
        let (gates, factors) = (numbers(&x), numbers(&u));
        let y = fill_rows(gates.len(), 1, |start, y| {
            let end = start + y.len();
            by_curve!(self, products(y, &gates[start..end], &factors[start..end]));
        });
        (tensor(y, x.layout().shape().clone()), (x, u))
    }

    fn backward(
        &self,
        (mut x, u): Self::Saved,
        mut gradient: FlexTensor,
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let factors = numbers(&u);
        change_both([x.storage_mut(), gradient.storage_mut()], |start, x, g| {
            let u = &factors[start..start + x.len()];
            by_curve!(self, gate_slopes(x, g, u));
        });
        [Some(x), Some(gradient)]
    }
}
