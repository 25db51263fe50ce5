//! Source weights: unbiased whatever the sampling and the micro-batch, equal to autodiff, and right on
//! the 9000/1000 and denoising toys of algorithm.md, section 5.

use approx::assert_abs_diff_eq;
use burn::module::Param;
use burn::optim::GradientsParams;
use scalebio::reweight::{self, Draws, Sampling, SourceWeights};
use scalebio::{Error, LowerObjective, ScaleBio, Schedule, Update};

use crate::zoo::samples::{Normal, Points, Regression, Rows};
use crate::zoo::{self, Vector, flex, largest_difference, values};

fn weights(logits: &[f64]) -> SourceWeights {
    let names = (0..logits.len()).map(|i| format!("source{i}"));
    let logits = zoo::tensor(logits, &flex());
    SourceWeights::from_logits(names, logits).unwrap()
}

/// 9000 samples around (0, 0) and 1000 around (2, 0); validation in the middle, at (1, 0).
fn nine_to_one() -> (Points, Points) {
    let mut normal = Normal::new(0);
    let mut around = |x: f64, size: usize, deviation: f64| -> Vec<Vec<f64>> {
        let mut point = || vec![x + deviation * normal.draw(), deviation * normal.draw()];
        (0..size).map(|_| point()).collect()
    };
    let sources = vec![around(0.0, 9000, 0.3), around(2.0, 1000, 0.3)];
    let device = flex().inner();
    let validation = Points(Rows {
        sources: vec![around(1.0, 1, 0.0)],
        device: device.clone(),
    });
    (Points(Rows { sources, device }), validation)
}

/// The learned weight of the small source and all logits, by the micro-batch.
fn nine_to_one_run(sampling: Sampling, micro_batch: usize, steps: usize) -> (f64, Vec<f64>) {
    let (training, validation) = nine_to_one();
    let training = Draws::new(training, 64)
        .sampling(sampling)
        .micro_batch(micro_batch)
        .seed(1);
    let problem = reweight::problem(training, Draws::new(validation, 1)).unwrap();
    let lower = Update::sgd(0.025).schedule(Schedule::Linear { steps });
    let mut run = ScaleBio::new(Update::sgd(0.051).linear(steps), lower)
        .penalty(10.0)
        .start(
            problem,
            weights(&[0.0, 0.0]),
            zoo::vector(&[0.0, 0.0], &flex()),
        )
        .unwrap();
    run.by_ref()
        .take(steps)
        .for_each(|step| drop(step.unwrap()));
    (run.upper().weights()[1], values(run.upper().logits()))
}

#[test]
fn nine_thousand_to_one_thousand_learns_one_half_for_every_micro_batch() {
    for micro_batch in [1, 2, 8, 64] {
        let (p, _) = nine_to_one_run(Sampling::Proportional, micro_batch, 1500);
        assert!((p - 0.5).abs() <= 0.02, "micro-batch {micro_batch}: {p}");
    }
}

#[test]
fn nine_thousand_to_one_thousand_learns_one_half_when_stratified() {
    let (p, _) = nine_to_one_run(Sampling::Stratified, 64, 1500);
    assert!((p - 0.5).abs() <= 0.02, "{p}");
}

#[test]
fn gradients_do_not_depend_on_the_micro_batch() {
    let gradients = |micro_batch: usize| {
        let (training, validation) = nine_to_one();
        let training = Draws::new(training, 64)
            .sampling(Sampling::Proportional)
            .micro_batch(micro_batch);
        let problem = reweight::problem(training, Draws::new(validation, 1)).unwrap();
        let mut run = ScaleBio::new(Update::sgd(1.0), Update::sgd(1.0))
            .start(
                problem,
                weights(&[0.3, -0.1]),
                zoo::vector(&[0.7, 0.2], &flex()),
            )
            .unwrap();
        let start = [values(run.lower().val()), values(run.auxiliary().val())].concat();
        run.next().unwrap().unwrap();
        let first = [values(run.lower().val()), values(run.auxiliary().val())].concat();
        let logits = values(run.upper().logits());
        run.next().unwrap().unwrap();
        // Steps of rate 1 are the gradients themselves.
        let mut moved: Vec<f64> = start.iter().zip(&first).map(|(a, b)| a - b).collect();
        moved.extend(
            values(run.upper().logits())
                .iter()
                .zip(&logits)
                .map(|(a, b)| a - b),
        );
        moved
    };
    let whole = gradients(64);
    assert!(whole.iter().all(|g| g.abs() > 1e-3), "{whole:?}");
    for micro_batch in [1, 2, 8] {
        let difference = largest_difference(&gradients(micro_batch), &whole);
        assert!(difference < 1e-5, "micro-batch {micro_batch}: {difference}");
    }
}

/// Mean weights of three seeds on the denoising toy.
fn denoising(alpha: f64, steps: usize) -> Vec<f64> {
    let (dimension, per_source) = (20, 400);
    let mut mean = vec![0.0; 10];
    for seed in 0..3 {
        let mut normal = Normal::new(seed);
        let truth: Vec<f64> = (0..dimension).map(|_| normal.draw()).collect();
        let mut rows = |zeroed: f64| -> Vec<Vec<f64>> {
            let mut row = || {
                let mut row: Vec<f64> = (0..dimension).map(|_| normal.draw()).collect();
                let y: f64 = row.iter().zip(&truth).map(|(x, w)| x * w).sum();
                let y = y + 0.1 * normal.draw();
                row.push(if normal.uniform() < zeroed { 0.0 } else { y });
                row
            };
            (0..per_source).map(|_| row()).collect()
        };
        let sources = (0..10)
            .map(|i| rows((0.2 * f64::from(i)).min(1.0)))
            .collect();
        let validation = vec![rows(0.0)];
        let device = flex().inner();
        let draws = |sources| {
            Draws::new(
                Regression(Rows {
                    sources,
                    device: device.clone(),
                }),
                64,
            )
        };
        let problem = reweight::problem(
            draws(sources).seed(seed),
            draws(validation).seed(seed + 100),
        );
        let update = Update::adamw(1e-2).cosine(steps);
        let mut run = ScaleBio::new(update.clone(), update)
            .penalty(alpha)
            .start(
                problem.unwrap(),
                weights(&[0.0; 10]),
                zoo::vector(&[0.0; 20], &flex()),
            )
            .unwrap();
        run.by_ref()
            .take(steps)
            .for_each(|step| drop(step.unwrap()));
        for (mean, p) in mean.iter_mut().zip(run.upper().weights()) {
            *mean += p / 3.0;
        }
    }
    mean
}

#[test]
fn denoising_ranks_sources_by_their_noise() {
    let p = denoising(10.0, 1000);
    assert!((0.76..=0.90).contains(&p[0]), "{p:?}");
    assert!(p[..6].windows(2).all(|pair| pair[0] > pair[1]), "{p:?}");
    let noise: f64 = p[5..].iter().sum();
    assert!((0.01..=0.04).contains(&noise), "{p:?}");

    let stronger = denoising(100.0, 1000);
    assert!(
        largest_difference(&p, &stronger) <= 0.02,
        "{p:?} {stronger:?}"
    );
}

#[test]
fn denoising_is_under_way_after_300_steps() {
    let p = denoising(10.0, 300);
    assert!((0.3..=0.5).contains(&p[0]), "{p:?}");
}

#[test]
fn hypergradient_in_closed_form_equals_autodiff() {
    let weights = weights(&[0.3, -1.2, 0.7]);
    let (lower, auxiliary) = ([1.5, 0.2, 2.5], [1.1, 0.4, 2.0]);
    let losses = |values: &[f64]| zoo::tensor(values, &flex());
    let gap = weights.probabilities() * (losses(&lower) - losses(&auxiliary)) * 7.0;
    let mut autodiff = GradientsParams::from_grads(gap.sum().backward(), &weights);
    let id = burn::module::list_param_ids(&weights)[0];
    let expected = values(autodiff.remove::<1>(id).unwrap());
    let closed = weights.hypergradient(7.0, &lower, &auxiliary);
    assert!(largest_difference(&closed, &expected) < 1e-14);
}

#[test]
fn gradients_of_the_weighted_sources_equal_those_of_their_loss() {
    let (training, validation) = nine_to_one();
    let draws = Draws::new(training, 16).micro_batch(5);
    let mut problem = reweight::problem(draws, Draws::new(validation, 1)).unwrap();
    let (weights, w) = (weights(&[0.4, -0.3]), zoo::vector(&[0.5, 0.1], &flex()));
    let lower = &mut problem.lower;
    for batch in LowerObjective::<SourceWeights, Vector>::sample(lower).unwrap() {
        let loss = lower.loss(&weights, &w, &batch);
        let mut expected = scalebio::Gradients::of(&loss, &weights, &w).unwrap();
        let mut given = lower.gradients(&weights, &w, &batch).unwrap();
        assert_abs_diff_eq!(given.loss, expected.loss, epsilon = 1e-12);
        let id = burn::module::list_param_ids(&weights)[0];
        for (given, expected, id) in [
            (&mut given.of_upper, &mut expected.of_upper, id),
            (&mut given.of_lower, &mut expected.of_lower, w.id),
        ] {
            let (a, b) = (
                given.remove::<1>(id).unwrap(),
                expected.remove::<1>(id).unwrap(),
            );
            assert!(largest_difference(&values(a), &values(b)) < 1e-12);
        }
    }
}

#[test]
fn stratified_draws_have_floor_or_ceiling_counts_with_the_right_mean() {
    // 5 sources and batches of 3: every draw leaves two sources out, each equally often.
    let sources = vec![vec![vec![0.0]; 4]; 5];
    let training = Points(Rows {
        sources,
        device: flex().inner(),
    });
    let mut objective = reweight::WeightedSources::new(Draws::new(training, 3).seed(3)).unwrap();
    let mut counts = [0; 5];
    for _ in 0..2000 {
        let draw = LowerObjective::<SourceWeights, Vector>::sample(&mut objective).unwrap();
        assert_eq!(draw.len(), 1);
        assert_eq!(draw[0].sources.len(), 3);
        for &source in &draw[0].sources {
            counts[source] += 1;
        }
        for coefficient in &draw[0].coefficients {
            assert_abs_diff_eq!(*coefficient, 5.0 / 3.0, epsilon = 1e-12);
        }
    }
    // Mean 1200 a source; five standard deviations are 110.
    assert!(
        counts.iter().all(|&count| (1090..=1310).contains(&count)),
        "{counts:?}"
    );
}

#[test]
fn every_sample_of_a_source_is_drawn_once_an_epoch() {
    for sampling in [Sampling::Stratified, Sampling::Proportional] {
        let numbered = |from: u8| (0..6).map(|i| vec![f64::from(from + i)]).collect();
        let sources = vec![numbered(0), numbered(10)];
        let training = Points(Rows {
            sources,
            device: flex().inner(),
        });
        let draws = Draws::new(training, 4).sampling(sampling).seed(9);
        let mut objective = reweight::WeightedSources::new(draws).unwrap();
        for _epoch in 0..4 {
            let mut seen = Vec::new();
            for _ in 0..3 {
                let draw = LowerObjective::<SourceWeights, Vector>::sample(&mut objective).unwrap();
                seen.extend(values(draw[0].data.0.clone().flatten::<1>(0, 1)));
            }
            seen.sort_by(f64::total_cmp);
            let all: Vec<f64> = (0..6).chain(10..16).map(f64::from).collect();
            assert!(
                largest_difference(&seen, &all) < 1e-12,
                "{sampling:?} {seen:?}"
            );
        }
    }
}

#[test]
fn impossible_draws_and_weights_are_errors_that_say_what_is_possible() {
    let rows = |sizes: &[usize]| {
        let sources = sizes.iter().map(|&size| vec![vec![0.0]; size]).collect();
        Points(Rows {
            sources,
            device: flex().inner(),
        })
    };
    let message = |training| match reweight::problem(training, Draws::new(rows(&[3]), 1)) {
        Err(error @ Error::Setting { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let large = message(Draws::new(rows(&[2, 3]), 6));
    assert!(
        large.contains("6 samples") && large.contains("from 1 to 5"),
        "{large}"
    );
    let none = message(Draws::new(rows(&[2, 3]), 0));
    assert!(none.contains("0 samples"), "{none}");
    let empty = message(Draws::new(rows(&[2, 0]), 1));
    assert!(empty.contains("source 1"), "{empty}");
    let cut = message(Draws::new(rows(&[2, 3]), 1).micro_batch(0));
    assert!(cut.contains("micro-batch"), "{cut}");
    assert!(message(Draws::new(rows(&[]), 1)).contains("no source"));

    let device = flex();
    let single = SourceWeights::uniform(["a"], &device)
        .unwrap_err()
        .to_string();
    assert!(single.contains("at least 2"), "{single}");
    let double = SourceWeights::uniform(["a", "b", "a"], &device)
        .unwrap_err()
        .to_string();
    assert!(double.contains("`a` twice"), "{double}");
    let short = SourceWeights::from_logits(["a", "b"], zoo::tensor(&[0.0; 3], &device));
    assert!(short.unwrap_err().to_string().contains("one a source"));
}

#[test]
fn a_sample_of_an_unknown_source_is_an_error() {
    let (training, validation) = nine_to_one();
    let mut problem =
        reweight::problem(Draws::new(training, 4), Draws::new(validation, 1)).unwrap();
    let w: Vector = Param::from_tensor(zoo::tensor(&[0.0, 0.0], &flex()));
    let mut draw = LowerObjective::<SourceWeights, Vector>::sample(&mut problem.lower).unwrap();
    draw[0].sources[0] = 7;
    let error = problem
        .lower
        .gradients(&weights(&[0.0, 0.0]), &w, &draw[0])
        .unwrap_err();
    assert!(error.to_string().contains("below 2"), "{error}");
}
