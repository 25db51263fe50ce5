//! One method on the benchmark problem `simulated`, in float64, measured with closed forms.
//!
//! ```text
//! cargo run --release --example simulated -- --method NAME --iterations N [--alpha A --lr-u X --lr-w X --lr-x X]
//! cargo run --release --example simulated -- --method soba --batch 64 --estimator saga --iterations 1536 [--seed S]
//! ```
//!
//! Without `--batch` there is no noise. Prints one JSON array with a row `[iteration, |grad h|^2, h - h*, |z* - z|^2]` for every iteration from 0, where `z`
//! is the lower variable. Defaults are those of `tests/fixtures/simulated/golden.json` where it has the method.

#[path = "common/simulated.rs"]
mod data;

use clap::{Parser, ValueEnum};
use scalebio::burn::tensor::Device;
use scalebio::methods::{
    Bda, Bome, Estimator, F2sa, Method, NoU, Penalized, Progress, Sama, Soba, ZerothOrder,
};
use scalebio::problems::{Quadratics, Simulated, Vector};
use scalebio::{Bilevel, Minibatches, Order, ScaleBio, Update};

#[derive(Parser)]
#[command(about = "A bilevel method on the benchmark problem `simulated`")]
struct Arguments {
    /// The method.
    #[arg(long, value_enum)]
    method: Name,
    /// Number of steps.
    #[arg(long, default_value_t = 100)]
    iterations: usize,
    /// The penalty; of f2sa: the first one.
    #[arg(long)]
    alpha: Option<f64>,
    /// Learning rate of the auxiliary variable: `u -= lr_u alpha g_u`, without alpha in f2sa.
    #[arg(long)]
    lr_u: Option<f64>,
    /// Learning rate of the lower variable.
    #[arg(long)]
    lr_w: Option<f64>,
    /// Learning rate of the upper variable.
    #[arg(long)]
    lr_x: Option<f64>,
    /// Inner steps of f2sa.
    #[arg(long, default_value_t = 10)]
    inner_steps: usize,
    /// Growth of f2sa's penalty.
    #[arg(long, default_value_t = 0.01)]
    growth: f64,
    /// Samples of a minibatch of either objective, of 1024 in fixed batches; all if left out.
    #[arg(long)]
    batch: Option<usize>,
    /// Seed of the batches, and of the directions of zeroth_order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How soba (then at constant steps) and penalized estimate directions.
    #[arg(long, value_enum)]
    estimator: Option<Estimate>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Estimate {
    Plain,
    Saga,
    /// With decay .1.
    Storm,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Name {
    Penalty,
    PenaltyConstAlpha10,
    PenaltyConstAlpha100,
    F2sa,
    Soba,
    Penalized,
    ZerothOrder,
    Bome,
    Sama,
    NoU,
    Bda,
}

type Boxed = Box<dyn Method<Quadratics, Quadratics, Vector, Vector>>;

impl Arguments {
    fn method(&self) -> Boxed {
        match self.method {
            Name::Penalty | Name::PenaltyConstAlpha10 => self.penalty(10.0, 0.1),
            Name::PenaltyConstAlpha100 => self.penalty(100.0, 0.01),
            Name::F2sa => {
                let power = |rate: Option<f64>, sevenths| {
                    Update::sgd(rate.unwrap_or(0.1)).power(sevenths / 7.0)
                };
                let method = F2sa::new(power(self.lr_x, 4.0), power(self.lr_w, 5.0))
                    .auxiliary(power(self.lr_u, 4.0))
                    .inner_steps(self.inner_steps)
                    .growth(self.growth, 1.0 / 7.0);
                Box::new(method.penalty(self.alpha.unwrap_or(1.0)))
            }
            Name::Bome => Box::new(Bome::new(
                self.sgd(self.lr_x, 0.1),
                self.sgd(self.lr_w, 0.1),
            )),
            Name::Sama => Box::new(Sama::new(
                self.sgd(self.lr_x, 0.1),
                self.sgd(self.lr_w, 0.5),
            )),
            Name::NoU => {
                let lower = self.sgd(self.lr_w, 0.5);
                let share = 1.0 / (1.0 + self.alpha.unwrap_or(9.0));
                Box::new(NoU::new(self.sgd(self.lr_x, 0.01), lower).share(share))
            }
            Name::Bda => {
                let lower = self.sgd(self.lr_w, 0.5);
                let auxiliary = Update::sgd(self.lr_u.unwrap_or(0.5));
                Box::new(Bda::new(self.sgd(self.lr_x, 0.1), lower).auxiliary(auxiliary))
            }
            Name::Soba => {
                let exponent = if self.estimator.is_some() { 0.0 } else { 0.5 };
                let power = |rate| self.sgd(rate, 0.1).power(exponent);
                let method = Soba::new(power(self.lr_x), power(self.lr_w));
                Box::new(method.estimator(self.estimator()))
            }
            Name::Penalized => {
                let alpha = self.alpha.unwrap_or(100.0);
                let lower = self.sgd(self.lr_w, 0.2 / alpha);
                let method = Penalized::new(alpha, self.sgd(self.lr_x, 0.1), lower);
                Box::new(method.estimator(self.estimator()))
            }
            Name::ZerothOrder => {
                let alpha = self.alpha.unwrap_or(10.0);
                let rate = self.lr_w.unwrap_or(0.01 / alpha);
                let method = ZerothOrder::new(alpha, self.sgd(self.lr_x, 1e-2), rate);
                Box::new(method.seed(self.seed))
            }
        }
    }

    fn estimator(&self) -> Estimator {
        match self.estimator {
            None | Some(Estimate::Plain) => Estimator::Plain,
            Some(Estimate::Saga) => Estimator::Saga,
            Some(Estimate::Storm) => Estimator::Storm { decay: 0.1 },
        }
    }

    fn problem(
        &self,
        simulated: &Simulated,
        device: &Device,
    ) -> scalebio::Result<Bilevel<Quadratics, Quadratics>> {
        let Some(batch) = self.batch else {
            return Ok(simulated.problem(device));
        };
        let [upper, lower] = simulated.samples();
        // Seeds of their own, so that the two objectives do not draw the same samples.
        let batches = |samples, seed| {
            let batches = Minibatches::new(samples, batch).order(Order::FixedBatches);
            batches.seed(seed)
        };
        let (even, odd) = (self.seed.wrapping_mul(2), self.seed.wrapping_mul(2) | 1);
        simulated.stochastic(batches(upper, even), batches(lower, odd), device)
    }

    fn sgd(&self, rate: Option<f64>, default: f64) -> Update {
        Update::sgd(rate.unwrap_or(default))
    }

    fn penalty(&self, alpha: f64, lr_x: f64) -> Boxed {
        let alpha = self.alpha.unwrap_or(alpha);
        let lower = self.sgd(self.lr_w, 0.1 / alpha);
        let auxiliary = self.sgd(self.lr_u, 0.1 / alpha);
        let method = ScaleBio::new(self.sgd(self.lr_x, lr_x), lower);
        Box::new(method.auxiliary(auxiliary).penalty(alpha))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let simulated = data::read()?;
    let device = Device::flex().autodiff();
    let (x, z) = simulated.start(&device);
    let problem = arguments.problem(&simulated, &device)?;
    let mut run = arguments.method().start_boxed(problem, x, z)?;
    let mut rows = vec![row(&simulated, 0, run.as_ref())?];
    for k in 1..=arguments.iterations {
        run.next().transpose()?;
        rows.push(row(&simulated, k, run.as_ref())?);
    }
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

fn row(
    simulated: &Simulated,
    k: usize,
    run: &dyn Progress<Vector, Vector>,
) -> scalebio::Result<(usize, f64, f64, f64)> {
    let numbers = |v: &Vector| v.val().into_data().iter::<f64>().collect::<Vec<_>>();
    let at = simulated.measure(&numbers(run.upper()), &numbers(run.lower()))?;
    let excess = at.excess;
    Ok((
        k,
        at.hypergradient_squared,
        excess,
        at.lower_distance_squared,
    ))
}
