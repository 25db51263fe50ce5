//! Data hyper-cleaning: learns a weight for each training image, some of whose labels are wrong, and compares the
//! classifier with those that are trained without the weights.
//!
//! Without `--data`: images that this program makes. With it: MNIST, FashionMNIST, or anything in their format.
//!
//! ```text
//! cargo run --release --example hyper_cleaning
//! apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
//! cargo run --release --example hyper_cleaning -- --data fashion/usr/share/datasets/fashion-mnist
//! ```

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use scalebio::burn::module::Param;
use scalebio::burn::optim::AdamConfig;
use scalebio::burn::tensor::Tensor;
use scalebio::problems::{HyperCleaning, Images, Matrix, Protocol, Vector};
use scalebio::{
    Error, Gradients, LowerObjective, Minibatches, Result, ScaleBio, Update, UpperObjective,
};

/// Learns a weight for each training image, some of whose labels are wrong, so that a linear classifier does best on a
/// clean validation set.
#[derive(Debug, Parser)]
#[command(allow_negative_numbers = true)]
struct Args {
    /// Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, each with or without .gz
    /// [default: 2,000 images made by this program]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// How the data are prepared: boat is that of V-PBGD and BOAT, benchopt that of benchmark_bilevel
    #[arg(long, value_name = "NAME", value_enum, default_value = "boat")]
    protocol: Name,

    /// Probability at which a training label is replaced by one of the ten classes
    #[arg(long, value_name = "P", default_value_t = 0.5)]
    corruption: f64,

    /// Steps; the learning rates fall to 0 over them. Without regularization (boat) classifiers overfit in time
    #[arg(long, value_name = "N", default_value_t = 300)]
    steps: usize,

    /// Images of a minibatch, at both levels [default: all of them]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    /// Penalty on the distance of the classifier from the minimum of the weighted training loss
    #[arg(long, value_name = "A", default_value_t = 10.0)]
    alpha: f64,

    /// Adam's learning rate for the weights of the images
    #[arg(long, value_name = "X", default_value_t = 0.05)]
    lr_upper: f64,

    /// Adam's learning rate for all classifiers
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    lr_lower: f64,

    /// Seed of the split, the replaced labels and the minibatches
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Device: flex, ndarray, wgpu, cuda
    #[arg(long, value_name = "NAME", default_value = "flex")]
    device: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    Boat,
    Benchopt,
}

fn main() -> std::process::ExitCode {
    match run(&Args::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let cleaning = data(args)?;
    let [validation, training] = cleaning.samples();
    let count = |mask: &[bool]| mask.iter().filter(|&&yes| yes).count();
    println!(
        "{training} training images, {} labels kept, {} right; {validation} validation images",
        count(cleaning.kept()),
        count(cleaning.right())
    );

    let device = scalebio::device(&args.device)?.autodiff();
    let (x, start) = cleaning.start(&device);
    println!("{:>10}  trained on", "test error");
    let report = |classifier: &Matrix, name: &str| {
        println!("{:>10.4}  {name}", cleaning.test_error(classifier)?);
        Ok::<_, Error>(())
    };

    // The same objective with weights that do not learn: sigmoid(0) = 1/2 for all, or 1 for right labels and 0 for the
    // others, which for half of them right is as much in sum.
    let logits = |value: &dyn Fn(bool) -> f64| -> Vector {
        let logits: Vec<f64> = cleaning.right().iter().map(|&right| value(right)).collect();
        Param::from_tensor(Tensor::from_data(logits.as_slice(), &device))
    };
    for (x, name) in [
        (logits(&|_| 0.0), "all labels, uniform weights"),
        (
            logits(&|right| if right { 30.0 } else { -30.0 }),
            "right labels only",
        ),
    ] {
        let mut lower = problem(args, &cleaning)?.lower;
        let classifier = fit(args, &start, |z| {
            let draw = LowerObjective::<Vector, Matrix>::sample(&mut lower)?;
            lower.gradients(&x, z, &draw[0])
        })?;
        report(&classifier, name)?;
    }
    let mut upper = problem(args, &cleaning)?.upper;
    let classifier = fit(args, &start, |z| {
        let draw = upper.sample()?;
        upper.gradients(&x, z, &draw[0])
    })?;
    report(&classifier, "validation images only")?;

    let [of_x, of_z] =
        [args.lr_upper, args.lr_lower].map(|rate| Update::adam(rate).cosine(args.steps));
    let mut run =
        ScaleBio::new(of_x, of_z)
            .penalty(args.alpha)
            .start(problem(args, &cleaning)?, x, start)?;
    for step in run.by_ref().take(args.steps) {
        step?;
    }
    report(run.auxiliary(), "all labels, learned weights (u)")?;
    report(run.lower(), "the same and validation images / alpha (w)")?;
    println!(
        "F1 of the images whose weight rose: {:.4} for labels kept, {:.4} for right labels",
        cleaning.f1(run.upper(), cleaning.kept())?,
        cleaning.f1(run.upper(), cleaning.right())?
    );
    Ok(())
}

fn data(args: &Args) -> Result<HyperCleaning> {
    let protocol = match args.protocol {
        Name::Boat => Protocol::boat(),
        Name::Benchopt => Protocol::benchopt(),
    };
    let protocol = protocol.corruption(args.corruption).seed(args.seed);
    let Some(folder) = &args.data else {
        let (images, test) = (Images::synthetic(1000, 1), Images::synthetic(1000, 2));
        return HyperCleaning::new(&images, &test, &protocol.sizes(500, 500));
    };
    let [images, test] = Images::folder(folder)?;
    HyperCleaning::new(&images, &test, &protocol)
}

type Problem =
    scalebio::Bilevel<scalebio::problems::ValidationLoss, scalebio::problems::CleaningLoss>;

fn problem(args: &Args, cleaning: &HyperCleaning) -> Result<Problem> {
    let device = scalebio::device(&args.device)?;
    let Some(batch) = args.batch else {
        return Ok(cleaning.problem(&device));
    };
    let [validation, training] = cleaning.samples();
    // Two seeds, so that the levels do not draw the same indices.
    let upper = Minibatches::new(validation, batch).seed(2 * args.seed);
    let lower = Minibatches::new(training, batch).seed(2 * args.seed + 1);
    cleaning.stochastic(upper, lower, &device)
}

/// Minimizes one objective in the classifier alone, with the steps and rates that the method has.
fn fit(
    args: &Args,
    start: &Matrix,
    mut gradients: impl FnMut(&Matrix) -> Result<Gradients>,
) -> Result<Matrix> {
    let rates = Update::adam(args.lr_lower).cosine(args.steps);
    let mut optimizer = AdamConfig::new().with_epsilon(1e-8).init();
    let mut classifier = start.clone();
    for step in 0..args.steps {
        let gradients = gradients(&classifier)?;
        classifier = optimizer.step(rates.rate_at(step), classifier, gradients.of_lower);
    }
    Ok(classifier)
}
