//! Solves a quadratic with the solver alone: no models, no data, no tokenizers.

use scalebio::burn::module::Param;
use scalebio::burn::tensor::{Device, Tensor};
use scalebio::{Bilevel, ScaleBio, Update};

type Vector = Param<Tensor<1>>;

fn main() -> scalebio::Result<()> {
    let device = Device::flex().autodiff();
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    };
    let zeros = || Vector::from_data([0.0, 0.0], &device);
    let solution = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02))
        .penalty(10.0)
        .solve(problem, zeros(), zeros(), 500)?;
    for x in solution.upper.val().into_data().iter::<f64>() {
        println!("{x:.4}");
    }
    Ok(())
}
