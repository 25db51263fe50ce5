//! Measures what the theory promises, on the benchmark problem `simulated` with its exact hypergradient:
//! docs/theory.md says what is measured and why.
//!
//! ```text
//! cargo run --release --example rates
//! ```
//!
//! Prints a table, writes figures to `runs/rates` (those of docs/theory.md: `-- --out docs/figures`), and ends with an error if a promise does not hold or a planted
//! fault goes unnoticed.

#[path = "common/simulated.rs"]
mod data;
#[allow(dead_code)] // a part of it is for reports only
#[path = "../src/bin/scalebio/plot/mod.rs"]
mod plot;

use std::cell::RefCell;
use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use plot::{Axis, Chart, Kind, Series};
use scalebio::burn::tensor::{Device, Tensor};
use scalebio::methods::{F2sa, Method};
use scalebio::problems::{Quadratics, Simulated, Vector};
use scalebio::{Bilevel, Gradients, LowerObjective, Minibatches, Order, ScaleBio, Update};

type Done<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(about = "Measured rates of convergence and bias of the penalty")]
struct Arguments {
    /// Steps without noise.
    #[arg(long, default_value_t = 16_384)]
    steps: usize,
    /// Steps with noise.
    #[arg(long, default_value_t = 2_048)]
    noisy_steps: usize,
    /// Runs with noise, over which |grad h|^2 is averaged.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// Samples in a minibatch of each level.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Folder of the figures.
    #[arg(long, default_value = "runs/rates")]
    out: PathBuf,
}

/// Settings of F2SA: rates of `x` and `w` fall as `k^-slow`, that of `u` as `k^-fast`, and the penalty grows from `first`
/// by steps whose sum is about `10 k^(slow - fast)`.
#[derive(Clone, Copy)]
struct Regime {
    first: f64,
    slow: f64,
    fast: f64,
}

const WITHOUT_NOISE: Regime = Regime {
    first: 1.0,
    slow: 1.0 / 3.0,
    fast: 0.0,
};
const NOISE_IN_BOTH: Regime = Regime {
    first: PENALTY,
    slow: 5.0 / 7.0,
    fast: 4.0 / 7.0,
};
const CONSTANT: Regime = Regime {
    first: PENALTY,
    slow: 0.0,
    fast: 0.0,
};

const PENALTY: f64 = 10.0;
const RATE: f64 = 0.3;

fn method(regime: Regime) -> F2sa {
    let Regime { first, slow, fast } = regime;
    let growth = slow - fast;
    F2sa::new(
        Update::sgd(RATE).power(slow),
        Update::sgd(RATE / PENALTY).power(slow),
    )
    .auxiliary(Update::sgd(RATE).power(fast))
    .inner_steps(1)
    .penalty(first)
    .growth(PENALTY * growth, 1.0 - growth)
}

/// A planted fault: `u` and `w` see different minibatches.
struct Unshared(RefCell<Quadratics>);

impl LowerObjective<Vector, Vector> for Unshared {
    type Batch = ();

    fn sample(&mut self) -> scalebio::Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, _: &Vector, _: &Vector, (): &()) -> Tensor<1> {
        unreachable!("its gradients are overridden")
    }

    fn gradients(&self, x: &Vector, w: &Vector, (): &()) -> scalebio::Result<Gradients> {
        let mut all = self.0.borrow_mut();
        let draw = LowerObjective::<Vector, Vector>::sample(&mut *all)?;
        LowerObjective::gradients(&*all, x, w, &draw[0])
    }
}

fn numbers(v: &Vector) -> Vec<f64> {
    v.val().into_data().iter().collect()
}

/// |grad h|^2 at the start of every step. A run that breaks down is infinite from there on.
fn trace<G>(
    simulated: &Simulated,
    problem: Bilevel<Quadratics, G>,
    regime: Regime,
    steps: usize,
) -> Done<Vec<f64>>
where
    G: LowerObjective<Vector, Vector> + 'static,
{
    let (x, w) = simulated.start(&Device::flex().autodiff());
    let mut run = method(regime).start(problem, x, w)?;
    let mut squares = vec![f64::INFINITY; steps];
    for square in &mut squares {
        let slope = simulated.hypergradient(&numbers(run.upper()))?;
        *square = slope.iter().map(|g| g * g).sum();
        if !square.is_finite() || run.next().transpose().is_err() {
            break;
        }
    }
    Ok(squares)
}

#[derive(Clone, Copy, PartialEq)]
enum Batches {
    Shared,
    Unshared,
}

/// The mean over seeds of |grad h|^2 at the start of every step.
fn noisy(
    simulated: &Simulated,
    arguments: &Arguments,
    regime: Regime,
    batches: Batches,
) -> Done<Vec<f64>> {
    let steps = arguments.noisy_steps;
    let mut mean = vec![0.0; steps];
    let device = Device::flex().autodiff();
    for seed in 0..arguments.seeds {
        let [upper, lower] = simulated.samples();
        let draws = |samples, seed| {
            let batches = Minibatches::new(samples, arguments.batch).seed(seed);
            batches.order(Order::Independent)
        };
        let problem =
            simulated.stochastic(draws(upper, 2 * seed), draws(lower, 2 * seed + 1), &device)?;
        let squares = if batches == Batches::Shared {
            trace(simulated, problem, regime, steps)?
        } else {
            let Bilevel { upper, lower } = problem;
            let lower = Unshared(RefCell::new(lower));
            trace(simulated, Bilevel { upper, lower }, regime, steps)?
        };
        for (mean, square) in mean.iter_mut().zip(squares) {
            *mean += square / arguments.seeds as f64;
        }
    }
    Ok(mean)
}

/// The smallest value up to each of about 200 iterations, with equal ratios between them.
fn smallest_so_far(values: &[f64]) -> Vec<(f64, f64)> {
    let mut smallest = f64::INFINITY;
    let mut next = 1.0;
    let mut points = Vec::new();
    let factor = (values.len() as f64).powf(1.0 / 200.0);
    for (i, value) in values.iter().enumerate() {
        smallest = smallest.min(*value);
        let k = (i + 1) as f64;
        if k >= next {
            points.push((k, smallest));
            next = k * factor;
        }
    }
    points
}

/// Least squares of log y in log x over the points from `from` on.
fn slope(points: &[(f64, f64)], from: f64) -> f64 {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|p| p.0 >= from)
        .map(|p| (p.0.ln(), p.1.ln()))
        .collect();
    let count = logs.len() as f64;
    let mean = logs.iter().fold((0.0, 0.0), |sum, p| {
        (sum.0 + p.0 / count, sum.1 + p.1 / count)
    });
    let product = |f: fn((f64, f64)) -> f64| -> f64 {
        logs.iter().map(|p| f((p.0 - mean.0, p.1 - mean.1))).sum()
    };
    product(|d| d.0 * d.1) / product(|d| d.0 * d.0)
}

/// A measured curve, and whether it may fall less steeply than the theory.
struct Measured {
    name: &'static str,
    points: Vec<(f64, f64)>,
    planted: bool,
}

/// Prints a row for each curve, draws them, and says whether each is as it must be.
fn report(title: &str, file: &Path, theory: (&str, f64), curves: Vec<Measured>) -> Done<bool> {
    println!(
        "\n{title}, the theory: slope {:.3} ({})",
        theory.1, theory.0
    );
    println!("  slope   last 4x  smallest  as steep");
    let mut series = Vec::new();
    let mut right = true;
    for curve in curves {
        let end = curve.points[curve.points.len() - 1];
        let (whole, tail) = (
            slope(&curve.points, end.0 / 16.0),
            slope(&curve.points, end.0 / 4.0),
        );
        let steep = whole <= theory.1;
        right &= steep != curve.planted;
        println!(
            "  {whole:6.3}  {tail:6.3}   {:.2e}  {}  {}",
            end.1,
            if steep { "yes" } else { "no " },
            curve.name
        );
        series.push(Series::new(curve.name, curve.points, Kind::Curve));
    }
    let first = &series[0].points;
    let (end, value) = first[first.len() - 1];
    let line = |k: f64| (k, value * (k / end).powf(theory.1));
    series.push(Series::new(
        format!("{}, the theory", theory.0),
        vec![line(end / 64.0), line(end)],
        Kind::Reference,
    ));
    let chart = Chart {
        title,
        x: Axis::logarithmic("iteration K"),
        y: Axis::logarithmic("smallest |grad h|^2 so far"),
    };
    std::fs::write(file, chart.scene(&series).svg())?;
    Ok(right)
}

/// `|x_alpha - x*|` where the penalty method with constant penalty and steps stands still, so that the inner problems
/// are solved exactly.
fn bias(simulated: &Simulated) -> Done<Vec<(f64, f64)>> {
    let device = Device::flex().autodiff();
    let mut points = Vec::new();
    for eighth in 0..=8 {
        let alpha = 10f64.powf(1.0 + 0.25 * f64::from(eighth));
        let (x, w) = simulated.start(&device);
        let mut run = ScaleBio::new(Update::sgd(RATE), Update::sgd(RATE / alpha))
            .penalty(alpha)
            .start(simulated.problem(&device), x, w)?;
        let still = run.by_ref().take(20_000).find(|step| {
            step.as_ref()
                .map_or(true, |step| step.gradient_norms().upper < 1e-10)
        });
        still.ok_or("the penalty method did not come to rest")??;
        let off = numbers(run.upper());
        let square = off.iter().zip(simulated.solution());
        points.push((
            alpha,
            square.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt(),
        ));
    }
    Ok(points)
}

fn report_bias(simulated: &Simulated, out: &Path) -> Done<bool> {
    let points = bias(simulated)?;
    let slope = slope(&points, 0.0);
    println!("\nBias of the penalty, |x_alpha - x*|: slope {slope:.4} in alpha (theory: -1)");
    for (alpha, distance) in &points {
        println!("  alpha {alpha:7.1}  {distance:.3e}");
    }
    let chart = Chart {
        title: "Bias of the penalty at exact inner solutions",
        x: Axis::logarithmic("alpha"),
        y: Axis::logarithmic("|x_alpha - x*|"),
    };
    let (first, last) = (points[0], points[points.len() - 1]);
    let theory = vec![first, (last.0, first.1 * first.0 / last.0)];
    let line = Series::new("1 / alpha", theory, Kind::Reference);
    let measured = Series::new("measured", points, Kind::Curve);
    let figure = chart.scene(&[measured, line]).svg();
    std::fs::write(out.join("penalty-bias.svg"), figure)?;
    Ok((slope + 1.0).abs() <= 0.02)
}

fn main() -> Done<()> {
    let arguments = Arguments::parse();
    let simulated = data::read()?;
    let out = &arguments.out;
    std::fs::create_dir_all(out)?;
    let device = Device::flex().autodiff();

    let exact = |regime| {
        let problem = simulated.problem(&device);
        trace(&simulated, problem, regime, arguments.steps)
    };
    let curve = |name, planted, values: Vec<f64>| Measured {
        name,
        points: smallest_so_far(&values),
        planted,
    };
    let curves = vec![
        curve("schedule", false, exact(WITHOUT_NOISE)?),
        curve("fault: all constant", true, exact(CONSTANT)?),
    ];
    let file = out.join("rates-without-noise.svg");
    let mut right = report("Without noise", &file, ("K^(-2/3)", -2.0 / 3.0), curves)?;

    let run = |regime, batches| noisy(&simulated, &arguments, regime, batches);
    let curves = vec![
        curve("schedule", false, run(NOISE_IN_BOTH, Batches::Shared)?),
        curve("fault: all constant", true, run(CONSTANT, Batches::Shared)?),
        curve(
            "fault: own batches",
            true,
            run(NOISE_IN_BOTH, Batches::Unshared)?,
        ),
    ];
    let file = out.join("rates-with-noise.svg");
    right &= report(
        "Noise in both levels",
        &file,
        ("K^(-2/7)", -2.0 / 7.0),
        curves,
    )?;
    right &= report_bias(&simulated, out)?;
    println!("\nFigures: {}", out.display());
    if right {
        Ok(())
    } else {
        Err("a promise does not hold, or a planted fault went unnoticed".into())
    }
}
