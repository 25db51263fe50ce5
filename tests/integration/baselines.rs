//! What ScaleBiO is compared with: names and settings, and the properties of each rule.

use crate::zoo::{bits, flex, largest_difference};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use proptest::prelude::*;
use scalebio::baselines::{
    Baseline, GroupDro, GroupDroConfig, Influence, InfluenceConfig, Projection, ValidationGroups,
    aligned, excess, proportional, top, uniform,
};

/// The sum of weights, and whether all are in [0, 1].
pub fn assert_weights(weights: &[f64]) {
    let sum: f64 = weights.iter().sum();
    assert!((sum - 1.0).abs() < 1e-12, "{weights:?}");
    assert!(weights.iter().all(|p| (0.0..=1.0).contains(p)));
}

fn reversed(values: &[f64]) -> Vec<f64> {
    values.iter().rev().copied().collect()
}

proptest! {
    /// Uniform and proportional weights are weights; proportional ones follow their sources and are in the ratio of the sizes.
    #[test]
    fn weights_by_size_add_up_and_follow_their_sources(mut sizes in prop::collection::vec(1_usize..1000, 2..9)) {
        assert_weights(&uniform(sizes.len()));
        let weights = proportional(&sizes);
        assert_weights(&weights);
        let ratio = sizes[0] as f64 / sizes[1] as f64;
        prop_assert!((weights[0] / weights[1] - ratio).abs() < 1e-9 * ratio);
        sizes.reverse();
        prop_assert!(largest_difference(&proportional(&sizes), &reversed(&weights)) < 1e-12);
    }

    /// Group DRO: no weight is ever below smoothing / m, in no step and not in the mean; sources keep their weight in any order;
    /// what all sources have in common does not matter.
    #[test]
    fn doremi_is_smoothed_and_follows_its_sources(
        steps in prop::collection::vec(prop::collection::vec(0.0..800.0_f64, 4), 1..6),
        smoothing in 0.001..1.0_f64,
    ) {
        let config = GroupDroConfig { smoothing, ..GroupDroConfig::default() };
        let run = |change: &dyn Fn(&[f64]) -> Vec<f64>| {
            let mut dro = GroupDro::new(&config, 4);
            for excess in &steps {
                dro.update(&change(excess)).unwrap();
                assert_weights(dro.weights());
                assert!(dro.weights().iter().all(|p| *p >= smoothing / 4.0 * (1.0 - 1e-12)));
            }
            dro.average()
        };
        let mean = run(&<[f64]>::to_vec);
        assert_weights(&mean);
        prop_assert!(mean.iter().all(|p| *p >= smoothing / 4.0 * (1.0 - 1e-12)));
        prop_assert!(largest_difference(&run(&reversed), &reversed(&mean)) < 1e-12);
        let shifted = run(&|excess| excess.iter().map(|e| e + 3.0).collect());
        prop_assert!(largest_difference(&shifted, &mean) < 1e-9);
    }

    /// Alignment: a larger cosine never gets a smaller weight, and sources keep theirs in any order.
    #[test]
    fn alignment_is_monotone_and_follows_its_sources(
        cosines in prop::collection::vec(-1.0..1.0_f64, 2..7),
        temperature in 0.001..10.0_f64,
    ) {
        let weights = aligned(&cosines, temperature);
        assert_weights(&weights);
        for i in 1..cosines.len() {
            prop_assert!((cosines[i] - cosines[0]) * (weights[i] - weights[0]) >= 0.0);
        }
        prop_assert!(largest_difference(&aligned(&reversed(&cosines), temperature), &reversed(&weights)) < 1e-12);
    }

    /// The top of some scores: as many as asked for, ascending, none of those left out above one of them; all is everything.
    #[test]
    fn the_top_is_above_the_rest(scores in prop::collection::vec(-3_i8..3, 1..30), count in 0_usize..40) {
        let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
        let chosen = top(&scores, count);
        prop_assert_eq!(chosen.len(), count.min(scores.len()));
        prop_assert!(chosen.is_sorted_by(|a, b| a < b));
        let least = chosen.iter().map(|&i| scores[i]).fold(f64::INFINITY, f64::min);
        for i in (0..scores.len()).filter(|i| !chosen.contains(i)) {
            prop_assert!(scores[i] <= least);
            // Of equal scores the first are taken.
            prop_assert!(chosen.iter().all(|&kept| scores[kept] > scores[i] || kept < i));
        }
    }
}

/// A batch in which one source has no token, another a token below the reference, which does not make up for one above it.
#[test]
fn excess_losses_are_clipped_token_by_token_and_averaged_over_all_of_a_source() {
    let (short, long) = ([2.0, 1.0], [1.0, 5.0, 3.0]);
    let samples = [
        (2, &short[..], &[1.0, 4.0][..]),
        (0, &long[..], &[0.5, 5.0, 3.5][..]),
        (2, &short[..], &[1.0, 1.0][..]),
    ];
    let given = excess(samples, 3);
    assert!(largest_difference(&given, &[0.5 / 3.0, 0.0, 2.0 / 4.0]) < 1e-12);
    let mut dro = GroupDro::new(&GroupDroConfig::default(), 2);
    assert_eq!(dro.average(), [0.5, 0.5]);
    let error = dro.update(&given).unwrap_err().to_string();
    assert!(error.contains("is 3, but must be 2"), "{error}");
}

/// The projection is linear, and keeps inner products on average, within its standard deviation.
#[test]
fn projections_keep_inner_products() {
    let device = flex();
    let vector = |values: &[f64]| Param::from_tensor(Tensor::<1>::from_floats(values, &device));
    let module = vec![vector(&[0.0; 30]), vector(&[0.0; 10])];
    let gradients = |values: &[f64]| {
        let mut gradients = GradientsParams::new();
        for (parameter, part) in module.iter().zip([&values[..30], &values[30..]]) {
            let tensor = Tensor::<1>::from_floats(part, &device.clone().inner());
            gradients.register(parameter.id, tensor);
        }
        gradients
    };
    let a: Vec<f64> = (0..40).map(|i| f64::from(i % 7) - 3.0).collect();
    let b: Vec<f64> = (0..40).map(|i| f64::from(i % 5) - 1.0).collect();
    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (k, seeds) = (8, 4000);
    let (mut mean, mut square) = (0.0, 0.0);
    for seed in 0..seeds {
        let projection = Projection::new(seed, k);
        let project = |values: &[f64]| projection.project(&module, &gradients(values));
        let (ra, rb) = (project(&a), project(&b));
        let difference = inner(&ra, &rb) - inner(&a, &b);
        mean += difference / seeds as f64;
        square += difference * difference / seeds as f64;
        if seed == 0 {
            let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + 2.0 * b).collect();
            let expected: Vec<f64> = ra.iter().zip(&rb).map(|(a, b)| a + 2.0 * b).collect();
            assert!(largest_difference(&project(&sum), &expected) < 1e-12);
            assert_eq!(bits(&project(&a)), bits(&ra));
            let column = |parameter| [0, 1, 2, 3, 4, 5].map(|i| projection.entry(parameter, i));
            assert_ne!(column(0), column(1));
        }
    }
    let bound = (2.0 / k as f64 * inner(&a, &a) * inner(&b, &b)).sqrt();
    assert!(mean.abs() < 4.0 * bound / (seeds as f64).sqrt(), "{mean}");
    assert!(square.sqrt() < 1.05 * bound, "{} {bound}", square.sqrt());
    assert!(square.sqrt() > 0.3 * bound); // it is not the identity
    assert_eq!(Module::num_params(&module), 40);
}

/// A score is the rate-weighted mean of cosines over checkpoints, the best of the groups; a gradient of zero scores 0.
#[test]
fn influence_adds_checkpoints_by_their_rate() {
    let mut influence = Influence::new(2, 2);
    assert_eq!(influence.scores(), [0.0, 0.0]);
    let groups = [vec![1.0, 0.0], vec![0.0, -2.0]];
    let samples = [
        [vec![3.0, 0.0], vec![0.0, 0.0]],
        [vec![1.0, 1.0], vec![0.0, 5.0]],
    ];
    for (rate, samples) in [0.3, 0.1].into_iter().zip(samples) {
        influence.add(rate, &groups, samples.map(Ok)).unwrap();
    }
    let diagonal = 0.5_f64.sqrt();
    let expected = [(0.3 + 0.1 * diagonal) / 0.4, 0.0];
    assert!(largest_difference(&influence.scores(), &expected) < 1e-12);
    let error = influence.add(0.1, &groups[..1], []).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("validation groups is 1, but must be 2")
    );
    let error = influence
        .add(0.1, &groups, [Ok(vec![1.0, 0.0])])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("training samples is 1, but must be 2")
    );
}

/// A method is known by its name; JSON can say its settings, and what is left out is the default.
#[test]
fn methods_have_names_and_settings() {
    for baseline in Baseline::all() {
        let name = baseline.to_string();
        assert_eq!(name.parse::<Baseline>().unwrap(), baseline);
        let json = serde_json::to_string(&baseline).unwrap();
        assert!(json.contains(&format!("\"method\":\"{name}\"")), "{json}");
        assert_eq!(serde_json::from_str::<Baseline>(&json).unwrap(), baseline);
    }
    let json = r#"{"method": "less", "share": 0.2, "groups": "samples"}"#;
    let expected = Baseline::Influence(InfluenceConfig {
        share: 0.2,
        groups: ValidationGroups::Samples,
        ..InfluenceConfig::default()
    });
    assert_eq!(serde_json::from_str::<Baseline>(json).unwrap(), expected);
    let error = "dogma".parse::<Baseline>().unwrap_err().to_string();
    assert!(
        error.contains("`dogma`") && error.contains("rho-loss"),
        "{error}"
    );
}
