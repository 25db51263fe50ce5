//! What docs/theory.md promises, measured: rates of F2SA's schedules with and without noise, where planted faults must
//! fail the same check; the bias of the penalty; random block coordinates. `examples/rates.rs` does the same at length.

use std::cell::RefCell;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use scalebio::methods::{F2sa, Method};
use scalebio::{
    Bilevel, Gradients, Lisa, LowerObjective, Result, ScaleBio, Update, UpperObjective,
};

use crate::zoo::{Vector, flex, largest_difference, tensor, values, vector};

/// Coordinates of the problem, and copies of it with noise of their own that run side by side in one vector.
const COORDINATES: usize = 20;
const COPIES: usize = 10;
/// Curvature of the upper objective in `x`.
const RIDGE: f64 = 0.5;

/// Curvature `a` of the lower objective, from 1 to 2.
fn curvature(j: usize) -> f64 {
    1.0 + (j % COORDINATES) as f64 / (COORDINATES - 1) as f64
}

/// Target `t` of the upper objective.
fn target(j: usize) -> f64 {
    1.0 + (9.0 * (j % COORDINATES) as f64 / (COORDINATES - 1) as f64).cos()
}

fn constants(of: fn(usize) -> f64, length: usize, device: &Device) -> Tensor<1> {
    tensor(&(0..length).map(of).collect::<Vec<_>>(), device)
}

/// Independent numbers of mean 0 and standard deviation .3.
struct Noise(Xoshiro256PlusPlus);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    fn draw(&mut self) -> Tensor<1> {
        let width = 0.3 * 3f64.sqrt();
        let numbers: Vec<f64> = (0..COORDINATES * COPIES)
            .map(|_| self.0.random_range(-width..width))
            .collect();
        tensor(&numbers, &Device::flex())
    }
}

fn derivatives(x: &Vector, w: &Vector, of_x: Tensor<1>, of_w: Tensor<1>) -> Gradients {
    let mut gradients = Gradients::default();
    let register = |to: &mut GradientsParams, of: &Vector, value| to.register(of.id, value);
    register(&mut gradients.of_upper, x, of_x);
    register(&mut gradients.of_lower, w, of_w);
    gradients
}

/// `F = sum 1/2 (w - t)^2 + n w + RIDGE/2 x^2`, with noise `n` where there is some.
struct Upper {
    target: Tensor<1>,
    noise: Option<Noise>,
}

impl UpperObjective<Vector, Vector> for Upper {
    type Batch = Option<Tensor<1>>;

    fn sample(&mut self) -> Result<Vec<Self::Batch>> {
        Ok(vec![self.noise.as_mut().map(Noise::draw)])
    }

    fn loss(&self, _: &Vector, _: &Vector, _: &Self::Batch) -> Tensor<1> {
        unreachable!("its gradients are given")
    }

    fn gradients(&self, x: &Vector, w: &Vector, noise: &Self::Batch) -> Result<Gradients> {
        let mut of_w = w.val().inner() - self.target.clone();
        if let Some(noise) = noise {
            of_w = of_w + noise.clone();
        }
        Ok(derivatives(x, w, x.val().inner() * RIDGE, of_w))
    }
}

/// `G = sum a/2 w^2 - (1 + m) x w + n w`, with noise `m` and `n` where there is some: from the draw, or, as a planted
/// fault, a new one for every gradient.
struct Lower {
    curvature: Tensor<1>,
    noise: Option<RefCell<Noise>>,
    shared: bool,
}

impl Lower {
    fn draw(&self) -> Option<[Tensor<1>; 2]> {
        let mut noise = self.noise.as_ref()?.borrow_mut();
        Some([noise.draw(), noise.draw()])
    }
}

impl LowerObjective<Vector, Vector> for Lower {
    type Batch = Option<[Tensor<1>; 2]>;

    fn sample(&mut self) -> Result<Vec<Self::Batch>> {
        Ok(vec![self.draw()])
    }

    fn loss(&self, _: &Vector, _: &Vector, _: &Self::Batch) -> Tensor<1> {
        unreachable!("its gradients are given")
    }

    fn gradients(&self, xs: &Vector, ws: &Vector, drawn: &Self::Batch) -> Result<Gradients> {
        let (x, w) = (xs.val().inner(), ws.val().inner());
        let mut of_x = -w.clone();
        let mut of_w = self.curvature.clone() * w.clone() - x.clone();
        let own = if self.shared { None } else { self.draw() };
        if let Some([m, n]) = own.or_else(|| drawn.clone()) {
            of_x = of_x - m.clone() * w;
            of_w = of_w - m * x + n;
        }
        Ok(derivatives(xs, ws, of_x, of_w))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum In {
    Nothing,
    F,
    FAndG,
    /// The planted fault: `u` and `w` see different draws.
    FAndGUnshared,
}

fn problem(noise: In) -> Bilevel<Upper, Lower> {
    let (length, device) = (COORDINATES * COPIES, Device::flex());
    let in_g = matches!(noise, In::FAndG | In::FAndGUnshared);
    Bilevel {
        upper: Upper {
            target: constants(target, length, &device),
            noise: (noise != In::Nothing).then(|| Noise::new(1)),
        },
        lower: Lower {
            curvature: constants(curvature, length, &device),
            noise: in_g.then(|| RefCell::new(Noise::new(2))),
            shared: noise != In::FAndGUnshared,
        },
    }
}

/// |grad h|^2 of one copy, the mean over copies: `h = sum 1/2 (x / a - t)^2 + RIDGE/2 x^2`.
fn mean_square(x: &[f64]) -> f64 {
    let of = |(j, x): (usize, &f64)| {
        let a = curvature(j);
        ((x / a - target(j)) / a + RIDGE * x).powi(2)
    };
    x.iter().enumerate().map(of).sum::<f64>() / COPIES as f64
}

/// The log-log slope, over the last factor 16 of 2048 iterations, of the smallest mean of |grad h|^2 so far. Rates of
/// `x` and `w` fall as `k^-slow`, that of `u` as `k^-fast`, the penalty grows as `k^(slow - fast)`.
fn slope(noise: In, slow: f64, fast: f64) -> f64 {
    const STEPS: usize = 2048;
    let growth = slow - fast;
    let device = flex();
    let start = |value: f64| vector(&[value; COORDINATES * COPIES], &device);
    let mut run = F2sa::new(
        Update::sgd(0.15).power(slow),
        Update::sgd(0.5 / 30.0).power(slow),
    )
    .auxiliary(Update::sgd(0.5).power(fast))
    .inner_steps(1)
    .penalty(30.0)
    .growth(30.0 * growth, 1.0 - growth)
    .start(problem(noise), start(-2.0), start(0.0))
    .unwrap();
    let mut smallest = f64::INFINITY;
    let mut points = Vec::new();
    for k in 1..=STEPS {
        smallest = smallest.min(mean_square(&values(run.upper().val())));
        if k >= STEPS / 16 {
            points.push(((k as f64).ln(), smallest.ln()));
        }
        run.next().unwrap().unwrap();
    }
    fitted(&points, |x| x.exp().recip())
}

/// The slope of a weighted least-squares line; the weight `1 / k` makes iterations count evenly in their logarithm.
fn fitted(points: &[(f64, f64)], weight: impl Fn(f64) -> f64) -> f64 {
    let sum =
        |f: &dyn Fn(&(f64, f64)) -> f64| -> f64 { points.iter().map(|p| weight(p.0) * f(p)).sum() };
    let total = sum(&|_| 1.0);
    let (x, y) = (sum(&|p| p.0) / total, sum(&|p| p.1) / total);
    sum(&|p| (p.0 - x) * (p.1 - y)) / sum(&|p| (p.0 - x).powi(2))
}

/// Without noise the schedule reaches the theorem's `K^(-2/3)`: prototype -1.6. A constant penalty keeps its bias, and
/// fails the same check.
#[test]
fn without_noise_the_hypergradient_falls_as_fast_as_the_theorem_says() {
    let steep = |slope: f64| slope <= -2.0 / 3.0;
    let schedule = slope(In::Nothing, 1.0 / 3.0, 0.0);
    assert!(steep(schedule), "{schedule}");
    let constant = slope(In::Nothing, 0.0, 0.0);
    assert!(!steep(constant), "{constant}");
    assert!(constant > -0.1, "{constant}");
}

/// With noise in the upper level only: `K^(-2/5)`, over 10 seeds.
#[test]
fn with_upper_noise_the_hypergradient_falls_as_fast_as_the_theorem_says() {
    let steep = |slope: f64| slope <= -0.4;
    let schedule = slope(In::F, 0.6, 0.4);
    assert!(steep(schedule), "{schedule}");
    let constant = slope(In::F, 0.0, 0.0);
    assert!(!steep(constant), "{constant}");
}

/// With noise in both levels: `K^(-2/7)`, over 10 seeds. Independent batches for `u` and `w`, and a constant penalty with
/// constant steps, fail the same check.
#[test]
fn with_noise_in_both_levels_the_hypergradient_falls_as_fast_as_the_theorem_says() {
    let steep = |slope: f64| slope <= -2.0 / 7.0;
    let schedule = slope(In::FAndG, 5.0 / 7.0, 4.0 / 7.0);
    assert!(steep(schedule), "{schedule}");
    let unshared = slope(In::FAndGUnshared, 5.0 / 7.0, 4.0 / 7.0);
    assert!(!steep(unshared), "{unshared}");
    assert!(unshared > -0.1, "{unshared}");
    let constant = slope(In::FAndG, 0.0, 0.0);
    assert!(!steep(constant), "{constant}");
    assert!(constant > -0.15, "{constant}");
}

/// Where the penalty method with constant penalty stands still, its inner problems are solved exactly, and its distance
/// from the solution is C / alpha: slope -1 +- .02 over alpha in 10..1000, on the benchmark problem `simulated`.
#[test]
fn bias_of_the_penalty_is_one_over_alpha() {
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/simulated/problem.safetensors"
    );
    let simulated = scalebio::problems::Simulated::read(fixture).unwrap();
    let points: Vec<(f64, f64)> = [10.0, 31.6, 100.0, 316.0, 1000.0]
        .into_iter()
        .map(|alpha: f64| {
            let (x, w) = simulated.start(&flex());
            let mut run = ScaleBio::new(Update::sgd(0.3), Update::sgd(0.3 / alpha))
                .penalty(alpha)
                .start(simulated.problem(&flex()), x, w)
                .unwrap();
            run.by_ref()
                .take(5000)
                .find(|step| step.as_ref().unwrap().gradient_norms().upper < 1e-8)
                .unwrap_or_else(|| panic!("does not come to rest at alpha {alpha}"))
                .unwrap();
            let off = values(run.upper().val());
            let square = off.iter().zip(simulated.solution());
            let square: f64 = square.map(|(a, b)| (a - b).powi(2)).sum();
            (alpha.ln(), square.sqrt().ln())
        })
        .collect();
    let slope = fitted(&points, |_| 1.0);
    assert!((slope + 1.0).abs() <= 0.02, "{slope}");
}

/// Random block coordinates, drawn for `u` and `w` apart or together, end where all coordinates do: at the closed form
/// `x_alpha` of the penalized problem, whatever the seed. Draws apart need a smaller upper rate: a fast one runs away with
/// them, and does not with shared draws.
#[test]
fn random_blocks_reach_the_same_solution() {
    type Blocks = Vec<Vector>;
    const ALPHA: f64 = 10.0;
    let device = flex();
    let whole = |w: &Blocks| Tensor::cat(w.iter().map(|block| block.val()).collect(), 0);
    let start = || -> Blocks { (0..4).map(|_| vector(&[0.0; 5], &device)).collect() };
    // w = (t + alpha x) / (1 + alpha a) and u = x / a in RIDGE x - alpha (w - u) = 0.
    let expected: Vec<f64> = (0..COORDINATES)
        .map(|j| {
            let (a, t) = (curvature(j), target(j));
            let of_w = 1.0 / (1.0 + ALPHA * a);
            ALPHA * of_w * t / (RIDGE - ALPHA * (ALPHA * of_w - 1.0 / a))
        })
        .collect();
    let solve = |rate: f64, blocks: Option<Lisa>| {
        let (t, a) = (
            constants(target, COORDINATES, &device),
            constants(curvature, COORDINATES, &device),
        );
        let problem = Bilevel {
            upper: move |x: &Vector, w: &Blocks| {
                ((whole(w) - t.clone()).square() + x.val().square() * RIDGE).sum() * 0.5
            },
            lower: move |x: &Vector, w: &Blocks| {
                (whole(w).square() * a.clone() * 0.5 - whole(w) * x.val()).sum()
            },
        };
        let method = ScaleBio::new(Update::sgd(rate), Update::sgd(0.5 / ALPHA)).penalty(ALPHA);
        let method = match blocks {
            Some(blocks) => method.layers(blocks),
            None => method,
        };
        let x = vector(&[0.0; COORDINATES], &device);
        let solution = method.solve(problem, x, start(), 2000).unwrap();
        values(solution.upper.val())
    };
    let lisa = || Lisa::over(&start(), "").unwrap().active(1).period(1);
    for blocks in [
        None,
        Some(lisa().seed(0)),
        Some(lisa().seed(1)),
        Some(lisa().seed(2).shared()),
    ] {
        let error = largest_difference(&solve(0.02, blocks), &expected);
        assert!(error < 1e-8, "{error}");
    }
    let fast = |blocks| largest_difference(&solve(0.1, Some(blocks)), &expected);
    let (apart, together) = (fast(lisa()), fast(lisa().shared()));
    assert!(apart > 1.0 && together < 1e-8, "{apart} {together}");
}
