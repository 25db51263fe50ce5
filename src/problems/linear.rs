//! Linear classifiers: losses of samples, their gradients without a tape, and draws of samples.

use burn::optim::GradientsParams;
use burn::tensor::activation::{log_sigmoid, log_softmax, softmax};
use burn::tensor::{Int, Tensor, TensorCreationOptions, TensorData};

use super::{Matrix, Vector};
use crate::progress::nothing_drawn;
use crate::{Error, Gradients, Minibatches, Result, Slot, UpperObjective};

/// What turns the product of features and `z` into losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// `log(1 + exp(-y a.z))` with `y` in {-1, 1}: targets are `y`, `[samples, 1]`.
    Logistic,
    /// Cross-entropy: targets are one-hot, `[samples, classes]`.
    Softmax,
}

impl Link {
    /// Losses of the samples, `[samples, 1]`.
    fn losses(self, logits: Tensor<2>, targets: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Logistic => log_sigmoid(logits * targets).neg(),
            Self::Softmax => (log_softmax(logits, 1) * targets).sum_dim(1).neg(),
        }
    }

    /// Derivatives of the losses in the logits.
    fn slopes(self, logits: Tensor<2>, targets: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Logistic => (sigmoid((logits * targets.clone()).neg()) * targets).neg(),
            Self::Softmax => softmax(logits, 1) - targets,
        }
    }
}

/// The logistic function. Burn's own goes through float32 on some devices, also for float64.
pub(super) fn sigmoid<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    log_sigmoid(tensor).exp()
}

/// Some or all samples of a finite sum.
#[derive(Clone, Debug)]
pub struct SampleBatch {
    /// `[samples, features]`
    features: Tensor<2>,
    targets: Tensor<2>,
    /// Which samples they are, unless all.
    picked: Option<Tensor<1, Int>>,
    /// What the sum of the losses is to be multiplied by.
    weight: f64,
    slot: Option<Slot>,
}

impl SampleBatch {
    /// Weighted losses of the samples, `[samples, 1]`: their sum estimates the mean loss.
    pub(super) fn losses(&self, link: Link, z: Tensor<2>) -> Tensor<2> {
        let logits = self.features.clone().matmul(z);
        link.losses(logits, self.targets.clone()) * self.weight
    }

    /// The weighted losses and the gradient in `z` of their sum, where each has a further factor, `[samples, 1]`.
    pub(super) fn derivatives(
        &self,
        link: Link,
        z: Tensor<2>,
        factors: Option<Tensor<2>>,
    ) -> (Tensor<2>, Tensor<2>) {
        let logits = self.features.clone().matmul(z);
        let losses = link.losses(logits.clone(), self.targets.clone()) * self.weight;
        let mut slopes = link.slopes(logits, self.targets.clone()) * self.weight;
        if let Some(factors) = factors {
            slopes = slopes * factors;
        }
        (losses, self.features.clone().transpose().matmul(slopes))
    }

    /// What belongs to the samples, out of what belongs to all.
    pub(super) fn pick(&self, of: Tensor<1>) -> Tensor<1> {
        match &self.picked {
            None => of,
            Some(picked) => of.select(0, picked.clone()),
        }
    }

    pub(super) fn picked(&self) -> Option<Tensor<1, Int>> {
        self.picked.clone()
    }

    pub(super) fn slot(&self) -> Option<Slot> {
        self.slot
    }
}

/// Samples on a device, drawn whole or by minibatches.
#[derive(Clone, Debug)]
pub(super) struct Samples {
    whole: SampleBatch,
    batches: Option<Minibatches>,
}

impl Samples {
    /// All samples: features `[samples, columns]` and targets `[samples, width]`, on the device without gradients.
    pub fn whole(
        features: TensorData,
        targets: TensorData,
        options: &TensorCreationOptions,
    ) -> Self {
        let weight = 1.0 / targets.shape()[0] as f64;
        let device = options.device.clone().inner();
        let options = options.clone().with_device(device);
        Self {
            whole: SampleBatch {
                features: Tensor::from_data(features, options.clone()),
                targets: Tensor::from_data(targets, options),
                picked: None,
                weight,
                slot: None,
            },
            batches: None,
        }
    }

    /// The same samples by minibatches.
    pub fn drawn(self, batches: Minibatches) -> Result<Self> {
        let [samples, _] = self.whole.targets.dims();
        batches.batches()?;
        if batches.samples() != samples {
            return Err(Error::setting(
                "minibatches",
                format!("of {} samples", batches.samples()),
                format!("of {samples} samples, all there are in this objective"),
                "ask the problem's `samples`",
            ));
        }
        Ok(Self {
            batches: Some(batches),
            ..self
        })
    }

    pub fn draw(&mut self) -> Result<Vec<SampleBatch>> {
        let Some(batches) = &mut self.batches else {
            return Ok(vec![self.whole.clone()]);
        };
        let drawn = batches.draw()?;
        let indices: Vec<i64> = drawn.samples.iter().map(|&i| i as i64).collect();
        let whole = &self.whole;
        let picked = Tensor::<1, Int>::from_data(indices.as_slice(), &whole.features.device());
        Ok(vec![SampleBatch {
            features: whole.features.clone().select(0, picked.clone()),
            targets: whole.targets.clone().select(0, picked.clone()),
            picked: Some(picked),
            weight: drawn.weight,
            slot: drawn.slot,
        }])
    }

    pub fn position(&self) -> u64 {
        self.batches.as_ref().map_or(0, Minibatches::position)
    }

    pub fn progress(&self) -> String {
        let minibatches = self.batches.as_ref();
        minibatches.map_or(String::new(), Minibatches::progress)
    }

    pub fn resume(&mut self, progress: &str) -> Result<()> {
        match &mut self.batches {
            Some(batches) => batches.resume(progress),
            None => nothing_drawn(progress),
        }
    }
}

/// The upper objective of the problems with a linear classifier: its mean loss on the validation set. It does not depend
/// on the upper variable.
#[derive(Clone, Debug)]
pub struct ValidationLoss {
    pub(super) samples: Samples,
    pub(super) link: Link,
}

impl ValidationLoss {
    /// Where the draws stand, to [resume](Minibatches::resume_at) there. 0 without minibatches.
    pub fn position(&self) -> u64 {
        self.samples.position()
    }
}

impl UpperObjective<Vector, Matrix> for ValidationLoss {
    type Batch = SampleBatch;

    fn sample(&mut self) -> Result<Vec<SampleBatch>> {
        self.samples.draw()
    }

    fn loss(&self, _: &Vector, z: &Matrix, batch: &SampleBatch) -> Tensor<1> {
        batch.losses(self.link, z.val()).sum()
    }

    fn gradients(&self, _: &Vector, z: &Matrix, batch: &SampleBatch) -> Result<Gradients> {
        let (losses, of_z) = batch.derivatives(self.link, z.val().inner(), None);
        let mut gradients = Gradients {
            loss: losses.sum().into_scalar::<f64>(),
            ..Gradients::default()
        };
        gradients.of_lower.register(z.id, of_z);
        Ok(gradients)
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

/// Loss and gradients of a lower objective.
pub(super) fn gradients(
    loss: Tensor<1>,
    (x, of_x): (&Vector, Tensor<1>),
    (z, of_z): (&Matrix, Tensor<2>),
) -> Gradients {
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

/// One-hot rows of `width` columns.
pub(super) fn one_hot(classes: &[usize], width: usize) -> TensorData {
    let mut rows = vec![0.0_f32; classes.len() * width];
    for (row, &class) in rows.chunks_exact_mut(width).zip(classes) {
        row[class] = 1.0;
    }
    TensorData::new(rows, [classes.len(), width])
}
