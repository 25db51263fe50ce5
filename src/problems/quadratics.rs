//! The objectives of `simulated`: means of rank-one quadratics, whole or by minibatches.

use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::Vector;
use super::dense::Dense;
use super::simulated::Mean;
use crate::progress::nothing_drawn;
use crate::{Error, Gradients, LowerObjective, Minibatches, Result, Slot, UpperObjective};

/// One objective of [`Simulated`](super::Simulated) over [`Vector`]s `x` and `z` in float64:
/// [`Simulated::start`](super::Simulated::start) makes them. Its gradients are matrix products, without a tape.
#[derive(Clone, Debug)]
pub struct Quadratics(Source);

#[derive(Clone, Debug)]
enum Source {
    Whole(Box<QuadraticBatch>),
    Samples {
        /// `a`, `b`, `c`, `d`, `l`, `m`, `[samples, variables]` each.
        rows: Box<[Tensor<2>; 6]>,
        batches: Minibatches,
    },
}

/// The whole, or a minibatch, of an objective of [`Simulated`](super::Simulated).
#[derive(Clone, Debug)]
pub struct QuadraticBatch {
    form: Form,
    /// In `x` and in `z`, `[variables, 1]` each.
    linear: [Tensor<2>; 2],
    slot: Option<Slot>,
}

#[derive(Clone, Debug)]
enum Form {
    /// `A`, `B`, `C`: a tenth of the work that the factors of a thousand samples are.
    Mean(Box<[Tensor<2>; 3]>),
    /// `a`, `b`, `c`, `d` of the drawn samples, `[samples, variables]` each, and the samples' weight.
    Factors(Box<[Tensor<2>; 4]>, f64),
}

impl Quadratics {
    pub(super) fn whole(mean: &Mean, device: &Device) -> Self {
        let column = |values: &[f64]| tensor(&Dense::new(1, values.to_vec()), device);
        Self(Source::Whole(Box::new(QuadraticBatch {
            form: Form::Mean(Box::new(
                [&mean.a, &mean.b, &mean.c].map(|m| tensor(m, device)),
            )),
            linear: [column(&mean.m), column(&mean.l)],
            slot: None,
        })))
    }

    pub(super) fn drawn(rows: &[Dense; 6], batches: Minibatches, device: &Device) -> Result<Self> {
        batches.batches()?;
        let samples = rows[0].rows().count();
        if batches.samples() != samples {
            return Err(Error::setting(
                "minibatches",
                format!("of {} samples", batches.samples()),
                format!("of {samples} samples"),
                "ask `Simulated::samples`",
            ));
        }
        let rows = Box::new(rows.each_ref().map(|m| tensor(m, device)));
        Ok(Self(Source::Samples { rows, batches }))
    }

    /// Where the draws stand, to [resume](Minibatches::resume_at) there. 0 without minibatches.
    pub fn position(&self) -> u64 {
        match &self.0 {
            Source::Whole(_) => 0,
            Source::Samples { batches, .. } => batches.position(),
        }
    }

    fn drawn_so_far(&self) -> String {
        match &self.0 {
            Source::Whole(_) => String::new(),
            Source::Samples { batches, .. } => batches.progress(),
        }
    }

    fn draw_from(&mut self, progress: &str) -> Result<()> {
        match &mut self.0 {
            Source::Whole(_) => nothing_drawn(progress),
            Source::Samples { batches, .. } => batches.resume(progress),
        }
    }

    fn draw(&mut self) -> Result<Vec<QuadraticBatch>> {
        let (rows, batches) = match &mut self.0 {
            Source::Whole(batch) => return Ok(vec![batch.as_ref().clone()]),
            Source::Samples { rows, batches } => (rows, batches),
        };
        let drawn = batches.draw()?;
        let indices: Vec<i64> = drawn.samples.iter().map(|&i| i as i64).collect();
        let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &rows[0].device());
        let [a, b, c, d, l, m] = rows
            .each_ref()
            .map(|rows| rows.clone().select(0, indices.clone()));
        let mean = |rows: Tensor<2>| rows.sum_dim(0).transpose() * drawn.weight;
        Ok(vec![QuadraticBatch {
            form: Form::Factors(Box::new([a, b, c, d]), drawn.weight),
            linear: [mean(m), mean(l)],
            slot: drawn.slot,
        }])
    }
}

impl QuadraticBatch {
    /// Gradients in `x` and in `z`, all `[variables, 1]`.
    fn gradients(&self, x: Tensor<2>, z: Tensor<2>) -> [Tensor<2>; 2] {
        let [m, l] = self.linear.clone();
        let [of_x, of_z] = match &self.form {
            Form::Mean(mean) => {
                let [a, b, c] = mean.as_ref().clone();
                [
                    b.matmul(x.clone()) + c.clone().matmul(z.clone()),
                    a.matmul(z) + c.transpose().matmul(x),
                ]
            }
            Form::Factors(factors, weight) => {
                let [a, b, c, d] = factors.as_ref().clone();
                let [az, bx] = [a.clone().matmul(z.clone()), b.clone().matmul(x.clone())];
                let [cx, dz] = [c.clone().matmul(x), d.clone().matmul(z)];
                [
                    (b.transpose().matmul(bx) + c.transpose().matmul(dz)) * *weight,
                    (a.transpose().matmul(az) + d.transpose().matmul(cx)) * *weight,
                ]
            }
        };
        [of_x + m, of_z + l]
    }

    /// A quadratic without constant, from its gradients at `(x, z)`: half its slope along the point, and half its
    /// linear part once more.
    fn value(&self, [of_x, of_z]: [Tensor<2>; 2], x: Tensor<2>, z: Tensor<2>) -> Tensor<1> {
        let [m, l] = self.linear.clone();
        ((x * (of_x + m)).sum() + (z * (of_z + l)).sum()) * 0.5
    }

    fn loss(&self, x: &Vector, z: &Vector) -> Tensor<1> {
        let [x, z] = [x, z].map(|v| v.val().unsqueeze_dim(1));
        self.value(self.gradients(x.clone(), z.clone()), x, z)
    }

    fn derivatives(&self, x: &Vector, z: &Vector) -> Gradients {
        let [x_column, z_column] = [x, z].map(|v| v.val().inner().unsqueeze_dim::<2>(1));
        let gradients = self.gradients(x_column.clone(), z_column.clone());
        let [of_x, of_z] = gradients
            .clone()
            .map(|gradient| gradient.squeeze_dim::<1>(1));
        let loss = self.value(gradients, x_column, z_column);
        let [mut of_upper, mut of_lower] = [GradientsParams::new(), GradientsParams::new()];
        of_upper.register(x.id, of_x);
        of_lower.register(z.id, of_z);
        Gradients {
            loss: loss.into_scalar::<f64>(),
            parts: Vec::new(),
            of_upper,
            of_lower,
        }
    }
}

impl UpperObjective<Vector, Vector> for Quadratics {
    type Batch = QuadraticBatch;

    fn sample(&mut self) -> Result<Vec<QuadraticBatch>> {
        self.draw()
    }

    fn loss(&self, x: &Vector, z: &Vector, batch: &QuadraticBatch) -> Tensor<1> {
        batch.loss(x, z)
    }

    fn gradients(&self, x: &Vector, z: &Vector, batch: &QuadraticBatch) -> Result<Gradients> {
        Ok(batch.derivatives(x, z))
    }

    fn slot(&self, batch: &QuadraticBatch) -> Option<Slot> {
        batch.slot
    }

    fn progress(&self) -> Option<String> {
        Some(self.drawn_so_far())
    }

    fn resume(&mut self, progress: &str) -> Result<()> {
        self.draw_from(progress)
    }
}

impl LowerObjective<Vector, Vector> for Quadratics {
    type Batch = QuadraticBatch;

    fn sample(&mut self) -> Result<Vec<QuadraticBatch>> {
        self.draw()
    }

    fn loss(&self, x: &Vector, z: &Vector, batch: &QuadraticBatch) -> Tensor<1> {
        batch.loss(x, z)
    }

    fn gradients(&self, x: &Vector, z: &Vector, batch: &QuadraticBatch) -> Result<Gradients> {
        Ok(batch.derivatives(x, z))
    }

    fn slot(&self, batch: &QuadraticBatch) -> Option<Slot> {
        batch.slot
    }

    fn progress(&self) -> Option<String> {
        Some(self.drawn_so_far())
    }

    fn resume(&mut self, progress: &str) -> Result<()> {
        self.draw_from(progress)
    }
}

fn tensor(matrix: &Dense, device: &Device) -> Tensor<2> {
    let shape = [matrix.values.len() / matrix.columns.max(1), matrix.columns];
    let data = TensorData::new(matrix.values.clone(), shape);
    Tensor::from_data(data, (&device.clone().inner(), DType::F64))
}
