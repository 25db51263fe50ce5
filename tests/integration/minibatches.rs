//! Minibatches of a finite sum: exact epochs, fixed partitions, and resumption from one number.

use std::collections::HashMap;

use proptest::prelude::*;
use scalebio::{Error, Minibatch, Minibatches, Order};

const ORDERS: [Order; 4] = [
    Order::Reshuffle,
    Order::ShuffleOnce,
    Order::FixedBatches,
    Order::Independent,
];

fn draws(batches: &mut Minibatches, count: usize) -> Vec<Minibatch> {
    (0..count).map(|_| batches.draw().unwrap()).collect()
}

/// Samples and a batch of at most as many.
fn sizes() -> impl Strategy<Value = (usize, usize)> {
    (1..40_usize).prop_flat_map(|samples| (Just(samples), 1..=samples))
}

proptest! {
    /// Without replacement, every epoch draws each sample exactly once, also where the last batch is short.
    #[test]
    fn every_epoch_draws_each_sample_once((samples, batch) in sizes(), seed: u64) {
        for order in &ORDERS[..3] {
            let mut batches = Minibatches::new(samples, batch).order(*order).seed(seed);
            let epoch = batches.batches().unwrap();
            for _ in 0..3 {
                let mut seen: Vec<usize> =
                    draws(&mut batches, epoch).into_iter().flat_map(|b| b.samples).collect();
                seen.sort_unstable();
                prop_assert!(seen == (0..samples).collect::<Vec<_>>(), "{order:?}: {seen:?}");
            }
        }
    }

    /// The mean over an epoch's draws of their weighted sums is the mean over all samples, for any losses.
    #[test]
    fn weights_make_an_epoch_unbiased((samples, batch) in sizes(), seed: u64, losses in prop::collection::vec(-1e3..1e3_f64, 40)) {
        for order in &ORDERS[..3] {
            let mut batches = Minibatches::new(samples, batch).order(*order).seed(seed);
            let epoch = batches.batches().unwrap();
            let estimate = |b: Minibatch| b.weight * b.samples.iter().map(|&i| losses[i]).sum::<f64>();
            let mean: f64 = draws(&mut batches, epoch).into_iter().map(estimate).sum::<f64>() / epoch as f64;
            let exact = losses[..samples].iter().sum::<f64>() / samples as f64;
            prop_assert!((mean - exact).abs() <= 1e-9, "{order:?}: {mean} {exact}");
        }
    }

    /// A draw is a function of the seed and of its number: the same again, and after resuming anywhere.
    #[test]
    fn resuming_from_one_number_goes_on_as_if_nothing_had_happened((samples, batch) in sizes(), seed: u64, at in 0..30_usize) {
        for order in ORDERS {
            let new = || Minibatches::new(samples, batch).order(order).seed(seed);
            let mut whole = new();
            let all = draws(&mut whole, at + 7);
            prop_assert_eq!(whole.position(), at as u64 + 7);
            let resumed = draws(&mut new().resume_at(at as u64), 7);
            prop_assert!(all[at..] == resumed, "{order:?}");
            // Also backwards, in an object that has computed another epoch, and under settings that come late.
            let late = Minibatches::new(samples, batch);
            let mut late = { let mut late = late; late.draw().unwrap(); late.seed(seed).order(order).resume_at(0) };
            prop_assert!(draws(&mut late, at + 7) == all, "{order:?}");
        }
    }

    /// Fixed batches are the same in every epoch, and a slot names one of them.
    #[test]
    fn a_slot_names_the_same_samples_in_every_epoch((samples, batch) in sizes(), seed: u64) {
        let mut batches = Minibatches::new(samples, batch).order(Order::FixedBatches).seed(seed);
        let epoch = batches.batches().unwrap();
        let mut by_slot = HashMap::new();
        for drawn in draws(&mut batches, 3 * epoch) {
            let slot = drawn.slot.unwrap();
            prop_assert_eq!(slot.of, epoch);
            let known = by_slot.entry(slot.index).or_insert_with(|| drawn.samples.clone());
            prop_assert_eq!(&*known, &drawn.samples);
        }
        prop_assert_eq!(by_slot.len(), epoch);
    }
}

/// All orders draw every sample equally often at every place; an order that favored some would bias estimates.
#[test]
fn samples_are_drawn_uniformly() {
    for order in ORDERS {
        let mut first = [0; 5];
        for seed in 0..4000 {
            let mut batches = Minibatches::new(5, 2).order(order).seed(seed).resume_at(4);
            first[batches.draw().unwrap().samples[0]] += 1;
        }
        // Mean 800; five standard deviations are 127.
        assert!(
            first.iter().all(|n| (673..=927).contains(n)),
            "{order:?}: {first:?}"
        );
    }
}

/// Shuffle once repeats its epoch, reshuffling does not, and seeds differ.
#[test]
fn orders_and_seeds_differ_as_they_say() {
    let epochs = |order, seed| {
        let mut batches = Minibatches::new(64, 16).order(order).seed(seed);
        [(); 2].map(|()| draws(&mut batches, 4))
    };
    let [first, second] = epochs(Order::ShuffleOnce, 3);
    assert_eq!(first, second);
    for order in [Order::Reshuffle, Order::FixedBatches, Order::Independent] {
        let [first, second] = epochs(order, 3);
        assert_ne!(first, second, "{order:?}");
    }
    for order in ORDERS {
        assert_ne!(epochs(order, 3), epochs(order, 4), "{order:?}");
    }
}

/// Batches that cannot be drawn are errors that say what is possible.
#[test]
fn impossible_batches_are_errors() {
    for (samples, batch) in [(5, 0), (5, 6), (0, 1)] {
        let error = Minibatches::new(samples, batch).draw().unwrap_err();
        assert!(matches!(error, Error::Setting { .. }));
        let message = error.to_string();
        assert!(
            message.contains(&format!("batch is {batch} samples")),
            "{message}"
        );
        assert!(
            message.contains(&format!("from 1 to {samples}")),
            "{message}"
        );
    }
}
