//! Data hyper-cleaning: a weight for each training sample, some of whose labels are wrong.

use burn::tensor::{IndexingUpdateOp, Tensor, TensorCreationOptions, TensorData};
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::linear::{Link, SampleBatch, Samples, ValidationLoss, gradients, one_hot, sigmoid};
use super::{Images, Matrix, Vector};
use crate::{Bilevel, Error, Gradients, LowerObjective, Minibatches, Result, Slot};

const CLASSES: usize = 10;

/// How the data of [`HyperCleaning`] are prepared.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Protocol {
    training: usize,
    validation: usize,
    corruption: f64,
    standardized: bool,
    bias: bool,
    regularization: f64,
    start: f64,
    seed: u64,
}

impl Protocol {
    /// `mnist` of `benchmark_bilevel`: 20,000 training and 5,000 validation images, each pixel standardized on the
    /// training images, no bias, regularization `0.2 |z|^2`, start `x = -2`.
    pub fn benchopt() -> Self {
        Self {
            training: 20_000,
            validation: 5_000,
            corruption: 0.5,
            standardized: true,
            bias: false,
            regularization: 0.2,
            start: -2.0,
            seed: 0,
        }
    }

    /// The protocol of V-PBGD (arXiv 2302.05185) and BOAT: 5,000 training and 5,000 validation images, pixels / 255, with
    /// a bias, no regularization, start `x = 0`.
    pub fn boat() -> Self {
        Self {
            training: 5_000,
            validation: 5_000,
            standardized: false,
            bias: true,
            regularization: 0.0,
            start: 0.0,
            ..Self::benchopt()
        }
    }

    /// Numbers of training and of validation images.
    pub fn sizes(mut self, training: usize, validation: usize) -> Self {
        (self.training, self.validation) = (training, validation);
        self
    }

    /// The probability at which a training label is replaced by one of the ten classes, each as likely: from 0 to 1.
    /// One replaced label in ten stays right. Default: 0.5.
    pub fn corruption(mut self, probability: f64) -> Self {
        self.corruption = probability;
        self
    }

    /// Seed of the split and of the replaced labels. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check(&self, images: &Images, test: &Images) -> Result<()> {
        if !(0.0..=1.0).contains(&self.corruption) {
            return Err(Error::setting(
                "corruption",
                self.corruption,
                "from 0 to 1",
                "it is the probability at which a label is replaced",
            ));
        }
        for set in [images, test] {
            let bytes = set.images().saturating_mul(set.size);
            if bytes == 0 || set.pixels.len() != bytes || set.labels.iter().any(|&l| l > 9) {
                return Err(Error::setting(
                    "set of images",
                    format!("{} pixels of {} images", set.pixels.len(), set.images()),
                    format!(
                        "{} pixels an image and labels from 0 to 9, not empty",
                        set.size
                    ),
                    "read it from files, or check how it was made",
                ));
            }
        }
        if images.size != test.size {
            return Err(Error::setting(
                "test set",
                format!("images of {} pixels", test.size),
                format!("images of {} pixels, as the training set", images.size),
                "take both from one collection",
            ));
        }
        let needed = self.training.saturating_add(self.validation);
        if self.training == 0 || self.validation == 0 || needed > images.images() {
            return Err(Error::setting(
                "number of training and validation images",
                format!("{} and {}", self.training, self.validation),
                format!(
                    "at least 1 each and {} together, all there are",
                    images.images()
                ),
                "set others with `Protocol::sizes`",
            ));
        }
        Ok(())
    }
}

/// Data hyper-cleaning: a linear classifier `z` of images is trained on labels of which many are wrong, and the upper
/// variable `x` holds a weight for each training image, so that the classifier does best on a clean validation set.
///
/// ```text
/// G(x, z) = mean_i sigmoid(x_i) CE_i(z) + r |z|^2      x [training images], z [pixels (+ 1), 10]
/// F(x, z) = mean cross-entropy on the validation images
/// ```
///
/// A bias is the last row of `z`: every image has one more feature, which is 1. `z*(x)` has no closed form; the gradient
/// in `x` is `sigmoid'(x_i) CE_i / n`.
///
/// # Example
///
/// ```
/// use scalebio::burn::tensor::Device;
/// use scalebio::problems::{HyperCleaning, Images, Protocol};
///
/// # fn main() -> scalebio::Result<()> {
/// let (images, test) = (Images::synthetic(300, 1), Images::synthetic(100, 2)); // or Images::folder("mnist")?
/// let cleaning = HyperCleaning::new(&images, &test, &Protocol::boat().sizes(200, 100))?;
/// let device = Device::flex().autodiff();
/// let (problem, (x, z)) = (cleaning.problem(&device), cleaning.start(&device));
/// assert!(cleaning.test_error(&z)? > 0.8); // before training, a guess
/// # Ok(())
/// # }
/// ```
///
/// # Reference
///
/// Franceschi et al., *Forward and reverse gradient-based hyperparameter optimization*, ICML 2017, arXiv 1703.01785;
/// for the protocols see [`Protocol`].
#[derive(Clone, Debug)]
pub struct HyperCleaning {
    training: Part,
    validation: Part,
    test: Part,
    kept: Vec<bool>,
    right: Vec<bool>,
    regularization: f64,
    start: f64,
}

#[derive(Clone, Debug)]
struct Part {
    /// `[images, features]`
    features: TensorData,
    classes: Vec<usize>,
}

impl HyperCleaning {
    /// Splits `images` into a training set, whose labels are then corrupted, and a validation set; `test` is kept whole.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a protocol that asks for more images than there are or for a probability that is none, and
    /// for sets of images that are empty, whose parts do not fit together or that do not fit each other.
    pub fn new(images: &Images, test: &Images, protocol: &Protocol) -> Result<Self> {
        protocol.check(images, test)?;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(protocol.seed);
        let mut order: Vec<usize> = (0..images.images()).collect();
        order.shuffle(&mut random);
        let (training, rest) = order.split_at(protocol.training);
        let scale = Scale::new(images, training, protocol.standardized);
        let part = |of: &Images, picks: &[usize]| Part::new(of, picks, &scale, protocol.bias);
        let validation = part(images, &rest[..protocol.validation]);
        let mut training = part(images, training);
        let all: Vec<usize> = (0..test.images()).collect();
        let test = part(test, &all);

        let (mut kept, mut right) = (Vec::new(), Vec::new());
        for class in &mut training.classes {
            let truth = *class;
            kept.push(!random.random_bool(protocol.corruption));
            if !kept[kept.len() - 1] {
                *class = random.random_range(0..CLASSES);
            }
            right.push(*class == truth);
        }
        Ok(Self {
            training,
            validation,
            test,
            kept,
            right,
            regularization: protocol.regularization,
            start: protocol.start,
        })
    }

    /// Number of validation images (the upper objective) and of training images (the lower), in this order.
    pub fn samples(&self) -> [usize; 2] {
        [&self.validation, &self.training].map(|part| part.classes.len())
    }

    /// Which training labels were not replaced: the mask that published F1 scores refer to.
    pub fn kept(&self) -> &[bool] {
        &self.kept
    }

    /// Which training labels are right: those not replaced, and replaced ones that stayed what they were.
    pub fn right(&self) -> &[bool] {
        &self.right
    }

    /// The problem without noise: every draw is the whole of both sets. `options` is a device, or a device and a float
    /// type, `(&device, DType::F64)`.
    pub fn problem(
        &self,
        options: impl Into<TensorCreationOptions>,
    ) -> Bilevel<ValidationLoss, CleaningLoss> {
        let options = options.into();
        let samples = |part: &Part| {
            let targets = one_hot(&part.classes, CLASSES);
            Samples::whole(part.features.clone(), targets, &options)
        };
        Bilevel {
            upper: ValidationLoss {
                samples: samples(&self.validation),
                link: Link::Softmax,
            },
            lower: CleaningLoss {
                samples: samples(&self.training),
                regularization: self.regularization,
            },
        }
    }

    /// The problem by minibatches: `upper` of the validation set, `lower` of the training set.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for minibatches of another number of [`samples`](Self::samples), or that cannot be drawn.
    pub fn stochastic(
        &self,
        upper: Minibatches,
        lower: Minibatches,
        options: impl Into<TensorCreationOptions>,
    ) -> Result<Bilevel<ValidationLoss, CleaningLoss>> {
        let mut problem = self.problem(options);
        problem.upper.samples = problem.upper.samples.drawn(upper)?;
        problem.lower.samples = problem.lower.samples.drawn(lower)?;
        Ok(problem)
    }

    /// The protocol's start, `(x, z)`: all weights the same, and `z = 0`.
    pub fn start(&self, options: impl Into<TensorCreationOptions>) -> (Vector, Matrix) {
        let options = options.into();
        let x = vec![self.start; self.training.classes.len()];
        let z = Tensor::zeros(
            [self.training.features.shape()[1], CLASSES],
            options.clone(),
        );
        (
            Vector::from_tensor(Tensor::from_data(x.as_slice(), options)),
            Matrix::from_tensor(z),
        )
    }

    /// The share of test images that the classifier gets wrong.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a classifier of another shape than [`start`](Self::start) makes.
    pub fn test_error(&self, classifier: &Matrix) -> Result<f64> {
        let (test, z) = (&self.test, classifier.val().inner());
        let expected = [test.features.shape()[1], CLASSES];
        if z.dims() != expected {
            return Err(Error::setting(
                "classifier",
                format!("of shape {:?}", z.dims()),
                format!("of shape {expected:?}"),
                "start from `HyperCleaning::start`",
            ));
        }
        let features = Tensor::from_data(test.features.clone(), (&z.device(), z.dtype()));
        let guesses = features.matmul(z).argmax(1).into_data();
        let guesses = guesses.iter::<i64>().map(|class| class as usize);
        let wrong = guesses
            .zip(&test.classes)
            .filter(|(guess, class)| guess != *class);
        Ok(wrong.count() as f64 / test.classes.len() as f64)
    }

    /// F1 score of the training images whose weight is at least the start's, `{x_i >= x_0}`, as a guess of `mask`:
    /// [`kept`](Self::kept) for the figure that is published, [`right`](Self::right) for what can be known. (With half of
    /// the labels replaced, all right ones have an F1 of .95 against those kept.) 0 if none is both guessed and true.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for weights or a mask of another length than the training set.
    pub fn f1(&self, upper: &Vector, mask: &[bool]) -> Result<f64> {
        let x: Vec<f64> = upper.val().inner().into_data().iter::<f64>().collect();
        let samples = self.training.classes.len();
        for (name, length) in [("upper variable", x.len()), ("mask", mask.len())] {
            if length != samples {
                return Err(Error::setting(
                    name,
                    format!("of length {length}"),
                    format!("of length {samples}, one a training image"),
                    "start from `HyperCleaning::start`",
                ));
            }
        }
        let (mut both, mut sum) = (0, 0);
        for (x, &truth) in x.iter().zip(mask) {
            let guess = *x >= self.start;
            both += usize::from(guess && truth);
            sum += usize::from(guess) + usize::from(truth);
        }
        Ok(2.0 * both as f64 / sum.max(1) as f64)
    }
}

/// What a pixel is divided by after something is subtracted.
struct Scale {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Scale {
    fn new(images: &Images, picks: &[usize], standardized: bool) -> Self {
        let size = images.size;
        if !standardized {
            return Self {
                mean: vec![0.0; size],
                deviation: vec![255.0; size],
            };
        }
        // Integers: exact sums.
        let mut sums = vec![[0_u64; 2]; size];
        for &pick in picks {
            for (sum, &pixel) in sums.iter_mut().zip(&images.pixels[pick * size..]) {
                let pixel = u64::from(pixel);
                sum[0] += pixel;
                sum[1] += pixel * pixel;
            }
        }
        let count = picks.len() as f64;
        let mean = |sum: &[u64; 2]| sum[0] as f64 / count;
        let deviation = |sum: &[u64; 2]| {
            let variance = sum[1] as f64 / count - mean(sum).powi(2);
            // A pixel that never changes carries nothing, and is not to be blown up where it changes later.
            if variance > 1e-9 {
                variance.sqrt() as f32
            } else {
                1.0
            }
        };
        Self {
            mean: sums.iter().map(|sum| mean(sum) as f32).collect(),
            deviation: sums.iter().map(deviation).collect(),
        }
    }
}

impl Part {
    fn new(images: &Images, picks: &[usize], scale: &Scale, bias: bool) -> Self {
        let columns = images.size + usize::from(bias);
        let mut features = Vec::with_capacity(picks.len() * columns);
        for &pick in picks {
            let pixels = &images.pixels[pick * images.size..][..images.size];
            let scales = scale.mean.iter().zip(&scale.deviation);
            let scaled = pixels.iter().zip(scales);
            features.extend(
                scaled.map(|(&pixel, (mean, deviation))| (f32::from(pixel) - mean) / deviation),
            );
            features.extend(bias.then_some(1.0));
        }
        Self {
            features: TensorData::new(features, [picks.len(), columns]),
            classes: picks
                .iter()
                .map(|&pick| usize::from(images.labels[pick]))
                .collect(),
        }
    }
}

/// The lower objective of [`HyperCleaning`]. Its gradients are in closed form, without a tape.
#[derive(Clone, Debug)]
pub struct CleaningLoss {
    samples: Samples,
    regularization: f64,
}

impl CleaningLoss {
    /// Where the draws stand, to [resume](Minibatches::resume_at) there. 0 without minibatches.
    pub fn position(&self) -> u64 {
        self.samples.position()
    }
}

impl LowerObjective<Vector, Matrix> for CleaningLoss {
    type Batch = SampleBatch;

    fn sample(&mut self) -> Result<Vec<SampleBatch>> {
        self.samples.draw()
    }

    fn loss(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> Tensor<1> {
        let weights = sigmoid(batch.pick(x.val())).unsqueeze_dim(1);
        let losses = batch.losses(Link::Softmax, z.val()) * weights;
        losses.sum() + z.val().square().sum() * self.regularization
    }

    fn gradients(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> Result<Gradients> {
        let (all, point) = (x.val().inner(), z.val().inner());
        let weights = sigmoid(batch.pick(all.clone()));
        let factors = weights.clone().unsqueeze_dim(1);
        let (losses, mut of_z) = batch.derivatives(Link::Softmax, point.clone(), Some(factors));
        let weighted = weights.clone() * losses.squeeze_dim::<1>(1);
        let mut loss = weighted.clone().sum();
        // The derivative of the sigmoid s is s (1 - s).
        let mut of_x = weighted * (weights.neg() + 1.0);
        if let Some(picked) = batch.picked() {
            of_x = all
                .zeros_like()
                .select_assign(0, picked, of_x, IndexingUpdateOp::Add);
        }
        if self.regularization > 0.0 {
            of_z = of_z + point.clone() * (2.0 * self.regularization);
            loss = loss + point.square().sum() * self.regularization;
        }
        Ok(gradients(loss, (x, of_x), (z, of_z)))
    }

    fn slot(&self, batch: &SampleBatch) -> Option<Slot> {
        batch.slot()
    }

    fn progress(&self) -> Option<String> {
        Some(self.samples.progress())
    }

    fn resume(&mut self, progress: &str) -> Result<()> {
        self.samples.resume(progress)
    }
}
