//! The number of ranks changes results by rounding only, and what crosses the wire is what is promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use scalebio::collective::{Collective, Ranks, Threads};
use scalebio::reweight::{self, Draws, Pull, Sampling, SourceWeights};
use scalebio::{Error, Lisa, Result, ScaleBio, Update};

use super::{PATIENCE, on_ranks, on_threads};
use crate::zoo::samples::{Normal, Points, Rows};
use crate::zoo::{bits, flex, largest_difference, values, vector};

/// Points of three sources around three places, and a validation set that lies nearer to the last.
pub fn points(seed: u64) -> [Points; 2] {
    let mut normal = Normal::new(seed);
    let mut source = |x: f64, y: f64, size: usize| -> Vec<Vec<f64>> {
        let point = |_| vec![x + 0.3 * normal.draw(), y + 0.3 * normal.draw()];
        (0..size).map(point).collect()
    };
    let training = vec![
        source(0.0, 0.0, 9),
        source(4.0, 0.0, 5),
        source(0.0, 4.0, 7),
    ];
    let validation = vec![source(1.2, 2.0, 11)];
    [training, validation].map(|sources| {
        let device = flex();
        Points(Rows { sources, device })
    })
}

pub fn method() -> ScaleBio {
    ScaleBio::new(Update::sgd(0.05), Update::sgd(0.02)).clip(2.0)
}

/// Logits, `w`, `u` and the losses of every step after 40 steps on these ranks, with draws of `batch` samples.
fn learned(ranks: Ranks, batch: usize, sampling: Sampling) -> Vec<Vec<f64>> {
    let [training, validation] = points(1);
    let mut problem = reweight::problem(
        Draws::new(training, batch)
            .micro_batch(2)
            .sampling(sampling)
            .seed(3),
        Draws::new(validation, batch.min(3)).seed(4),
    )
    .unwrap();
    problem.upper = problem
        .upper
        .pull(Pull::new(0.1, vec![0.5, 0.25, 0.25]).unwrap());
    let device = flex();
    let weights = SourceWeights::uniform(["a", "b", "c"], &device).unwrap();
    let start = vector(&[1.0, -1.0], &device);
    let mut run = method()
        .collective(ranks)
        .start(problem, weights, start)
        .unwrap();
    let mut losses = Vec::new();
    for step in run.by_ref().take(40) {
        let step = step.unwrap();
        losses.extend([step.upper_loss(), step.lower_loss(), step.auxiliary_loss()]);
        losses.extend(step.upper_parts().iter().chain(step.auxiliary_parts()));
    }
    let (w, u) = (values(run.lower().val()), values(run.auxiliary().val()));
    vec![run.upper().logit_values(), w, u, losses]
}

/// One to four ranks end at the same logits, models and losses up to rounding, with micro-batches, a pull, clipping and
/// both ways to draw; the ranks of a run have the same bits; and one rank has those of a run without ranks.
#[test]
fn any_number_of_ranks_learns_the_same() {
    // Batches of 2 are shares of nothing for some of 3 and 4 ranks, and so are validation draws of 3.
    for (batch, sampling) in [
        (6, Sampling::Stratified),
        (7, Sampling::Proportional),
        (2, Sampling::Stratified),
    ] {
        let alone = learned(Ranks::default(), batch, sampling);
        for count in 1..=4 {
            let of_ranks = on_ranks(count, |ranks| learned(ranks, batch, sampling));
            for of_rank in &of_ranks {
                for (found, expected) in of_rank.iter().zip(&of_ranks[0]) {
                    assert_eq!(bits(found), bits(expected), "{count} ranks");
                }
                for (found, expected) in of_rank.iter().zip(&alone) {
                    let difference = largest_difference(found, expected);
                    assert!(difference < 1e-5, "{count} ranks: {difference:e}");
                    assert!(count > 1 || bits(found) == bits(expected));
                }
            }
        }
    }
}

/// Of a draw, every sample is in one share, whatever the number of ranks; how far the draws have come does not depend on it.
#[test]
fn shares_are_the_draw_and_the_progress_is_that_of_the_whole() {
    use scalebio::LowerObjective;
    use scalebio::reweight::WeightedSources;

    type Objective = WeightedSources<Points>;
    let drawn = |share: Option<(usize, usize)>| {
        let draws = Draws::new(points(1).into_iter().next().unwrap(), 5).micro_batch(2);
        let mut objective: Objective = WeightedSources::new(draws).unwrap();
        if let Some((rank, ranks)) = share {
            LowerObjective::<SourceWeights, crate::zoo::Vector>::share(&mut objective, rank, ranks)
                .unwrap();
        }
        let mut samples = Vec::new();
        for _ in 0..3 {
            let draw = LowerObjective::<SourceWeights, crate::zoo::Vector>::sample(&mut objective)
                .unwrap();
            for batch in draw {
                let rows = batch.data.0.into_data().iter::<f64>().collect::<Vec<_>>();
                let rows = rows.chunks(2).map(bits);
                samples.extend(rows.zip(batch.sources).zip(bits(&batch.coefficients)));
            }
        }
        samples.sort();
        let progress = LowerObjective::<SourceWeights, crate::zoo::Vector>::progress(&objective);
        (samples, progress)
    };
    let (whole, progress) = drawn(None);
    assert_eq!(whole.len(), 15);
    for ranks in 1..=7 {
        let mut shares = Vec::new();
        for rank in 0..ranks {
            let (share, of_rank) = drawn(Some((rank, ranks)));
            assert_eq!(of_rank, progress);
            assert!(share.len() <= 3 * 5_usize.div_ceil(ranks));
            shares.extend(share);
        }
        shares.sort();
        assert_eq!(shares, whole, "{ranks} ranks");
    }
    let mut draws = Draws::new(points(1).into_iter().next().unwrap(), 5);
    let error = draws.share(2, 2).unwrap_err().to_string();
    assert!(error.contains("rank is 2, but must be below 2"), "{error}");
}

/// Objectives that do not know of ranks would count once on each, and are refused.
#[test]
fn an_objective_that_cannot_be_shared_is_refused() {
    let errors = on_ranks(2, |ranks| {
        let device = flex();
        let problem = crate::zoo::coupled::problem();
        let (x, w) = (vector(&[0.0; 2], &device), vector(&[0.0; 2], &device));
        method()
            .collective(ranks)
            .start(problem, x, w)
            .err()
            .unwrap()
            .to_string()
    });
    for error in errors {
        assert!(
            error.contains("2 ranks for an objective") && error.contains("share"),
            "{error}"
        );
    }
}

/// A collective of a user, which counts what it is handed.
struct Counting {
    threads: Threads,
    bytes: Arc<AtomicU64>,
    sums: Arc<AtomicU64>,
}

impl Collective for Counting {
    fn rank(&self) -> usize {
        self.threads.rank()
    }

    fn ranks(&self) -> usize {
        self.threads.ranks()
    }

    fn sum(&mut self, tensor: Tensor<1>) -> Result<Tensor<1>> {
        let bytes = tensor.to_data().as_bytes().len() as u64;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.sums.fetch_add(1, Ordering::Relaxed);
        self.threads.sum(tensor)
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.threads.exchange(bytes)
    }
}

/// Numbers of the parameters that train.
pub fn active(module: &impl Module) -> u64 {
    struct Active(u64);

    impl ModuleVisitor for Active {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0 += param.lazy_shape().num_elements() as u64;
            }
        }
    }

    let mut active = Active(0);
    module.visit(&mut active);
    active.0
}

/// A GPT-2 of five blocks under LISA: after each step only what trains was handed over, 4 bytes a number, in one piece; the
/// step says how much; and the models are those of a run that is alone.
#[test]
#[cfg(feature = "llm")]
fn only_gradients_of_active_blocks_cross_the_wire() {
    use crate::lisa_gpt2::source;
    use scalebio::models::{CausalLm, Gpt2Config};
    use scalebio::reweight::TokenSources;

    let learn = |ranks: Ranks, handed: &dyn Fn() -> (u64, u64)| {
        let device = Device::flex().autodiff();
        let model: CausalLm = Gpt2Config::new(20, 8, 8, 5, 2)
            .init(3, &device)
            .unwrap()
            .into();
        let lisa = Lisa::over(&model, &model.blocks_path())
            .unwrap()
            .active(2)
            .period(3);
        let training = TokenSources::new(vec![source("ones", 1), source("threes", 3)]);
        let validation = TokenSources::new(vec![source("val", 1)]);
        let problem = reweight::problem(Draws::new(training, 5), Draws::new(validation, 3).seed(1));
        let weights = SourceWeights::uniform(["ones", "threes"], &device).unwrap();
        let method = ScaleBio::new(
            Update::adamw(1e-2).epsilon(1e-3),
            Update::adamw(1e-3).epsilon(1e-3),
        );
        let method = method.layers(lisa).collective(ranks.clone());
        let mut run = method.start(problem.unwrap(), weights, model).unwrap();
        let all = 2 * active(run.lower());
        let mut before = handed();
        while run.steps() < 10 {
            let step = run.next().unwrap().unwrap();
            let after = handed();
            let (bytes, sums) = (after.0 - before.0, after.1 - before.1);
            if ranks.count() > 1 {
                let active = active(run.lower()) + active(run.auxiliary());
                assert!(active < all);
                // A byte says that all went well.
                assert_eq!(step.collective_bytes() + 1, bytes);
                let others = bytes - 4 * active;
                assert!(others < 500, "{others} bytes beside those of the gradients");
                assert_eq!(sums, 1);
            } else {
                assert_eq!(step.collective_bytes(), 0);
            }
            before = after;
        }
        let mut numbers = run.upper().logit_values();
        for (_, bits) in crate::lisa_gpt2::bits(run.lower()) {
            numbers.extend(bits.into_iter().map(|bits| f64::from(f32::from_bits(bits))));
        }
        numbers
    };
    let alone = learn(Ranks::default(), &|| (0, 0));
    for count in [2, 3, 4] {
        let of_ranks = on_counting(count, |ranks, bytes, sums| {
            learn(ranks, &|| {
                (bytes.load(Ordering::Relaxed), sums.load(Ordering::Relaxed))
            })
        });
        for of_rank in of_ranks {
            let difference = largest_difference(&of_rank, &alone);
            assert!(difference < 1e-5, "{count} ranks: {difference:e}");
        }
    }
}

fn on_counting<T: Send>(
    count: usize,
    run: impl Fn(Ranks, &AtomicU64, &AtomicU64) -> T + Sync,
) -> Vec<T> {
    let run = &run;
    std::thread::scope(|scope| {
        let threads = Threads::new(count, PATIENCE).unwrap().into_iter();
        let ranks = threads.map(|threads| {
            scope.spawn(move || {
                let (bytes, sums) = (Arc::default(), Arc::default());
                let counting = Counting {
                    threads,
                    bytes: Arc::clone(&bytes),
                    sums: Arc::clone(&sums),
                };
                run(Ranks::new(counting), &bytes, &sums)
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A parameter larger than what is summed at a time goes in pieces, and comes back whole.
#[test]
fn a_large_parameter_is_summed_in_pieces() {
    // More than 2^23 numbers: two pieces.
    const WIDTH: usize = (1 << 23) + 5;
    let steps = on_counting(2, |ranks, _, sums| {
        let (first, device) = (ranks.rank() == 0, flex());
        let source = |value: f64| vec![vec![value; WIDTH]];
        let points = |value| {
            let (sources, device) = (vec![source(value); 2], device.clone());
            Points(Rows { sources, device })
        };
        let problem =
            reweight::problem(Draws::new(points(1.0), 2), Draws::new(points(3.0), 2)).unwrap();
        let weights = SourceWeights::uniform(["a", "b"], &device).unwrap();
        let start = vector(&vec![0.0; WIDTH], &device);
        let method = ScaleBio::new(Update::sgd(1.0), Update::sgd(0.1)).penalty(1.0);
        let mut run = method
            .collective(ranks)
            .start(problem, weights, start)
            .unwrap();
        let step = run.next().unwrap().unwrap();
        let w = values(run.lower().val());
        // w = 0 - 0.1 ((0 - 3) + (0 - 1)).
        assert!(w.iter().all(|w| (w - 0.4).abs() < 1e-12), "rank 0: {first}");
        (step.collective_bytes(), sums.load(Ordering::Relaxed))
    });
    for (bytes, sums) in steps {
        let others = bytes - 2 * 8 * WIDTH as u64;
        assert!(others < 500, "{others}");
        // The gradients of x (float32), then both models' in pieces.
        assert!((3..=5).contains(&sums), "{sums}");
    }
}

/// Ranks that ask alone get what they asked; no time and no ranks are settings that cannot work.
#[test]
fn a_collective_of_no_rank_or_no_time_is_refused() {
    let error = |ranks, timeout| Threads::new(ranks, timeout).unwrap_err();
    for (error, name) in [
        (error(0, PATIENCE), "ranks"),
        (error(2, std::time::Duration::ZERO), "rank-timeout"),
    ] {
        assert!(
            matches!(&error, Error::Setting { name: found, .. } if *found == name),
            "{error}"
        );
    }
    let alone = Ranks::default();
    assert_eq!((alone.rank(), alone.count()), (0, 1));
    assert!(alone.is_first() && alone.any(true).unwrap() && !alone.any(false).unwrap());
    let error = alone
        .together::<()>(Err(Error::NotDifferentiable))
        .unwrap_err();
    assert!(matches!(error, Error::NotDifferentiable));
    let answers = on_threads(Threads::new(3, PATIENCE).unwrap(), |ranks| {
        (
            ranks.any(ranks.rank() == 2).unwrap(),
            ranks.any(false).unwrap(),
        )
    });
    assert_eq!(answers, vec![(true, false); 3]);
}
