//! One method on the benchmark problem `simulated`, in float64, measured with closed forms.
//!
//! ```text
//! cargo run --release --example simulated -- --method NAME --iterations N [--alpha A --lr-u X --lr-w X --lr-x X]
//! cargo run --release --example simulated -- --method soba --batch 64 --estimator saga --iterations 1536 [--seed S]
//! ```
//!
//! Without `--batch` there is no noise. Prints one JSON array with a row `[iteration, |grad h|^2, h - h*, |z* - z|^2]` for
//! every iteration from 0, where `z` is the lower variable. Defaults are those of
//! `tests/fixtures/simulated/golden.json` where it has the method. A run that diverges prints the rows up to there, says
//! so on standard error, and fails.

#[path = "common/simulated.rs"]
mod data;

use std::process::ExitCode;

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
    /// Learning rate of the auxiliary variable: `u -= lr_u alpha g_u`, without alpha in f2sa and bda; of soba: of `v`.
    #[arg(long)]
    lr_u: Option<f64>,
    /// Learning rate of the lower variable.
    #[arg(long)]
    lr_w: Option<f64>,
    /// Learning rate of the upper variable.
    #[arg(long)]
    lr_x: Option<f64>,
    /// Inner steps of f2sa [default: 10].
    #[arg(long)]
    inner_steps: Option<usize>,
    /// Growth of f2sa's penalty [default: .01].
    #[arg(long)]
    growth: Option<f64>,
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

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Name {
    Penalty,
    PenaltyConstAlpha10,
    PenaltyConstAlpha100,
    F2sa,
    Soba,
    Penalized,
    #[value(alias = "zeroth-order")]
    ZerothOrder,
    Bome,
    Sama,
    #[value(alias = "no-u")]
    NoU,
    Bda,
}

type Boxed = Box<dyn Method<Quadratics, Quadratics, Vector, Vector>>;

impl Name {
    /// The hyper-parameters that it has.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Penalty | Self::PenaltyConstAlpha10 | Self::PenaltyConstAlpha100 => {
                &["--alpha", "--lr-u", "--lr-w", "--lr-x"]
            }
            Self::F2sa => &[
                "--alpha",
                "--lr-u",
                "--lr-w",
                "--lr-x",
                "--inner-steps",
                "--growth",
            ],
            Self::Soba => &["--lr-u", "--lr-w", "--lr-x", "--estimator"],
            Self::Penalized => &["--alpha", "--lr-w", "--lr-x", "--estimator"],
            Self::ZerothOrder | Self::NoU => &["--alpha", "--lr-w", "--lr-x"],
            Self::Bome | Self::Sama => &["--lr-w", "--lr-x"],
            Self::Bda => &["--lr-u", "--lr-w", "--lr-x"],
        }
    }
}

impl Arguments {
    /// An error for a flag that the method does not have.
    fn check(&self) -> Result<(), String> {
        let given = [
            ("--alpha", self.alpha.is_some()),
            ("--lr-u", self.lr_u.is_some()),
            ("--lr-w", self.lr_w.is_some()),
            ("--lr-x", self.lr_x.is_some()),
            ("--inner-steps", self.inner_steps.is_some()),
            ("--growth", self.growth.is_some()),
            ("--estimator", self.estimator.is_some()),
        ];
        let has = self.method.flags();
        match given.iter().find(|(flag, is)| *is && !has.contains(flag)) {
            None => Ok(()),
            Some((flag, _)) => {
                let method = self.method.to_possible_value();
                let method = method
                    .as_ref()
                    .map_or("this method", |name| name.get_name());
                Err(format!("{method} has no {flag}; it has {}", has.join(", ")))
            }
        }
    }

    fn method(&self) -> Boxed {
        match self.method {
            Name::Penalty | Name::PenaltyConstAlpha10 => self.penalty(10.0, 0.1),
            Name::PenaltyConstAlpha100 => self.penalty(100.0, 0.01),
            Name::F2sa => {
                let power = |rate: Option<f64>, sevenths| {
                    Update::sgd(rate.unwrap_or(0.1)).power(sevenths / 7.0)
                };
                let method = match (self.lr_x, self.lr_w, self.lr_u) {
                    (None, None, None) => F2sa::schedule(0.1),
                    (x, w, u) => F2sa::new(power(x, 4.0), power(w, 5.0)).auxiliary(power(u, 4.0)),
                };
                let method = method
                    .inner_steps(self.inner_steps.unwrap_or(10))
                    .growth(self.growth.unwrap_or(0.01), 1.0 / 7.0);
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
                let method = Soba::new(power(self.lr_x), power(self.lr_w))
                    .system(power(self.lr_u.or(self.lr_w)));
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

fn main() -> ExitCode {
    let mut rows = Vec::new();
    let done = run(&Arguments::parse(), &mut rows);
    if !rows.is_empty() {
        match serde_json::to_string(&rows) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("error: {error}"),
        }
    }
    if let Err(error) = done {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

type Row = (usize, f64, f64, f64);

fn run(arguments: &Arguments, rows: &mut Vec<Row>) -> Result<(), Box<dyn std::error::Error>> {
    arguments.check()?;
    let simulated = data::read()?;
    let device = Device::flex().autodiff();
    let (x, z) = simulated.start(&device);
    let problem = arguments.problem(&simulated, &device)?;
    let mut run = arguments.method().start_boxed(problem, x, z)?;
    rows.push(row(&simulated, 0, run.as_ref())?);
    for k in 1..=arguments.iterations {
        run.next().transpose()?;
        rows.push(row(&simulated, k, run.as_ref())?);
    }
    Ok(())
}

fn row(
    simulated: &Simulated,
    k: usize,
    run: &dyn Progress<Vector, Vector>,
) -> scalebio::Result<Row> {
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
