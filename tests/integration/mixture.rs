//! Whole numbers of samples from source weights.

use proptest::prelude::*;
use scalebio::reweight::{Mixture, Shortage};

/// Weights that add up to 1, some of them equal and some 0.
fn any_mixture() -> impl Strategy<Value = Mixture> {
    let weight = prop_oneof![1 => Just(0.0), 2 => Just(1.0), 6 => 1e-6..10.0_f64];
    proptest::collection::vec(weight, 1..12)
        .prop_filter("a weight above 0", |weights| {
            weights.iter().any(|w| *w > 0.0)
        })
        .prop_map(|weights| {
            let sum: f64 = weights.iter().sum();
            let sources = weights.iter().enumerate();
            Mixture::new(sources.map(|(i, weight)| (format!("source{i}"), weight / sum))).unwrap()
        })
}

fn any_available() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..500_usize, 12)
}

proptest! {
    /// Largest remainder keeps its three promises: the sum, the distance to the share, the order of the weights.
    #[test]
    fn counts_add_up_are_close_and_grow_with_the_weights(
        mixture in any_mixture(),
        samples in prop_oneof![0..50_usize, 0..10_000_000_usize],
    ) {
        let counts = mixture.counts(samples);
        prop_assert_eq!(counts.iter().sum::<usize>(), samples);
        for (i, (weight, &count)) in mixture.weights().iter().zip(&counts).enumerate() {
            let share = weight * samples as f64;
            prop_assert!((count as f64 - share).abs() < 1.0 + 1e-6, "{count} for {share}");
            for (other, &fewer) in mixture.weights().iter().zip(&counts).skip(i + 1) {
                // Equal up to the rounding of the division is equal.
                if (weight - other).abs() > 1e-12 {
                    prop_assert_eq!(weight > other, count > fewer || (count == fewer && weight > other));
                }
            }
        }
    }

    /// Redistribution gives as many as were asked for, no source more than it has, and a source of weight 0 nothing.
    #[test]
    fn redistribution_never_exceeds_what_there_is(
        mixture in any_mixture(),
        available in any_available(),
        share in 0.0..1.0_f64,
    ) {
        let available = &available[..mixture.names().len()];
        let weighted = mixture.weights().iter().zip(available);
        let most: usize = weighted.filter(|(weight, _)| **weight > 0.0).map(|(_, n)| n).sum();
        let samples = (share * most as f64) as usize;
        let counts = mixture.counts_within(samples, available, Shortage::Redistribute).unwrap();
        prop_assert_eq!(counts.iter().sum::<usize>(), samples);
        let plain = mixture.counts(samples);
        let fits = plain.iter().zip(available).all(|(count, available)| count <= available);
        prop_assert!(!fits || counts == plain);
        for ((&count, &available), (&plain, weight)) in
            counts.iter().zip(available).zip(plain.iter().zip(mixture.weights()))
        {
            prop_assert!(count <= available);
            prop_assert!(*weight > 0.0 || count == 0);
            // A source that is not full gets no less than without the shortage of others, but for rounding.
            prop_assert!(count == available || count + 1 >= plain);
        }
        let more = mixture.counts_within(most + 1, available, Shortage::Redistribute);
        let said = format!("at most {most}");
        prop_assert!(more.unwrap_err().to_string().contains(&said));
    }
}

/// A shortage names the source, what it should give and what it has.
#[test]
fn a_source_that_is_too_small_is_an_error_that_says_how_small() {
    let mixture = Mixture::new([("cats", 0.8), ("dogs", 0.2)]).unwrap();
    assert_eq!(
        mixture.counts_within(10, &[8, 2], Shortage::Error).unwrap(),
        [8, 2]
    );
    let error = mixture.counts_within(100, &[50, 500], Shortage::Error);
    let error = error.unwrap_err().to_string();
    for said in ["100", "80 of them", "`cats`", "at most 50", "replacement"] {
        assert!(error.contains(said), "{error}");
    }
    let error = mixture.counts_within(100, &[50], Shortage::Redistribute);
    assert!(error.unwrap_err().to_string().contains("one a source"));
}

/// Weights that are none are refused by name.
#[test]
fn weights_that_are_none_are_refused() {
    for (sources, said) in [
        (vec![("a", -0.1), ("b", 1.1)], "source `a`"),
        (vec![("a", f64::NAN), ("b", 1.0)], "source `a`"),
        (vec![("a", 0.5), ("a", 0.5)], "`a` twice"),
        (vec![("a", 0.5), ("b", 0.6)], "sum of the weights is 1.1"),
        (vec![], "sources is 0, but must be at least 1"),
    ] {
        let error = Mixture::new(sources).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
