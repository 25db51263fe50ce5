//! The draws of a resumed run go on where they stood: those of this crate's objectives, and no checkpoint where an
//! objective cannot say.

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use scalebio::problems::Protocol;
use scalebio::reweight::{self, Draws, Sampling, SourceWeights};
use scalebio::{
    ActiveLayers, Bilevel, LayerSampler, LowerObjective, Minibatches, Order, Result, Run, ScaleBio,
    Update, UpperObjective,
};
use tempfile::tempdir;

use crate::problems::{flatten, simulated};
use crate::problems_classifiers::{cleaning, logistic};
use crate::zoo::samples::{Normal, Points, Rows};
use crate::zoo::{self, Vector, bits, flex};

/// Three steps, a checkpoint, and four more steps: the numbers of all variables at the end, with and without the stop.
fn same<F, G, X, W>(problem: impl Fn() -> Bilevel<F, G>, start: impl Fn() -> (X, W))
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    let folder = tempdir().unwrap();
    let method = || ScaleBio::new(Update::adamw(0.01), Update::adamw(0.01)).penalty(3.0);
    let take = |run: &mut Run<F, G, X, W>, steps: usize| -> Vec<String> {
        let steps = run.by_ref().take(steps);
        steps.map(|step| format!("{:?}", step.unwrap())).collect()
    };
    let end = |run: Run<F, G, X, W>| {
        let all = [
            flatten(run.upper()),
            flatten(run.lower()),
            flatten(run.auxiliary()),
        ];
        bits(&all.concat())
    };
    let (x, w) = start();
    let mut whole = method().start(problem(), x, w).unwrap();
    let expected = take(&mut whole, 7);
    let (x, w) = start();
    let mut run = method().start(problem(), x, w).unwrap();
    take(&mut run, 3);
    run.checkpoint(folder.path()).unwrap();
    let (x, w) = start();
    let mut run = method().resume(folder.path(), problem(), x, w).unwrap();
    assert_eq!(take(&mut run, 4), expected[3..]);
    assert_eq!(end(run), end(whole));
}

fn rows(sizes: &[usize]) -> Points {
    let mut normal = Normal::new(3);
    let mut source = |size: usize| {
        (0..size)
            .map(|_| vec![normal.draw(), normal.draw()])
            .collect()
    };
    let sources = sizes.iter().map(|&size| source(size)).collect();
    let device = flex().inner();
    Points(Rows { sources, device })
}

fn weights() -> SourceWeights {
    let logits = zoo::tensor(&[0.0, 0.1, -0.1], &flex());
    SourceWeights::from_logits(["a", "b", "c"], logits).unwrap()
}

type Weighted = Bilevel<reweight::Validation<Points>, reweight::WeightedSources<Points>>;

fn weighted(change: impl Fn(Draws<Points>) -> Draws<Points>) -> Weighted {
    let training = change(Draws::new(rows(&[5, 9, 3]), 6).seed(4));
    reweight::problem(training, Draws::new(rows(&[7]), 3).seed(5)).unwrap()
}

/// Weighted sources in both proportions, with and without micro-batches, over the ends of epochs.
#[test]
fn draws_of_weighted_sources_go_on() {
    for sampling in [Sampling::Stratified, Sampling::Proportional] {
        for micro_batch in [1, 4, 100] {
            let problem = || weighted(|draws| draws.sampling(sampling).micro_batch(micro_batch));
            same(problem, || (weights(), zoo::vector(&[0.3, 0.4], &flex())));
        }
    }
}

/// The classical problems, whole and by minibatches.
#[test]
fn draws_of_classical_problems_go_on() {
    let device = flex();
    let batches = |samples| {
        Minibatches::new(samples, 5)
            .order(Order::Reshuffle)
            .seed(samples as u64)
    };
    let simulated = simulated();
    let [upper, lower] = simulated.samples();
    same(|| simulated.problem(&device), || simulated.start(&device));
    same(
        || {
            simulated
                .stochastic(batches(upper), batches(lower), &device)
                .unwrap()
        },
        || simulated.start(&device),
    );
    let options = (&device, DType::F64);
    let regularization = logistic();
    same(
        || {
            regularization
                .stochastic(batches(12), batches(20), options)
                .unwrap()
        },
        || regularization.start(3, options),
    );
    let cleaning = cleaning(Protocol::benchopt());
    same(
        || {
            cleaning
                .stochastic(batches(12), batches(20), options)
                .unwrap()
        },
        || cleaning.start(options),
    );
}

/// Draws of other data or with other settings are another run's.
#[test]
fn draws_of_other_data_are_refused() {
    let folder = tempdir().unwrap();
    let method = || ScaleBio::new(Update::sgd(0.01), Update::sgd(0.01));
    let start = || (weights(), zoo::vector(&[0.3, 0.4], &flex()));
    let (x, w) = start();
    let run = method().start(weighted(|draws| draws), x, w).unwrap();
    run.checkpoint(folder.path()).unwrap();
    let refused = |problem: Weighted, words: [&str; 2]| {
        let (x, w) = start();
        let error = method()
            .resume(folder.path(), problem, x, w)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("state.json: what the checkpoint drew is"),
            "{error}"
        );
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(weighted(|draws| draws.seed(9)), ["seed 4", "seed 9"]);
    refused(
        weighted(|draws| draws.micro_batch(2)),
        ["micro-batches of 6", "micro-batches of 2"],
    );
    let proportional = weighted(|draws| draws.sampling(Sampling::Proportional));
    refused(proportional, ["Stratified", "Proportional"]);
    let more = Draws::new(rows(&[5, 9, 4]), 6).seed(4);
    let more = reweight::problem(more, Draws::new(rows(&[7]), 3).seed(5)).unwrap();
    refused(more, ["[5, 9, 3]", "[5, 9, 4]"]);
}

/// Draws nothing, and does not say so.
struct Silent;

impl UpperObjective<Vector, Vector> for Silent {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, _: &Vector, w: &Vector, (): &()) -> Tensor<1> {
        w.val().square().sum()
    }
}

impl LowerObjective<Vector, Vector> for Silent {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, x: &Vector, w: &Vector, (): &()) -> Tensor<1> {
        (w.val() - x.val()).square().sum()
    }
}

impl LayerSampler for Silent {
    fn sample(&mut self, _: usize) -> Option<ActiveLayers> {
        None
    }
}

/// What does not say how far its draws have come has no checkpoint that would resume elsewhere in them: it is an error that
/// names it. Such a run takes its steps all the same.
#[test]
fn an_objective_that_cannot_say_how_far_it_is_has_no_checkpoint() {
    fn refused<F, G>(problem: Bilevel<F, G>, method: ScaleBio, who: &str)
    where
        F: UpperObjective<Vector, Vector>,
        G: LowerObjective<Vector, Vector>,
    {
        let folder = tempdir().unwrap();
        let vector = || zoo::vector(&[1.0], &flex());
        let mut run = method.start(problem, vector(), vector()).unwrap();
        run.next().unwrap().unwrap();
        let error = run
            .checkpoint(folder.path().join("none"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(who) && error.contains("implement `progress`"),
            "{error}"
        );
        assert!(!folder.path().join("none").exists());
    }
    let method = || ScaleBio::new(Update::sgd(0.1), Update::sgd(0.01));
    let loss = |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum();
    refused(
        Bilevel {
            upper: Silent,
            lower: loss,
        },
        method(),
        "whose upper objective",
    );
    refused(
        Bilevel {
            upper: loss,
            lower: Silent,
        },
        method(),
        "whose lower objective",
    );
    refused(
        Bilevel {
            upper: loss,
            lower: loss,
        },
        method().layers(Silent),
        "whose layer sampler",
    );
}
