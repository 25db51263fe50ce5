//! Regularization selection: how strongly each feature, or each class, of a linear classifier is to be regularized.

use burn::tensor::{Tensor, TensorCreationOptions, TensorData};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::linear::{Link, SampleBatch, Samples, ValidationLoss, gradients, one_hot};
use super::{Matrix, Table, Vector, normal};
use crate::{Bilevel, Error, Gradients, LowerObjective, Minibatches, Result, Slot};

/// More different labels than this are measurements; a target a sample and class would fill the memory.
const MOST_CLASSES: usize = 1000;

/// Regularization selection: the upper variable `x` holds logarithms of regularization strengths, the lower variable `z`
/// is a linear classifier without bias.
///
/// ```text
/// logistic:  G(x, z) = mean log(1 + exp(-y a.z)) + 1/2 sum_j exp(x_j) z_j^2      x [features], z [features, 1]
/// softmax:   G(x, z) = mean cross-entropy        + 1/2 sum_c exp(x_c) |z_:c|^2   x [classes],  z [features, classes]
/// F(x, z) = the mean loss on the validation set
/// ```
///
/// Of `benchmark_bilevel`: `ijcnn1` (logistic; training set `ijcnn1`, validation set `ijcnn1.t` of the LIBSVM collection)
/// and `covtype` (softmax; `covtype.data`, a CSV file with the label last). `z*(x)` has no closed form.
///
/// # Example
///
/// ```no_run
/// use scalebio::burn::tensor::Device;
/// use scalebio::problems::{Regularization, Table};
///
/// # fn main() -> scalebio::Result<()> {
/// let [training, validation] = [Table::read_libsvm("ijcnn1.gz")?, Table::read_libsvm("ijcnn1.t.gz")?];
/// let ijcnn1 = Regularization::logistic(&training, &validation)?;
/// let device = Device::flex().autodiff();
/// let (problem, (x, z)) = (ijcnn1.problem(&device), ijcnn1.start(0, &device));
/// # Ok(())
/// # }
/// ```
///
/// # Reference
///
/// Dagréou et al., NeurIPS 2022, arXiv 2201.13409; <https://github.com/benchopt/benchmark_bilevel>.
#[derive(Clone, Debug)]
pub struct Regularization {
    link: Link,
    columns: usize,
    /// Columns of `z`: 1 or the classes.
    width: usize,
    training: Part,
    validation: Part,
}

#[derive(Clone, Debug)]
struct Part {
    features: TensorData,
    targets: TensorData,
}

impl Regularization {
    /// Logistic regression: of the two labels the larger one is `y = 1`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a training set that has not exactly two different labels, for a label that only the
    /// validation set has, and for a table whose parts do not fit together.
    pub fn logistic(training: &Table, validation: &Table) -> Result<Self> {
        let classes = classes(training);
        if classes.len() != 2 {
            return Err(Error::setting(
                "training set",
                format!("a set of {} classes", classes.len()),
                "a set of 2 classes",
                "use `Regularization::softmax` for more",
            ));
        }
        Self::new(Link::Logistic, training, validation, &classes)
    }

    /// Softmax regression over the labels of the training set, in ascending order.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a training set with fewer than two different labels or more than 1,000 (a column of
    /// measurements), for a label that only the validation set has, and for a table whose parts do not fit together.
    pub fn softmax(training: &Table, validation: &Table) -> Result<Self> {
        let classes = classes(training);
        if !(2..=MOST_CLASSES).contains(&classes.len()) {
            return Err(Error::setting(
                "training set",
                format!("a set of {} classes", classes.len()),
                format!("a set of at least 2 classes and at most {MOST_CLASSES}"),
                "is this column the label? Use another one as the label, or more data for fewer than 2",
            ));
        }
        Self::new(Link::Softmax, training, validation, &classes)
    }

    fn new(link: Link, training: &Table, validation: &Table, classes: &[f64]) -> Result<Self> {
        let columns = training.columns.max(validation.columns);
        let part = |table| Part::new(table, columns, classes, link);
        Ok(Self {
            link,
            columns,
            width: if link == Link::Logistic {
                1
            } else {
                classes.len()
            },
            training: part(training)?,
            validation: part(validation)?,
        })
    }

    /// Number of samples of the validation set (the upper objective) and of the training set (the lower), in this order.
    pub fn samples(&self) -> [usize; 2] {
        [&self.validation, &self.training].map(|part| part.targets.shape()[0])
    }

    /// The problem without noise: every draw is the whole of both sets. `options` is a device, or a device and a float
    /// type, `(&device, DType::F64)`.
    pub fn problem(
        &self,
        options: impl Into<TensorCreationOptions>,
    ) -> Bilevel<ValidationLoss, RegularizedLoss> {
        let options = options.into();
        let samples =
            |part: &Part| Samples::whole(part.features.clone(), part.targets.clone(), &options);
        Bilevel {
            upper: ValidationLoss {
                samples: samples(&self.validation),
                link: self.link,
            },
            lower: RegularizedLoss {
                samples: samples(&self.training),
                link: self.link,
            },
        }
    }

    /// The problem by minibatches: `upper` of the validation set, `lower` of the training set. Every minibatch of the
    /// training set comes with the whole regularization.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for minibatches of another number of [`samples`](Self::samples), or that cannot be drawn.
    pub fn stochastic(
        &self,
        upper: Minibatches,
        lower: Minibatches,
        options: impl Into<TensorCreationOptions>,
    ) -> Result<Bilevel<ValidationLoss, RegularizedLoss>> {
        let mut problem = self.problem(options);
        problem.upper.samples = problem.upper.samples.drawn(upper)?;
        problem.lower.samples = problem.lower.samples.drawn(lower)?;
        Ok(problem)
    }

    /// The benchmark's start, `(x, z)`. Logistic: `z` is standard normal and `x` the logarithm of uniform numbers, both
    /// from `seed`. Softmax: `z = 0` and `x = -2`.
    pub fn start(&self, seed: u64, options: impl Into<TensorCreationOptions>) -> (Vector, Matrix) {
        let options = options.into();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let size = self.columns * self.width;
        let (x, z) = match self.link {
            Link::Logistic => (
                (0..self.columns)
                    // Of 1 - u, which is never 0.
                    .map(|_| (1.0 - random.random::<f64>()).ln())
                    .collect(),
                (0..size).map(|_| normal(&mut random)).collect(),
            ),
            Link::Softmax => (vec![-2.0; self.width], vec![0.0; size]),
        };
        let z = TensorData::new(z, [self.columns, self.width]);
        (
            Vector::from_tensor(Tensor::from_data(x.as_slice(), options.clone())),
            Matrix::from_tensor(Tensor::from_data(z, options)),
        )
    }
}

/// The different labels, ascending.
fn classes(table: &Table) -> Vec<f64> {
    let mut classes = table.labels.clone();
    classes.sort_by(f64::total_cmp);
    classes.dedup();
    classes
}

impl Part {
    fn new(table: &Table, columns: usize, classes: &[f64], link: Link) -> Result<Self> {
        let samples = table.samples();
        if samples == 0 || table.columns == 0 || table.features.len() != samples * table.columns {
            return Err(Error::setting(
                "table",
                format!(
                    "{} values of {samples} samples and {} columns",
                    table.features.len(),
                    table.columns
                ),
                "samples times columns values, not 0",
                "read it from a file, or check how it was made",
            ));
        }
        let mut targets = Vec::with_capacity(samples);
        for label in &table.labels {
            // Labels are names here: equal only if the same.
            #[allow(clippy::float_cmp)]
            let class = classes.iter().position(|class| class == label);
            targets.push(class.ok_or_else(|| {
                Error::setting(
                    "label",
                    label,
                    format!("one of the training set, {classes:?}"),
                    "split the data so that all classes are in the training set",
                )
            })?);
        }
        let mut features = Vec::with_capacity(samples * columns);
        for row in table.features.chunks_exact(table.columns) {
            features.extend_from_slice(row);
            features.resize(features.len() + columns - table.columns, 0.0);
        }
        let targets = match link {
            Link::Softmax => one_hot(&targets, classes.len()),
            Link::Logistic => {
                let signs: Vec<f32> = targets
                    .iter()
                    .map(|&class| 2.0 * class as f32 - 1.0)
                    .collect();
                TensorData::new(signs, [samples, 1])
            }
        };
        Ok(Self {
            features: TensorData::new(features, [samples, columns]),
            targets,
        })
    }
}

/// The lower objective of [`Regularization`]. Its gradients are in closed form, without a tape.
#[derive(Clone, Debug)]
pub struct RegularizedLoss {
    samples: Samples,
    link: Link,
}

impl RegularizedLoss {
    /// Where the draws stand, to [resume](Minibatches::resume_at) there. 0 without minibatches.
    pub fn position(&self) -> u64 {
        self.samples.position()
    }

    /// The strengths `exp(x)` as a column or a row, to be multiplied with `z`.
    fn strengths(&self, x: Tensor<1>) -> Tensor<2> {
        x.exp().unsqueeze_dim(match self.link {
            Link::Logistic => 1,
            Link::Softmax => 0,
        })
    }
}

impl LowerObjective<Vector, Matrix> for RegularizedLoss {
    type Batch = SampleBatch;

    fn sample(&mut self) -> Result<Vec<SampleBatch>> {
        self.samples.draw()
    }

    fn loss(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> Tensor<1> {
        let penalty = self.strengths(x.val()) * z.val().square();
        batch.losses(self.link, z.val()).sum() + penalty.sum() * 0.5
    }

    fn gradients(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> Result<Gradients> {
        let point = z.val().inner();
        let strengths = self.strengths(x.val().inner());
        let (losses, of_z) = batch.derivatives(self.link, point.clone(), None);
        let halves = strengths.clone() * point.clone().square() * 0.5;
        let loss = losses.sum() + halves.clone().sum();
        let of_x = match self.link {
            Link::Logistic => halves.squeeze_dim::<1>(1),
            Link::Softmax => halves.sum_dim(0).squeeze_dim::<1>(0),
        };
        Ok(gradients(loss, (x, of_x), (z, of_z + strengths * point)))
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
