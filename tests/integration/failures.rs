//! A run that fails stands at its last good state: a loss or a gradient that is not finite, and a draw
//! that fails, end it before any variable has moved.

use std::cell::Cell;
use std::rc::Rc;

use burn::tensor::Tensor;
use scalebio::{Bilevel, Error, Result, ScaleBio, Update};

use crate::zoo::{self, Drawn, Vector, bits, coupled, devices, flex, state};

/// The step that fails.
const BAD: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    UpperAtW,
    LowerAtW,
    LowerAtU,
}

/// What is added to the loss.
type Poison = fn(&Vector, &Vector) -> Tensor<1>;

fn method() -> ScaleBio {
    ScaleBio::new(Update::adam(0.02), Update::adamw(0.01)).penalty(3.0)
}

/// Runs into `poison` at step 3, and checks where the run is left. Returns the quantity and the value
/// that the error names.
fn fail_with(place: Place, poison: Poison) -> (String, f64) {
    let mut found = Vec::new();
    for device in devices() {
        let (x, w) = (
            zoo::vector(&coupled::X, &device),
            zoo::vector(&coupled::W, &device),
        );
        let lower_id = w.id;
        let draws = Rc::new(Cell::new(0));
        let (count, upper_draws) = (Rc::clone(&draws), Rc::clone(&draws));
        let problem = Bilevel {
            upper: move |x: &Vector, w: &Vector| {
                let loss = coupled::upper_loss(x, w);
                if place == Place::UpperAtW && upper_draws.get() == BAD + 1 {
                    return loss + poison(x, w);
                }
                loss
            },
            lower: Drawn::new(
                move || {
                    count.set(count.get() + 1);
                    Ok(vec![()])
                },
                move |x: &Vector, w: &Vector, (): &()| {
                    let loss = coupled::lower_loss(x, w);
                    let here = if w.id == lower_id {
                        Place::LowerAtW
                    } else {
                        Place::LowerAtU
                    };
                    if place == here && draws.get() == BAD + 1 {
                        return loss + poison(x, w);
                    }
                    loss
                },
            ),
        };
        let mut run = method().start(problem, x, w).unwrap();
        let good = run.by_ref().take(BAD).map(Result::unwrap).count();
        assert_eq!(good, BAD);
        let before = state(&run);
        let error = run.next().unwrap().unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("step 3: "), "{text}");
        let Error::NonFinite {
            step: BAD,
            quantity,
            value,
        } = error
        else {
            panic!("{text}");
        };
        assert!(text.contains(&quantity), "{text}");
        assert!((0..3).all(|_| run.next().is_none()));
        assert_eq!(run.steps(), BAD);
        assert_eq!(bits(&state(&run).concat()), bits(&before.concat()));
        let solution = run.finish();
        assert_eq!(solution.steps, BAD);
        let left = [solution.upper, solution.lower, solution.auxiliary];
        let left: Vec<f64> = left.iter().flat_map(|p| zoo::values(p.val())).collect();
        assert_eq!(bits(&left), bits(&before.concat()));
        found.push((quantity, value));
    }
    let [flex, ndarray] = found.try_into().unwrap();
    assert_eq!(flex.0, ndarray.0);
    flex
}

const LOSSES: [(Place, &str); 3] = [
    (Place::UpperAtW, "L1(w)"),
    (Place::LowerAtW, "L2(w)"),
    (Place::LowerAtU, "L2(u)"),
];

#[test]
fn a_loss_that_is_not_a_number_ends_the_run_at_its_last_good_state() {
    for (place, name) in LOSSES {
        let (quantity, value) = fail_with(place, |_, w| w.val().sum() * f64::NAN);
        assert!(quantity.contains(name), "{place:?}: {quantity}");
        assert!(value.is_nan());
    }
}

#[test]
fn an_infinite_loss_ends_the_run_at_its_last_good_state() {
    for (place, name) in LOSSES {
        for poison in [
            (|_, w| (w.val() * 0.0 + 1.0).sum() * f64::INFINITY) as Poison,
            |_, w| (w.val() * 0.0 + 1.0).sum() * f64::NEG_INFINITY,
        ] {
            let (quantity, value) = fail_with(place, poison);
            assert!(quantity.contains(name), "{place:?}: {quantity}");
            assert!(value.is_infinite());
        }
    }
}

#[test]
fn a_gradient_of_a_finite_loss_that_is_not_finite_ends_the_run_at_its_last_good_state() {
    // The square root at 0: finite, with gradient 0 * inf = NaN or 1 * inf.
    let in_w: [Poison; 2] = [
        |_, w| (w.val() * 0.0).sqrt().sum(),
        |_, w| (w.val() - w.val().detach()).sqrt().sum(),
    ];
    let in_x: [Poison; 2] = [
        |x, w| (x.val() * 0.0).sqrt().sum() + w.val().sum() * 0.0,
        |x, w| (x.val() - x.val().detach()).sqrt().sum() + w.val().sum() * 0.0,
    ];
    for (place, name) in [
        (Place::UpperAtW, "gradient of w"),
        (Place::LowerAtW, "gradient of w"),
        (Place::LowerAtU, "gradient of u"),
    ] {
        for poison in in_w {
            let (quantity, value) = fail_with(place, poison);
            assert!(quantity.contains(name), "{place:?}: {quantity}");
            assert!(!value.is_finite());
        }
        for poison in in_x {
            let (quantity, value) = fail_with(place, poison);
            assert!(quantity.contains("hypergradient"), "{place:?}: {quantity}");
            assert!(!value.is_finite());
        }
    }
}

#[test]
fn a_gradient_of_x_that_is_not_finite_is_found_at_the_first_step_too() {
    // There the gap counts nothing, but 0 * NaN must not pass for 0.
    let problem = Bilevel {
        upper: coupled::upper_loss,
        lower: |x: &Vector, w: &Vector| coupled::lower_loss(x, w) + (x.val() * 0.0).sqrt().sum(),
    };
    for device in devices() {
        let (x, w) = (
            zoo::vector(&coupled::X, &device),
            zoo::vector(&coupled::W, &device),
        );
        let mut run = method().start(problem, x, w).unwrap();
        let before = state(&run);
        let error = run.next().unwrap().unwrap_err();
        assert!(matches!(error, Error::NonFinite { step: 0, .. }), "{error}");
        assert_eq!(bits(&state(&run).concat()), bits(&before.concat()));
    }
}

/// What the user's data source says.
#[derive(Debug)]
struct Unplugged;

impl std::fmt::Display for Unplugged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the disk is unplugged")
    }
}

impl std::error::Error for Unplugged {}

#[test]
fn a_draw_that_fails_ends_the_run_at_its_last_good_state_with_the_error_of_the_objective() {
    for upper_fails in [true, false] {
        let failing = |fails: bool| {
            let mut draws = 0;
            move || -> Result<Vec<()>> {
                draws += 1;
                if fails && draws == BAD + 1 {
                    let error: Box<dyn std::error::Error + Send + Sync> = Box::new(Unplugged);
                    return Err(error.into());
                }
                Ok(vec![()])
            }
        };
        let problem = Bilevel {
            upper: Drawn::new(failing(upper_fails), |x: &Vector, w: &Vector, (): &()| {
                coupled::upper_loss(x, w)
            }),
            lower: Drawn::new(failing(!upper_fails), |x: &Vector, w: &Vector, (): &()| {
                coupled::lower_loss(x, w)
            }),
        };
        let device = zoo::flex();
        let (x, w) = (
            zoo::vector(&coupled::X, &device),
            zoo::vector(&coupled::W, &device),
        );
        let mut run = method().start(problem, x, w).unwrap();
        assert_eq!(run.by_ref().take(BAD).filter(Result::is_ok).count(), BAD);
        let before = state(&run);
        let error = run.next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the disk is unplugged");
        assert!(matches!(error, Error::Objective(source) if source.is::<Unplugged>()));
        assert!(run.next().is_none());
        assert_eq!(bits(&state(&run).concat()), bits(&before.concat()));
        assert_eq!(run.finish().steps, BAD);
    }
}

#[test]
fn solve_hands_on_the_error_of_a_step() {
    let problem = Bilevel {
        upper: coupled::upper_loss,
        lower: |x: &Vector, w: &Vector| coupled::lower_loss(x, w) * f64::NAN,
    };
    let device = zoo::flex();
    let (x, w) = (
        zoo::vector(&coupled::X, &device),
        zoo::vector(&coupled::W, &device),
    );
    let error = method().solve(problem, x, w, 10).unwrap_err();
    assert!(matches!(error, Error::NonFinite { step: 0, .. }), "{error}");
}

#[test]
fn a_loss_that_depends_on_frozen_blocks_only_has_gradient_zero() {
    // F depends on the first coordinate alone, which is frozen half of the time.
    type Coordinates = Vec<Vector>;
    let start: Coordinates = vec![zoo::vector(&[0.0], &flex()), zoo::vector(&[0.0], &flex())];
    let problem = Bilevel {
        upper: |_: &Vector, w: &Coordinates| (w[0].val() - 3.0).square(),
        lower: |x: &Vector, w: &Coordinates| {
            (w[0].val() - x.val()).square() + (w[1].val() - x.val()).square()
        },
    };
    let lisa = scalebio::Lisa::over(&start, "")
        .unwrap()
        .active(1)
        .period(1);
    let solution = ScaleBio::new(Update::sgd(0.05), Update::sgd(0.02))
        .layers(lisa)
        .solve(problem, zoo::vector(&[0.0], &flex()), start, 3000)
        .unwrap();
    assert!((zoo::values(solution.upper.val())[0] - 3.0).abs() < 1e-3);
}
