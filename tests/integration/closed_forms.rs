//! The closed forms and single-loop runs of algorithm.md, section 5, at the numbers stated there
//! (recomputed by tests/fixtures/reference/closed_forms.py).

use approx::assert_abs_diff_eq;
use burn::tensor::{Device, Tensor};
use scalebio::{Lisa, LowerObjective, Penalty, ScaleBio, Update, UpperObjective};

use crate::zoo::{self, Vector, devices, largest_difference, softmax_of, three_sources, values};

/// Distance of the learned weights from `p*` after a single-loop run from 0.
fn error_of_run(device: &Device, method: ScaleBio, steps: usize) -> f64 {
    let solution = method
        .solve(
            three_sources::problem(),
            zoo::vector(&[0.0; 3], device),
            zoo::vector(&[0.0; 2], device),
            steps,
        )
        .unwrap();
    let p = softmax_of(&values(solution.upper.val()));
    largest_difference(&p, &three_sources::OPTIMUM)
}

fn constant(alpha: f64, inner: f64) -> ScaleBio {
    ScaleBio::new(Update::sgd(0.05), Update::sgd(inner / alpha)).penalty(alpha)
}

#[test]
fn penalty_gradient_at_exact_inner_optima_is_the_closed_form() {
    let exact = [0.44407, 0.06962, -0.51369];
    let logits = [0.3, -0.2, 0.1];
    for device in devices() {
        let x = zoo::vector(&logits, &device);
        let p = softmax_of(&logits);
        let minimizer = [0, 1].map(|d| (0..3).map(|i| p[i] * three_sources::CENTERS[i][d]).sum());
        for alpha in [1.0, 10.0, 100.0, 1000.0] {
            let penalized = [0, 1]
                .map(|d: usize| (three_sources::TARGET[d] + alpha * minimizer[d]) / (1.0 + alpha));
            let problem = three_sources::problem();
            let gradient = |w: [f64; 2]| {
                let w: Vector = zoo::vector(&w, &device);
                let mut g = LowerObjective::gradients(&problem.lower, &x, &w, &()).unwrap();
                values(g.of_upper.remove::<1>(x.id).unwrap())
            };
            let (at_w, at_u) = (gradient(penalized), gradient(minimizer));
            for i in 0..3 {
                let ratio = alpha / (1.0 + alpha);
                assert_abs_diff_eq!(
                    alpha * (at_w[i] - at_u[i]),
                    ratio * exact[i],
                    epsilon = 1e-5
                );
            }
        }
    }
}

#[test]
fn single_loop_reaches_the_optimum_with_penalty_10() {
    for device in devices() {
        let early = error_of_run(&device, constant(10.0, 0.5), 500);
        assert!(early <= 3.95e-5, "{early}");
        let late = error_of_run(&device, constant(10.0, 0.5), 2000);
        assert!(late < 1e-12, "{late}");
    }
}

#[test]
fn single_loop_reaches_the_optimum_with_penalty_100() {
    for device in devices() {
        let error = error_of_run(&device, constant(100.0, 0.5), 2000);
        assert!(error < 1e-12, "{error}");
    }
}

#[test]
fn single_loop_reaches_the_optimum_with_penalty_1() {
    for device in devices() {
        let error = error_of_run(&device, constant(1.0, 0.3), 2000);
        assert!(error < 1.1e-8, "{error}");
    }
}

#[test]
fn stages_reach_the_optimum_with_growing_penalty_and_falling_rates() {
    for device in devices() {
        let method = ScaleBio::new(Update::sgd(0.05), Update::sgd(0.5))
            .penalty(Penalty::geometric(1.0, 2.0, 5, 1000));
        let error = error_of_run(&device, method, 5000);
        assert!(error < 1e-9, "{error}");
    }
}

#[test]
fn one_random_coordinate_at_a_time_reaches_the_optimum() {
    type Coordinates = Vec<Vector>;
    let both = |w: &Coordinates| [w[0].val(), w[1].val()];
    for device in devices() {
        let problem = scalebio::Bilevel {
            upper: move |_: &Vector, w: &Coordinates| three_sources::upper_loss(&both(w)),
            lower: move |x: &Vector, w: &Coordinates| three_sources::lower_loss(x.val(), &both(w)),
        };
        let start: Coordinates = vec![zoo::vector(&[0.0], &device), zoo::vector(&[0.0], &device)];
        let solution = constant(10.0, 0.5)
            .layers(Lisa::over(&start, "").unwrap().active(1).period(1).seed(0))
            .solve(problem, zoo::vector(&[0.0; 3], &device), start, 4000)
            .unwrap();
        let p = softmax_of(&values(solution.upper.val()));
        let error = largest_difference(&p, &three_sources::OPTIMUM);
        assert!(error < 1e-9, "{error}");
    }
}

#[test]
fn upper_objective_may_depend_on_the_upper_variable() {
    // min_x 1/2 |w*(x) - 3|^2 + 1/2 |x - 1|^2 with w*(x) = x has its solution at x = 2. At the penalized
    // solution w = x + (3 - x) / (1 + alpha), so that x = (1 + 3 c) / (1 + c) with c = alpha / (1 + alpha).
    for device in devices() {
        let alpha = 10.0;
        let square = |t: Tensor<1>| t.square().sum() * 0.5;
        let problem = scalebio::Bilevel {
            upper: move |x: &Vector, w: &Vector| square(w.val() - 3.0) + square(x.val() - 1.0),
            lower: move |x: &Vector, w: &Vector| square(w.val() - x.val()),
        };
        let (x, w) = (zoo::vector(&[0.0], &device), zoo::vector(&[0.0], &device));
        let at_start = UpperObjective::gradients(&problem.upper, &x, &w, &()).unwrap();
        assert_abs_diff_eq!(at_start.loss, 5.0, epsilon = 1e-12);
        let solution = constant(alpha, 0.5).solve(problem, x, w, 2000).unwrap();
        let c = alpha / (1.0 + alpha);
        let expected = (1.0 + 3.0 * c) / (1.0 + c);
        assert_abs_diff_eq!(values(solution.upper.val())[0], expected, epsilon = 1e-10);
    }
}
