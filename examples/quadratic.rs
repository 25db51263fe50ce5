//! The smallest bilevel problem: `min_x |w*(x) - 3|^2` subject to `w*(x) = argmin_w |w - x|^2`, solved at x = w = 3.
//!
//! ```text
//! cargo run --release --example quadratic [-- DEVICE]
//! ```

use scalebio::burn::module::Param;
use scalebio::burn::tensor::Tensor;
use scalebio::{Bilevel, ScaleBio, Update};

type Vector = Param<Tensor<1>>;

fn main() -> scalebio::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "flex".to_owned());
    let device = scalebio::device(&name)?.autodiff();
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    };
    let zeros = || Vector::from_data([0.0, 0.0], &device);
    let mut run = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02)) // upper, lower
        .penalty(10.0)
        .start(problem, zeros(), zeros())?;
    for step in run.by_ref().take(500) {
        let step = step?;
        if step.index() % 100 == 0 {
            println!("{step}");
        }
    }
    println!("x = {}", run.upper().val().into_data());
    Ok(())
}
