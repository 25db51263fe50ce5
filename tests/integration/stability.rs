//! What keeps learned weights from being noise: a floor and a pull to a prior change the answer in the way that is
//! written down.

use approx::assert_abs_diff_eq;
use burn::module::list_param_ids;
use burn::optim::GradientsParams;
use proptest::prelude::*;
use scalebio::reweight::{self, Draws, Pull, SourceWeights};
use scalebio::{Bilevel, LowerObjective, Result, ScaleBio, Update, UpperObjective};

use crate::zoo::samples::{Points, Rows};
use crate::zoo::{self, Vector, flex, largest_difference, values};

fn weights(logits: &[f64], floor: f64) -> SourceWeights {
    let names = (0..logits.len()).map(|i| format!("source{i}"));
    let logits = zoo::tensor(logits, &flex());
    let weights = SourceWeights::from_logits(names, logits).unwrap();
    weights.with_floor(floor).unwrap()
}

fn normalized(shares: &[f64]) -> Vec<f64> {
    let sum: f64 = shares.iter().sum();
    shares.iter().map(|share| share / sum).collect()
}

/// The gradient of `value` in the logits by central differences.
fn differences(logits: &[f64], value: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    (0..logits.len())
        .map(|i| {
            let at = |offset: f64| {
                let mut moved = logits.to_vec();
                moved[i] += offset;
                value(&moved)
            };
            (at(step) - at(-step)) / (2.0 * step)
        })
        .collect()
}

fn of_logits(gradients: &mut GradientsParams, weights: &SourceWeights) -> Vec<f64> {
    values(gradients.remove::<1>(list_param_ids(weights)[0]).unwrap())
}

/// Sources of one point each, so that there is no noise, and a validation set of `validation` points.
fn points(sources: &[[f64; 2]], validation: &[[f64; 2]]) -> (Draws<Points>, Draws<Points>) {
    let device = flex().inner();
    let rows = |sources: Vec<Vec<Vec<f64>>>| {
        let batch = sources.iter().map(Vec::len).sum();
        let device = device.clone();
        Draws::new(Points(Rows { sources, device }), batch)
    };
    let each = sources.iter().map(|point| vec![point.to_vec()]).collect();
    let all = validation.iter().map(|point| point.to_vec()).collect();
    (rows(each), rows(vec![all]))
}

const CORNERS: [[f64; 2]; 3] = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]];

/// Where `min L1 + pull` over [`CORNERS`] ends for a validation point, with penalty 10.
fn learned(validation: [f64; 2], floor: f64, pull: Option<Pull>, steps: usize) -> (Vec<f64>, f64) {
    let (training, target) = points(&CORNERS, &[validation]);
    let mut problem = reweight::problem(training, target).unwrap();
    if let Some(pull) = pull {
        problem.upper = problem.upper.pull(pull);
    }
    let alpha = 10.0;
    let mut run = ScaleBio::new(Update::sgd(0.05), Update::sgd(0.5 / alpha))
        .penalty(alpha)
        .start(
            problem,
            weights(&[0.0; 3], floor),
            zoo::vector(&[0.0, 0.0], &flex()),
        )
        .unwrap();
    run.by_ref()
        .take(steps)
        .for_each(|step| drop(step.unwrap()));
    (run.upper().weights(), alpha)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// No weight is below the floor, they add up to 1, and the differentiable weights are the same numbers.
    #[test]
    fn weights_with_a_floor_stay_above_it_and_add_up_to_one(
        logits in prop::collection::vec(-60.0..60.0_f64, 2..6),
        share in 0.0..0.99_f64,
    ) {
        let floor = share / logits.len() as f64;
        let weights = weights(&logits, floor);
        let p = weights.weights();
        prop_assert!(p.iter().all(|p| *p >= floor), "{p:?}");
        prop_assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        prop_assert!(largest_difference(&p, &values(weights.probabilities())) < 1e-12);
    }

    /// The closed forms are the derivatives of what they say: of the weighted loss and of the pull, with a floor or without.
    #[test]
    fn gradients_in_the_logits_are_those_of_differences(
        logits in prop::collection::vec(-2.0..2.0_f64, 3),
        shares in prop::collection::vec(0.1..1.0_f64, 3),
        floor in prop::sample::select(vec![0.0, 0.1, 0.3]),
        strength in 0.1..3.0_f64,
    ) {
        let (training, validation) = points(&CORNERS, &[[1.0, 2.0], [0.5, 0.0], [3.0, 1.0]]);
        let pull = Pull::new(strength, normalized(&shares)).unwrap();
        // Three micro-batches: the pull must count once, not three times.
        let mut problem = reweight::problem(training, validation.micro_batch(1)).unwrap();
        problem.upper = problem.upper.pull(pull);
        let Bilevel { mut upper, mut lower } = problem;
        let w = zoo::vector(&[0.7, -0.2], &flex());
        let lower_draw = LowerObjective::<SourceWeights, Vector>::sample(&mut lower).unwrap();
        let upper_draw = UpperObjective::<SourceWeights, Vector>::sample(&mut upper).unwrap();
        prop_assert_eq!(upper_draw.len(), 3);

        let given = weights(&logits, floor);
        let sum = |gradients: Vec<Result<scalebio::Gradients>>| {
            let mut loss = 0.0;
            let mut of_logits_sum = vec![0.0; 3];
            for gradients in gradients {
                let mut gradients = gradients.unwrap();
                loss += gradients.loss;
                let part = of_logits(&mut gradients.of_upper, &given);
                of_logits_sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            (loss, of_logits_sum)
        };
        let (upper_loss, of_upper) = sum(upper_draw.iter().map(|b| upper.gradients(&given, &w, b)).collect());
        let (lower_loss, of_lower) = sum(lower_draw.iter().map(|b| lower.gradients(&given, &w, b)).collect());

        let upper_at = |logits: &[f64]| -> f64 {
            let weights = weights(logits, floor);
            upper_draw.iter().map(|b| values(upper.loss(&weights, &w, b))[0]).sum()
        };
        let lower_at = |logits: &[f64]| -> f64 {
            let weights = weights(logits, floor);
            lower_draw.iter().map(|b| values(lower.loss(&weights, &w, b))[0]).sum()
        };
        prop_assert!((upper_loss - upper_at(&logits)).abs() < 1e-9);
        prop_assert!((lower_loss - lower_at(&logits)).abs() < 1e-9);
        prop_assert!(largest_difference(&of_upper, &differences(&logits, upper_at)) < 1e-7);
        prop_assert!(largest_difference(&of_lower, &differences(&logits, lower_at)) < 1e-7);

        // The closed form of the hypergradient has the same Jacobian.
        let losses = [1.5, 0.2, 2.5];
        let weighted = |logits: &[f64]| -> f64 {
            weights(logits, floor).weights().iter().zip(losses).map(|(p, l)| 7.0 * p * l).sum()
        };
        let closed = given.hypergradient(7.0, &losses, &[0.0; 3]);
        prop_assert!(largest_difference(&closed, &differences(&logits, weighted)) < 1e-7);
    }
}

/// A pull counts the same however the validation set is cut, and its parts say what is loss and what is pull.
#[test]
fn the_parts_of_a_pulled_objective_are_the_loss_and_the_pull() {
    let validation = [[1.0, 2.0], [0.5, 0.0], [3.0, 1.0]];
    let w = zoo::vector(&[0.7, -0.2], &flex());
    let weights = weights(&[0.4, -0.3, 1.0], 0.0);
    let pull = Pull::new(2.0, [0.5, 0.3, 0.2]).unwrap();
    let p = weights.weights();
    let divergence: f64 = p
        .iter()
        .zip(pull.prior())
        .map(|(p, q)| p * (p / q).ln())
        .sum();
    for micro_batch in [1, 2, 3] {
        let (training, draws) = points(&CORNERS, &validation);
        let problem = reweight::problem(training, draws.micro_batch(micro_batch)).unwrap();
        let mut upper = problem.upper.pull(pull.clone());
        let mut parts = [0.0; 2];
        for batch in UpperObjective::<SourceWeights, Vector>::sample(&mut upper).unwrap() {
            let gradients = upper.gradients(&weights, &w, &batch).unwrap();
            assert_eq!(gradients.parts.len(), 2);
            parts[0] += gradients.parts[0];
            parts[1] += gradients.parts[1];
        }
        let loss: f64 = validation
            .iter()
            .map(|y| 0.5 * ((0.7 - y[0]).powi(2) + (-0.2 - y[1]).powi(2)) / 3.0)
            .sum();
        assert_abs_diff_eq!(parts[0], loss, epsilon = 1e-12);
        assert_abs_diff_eq!(parts[1], 2.0 * divergence, epsilon = 1e-12);
    }
}

/// The bias of the pull is the one that its documentation states: `p_i` in proportion to
/// `q_i exp(-(alpha / (1 + alpha)) (dh/dp_i) / strength)`, for strengths on both sides of the differences of `dh/dp`.
#[test]
fn a_pulled_run_ends_where_the_documentation_says() {
    let validation = [1.2, 2.0]; // without a pull: p = (.2, .3, .5)
    let (free, _) = learned(validation, 0.0, None, 2000);
    assert!(largest_difference(&free, &[0.2, 0.3, 0.5]) < 1e-6);
    let prior = [0.6, 0.3, 0.1];
    let mut distances = Vec::new();
    for strength in [0.1, 1.0, 10.0] {
        let pull = Pull::new(strength, prior).unwrap();
        let (p, alpha) = learned(validation, 0.0, Some(pull), 4000);
        let mixed = |axis: usize| -> f64 { p.iter().zip(CORNERS).map(|(p, c)| p * c[axis]).sum() };
        let residual = [mixed(0) - validation[0], mixed(1) - validation[1]];
        let expected: Vec<f64> = prior
            .iter()
            .zip(CORNERS)
            .map(|(q, c)| {
                let slope = c[0] * residual[0] + c[1] * residual[1];
                q * (-(alpha / (1.0 + alpha)) * slope / strength).exp()
            })
            .collect();
        let expected = normalized(&expected);
        assert!(
            largest_difference(&p, &expected) < 1e-6,
            "{strength}: {p:?} {expected:?}"
        );
        distances.push(largest_difference(&p, &prior));
    }
    // The stronger the pull, the closer to the prior.
    assert!(distances.windows(2).all(|pair| pair[1] < pair[0]));
    assert!(distances[2] < 0.15, "{distances:?}");
}

/// A useless source keeps the floor and no more; with a floor of 0 it goes on falling.
#[test]
fn a_source_of_no_use_ends_at_the_floor() {
    let validation = [2.0, -1.0]; // below the line from (0, 0) to (4, 0): the source at (0, 4) only hurts
    let (p, _) = learned(validation, 0.05, None, 4000);
    assert!((0.05..0.052).contains(&p[2]), "{p:?}");
    // What is left for the others minimizes |Cp - t|^2 given p_2 = .05, so that 4 p_1 = 2.
    assert_abs_diff_eq!(p[1], 0.5, epsilon = 2e-3);
    let (p, _) = learned(validation, 0.0, None, 4000);
    assert!(p[2] < 0.01, "{p:?}");
}

/// Settings that cannot work say what is possible.
#[test]
fn impossible_floors_and_priors_are_errors() {
    let names = ["a", "b"];
    let floor = |floor| {
        let weights = SourceWeights::uniform(names, &flex()).unwrap();
        weights.with_floor(floor).unwrap_err().to_string()
    };
    for impossible in [0.5, -0.1, f64::NAN, f64::INFINITY] {
        let message = floor(impossible);
        assert!(
            message.contains("floor") && message.contains("below 1/2"),
            "{message}"
        );
    }
    let pull =
        |strength, prior: &[f64]| Pull::new(strength, prior.to_vec()).unwrap_err().to_string();
    assert!(pull(-1.0, &[0.5, 0.5]).contains("at least 0"));
    assert!(pull(f64::NAN, &[0.5, 0.5]).contains("at least 0"));
    assert!(pull(1.0, &[1.0, 0.0]).contains("above 0"));
    assert!(pull(1.0, &[0.5, 0.6]).contains("1.1"));
    assert!(Pull::uniform(1.0, 0).is_err());
    let short = Pull::uniform(1.0, 3).unwrap();
    let weights = SourceWeights::uniform(names, &flex()).unwrap();
    let message = short.gradient(&weights).unwrap_err().to_string();
    assert!(
        message.contains("3 shares") && message.contains('2'),
        "{message}"
    );
}
