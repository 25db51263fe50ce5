//! Gradients of `u` and `w` at the same time: the same run, whichever thread is faster.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use scalebio::{
    Bilevel, Error, Gradients, LowerObjective, Result, ScaleBio, Step, Update, UpperObjective,
};

type Vector = Param<Tensor<1>>;

fn vector(values: [f32; 3]) -> Vector {
    Vector::from_data(values, &Device::flex().autodiff())
}

fn method() -> ScaleBio {
    ScaleBio::new(Update::sgd(0.01), Update::adamw(0.02)).penalty(4.0)
}

/// Objectives that use `x`, `w` and `u` on their tapes, and hold a tensor.
fn problem() -> Bilevel<
    impl Fn(&Vector, &Vector) -> Tensor<1> + Sync,
    impl Fn(&Vector, &Vector) -> Tensor<1> + Sync,
> {
    let target = Tensor::<1>::from_data([3.0, -1.0, 0.5], &Device::flex());
    Bilevel {
        upper: move |x: &Vector, w: &Vector| {
            (w.val() - target.clone()).square().sum() + x.val().square().sum() * 0.1
        },
        lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    }
}

/// All numbers of a step, exactly.
fn digits(step: Result<Step>) -> String {
    format!("{:?}", step.unwrap())
}

/// A run in parallel takes the steps of a run in turn, bit for bit, again and again.
#[test]
fn a_run_in_parallel_is_the_run_in_turn_bit_for_bit() {
    let start = || {
        let (x, w) = (vector([0.1, -0.2, 0.3]), vector([1.0, 2.0, -1.0]));
        method().start(problem(), x, w).unwrap()
    };
    let expected: Vec<_> = start().take(50).map(digits).collect();
    for _ in 0..5 {
        let steps: Vec<_> = start().in_parallel().take(50).map(digits).collect();
        assert_eq!(steps, expected);
    }
}

/// Where `failure` says so, an objective fails at `u`, which is where the model is not `w`, which stands still.
struct Failing {
    failure: fn() -> Error,
}

impl UpperObjective<Vector, Vector> for Failing {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, _: &Vector, w: &Vector, _: &()) -> Tensor<1> {
        w.val().sum() * 0.0
    }
}

impl LowerObjective<Vector, Vector> for Failing {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, x: &Vector, w: &Vector, _: &()) -> Tensor<1> {
        (w.val() - x.val()).square().sum()
    }

    fn gradients(&self, x: &Vector, w: &Vector, batch: &()) -> Result<Gradients> {
        // Only u moves away from 1: its rate is not that of w.
        if w.val().into_data().iter::<f32>().any(|w| w < 0.9) {
            return Err((self.failure)());
        }
        Gradients::of(&LowerObjective::loss(self, x, w, batch), x, w)
    }
}

fn failing_run(failure: fn() -> Error) -> impl Iterator<Item = Result<Step>> {
    let problem = Bilevel {
        upper: Failing { failure },
        lower: Failing { failure },
    };
    ScaleBio::new(Update::sgd(1e-6), Update::sgd(1e-6))
        .auxiliary(Update::sgd(0.05))
        .penalty(1.0)
        .start(problem, vector([0.0; 3]), vector([1.0; 3]))
        .unwrap()
        .in_parallel()
}

/// An error of `u`'s thread ends the run as any other does.
#[test]
fn an_error_at_u_reaches_the_user() {
    let mut run = failing_run(|| Error::NotDifferentiable);
    let error = run.find_map(Result::err).unwrap();
    assert!(matches!(error, Error::NotDifferentiable), "{error}");
    assert!(run.next().is_none());
}

/// A panic of `u`'s thread is one of the run, with its message.
#[test]
fn a_panic_at_u_is_not_swallowed() {
    let run = failing_run(|| panic!("the objective is broken"));
    let panic = catch_unwind(AssertUnwindSafe(|| run.for_each(drop))).unwrap_err();
    let message = panic.downcast_ref::<&str>().unwrap();
    assert_eq!(*message, "the objective is broken");
}
