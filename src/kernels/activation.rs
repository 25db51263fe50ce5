//! `f(x)`, and the gated `f(x) u`, for the non-linearities of language models.
//!
//! Forward one pass; backward one pass, `g f'(x)`, from the saved input: neither the value nor the slope is stored. Plain
//! Burn takes five to ten passes for the tanh GELU, and calls `erff` or `expf` number by number.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::math::{exp, normal_below, normal_density, sigmoid};
use super::simd::{fill_rows, wide};
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
    const LINEAR: f32 = 1.595_769_1;
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

#[inline(always)]
fn values<F: Function>((y, x): (&mut [f32], &[f32])) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = F::value(*x);
    }
}

/// From the gradients in the result to those in x, in place.
#[inline(always)]
fn slopes<F: Function>((d, x, g): (&mut [f32], &[f32], &[f32])) {
    for ((d, x), g) in d.iter_mut().zip(x).zip(g) {
        *d = g * F::both(*x).1;
    }
}

#[inline(always)]
fn products<F: Function>((y, x, u): (&mut [f32], &[f32], &[f32])) {
    for ((y, x), u) in y.iter_mut().zip(x).zip(u) {
        *y = F::value(*x) * u;
    }
}

/// The gradient in x, from the saved x and u and that in the result.
#[inline(always)]
fn gate_slopes<F: Function>((d, x, u, g): (&mut [f32], &[f32], &[f32], &[f32])) {
    for (((d, x), u), g) in d.iter_mut().zip(x).zip(u).zip(g) {
        *d = g * u * F::both(*x).1;
    }
}

/// Calls a function with the curve as a type, so that there is no choice within its loop.
macro_rules! by_curve {
    ($curve:expr, $function:ident, $arguments:expr) => {
        match $curve {
            Curve::GeluTanh => wide($function::<GeluTanh>, $arguments),
            Curve::Gelu => wide($function::<Gelu>, $arguments),
            Curve::Relu => wide($function::<Relu>, $arguments),
            Curve::Silu => wide($function::<Silu>, $arguments),
        }
    };
}

/// A tensor of the shape of `like`, filled piece by piece.
fn filled(like: &FlexTensor, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
    let shape = like.layout().shape().clone();
    let count = shape.num_elements();
    tensor(fill_rows(count, 1, f), [count])
        .with_layout(burn::backend::flex::Layout::contiguous(shape))
}

impl Kernel<1> for Curve {
    type Saved = Option<FlexTensor>;

    fn forward(&self, [x]: [FlexTensor; 1], [wanted]: [bool; 1]) -> (FlexTensor, Self::Saved) {
        let x = x.to_contiguous();
        let all = numbers(&x);
        let y = filled(&x, |start, y| {
            let x = &all[start..start + y.len()];
            by_curve!(self, values, (y, x));
        });
        (y, wanted.then_some(x))
    }

    fn backward(
        &self,
        x: Self::Saved,
        gradient: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        [x.map(|x| {
            let (all, gradients) = (numbers(&x), numbers(&gradient));
            filled(&x, |start, d| {
                let end = start + d.len();
                by_curve!(self, slopes, (d, &all[start..end], &gradients[start..end]));
            })
        })]
    }
}

impl Kernel<2> for Curve {
    type Saved = (FlexTensor, FlexTensor);

    fn forward(&self, [x, u]: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Self::Saved) {
        let (x, u) = (x.to_contiguous(), u.to_contiguous());
        let (gates, values) = (numbers(&x), numbers(&u));
        let y = filled(&x, |start, y| {
            let end = start + y.len();
            by_curve!(self, products, (y, &gates[start..end], &values[start..end]));
        });
        (y, (x, u))
    }

    fn backward(
        &self,
        (x, u): Self::Saved,
        gradient: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let (gates, values, gradients) = (numbers(&x), numbers(&u), numbers(&gradient));
        let of_x = wanted[0].then(|| {
            filled(&x, |start, d| {
                let end = start + d.len();
                let saved = (&gates[start..end], &values[start..end]);
                by_curve!(
                    self,
                    gate_slopes,
                    (d, saved.0, saved.1, &gradients[start..end])
                );
            })
        });
        let of_u = wanted[1].then(|| {
            filled(&u, |start, d| {
                let end = start + d.len();
                by_curve!(
                    self,
                    products,
                    (d, &gates[start..end], &gradients[start..end])
                );
            })
        });
        [of_x, of_u]
    }
}
