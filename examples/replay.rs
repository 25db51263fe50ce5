//! Replays a recorded run: drives the public solver through explicit batches and compares every step with
//! what a PyTorch program computed (tests/fixtures/trajectory, described in tests/fixtures/README.md).
//!
//! ```text
//! cargo run --release --example replay -- tests/fixtures/hf/gpt2 tests/fixtures/trajectory/gpt2-adamw
//! ```
//!
//! Prints one JSON line and exits with 0 if the weights are within 2e-3 and the losses within 1e-3. The errors
//! of the final parameters are for information: Adam amplifies gradients that are zero up to rounding.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use safetensors::SafeTensors;
use scalebio::burn::module::{Module, ModuleVisitor, Param};
use scalebio::burn::optim::GradientsParams;
use scalebio::burn::tensor::{Device, Int, Tensor, TensorData};
use scalebio::models::{CausalLm, Differentiation};
use scalebio::reweight::{SampleLosses, SourceWeights, WeightedBatch};
use scalebio::{Bilevel, Gradients, LowerObjective, ScaleBio, Update, UpperObjective};
use serde::Deserialize;

type AnyError = Box<dyn Error + Send + Sync>;

const LARGEST_P_ERROR: f64 = 2e-3;
const LARGEST_LOSS_ERROR: f64 = 1e-3;

/// Replays a recorded run and compares every step with it.
#[derive(Debug, Parser)]
struct Args {
    /// Hugging Face folder of the model that the run started from
    model: PathBuf,
    /// Folder with config.json, batches.safetensors, expected.json, final_w.safetensors and final_u.safetensors
    trajectory: PathBuf,
    /// Where to compute: flex, ndarray, wgpu[:cpu|:N] or cuda[:N]
    #[arg(long, default_value = "flex")]
    device: String,
    /// Compute gradients block by block
    #[arg(long)]
    blockwise: bool,
    /// Compute the gradients of the two models at the same time
    #[arg(long)]
    parallel: bool,
}

/// config.json of a trajectory.
#[derive(Debug, Deserialize)]
struct Config {
    optimizer: String,
    lr_w: f64,
    lr_u: f64,
    lr_lambda: f64,
    alpha: f64,
    betas: (f32, f32),
    eps: f32,
    eps_lambda: f32,
    weight_decay: f32,
    steps: usize,
    q: Vec<f64>,
}

/// One entry of expected.json: losses before the step, weights after it.
#[derive(Debug, Deserialize)]
struct Expected {
    l1_w: f64,
    l2_w: f64,
    l2_u: f64,
    p_after: Vec<f64>,
}

/// The tokens of one recorded batch.
#[derive(Clone, Debug)]
struct Tokens {
    ids: Tensor<2, Int>,
    mask: Tensor<2, Int>,
    labels: Tensor<2, Int>,
}

impl SampleLosses<Tokens> for CausalLm {
    fn sample_losses(&self, batch: &Tokens) -> Tensor<1> {
        let Tokens { ids, mask, labels } = batch.clone();
        CausalLm::sample_losses(self, ids, mask, labels)
    }

    fn differentiate(
        &self,
        batch: &Tokens,
        factors: &[f64],
    ) -> scalebio::Result<(Vec<f64>, GradientsParams)> {
        let Tokens { ids, mask, labels } = batch.clone();
        self.gradients(ids, mask, labels, factors)
    }
}

/// The recorded batches of an objective, one a step.
#[derive(Debug)]
struct Recorded(std::vec::IntoIter<WeightedBatch<Tokens>>);

impl Recorded {
    fn next(&mut self) -> scalebio::Result<Vec<WeightedBatch<Tokens>>> {
        let batch = self
            .0
            .next()
            .ok_or_else(|| AnyError::from("no batch is left"))?;
        Ok(vec![batch])
    }
}

impl LowerObjective<SourceWeights, CausalLm> for Recorded {
    type Batch = WeightedBatch<Tokens>;

    fn sample(&mut self) -> scalebio::Result<Vec<Self::Batch>> {
        self.next()
    }

    fn loss(&self, weights: &SourceWeights, model: &CausalLm, batch: &Self::Batch) -> Tensor<1> {
        batch.weighted_loss(weights, model)
    }

    fn gradients(
        &self,
        weights: &SourceWeights,
        model: &CausalLm,
        batch: &Self::Batch,
    ) -> scalebio::Result<Gradients> {
        batch.weighted_gradients(weights, model)
    }
}

impl UpperObjective<SourceWeights, CausalLm> for Recorded {
    type Batch = WeightedBatch<Tokens>;

    fn sample(&mut self) -> scalebio::Result<Vec<Self::Batch>> {
        self.next()
    }

    fn loss(&self, _: &SourceWeights, model: &CausalLm, batch: &Self::Batch) -> Tensor<1> {
        batch.loss(model)
    }

    fn gradients(
        &self,
        _: &SourceWeights,
        model: &CausalLm,
        batch: &Self::Batch,
    ) -> scalebio::Result<Gradients> {
        batch.gradients(model)
    }
}

fn main() -> ExitCode {
    match replay(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn replay(args: &Args) -> Result<bool, AnyError> {
    let device = scalebio::device(&args.device)?.autodiff();
    let config: Config = read_json(&args.trajectory.join("config.json"))?;
    let expected: Vec<Expected> = read_json(&args.trajectory.join("expected.json"))?;
    let how = match args.blockwise {
        true => Differentiation::Blockwise,
        false => Differentiation::Plain,
    };
    let model = CausalLm::from_pretrained(&args.model, &device)?.with_differentiation(how);
    let names = (0..config.q.len()).map(|source| format!("source{source}"));
    let weights = SourceWeights::uniform(names, &device)?;

    let mut run = ScaleBio::new(
        update(&config, config.lr_lambda, true)?,
        update(&config, config.lr_w, false)?,
    )
    .auxiliary(update(&config, config.lr_u, false)?)
    .penalty(config.alpha)
    .start(
        recorded(&args.trajectory, &config, &device)?,
        weights,
        model,
    )?;
    if args.parallel {
        run = run.in_parallel();
    }

    let (mut p_error, mut loss_error) = (0.0, 0.0);
    for expected in &expected {
        let step = run.next().ok_or("the run has ended")??;
        for (given, expected) in [
            (step.upper_loss(), expected.l1_w),
            (step.lower_loss(), expected.l2_w),
            (step.auxiliary_loss(), expected.l2_u),
        ] {
            loss_error = largest(loss_error, ((given - expected) / expected).abs());
        }
        for (given, expected) in run.upper().weights().iter().zip(&expected.p_after) {
            p_error = largest(p_error, (given - expected).abs());
        }
    }
    let line = serde_json::json!({
        "steps": run.steps(),
        "max_abs_p_error": p_error,
        "max_rel_loss_error": loss_error,
        "max_rel_w_error": model_error(run.lower(), &args.trajectory.join("final_w.safetensors"))?,
        "max_rel_u_error": model_error(run.auxiliary(), &args.trajectory.join("final_u.safetensors"))?,
    });
    println!("{line}");
    Ok(run.steps() == config.steps
        && p_error <= LARGEST_P_ERROR
        && loss_error <= LARGEST_LOSS_ERROR)
}

fn update(config: &Config, rate: f64, of_lambda: bool) -> Result<Update, AnyError> {
    match (config.optimizer.as_str(), of_lambda) {
        ("sgd", _) => Ok(Update::sgd(rate)),
        ("adamw", true) => Ok(Update::adamw(rate)
            .betas(config.betas.0, config.betas.1)
            .epsilon(config.eps_lambda)),
        ("adamw", false) => Ok(Update::adamw(rate)
            .betas(config.betas.0, config.betas.1)
            .epsilon(config.eps)
            .weight_decay(config.weight_decay)),
        (other, _) => Err(format!("unknown optimizer `{other}`").into()),
    }
}

/// The problem whose draws are the recorded batches.
fn recorded(
    folder: &Path,
    config: &Config,
    device: &Device,
) -> Result<Bilevel<Recorded, Recorded>, AnyError> {
    let bytes = fs::read(folder.join("batches.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let sources = integers(&file, "train_source")?;
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for step in 0..config.steps {
        let data = tokens(&file, "train", step, device)?;
        let [batch, _] = data.ids.dims();
        let sources: Vec<usize> = sources[step * batch..(step + 1) * batch]
            .iter()
            .map(|&s| s as usize)
            .collect();
        training.push(WeightedBatch {
            coefficients: sources
                .iter()
                .map(|&s| 1.0 / (batch as f64 * config.q[s]))
                .collect(),
            sources,
            data,
        });
        // The recorded L1 is the mean over label tokens: samples count by how many they have.
        let data = tokens(&file, "val", step, device)?;
        let [batch, length] = data.labels.dims();
        let labels = data
            .labels
            .clone()
            .slice([0..batch, 1..length])
            .greater_equal_elem(0);
        let counts: Vec<f64> = labels.int().sum_dim(1).into_data().iter::<f64>().collect();
        let all: f64 = counts.iter().sum();
        validation.push(WeightedBatch {
            data,
            sources: vec![0; batch],
            coefficients: counts.iter().map(|count| count / all).collect(),
        });
    }
    Ok(Bilevel {
        upper: Recorded(validation.into_iter()),
        lower: Recorded(training.into_iter()),
    })
}

fn tokens(file: &SafeTensors, set: &str, step: usize, device: &Device) -> Result<Tokens, AnyError> {
    let part = |name: &str| -> Result<Tensor<2, Int>, AnyError> {
        let name = format!("{set}_{name}");
        let shape = file.tensor(&name)?.shape().to_vec();
        let &[_, batch, length] = shape.as_slice() else {
            return Err(
                format!("{name} has shape {shape:?}, but must have three dimensions").into(),
            );
        };
        let size = batch * length;
        let values = integers(file, &name)?[step * size..(step + 1) * size].to_vec();
        Ok(Tensor::from_data(
            TensorData::new(values, [batch, length]),
            device,
        ))
    };
    Ok(Tokens {
        ids: part("ids")?,
        mask: part("mask")?,
        labels: part("labels")?,
    })
}

fn integers(file: &SafeTensors, name: &str) -> Result<Vec<i64>, AnyError> {
    let (values, _) = file.tensor(name)?.data().as_chunks::<8>();
    Ok(values
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes))
        .collect())
}

/// The largest relative error of a model's parameters against a file: max |a - b| / max |b| of a tensor.
fn model_error(model: &CausalLm, path: &Path) -> Result<f64, AnyError> {
    struct Compare<'a> {
        model: &'a CausalLm,
        path: Vec<String>,
        file: SafeTensors<'a>,
        error: f64,
        missing: Option<String>,
    }

    impl ModuleVisitor for Compare<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = self.model.checkpoint_name(&self.path.join("."));
            let Ok(expected) = self.file.tensor(&name) else {
                self.missing = Some(name);
                return;
            };
            let (expected, _) = expected.data().as_chunks::<4>();
            let expected = expected
                .iter()
                .map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
            let (mut difference, mut scale) = (0.0, 0.0);
            for (given, expected) in param.val().into_data().iter::<f64>().zip(expected) {
                difference = largest(difference, (given - expected).abs());
                scale = largest(scale, expected.abs());
            }
            self.error = largest(self.error, difference / scale);
        }
    }

    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut compare = Compare {
        model,
        path: Vec::new(),
        file,
        error: 0.0,
        missing: None,
    };
    model.visit(&mut compare);
    match compare.missing {
        Some(name) => Err(format!("{}: has no tensor {name}", path.display()).into()),
        None => Ok(compare.error),
    }
}

/// The larger of two errors; NaN, unlike with `f64::max`, is the largest.
fn largest(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, AnyError> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}
