//! Second-order products by central differences of first gradients.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use super::oracle::Oracle;
use super::vector::{dot, linear, shifted};
use crate::{Gradients, LowerObjective, Result, UpperObjective};

/// `H_xw v` (as [`Gradients::of_upper`]) and `H_ww v` (as [`Gradients::of_lower`]) of the lower objective on the draw,
/// from two gradients:
///
/// ```text
/// (grad G(x, w + e v) - grad G(x, w - e v)) / 2 e,    e = r max(1, |w|) / |v|
/// ```
///
/// With `r` the cube root of the float type's precision, truncation and rounding are of one size: a relative error of
/// about 1e-10 in float64 and 1e-4 in float32, where third derivatives are of the size of the second.
pub(super) fn second_order<F, G, X, W>(
    oracle: &Oracle<F, G, X, W>,
    x: &X,
    w: &W,
    v: &GradientsParams,
) -> Result<Gradients>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    let length = dot(w, v, v).sqrt();
    if length == 0.0 {
        return Ok(Gradients::default());
    }
    let (size, precision) = size_and_precision(w);
    let e = precision.cbrt() * size.max(1.0) / length;
    let plus = oracle.g(x, &shifted(w, e, v))?;
    let minus = oracle.g(x, &shifted(w, -e, v))?;
    let half = 0.5 / e;
    Ok(Gradients {
        of_upper: linear(x, &[(half, &plus.of_upper), (-half, &minus.of_upper)]),
        of_lower: linear(w, &[(half, &plus.of_lower), (-half, &minus.of_lower)]),
        ..Gradients::default()
    })
}

/// Euclidean norm of a module's float parameters, and the precision of the coarsest of them.
fn size_and_precision<M: Module>(module: &M) -> (f64, f64) {
    struct Size {
        square: f64,
        precision: f64,
    }

    impl ModuleVisitor for Size {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            let precision = match value.dtype() {
                DType::F64 => f64::EPSILON,
                DType::F16 => 9.8e-4,
                DType::BF16 => 7.8e-3,
                _ => f64::from(f32::EPSILON),
            };
            self.precision = self.precision.max(precision);
            self.square += value.square().sum().into_scalar::<f64>();
        }
    }

    let mut size = Size {
        square: 0.0,
        precision: f64::EPSILON,
    };
    module.visit(&mut size);
    (size.square.sqrt(), size.precision)
}
