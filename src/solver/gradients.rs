//! Arithmetic of gradients: sums over micro-batches, linear combinations, the global norm.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use crate::{Error, Gradients, Result};

/// Loss and gradients of a draw: the sum over its micro-batches.
pub(crate) fn total<X: Module, W: Module, B>(
    draw: &[B],
    upper: &X,
    lower: &W,
    gradients: impl Fn(&B) -> Result<Gradients>,
) -> Result<Gradients> {
    let mut sum = Gradients::default();
    for batch in draw {
        let next = gradients(batch)?;
        sum.loss += next.loss;
        let parts = sum.parts.len().max(next.parts.len());
        sum.parts.resize(parts, 0.0);
        for (sum, part) in sum.parts.iter_mut().zip(next.parts) {
            *sum += part;
        }
        sum.of_upper = combine(upper, vec![(1.0, sum.of_upper), (1.0, next.of_upper)]);
        sum.of_lower = combine(lower, vec![(1.0, sum.of_lower), (1.0, next.of_lower)]);
    }
    Ok(sum)
}

/// The linear combination `sum_k c_k g_k`, in the order given. A parameter that a term has no entry
/// for counts as zero there. Parameters that are frozen are left out, also if an objective gave them a
/// gradient: they must not move, nor count in a norm.
///
/// Sums and products of gradients in half precision are in float32, as the optimizer wants them; a single gradient with
/// the factor 1 stays as it is.
pub(crate) fn combine<M: Module>(
    module: &M,
    terms: Vec<(f64, GradientsParams)>,
) -> GradientsParams {
    let mut combination = Combination {
        terms,
        sum: GradientsParams::new(),
    };
    module.visit(&mut combination);
    combination.sum
}

struct Combination {
    terms: Vec<(f64, GradientsParams)>,
    sum: GradientsParams,
}

impl ModuleVisitor for Combination {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        let mut sum: Option<Tensor<D>> = None;
        for (factor, gradients) in &mut self.terms {
            let Some(mut gradient) = gradients.remove::<D>(param.id) else {
                continue;
            };
            // Exact comparison: only the literal 1 saves the pass.
            #[allow(clippy::float_cmp)]
            if *factor != 1.0 {
                gradient = widened(gradient).mul_scalar(*factor);
            }
            sum = Some(match sum {
                Some(sum) => widened(sum) + widened(gradient),
                None => gradient,
            });
        }
        if let Some(sum) = sum {
            self.sum.register(param.id, sum);
        }
    }
}

/// Euclidean norm over all parameters of a module. NaN or infinite if any entry is.
pub(crate) fn global_norm<M: Module>(module: &M, gradients: &GradientsParams) -> f64 {
    let mut norm = Norm {
        gradients,
        squares: Vec::new(),
    };
    module.visit(&mut norm);
    if norm.squares.is_empty() {
        return 0.0;
    }
    // One tensor, so that a GPU is asked for a result once and not once a parameter.
    let squares = Tensor::cat(norm.squares, 0).sum();
    squares.into_scalar::<f64>().sqrt()
}

struct Norm<'a> {
    gradients: &'a GradientsParams,
    squares: Vec<Tensor<1>>,
}

impl ModuleVisitor for Norm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let square = square_sum(widened(gradient)); // squares of half precision overflow or vanish
            let square = match self.squares.first() {
                // A model may be spread over devices.
                Some(first) => square.cast(first.dtype()).to_device(&first.device()),
                None => square,
            };
            self.squares.push(square);
        }
    }
}

/// An error for a limit of [`clip`] that cannot work.
pub(crate) fn check_limit(limit: Option<f64>) -> Result<()> {
    match limit {
        Some(norm) if !(norm > 0.0 && norm.is_finite()) => Err(Error::setting(
            "clip",
            norm,
            "a finite norm greater than 0",
            "leave it out for no clipping; the paper uses 1",
        )),
        _ => Ok(()),
    }
}

fn square_sum<const D: usize>(gradient: Tensor<D>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if let Some(sum) = crate::kernels::square_sum(&gradient) {
        return sum;
    }
    gradient.square().sum()
}

/// Scales gradients down to a global norm of at most `limit`.
pub(crate) fn clip<M: Module>(
    module: &M,
    gradients: GradientsParams,
    norm: f64,
    limit: Option<f64>,
) -> GradientsParams {
    match limit {
        Some(limit) if norm > limit => combine(module, vec![(limit / norm, gradients)]),
        _ => gradients,
    }
}

/// The tensor in float32 if it is in half precision; else as it is.
pub(crate) fn widened<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(DType::F32),
        _ => tensor,
    }
}
