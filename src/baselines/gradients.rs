//! What the methods need to know of gradients: their numbers, and the angle between two.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

/// Calls `take` with the numbers of each parameter's gradient and the parameter's place in the walk. A parameter without a
/// gradient is passed over.
pub(super) fn for_each<M: Module>(
    module: &M,
    gradients: &GradientsParams,
    take: impl FnMut(u64, &[f32]),
) {
    let mut walk = Walk {
        gradients,
        take,
        place: 0,
    };
    module.visit(&mut walk);
}

struct Walk<'a, F> {
    gradients: &'a GradientsParams,
    take: F,
    place: u64,
}

impl<F: FnMut(u64, &[f32])> ModuleVisitor for Walk<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            (self.take)(self.place, &numbers(gradient));
        }
        self.place += 1;
    }
}

fn numbers<const D: usize>(gradient: Tensor<D>) -> Vec<f32> {
    let data = gradient.cast(DType::F32).into_data();
    match data.as_slice::<f32>() {
        Ok(numbers) => numbers.to_vec(), // the other way is several times slower
        Err(_) => data.iter().collect(),
    }
}

/// The inner product of two gradients, in double precision.
fn inner<M: Module>(module: &M, a: &GradientsParams, b: &GradientsParams) -> f64 {
    let mut product = Product { a, b, sum: 0.0 };
    module.visit(&mut product);
    product.sum
}

struct Product<'a> {
    a: &'a GradientsParams,
    b: &'a GradientsParams,
    sum: f64,
}

impl ModuleVisitor for Product<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let (Some(a), Some(b)) = (self.a.get::<D>(param.id), self.b.get::<D>(param.id)) {
            let (a, b) = (numbers(a), numbers(b));
            let terms = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            self.sum += terms.sum::<f64>();
        }
    }
}

/// The cosine of the angle between two gradients of a module; 0 if one of them is.
pub(crate) fn cosine<M: Module>(module: &M, a: &GradientsParams, b: &GradientsParams) -> f64 {
    let lengths = (inner(module, a, a) * inner(module, b, b)).sqrt();
    match lengths > 0.0 {
        true => inner(module, a, b) / lengths,
        false => 0.0,
    }
}
