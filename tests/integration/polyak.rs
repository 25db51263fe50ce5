//! Polyak's step sizes: the formula, and no rate to tune.

use burn::tensor::{DType, Tensor};
use scalebio::methods::{Method, Penalized, Polyak, Soba};
use scalebio::{Bilevel, Error, Update};

use crate::estimators::advance;
use crate::zoo::{Vector, flex, largest_difference, values, vector};

/// `F = 1/2 |w - 3|^2` over `G = scale / 2 sum_j c_j (w_j - a_j x_j)^2`, both with lowest value 0, and `G` at every `x`.
fn interpolating(
    scale: f64,
) -> Bilevel<impl Fn(&Vector, &Vector) -> Tensor<1>, impl Fn(&Vector, &Vector) -> Tensor<1>> {
    let like = |values: [f64; 2], w: &Vector| {
        Tensor::<1>::from_data(values, (&w.val().device(), DType::F64))
    };
    Bilevel {
        upper: move |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum() * 0.5,
        lower: move |x: &Vector, w: &Vector| {
            let off = w.val() - x.val() * like([1.0, 2.0], w);
            (off.square() * like([1.0, 10.0], w)).sum() * (0.5 * scale)
        },
    }
}

/// Polyak's steps solve lower problems whose curvature is anything from .01 to 1000 with the same settings, at caps where
/// constant steps diverge.
#[test]
fn polyak_steps_need_no_tuning() {
    let device = flex();
    let end = |method: Penalized, scale: f64| {
        let (x, w) = (vector(&[0.0, 0.0], &device), vector(&[0.5, -1.0], &device));
        let mut run = method.start(interpolating(scale), x, w).unwrap();
        let done = run.by_ref().take(1500).all(|step| step.is_ok());
        (
            done,
            largest_difference(&values(run.upper().val()), &[3.0, 1.5]),
        )
    };
    for scale in [0.01, 1.0, 100.0] {
        let method = || Penalized::new(100.0, Update::sgd(1e3), Update::sgd(1e6));
        let (_, off) = end(method().polyak(Polyak::new()), scale);
        assert!(off < 1e-5, "scale {scale}: {off}");
        let (done, off) = end(method(), scale);
        assert!(!done || off > 1.0, "{off}");
    }
    let (x, w) = (vector(&[0.0, 0.0], &device), vector(&[0.5, -1.0], &device));
    let mut run = Soba::new(Update::sgd(1e3), Update::sgd(1e6))
        .system(Update::sgd(0.1))
        .polyak(Polyak::new())
        .start(interpolating(1.0), x, w)
        .unwrap();
    let x = advance(&mut *run, 1500);
    assert!(largest_difference(&x[..2], &[3.0, 1.5]) < 1e-5, "{x:?}");
}

/// The rate that a step reports is Polyak's formula, and the update's rate where that is less.
#[test]
fn polyak_rates_follow_the_formula() {
    let device = flex();
    let (x, w) = (vector(&[0.0, 0.0], &device), vector(&[0.5, -1.0], &device));
    let polyak = Polyak::new().lowest(-0.5, -2.0).factors(4.0, 2.0);
    let method = Penalized::new(10.0, Update::sgd(0.7), Update::sgd(1e3)).polyak(polyak);
    let mut run = method.start(interpolating(1.0), x, w).unwrap();
    // G = 1/2 (.5^2 + 10), its gradient (.5, -10), of alpha G ten times as long. No gap yet: the cap for x.
    let first = run.next().unwrap().unwrap().learning_rates();
    let expected = 10.0 * (5.125 + 2.0) / (2.0 * 100.0 * 100.25);
    assert!((first.lower - expected).abs() < 1e-12 && (first.auxiliary - expected).abs() < 1e-12);
    assert!((first.upper - 0.7).abs() < 1e-15);
    let second = run.nth(20).unwrap().unwrap();
    let norm = second.gradient_norms().upper;
    let expected = (second.upper_loss() + 0.5) / (4.0 * norm * norm);
    assert!(
        expected < 0.7 && (second.learning_rates().upper - expected).abs() < 1e-12,
        "{second:?}"
    );
}

/// Settings that cannot work are errors at the start.
#[test]
fn settings_are_checked() {
    let method = Soba::new(Update::sgd(0.1), Update::sgd(0.1));
    let start = |method: Soba| {
        let (x, w) = (vector(&[0.0, 0.0], &flex()), vector(&[0.5, -1.0], &flex()));
        method.start(interpolating(1.0), x, w).err()
    };
    assert!(start(method.clone()).is_none());
    for polyak in [
        Polyak::new().factors(0.0, 1.0),
        Polyak::new().factors(1.0, f64::INFINITY),
        Polyak::new().lowest(f64::NAN, 0.0),
        Polyak::new().lowest(0.0, f64::NEG_INFINITY),
    ] {
        assert!(
            matches!(
                start(method.clone().polyak(polyak)),
                Some(Error::Setting { .. })
            ),
            "{polyak:?}"
        );
    }
}
