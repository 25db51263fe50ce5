//! Modules and their gradients as vectors: shifts, inner products, linear combinations by reference.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use crate::solver::gradients::widened;
use crate::{Error, Result};

/// An error where a parameter of `w` is of half precision: for methods that move `w` by less than half precision can
/// tell, be it a step without a float32 copy or the shift of a difference.
pub(super) fn full_precision<W: Module>(method: &str, w: &W) -> Result<()> {
    struct Half(Option<DType>);

    impl ModuleVisitor for Half {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let dtype = param.val().dtype();
            if matches!(dtype, DType::F16 | DType::BF16) {
                self.0 = Some(dtype);
            }
        }
    }

    let mut half = Half(None);
    w.visit(&mut half);
    let Some(dtype) = half.0 else { return Ok(()) };
    let given = if dtype == DType::F16 {
        "float16"
    } else {
        "bfloat16"
    };
    Err(Error::setting(
        "float type of the lower variable",
        format!("{given} under `{method}`"),
        "float32 or float64",
        "load the model in float32, or use `ScaleBio`, which keeps float32 copies of what trains",
    ))
}

/// `module + factor * direction`, with the parameter ids of `module`, and gradients of its own. Parameters that
/// are frozen, or that `direction` has no entry for, stay.
pub(super) fn shifted<M: Module>(module: &M, factor: f64, direction: &GradientsParams) -> M {
    module.clone().map(&mut Shift { factor, direction })
}

struct Shift<'a> {
    factor: f64,
    direction: &'a GradientsParams,
}

impl ModuleMapper for Shift<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let require_grad = value.is_require_grad();
        let moved = match self.direction.get::<D>(id).filter(|_| require_grad) {
            // A leaf of its own also where it does not move: the original must not get a share of the gradients.
            None => value.detach(),
            Some(by) => {
                let dtype = value.dtype();
                let sum = widened(value.inner()) + widened(by).mul_scalar(self.factor);
                Tensor::from_inner(sum.cast(dtype))
            }
        };
        Param::from_mapped_value(id, moved.set_require_grad(require_grad), mapper)
    }
}

/// The parameters of `module` that require a gradient, as a vector.
pub(super) fn values<M: Module>(module: &M) -> GradientsParams {
    struct Values(GradientsParams);

    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.register(param.id, param.val().inner());
            }
        }
    }

    let mut values = Values(GradientsParams::new());
    module.visit(&mut values);
    values.0
}

/// `module` with all parameters at zero, under the same ids.
pub(super) fn zeros<M: Module>(module: &M) -> M {
    struct Zeros;

    impl ModuleMapper for Zeros {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, mapper) = param.consume();
            let require_grad = value.is_require_grad();
            let zeros = value.detach().zeros_like().set_require_grad(require_grad);
            Param::from_mapped_value(id, zeros, mapper)
        }
    }

    module.clone().map(&mut Zeros)
}

/// `sum_k c_k v_k`, in the order given. A vector without an entry counts as zero there.
pub(super) fn linear<M: Module>(module: &M, terms: &[(f64, &GradientsParams)]) -> GradientsParams {
    struct Linear<'a> {
        terms: &'a [(f64, &'a GradientsParams)],
        sum: GradientsParams,
    }

    impl ModuleVisitor for Linear<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let terms = self.terms.iter();
            let sum = terms
                .filter_map(|(factor, vector)| {
                    Some(widened(vector.get::<D>(param.id)?).mul_scalar(*factor))
                })
                .reduce(|sum, term| sum + term);
            if let Some(sum) = sum.filter(|_| param.is_require_grad()) {
                self.sum.register(param.id, sum);
            }
        }
    }

    let mut linear = Linear {
        terms,
        sum: GradientsParams::new(),
    };
    module.visit(&mut linear);
    linear.sum
}

/// The inner product of two vectors.
pub(super) fn dot<M: Module>(module: &M, a: &GradientsParams, b: &GradientsParams) -> f64 {
    struct Dot<'a> {
        a: &'a GradientsParams,
        b: &'a GradientsParams,
        sum: f64,
    }

    impl ModuleVisitor for Dot<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let (Some(a), Some(b)) = (self.a.get::<D>(param.id), self.b.get::<D>(param.id)) {
                self.sum += (widened(a) * widened(b)).sum().into_scalar::<f64>();
            }
        }
    }

    let mut dot = Dot { a, b, sum: 0.0 };
    module.visit(&mut dot);
    dot.sum
}
