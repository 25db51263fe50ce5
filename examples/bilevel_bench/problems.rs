//! The problems, each with its exact hypergradient, and the loop that is the same for all of them.

use std::error::Error;
use std::time::Instant;

use scalebio::burn::tensor::activation::softmax;
use scalebio::burn::tensor::{DType, Device, Tensor};
use scalebio::problems::Vector;
use scalebio::{Bilevel, LowerObjective, Minibatches, Order, UpperObjective};

use crate::Arguments;
use crate::data;
use crate::methods::{Entry, Scale, all};
use crate::record::{Comparison, Point, Trace};

type Done<T> = Result<T, Box<dyn Error>>;

type Compare = fn(&Arguments) -> Done<Comparison>;

/// Names and runs.
pub const PROBLEMS: [(&str, Compare); 3] = [
    ("simulated", |arguments| simulated(arguments, false)),
    ("simulated-minibatch", |arguments| {
        simulated(arguments, true)
    }),
    ("sources", sources),
];

/// Points of a curve.
const LOGGED: usize = 100;

/// A problem and where its runs start.
struct Start<F, G>(Bilevel<F, G>, Vector, Vector);

fn simulated(arguments: &Arguments, noisy: bool) -> Done<Comparison> {
    let simulated = data::read()?;
    let device = Device::flex().autodiff();
    let solution = simulated.solution();
    let entries = solution.len();
    let best = [solution.to_vec(), simulated.lower_solution(solution)?];
    let [x, w] = best.map(|values| vector(&values, &device));
    let whole = simulated.problem(&device);
    // On the way to the solution, and on a minibatch, values are somewhat lower than there.
    let lowest = [
        UpperObjective::gradients(&whole.upper, &x, &w, &drawn(&whole.upper)?)?.loss - 1.0,
        LowerObjective::gradients(&whole.lower, &x, &w, &drawn(&whole.lower)?)?.loss - 1.0,
    ];
    let scale = Scale {
        upper: if noisy { 0.05 } else { 0.3 },
        lower: if noisy { 0.2 } else { 0.5 },
        entries,
        lowest,
        noisy,
    };
    let start = |seed: u64| {
        let (x, w) = simulated.start(&device);
        let [upper, lower] = simulated.samples();
        let batches = |samples, seed| {
            let batches = Minibatches::new(samples, 64).seed(seed);
            batches.order(Order::FixedBatches)
        };
        let problem = if noisy {
            let (upper, lower) = (batches(upper, 2 * seed), batches(lower, 2 * seed + 1));
            simulated.stochastic(upper, lower, &device)?
        } else {
            simulated.problem(&device)
        };
        Ok(Start(problem, x, w))
    };
    let measure = |x: &[f64]| Ok(square(&simulated.hypergradient(x)?));
    let (problem, about) = if noisy {
        (
            "simulated-minibatch",
            "As simulated, by minibatches of 64 of 1024 samples of each level.",
        )
    } else {
        (
            "simulated",
            "Two quadratics in 100 variables each (benchopt's benchmark_bilevel), without noise.",
        )
    };
    Ok(Comparison {
        problem,
        about,
        budget: arguments.budget,
        traces: compare(arguments, &scale, start, measure)?,
    })
}

/// A draw of an objective without noise.
fn drawn(objective: &scalebio::problems::Quadratics) -> Done<scalebio::problems::QuadraticBatch> {
    let draw = UpperObjective::<Vector, Vector>::sample(&mut objective.clone())?;
    Ok(draw.into_iter().next().ok_or("an empty draw")?)
}

/// Three sources of data, each a point `c_i` that `w` is drawn to with weight `p_i`, and a target that some weights meet.
fn sources(arguments: &Arguments) -> Done<Comparison> {
    const CENTERS: [[f64; 2]; 3] = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]];
    const TARGET: [f64; 2] = [1.2, 2.0];
    let device = Device::flex().autodiff();
    let target = tensor(&TARGET, &device);
    let centers = CENTERS.map(|c| tensor(&c, &device));
    let lower = move |x: &Vector, w: &Vector| {
        let losses = centers
            .iter()
            .map(|c| (w.val() - c.clone()).square().sum() * 0.5);
        (softmax(x.val(), 0) * Tensor::cat(losses.collect(), 0)).sum()
    };
    let upper = move |_: &Vector, w: &Vector| (w.val() - target.clone()).square().sum() * 0.5;
    let start = |_| {
        let zeros = |n| vector(&vec![0.0; n], &device);
        let problem = Bilevel {
            upper: upper.clone(),
            lower: lower.clone(),
        };
        Ok(Start(problem, zeros(3), zeros(2)))
    };
    // h = 1/2 |p C - t|^2, and the derivative of p in the logits is diag(p) - p p'.
    let measure = |x: &[f64]| {
        let exp: Vec<f64> = x.iter().map(|x| x.exp()).collect();
        let sum: f64 = exp.iter().sum();
        let off = [0, 1].map(|d| {
            let mean: f64 = (0..3).map(|i| exp[i] / sum * CENTERS[i][d]).sum();
            mean - TARGET[d]
        });
        let along = CENTERS.map(|c| c[0] * off[0] + c[1] * off[1]);
        let mean: f64 = (0..3).map(|i| exp[i] / sum * along[i]).sum();
        Ok((0..3)
            .map(|i| (exp[i] / sum * (along[i] - mean)).powi(2))
            .sum())
    };
    let scale = Scale {
        upper: 0.1,
        lower: 0.5,
        entries: 2,
        lowest: [0.0, 0.0],
        noisy: false,
    };
    Ok(Comparison {
        problem: "sources",
        about: "Learning the weights of three sources of data, without noise: the closed form of docs/theory.md.",
        budget: arguments.budget,
        traces: compare(arguments, &scale, start, measure)?,
    })
}

/// Runs every method from the same starts on the same draws.
fn compare<F, G>(
    arguments: &Arguments,
    scale: &Scale,
    start: impl Fn(u64) -> Done<Start<F, G>>,
    measure: impl Fn(&[f64]) -> Done<f64>,
) -> Done<Vec<Trace>>
where
    F: UpperObjective<Vector, Vector> + 'static,
    G: LowerObjective<Vector, Vector> + 'static,
{
    let seeds = if scale.noisy { arguments.seeds } else { 1 };
    let named: Vec<_> = all::<F, G>(scale, 0)
        .iter()
        .map(|entry| entry.name)
        .collect();
    let wanted = arguments.methods.clone();
    let wanted = wanted.unwrap_or_else(|| named.iter().map(|&name| name.to_owned()).collect());
    let mut traces = Vec::new();
    for name in wanted {
        let name = name.replace('_', "-");
        let mut runs = Vec::new();
        let mut ended = None;
        let mut settings = String::new();
        for seed in 0..seeds {
            let entry = all(scale, seed)
                .into_iter()
                .find(|entry| entry.name == name);
            let unknown = || format!("no method `{name}` here; there are: {}", named.join(", "));
            let entry = entry.ok_or_else(unknown)?;
            settings.clone_from(&entry.settings);
            let (points, why) = run(entry, start(seed)?, arguments.budget, &measure)?;
            runs.push(points);
            ended = ended.or(why);
        }
        traces.push(Trace::new(name, settings, runs, ended));
    }
    Ok(traces)
}

/// One run, and why it ended early if it did.
fn run<F, G>(
    entry: Entry<F, G>,
    Start(problem, x, w): Start<F, G>,
    budget: usize,
    measure: impl Fn(&[f64]) -> Done<f64>,
) -> Done<(Vec<Point>, Option<String>)>
where
    F: UpperObjective<Vector, Vector> + 'static,
    G: LowerObjective<Vector, Vector> + 'static,
{
    let mut run = entry.method.start_boxed(problem, x, w)?;
    let mut at = Point {
        iteration: 0,
        gradients: 0,
        seconds: 0.0,
        value: measure(&numbers(run.upper()))?,
    };
    let mut points = vec![at];
    let mut every = 1;
    while at.gradients < budget {
        let clock = Instant::now();
        let step = match run.next().transpose() {
            Ok(Some(step)) => step,
            Ok(None) => break,
            Err(error) => return Ok((points, Some(error.to_string()))),
        };
        at.seconds += clock.elapsed().as_secs_f64();
        at.iteration += 1;
        at.gradients += step.gradient_calls();
        if at.iteration == 1 {
            every = (budget / step.gradient_calls().max(1))
                .div_ceil(LOGGED)
                .max(1);
        }
        if at.iteration.is_multiple_of(every) || at.gradients >= budget {
            at.value = measure(&numbers(run.upper()))?;
            points.push(at);
        }
    }
    Ok((points, None))
}

fn numbers(v: &Vector) -> Vec<f64> {
    v.val().into_data().iter().collect()
}

fn square(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum()
}

fn tensor(values: &[f64], device: &Device) -> Tensor<1> {
    Tensor::from_data(values, (device, DType::F64))
}

fn vector(values: &[f64], device: &Device) -> Vector {
    Vector::from_tensor(tensor(values, device))
}
