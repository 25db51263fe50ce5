//! Zeroth-order lower steps: no tape, reproducible, and right on closed forms.

use std::cell::Cell;
use std::rc::Rc;

use burn::module::Module;
use burn::tensor::Tensor;
use scalebio::methods::{Method, ZerothOrder};
use scalebio::{Bilevel, Error, Minibatches, Order, Update};

use crate::zoo::{
    Drawn, Vector, bits, devices, flex, largest_difference, softmax_of, three_sources, values,
    vector,
};

fn method() -> ZerothOrder {
    ZerothOrder::new(10.0, Update::sgd(0.02), 0.02)
}

/// `x` and `w` after `steps` on the three sources.
fn three(method: ZerothOrder, steps: usize) -> [Vec<f64>; 2] {
    let (x, w) = (vector(&[0.0; 3], &flex()), vector(&[0.0; 2], &flex()));
    let mut run = method.start(three_sources::problem(), x, w).unwrap();
    for step in run.by_ref().take(steps) {
        step.unwrap();
    }
    [values(run.upper().val()), values(run.lower().val())]
}

/// The noise of random directions vanishes with the gradients: the closed form is reached to 1e-6 at constant steps.
#[test]
fn reaches_the_closed_form_of_three_sources() {
    for device in devices() {
        let (x, w) = (vector(&[0.0; 3], &device), vector(&[0.0; 2], &device));
        let mut run = method().start(three_sources::problem(), x, w).unwrap();
        for step in run.by_ref().take(6000) {
            step.unwrap();
        }
        let p = softmax_of(&values(run.upper().val()));
        let error = largest_difference(&p, &three_sources::OPTIMUM);
        assert!(error < 1e-6, "{error}");
    }
}

/// The directions are the seed's: bit-identical runs for one seed, also where another run's draws come between, and
/// others for another.
#[test]
fn directions_follow_from_the_seed() {
    let bits_of = |state: [Vec<f64>; 2]| state.map(|values| bits(&values));
    let first = bits_of(three(method().seed(3), 20));
    assert_eq!(first, bits_of(three(method().seed(3), 20)));
    assert_ne!(first, bits_of(three(method().seed(4), 20)));

    let start = || {
        let (x, w) = (vector(&[0.0; 3], &flex()), vector(&[0.0; 2], &flex()));
        method()
            .seed(3)
            .start(three_sources::problem(), x, w)
            .unwrap()
    };
    let mut runs = [start(), start()];
    for _ in 0..20 {
        for run in &mut runs {
            run.next().unwrap().unwrap();
        }
    }
    for run in runs {
        assert_eq!(
            first,
            [run.upper(), run.lower()].map(|v| bits(&values(v.val())))
        );
    }
}

/// Directions are independent of samples drawn by the same seed: over many steps `s z` averages to the gradient, also where
/// the sample decides the sign of the slope.
#[test]
fn directions_and_minibatches_of_one_seed_are_independent() {
    const STEPS: usize = 4000;
    let size = 64; // As many as there are bits of the generator's first number.
    // Gradients of the four samples: their mean is 0.
    let slopes = [1.0, -1.0, -1.0, 1.0];
    let mut batches = Minibatches::new(4, 1).order(Order::Independent);
    let lower = Drawn::new(
        move || Ok(batches.draw()?.samples),
        move |_: &Vector, w: &Vector, sample: &usize| w.val().sum() * slopes[*sample],
    );
    let upper = |_: &Vector, w: &Vector| w.val().sum() * 0.0;
    let (x, w) = (vector(&[0.0], &flex()), vector(&vec![0.0; size], &flex()));
    let rate = 1e-3;
    let mut run = ZerothOrder::new(1.0, Update::sgd(0.1), rate)
        .start(Bilevel { upper, lower }, x, w)
        .unwrap();
    for step in run.by_ref().take(STEPS) {
        step.unwrap();
    }
    let means = values(run.lower().val()).into_iter();
    // Of standard deviation sqrt(64 / 4000) = .13; with one stream for both, some are 1.
    let largest = means.fold(0.0_f64, |most, w| most.max(w.abs() / (rate * STEPS as f64)));
    assert!(largest < 0.6, "{largest}");
}

/// Each step moves all entries of `w` by the same length along signs, and no two steps by the same signs.
#[test]
fn steps_are_along_signs() {
    let size = 41; // Odd, so that signs never cancel.
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    };
    let (x, w) = (
        vector(&vec![0.0; size], &flex()),
        vector(&vec![1.0; size], &flex()),
    );
    let method = ZerothOrder::new(1.0, Update::sgd(0.01), 1e-3);
    let mut run = method.start(problem, x, w).unwrap();
    let mut seen: Vec<Vec<bool>> = Vec::new();
    let mut before = values(run.lower().val());
    for _ in 0..5 {
        let step = run.next().unwrap().unwrap();
        let after = values(run.lower().val());
        let moved: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let length = step.gradient_norms().lower / (size as f64).sqrt() * 1e-3;
        assert!(
            moved.iter().all(|m| (m.abs() - length).abs() < 1e-12),
            "{moved:?}"
        );
        let signs: Vec<bool> = moved.iter().map(|m| *m > 0.0).collect();
        assert!(signs.contains(&true) && signs.contains(&false));
        let opposite = signs.iter().map(|sign| !sign).collect();
        assert!(!seen.contains(&signs) && !seen.contains(&opposite));
        seen.push(signs);
        before = after;
    }
}

/// No loss of `w` has a tape, and a gradient in `x` has one only if the loss depends on `x`: memory is that of inference.
#[test]
fn losses_leave_no_tape() {
    let tracked = Rc::new(Cell::new([0, 0]));
    let counter = Rc::clone(&tracked);
    let lower = move |x: &Vector, w: &Vector| {
        assert!(!w.val().is_tracked());
        let loss = (w.val() - x.val()).square().sum();
        let [without, with] = counter.get();
        counter.set(if loss.is_tracked() {
            [without, with + 1]
        } else {
            [without + 1, with]
        });
        loss
    };
    let upper = |_: &Vector, w: &Vector| -> Tensor<1> {
        let loss = (w.val() - 3.0).square().sum();
        assert!(!loss.is_tracked());
        loss
    };
    let (x, w) = (vector(&[0.0, 1.0], &flex()), vector(&[1.0, 0.0], &flex()));
    let mut run = method().start(Bilevel { upper, lower }, x, w).unwrap();
    let step = run.next().unwrap().unwrap();
    // G at u and at w, on both sides each, and two gradients in x.
    assert_eq!(tracked.get(), [4, 2]);
    assert_eq!(step.gradient_calls(), 3);
    assert!(run.lower().val().is_require_grad());
}

/// A loss that is no single number, or not finite, ends the run as an error.
#[test]
fn losses_that_cannot_be_used_are_errors() {
    let first = |lower: fn(&Vector, &Vector) -> Tensor<1>| {
        let upper = |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum();
        let (x, w) = (vector(&[0.0, 1.0], &flex()), vector(&[1.0, 0.0], &flex()));
        let mut run = method().start(Bilevel { upper, lower }, x, w).unwrap();
        let error = run.next().unwrap().unwrap_err();
        assert!(run.next().is_none());
        error
    };
    let not_scalar = first(|x, w| w.val() - x.val());
    assert!(
        matches!(not_scalar, Error::NotScalar { elements: 2 }),
        "{not_scalar}"
    );
    let not_finite = first(|x, w| (w.val() - x.val() - 2.0).log().sum());
    assert!(
        matches!(not_finite, Error::NonFinite { .. }),
        "{not_finite}"
    );
}

/// Settings that cannot work are errors at the start.
#[test]
fn settings_are_checked() {
    let start = |method: ZerothOrder| {
        let (x, w) = (vector(&[0.0; 3], &flex()), vector(&[0.0; 2], &flex()));
        method.start(three_sources::problem(), x, w).err()
    };
    for method in [
        ZerothOrder::new(0.0, Update::sgd(0.1), 0.1),
        ZerothOrder::new(1.0, Update::sgd(0.0), 0.1),
        ZerothOrder::new(1.0, Update::sgd(0.1), -0.1),
        method().smoothing(0.0),
        method().smoothing(f64::NAN),
    ] {
        assert!(matches!(start(method), Some(Error::Setting { .. })));
    }
    let (x, w) = (
        vector(&[0.0; 3], &flex()),
        vector(&[0.0; 2], &flex()).no_grad(),
    );
    let frozen = method().start(three_sources::problem(), x, w).err();
    assert!(matches!(frozen, Some(Error::NotTrainable { .. })));
}
