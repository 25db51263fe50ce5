//! Ranks that fail, end, hang or differ: an error on all of them, and no rank waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::sleep;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use scalebio::collective::{Ranks, Threads};
use scalebio::reweight::{self, Draws, SourceWeights, WeightedBatch, WeightedSources};
use scalebio::{Bilevel, Error, Gradients, LowerObjective, Result, ScaleBio, Update};

use super::exact::{method, points};
use super::{PATIENCE, on_ranks, on_threads};
use crate::zoo::samples::{PointBatch, Points};
use crate::zoo::{Vector, flex, values, vector};

/// What a rank does differently.
#[derive(Clone, Copy, Default)]
struct Other {
    seed: u64,
    batch: usize,
    rate: f64,
    logit: f64,
    model: f64,
}

fn first_error(ranks: Ranks, other: Other) -> String {
    let [training, validation] = points(1);
    let problem = reweight::problem(
        Draws::new(training, 6 + other.batch).seed(other.seed),
        Draws::new(validation, 3),
    );
    let device = flex();
    let logits = Tensor::from_data([other.logit as f32, 0.0, 0.0], &device);
    let weights = SourceWeights::from_logits(["a", "b", "c"], logits).unwrap();
    let method = ScaleBio::new(Update::sgd(0.05), Update::sgd(0.02 + other.rate));
    let model = vector(&[1.0 + other.model, -1.0], &device);
    let run = method
        .collective(ranks)
        .start(problem.unwrap(), weights, model);
    let mut run = run.unwrap();
    let error = run.by_ref().take(20).find_map(Result::err).unwrap();
    assert!(matches!(error, Error::Disagreement { .. }), "{error}");
    assert_eq!(run.steps(), 0);
    error.to_string()
}

/// Another seed, batch, setting, model or start of the weights on one rank is an error of the first step on all of them,
/// which says what differs and where.
#[test]
fn ranks_of_different_runs_are_refused() {
    let others = [
        (
            Other {
                seed: 1,
                ..Other::default()
            },
            "draws of the lower objective",
        ),
        (
            Other {
                batch: 1,
                ..Other::default()
            },
            "draws of the lower objective",
        ),
        (
            Other {
                rate: 1e-9,
                ..Other::default()
            },
            "settings of the method",
        ),
        (
            Other {
                logit: 1e-6,
                ..Other::default()
            },
            "the upper variable",
        ),
        (
            Other {
                model: 1e-12,
                ..Other::default()
            },
            "the lower variable at the start",
        ),
    ];
    for (other, what) in others {
        let errors = on_ranks(3, |ranks| match ranks.rank() {
            2 => first_error(ranks, other),
            _ => first_error(ranks, Other::default()),
        });
        for error in errors {
            assert!(
                error.contains(what) && error.contains("rank 2 differs from rank 0"),
                "{error}"
            );
        }
    }
}

/// The objective of the training points, with something that happens when it is differentiated the fourth time at `w`.
struct Troubled {
    sources: WeightedSources<Points>,
    drawn: usize,
    trouble: fn() -> Result<()>,
}

impl LowerObjective<SourceWeights, Vector> for Troubled {
    type Batch = WeightedBatch<PointBatch>;

    fn sample(&mut self) -> Result<Vec<Self::Batch>> {
        self.drawn += 1;
        LowerObjective::<SourceWeights, Vector>::sample(&mut self.sources)
    }

    fn loss(&self, x: &SourceWeights, w: &Vector, batch: &Self::Batch) -> Tensor<1> {
        self.sources.loss(x, w, batch)
    }

    fn gradients(&self, x: &SourceWeights, w: &Vector, batch: &Self::Batch) -> Result<Gradients> {
        if self.drawn == 4 {
            (self.trouble)()?;
        }
        self.sources.gradients(x, w, batch)
    }

    fn share(&mut self, rank: usize, ranks: usize) -> Result<()> {
        LowerObjective::<SourceWeights, Vector>::share(&mut self.sources, rank, ranks)
    }
}

/// The error of a run in which `trouble` happens on rank 1 of three, and the model where the run stands; nothing for a rank
/// that panics.
fn troubled(threads: Vec<Threads>, trouble: fn() -> Result<()>) -> Vec<Option<(Error, Vec<f64>)>> {
    on_threads(threads, |ranks| {
        let run = || {
            let [training, validation] = points(1);
            let problem =
                reweight::problem(Draws::new(training, 6), Draws::new(validation, 3)).unwrap();
            let on_one = ranks.rank() == 1;
            let problem = Bilevel {
                upper: problem.upper,
                lower: Troubled {
                    sources: problem.lower,
                    drawn: 0,
                    trouble: if on_one { trouble } else { || Ok(()) },
                },
            };
            let device = flex();
            let weights = SourceWeights::uniform(["a", "b", "c"], &device).unwrap();
            let model = vector(&[1.0, -1.0], &device);
            let method = method().collective(ranks.clone());
            let mut run = method.start(problem, weights, model).unwrap();
            let error = run.by_ref().take(20).find_map(Result::err).unwrap();
            assert_eq!(run.steps(), 3);
            assert!(run.next().is_none());
            (error, values(run.lower().val()))
        };
        let ended = catch_unwind(AssertUnwindSafe(run)).ok();
        drop(ranks);
        ended
    })
}

/// An error on one rank is the same error on all, which names the rank, before any variable has moved.
#[test]
fn an_error_of_one_rank_ends_all_of_them() {
    let threads = Threads::new(3, PATIENCE).unwrap();
    let ended = troubled(threads, || Err(Error::NotDifferentiable));
    let (_, model) = ended[0].as_ref().unwrap();
    for of_rank in &ended {
        let (error, found) = of_rank.as_ref().unwrap();
        let Error::Rank { rank, message } = error else {
            panic!("{error}");
        };
        assert_eq!(*rank, 1);
        assert_eq!(*message, Error::NotDifferentiable.to_string());
        assert_eq!(found, model);
    }
}

/// A rank that panics ends the others at once, without a timeout.
#[test]
fn a_rank_that_ends_without_a_word_ends_all_of_them() {
    let started = Instant::now();
    let threads = Threads::new(3, Duration::from_secs(3600)).unwrap();
    let ended = troubled(threads, || panic!("a defect of the objective"));
    assert!(ended[1].is_none());
    for rank in [0, 2] {
        let (error, _) = ended[rank].as_ref().unwrap();
        assert!(matches!(error, Error::Rank { .. }), "{error}");
        assert!(error.to_string().contains("it has ended"), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(1800)); // it was not the timeout
}

/// A rank that hangs ends the others after their time, with who has waited how long.
#[test]
fn a_rank_that_hangs_ends_the_others_after_the_timeout() {
    let threads = Threads::new(3, Duration::from_millis(1500)).unwrap();
    let ended = troubled(threads, || {
        sleep(Duration::from_secs(6));
        Ok(())
    });
    for rank in [0, 2] {
        // The first whose time is up leaves, and the other may see that before its own is.
        match ended[rank].as_ref().unwrap() {
            (
                Error::Timeout {
                    rank: found,
                    ranks,
                    seconds,
                },
                _,
            ) => {
                assert_eq!((*found, *ranks), (rank, 3));
                assert!(*seconds >= 1.5);
            }
            (error, _) => assert!(matches!(error, Error::Rank { .. }), "{error}"),
        }
    }
    let timeouts = ended
        .iter()
        .flatten()
        .filter(|(error, _)| matches!(error, Error::Timeout { .. }));
    assert!(timeouts.count() >= 1);
}

/// A failure outside of a step, on any rank, is told to all; facts that differ are named with the ranks; what all have as an
/// error already is not told twice, so that such checks can be nested.
#[test]
fn outcomes_and_facts_are_those_of_all_ranks() {
    let said = on_ranks(3, |ranks| {
        let own = ranks.rank();
        let fails = |rank| {
            if own == rank {
                Err(Error::NotDifferentiable)
            } else {
                Ok(own)
            }
        };
        let ok = ranks.together(fails(7)).unwrap();
        let inner = ranks.together(fails(2));
        let error = ranks.together(inner).unwrap_err().to_string();
        let facts = |text: &str| {
            [("a", "1"), ("the data", text)].map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        ranks.agree(&facts("same").into()).unwrap();
        let text = if own == 1 { "others" } else { "some" };
        let differs = ranks.agree(&facts(text).into()).unwrap_err().to_string();
        let in_step = ranks.gather(Ok(vec![own as u8; own])).unwrap();
        (ok, error, differs, in_step)
    });
    for (rank, (ok, error, differs, in_step)) in said.into_iter().enumerate() {
        assert_eq!(ok, rank);
        assert_eq!(error, format!("rank 2: {}", Error::NotDifferentiable));
        assert!(
            differs.contains("the data is others on rank 1, but some on rank 0"),
            "{differs}"
        );
        assert_eq!(in_step, [vec![], vec![1], vec![2, 2]]);
    }
}
