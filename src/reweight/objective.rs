//! The two objectives of reweighting: weighted training sources and a validation set.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

use super::draws::{Draws, Samples};
use super::pull::Pull;
use super::weights::{SourceWeights, numbers};
use crate::problem::has_frozen;
use crate::{Bilevel, Error, Gradients, LowerObjective, Result, UpperObjective};

/// A model that gives a loss for every sample of a micro-batch.
///
/// For a language model that is the mean over the sample's own label tokens, never over padding, so
/// that long samples do not count more than short ones.
pub trait SampleLosses<B>: Module {
    /// The loss of each sample.
    ///
    /// # Shapes
    ///
    /// - output: `[samples]`
    fn sample_losses(&self, batch: &B) -> Tensor<1>;

    /// The loss of each sample, and the gradient of `sum_j factor_j loss_j` in the parameters that require one.
    /// Differentiates [`sample_losses`](Self::sample_losses) unless overridden, for instance where the model must be
    /// differentiated in pieces.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another number of losses than of factors, [`Error::NotDifferentiable`] for losses that do
    /// not depend on the model.
    fn differentiate(&self, batch: &B, factors: &[f64]) -> Result<(Vec<f64>, GradientsParams)> {
        let losses = self.sample_losses(batch);
        let [given] = losses.dims();
        if given != factors.len() {
            return Err(Error::setting(
                "sample losses",
                format!("{given} numbers"),
                format!("{} numbers, one a sample of the micro-batch", factors.len()),
                "reduce over tokens or features, but not over samples",
            ));
        }
        if !losses.is_tracked() {
            if has_frozen(self) {
                return Ok((numbers(losses), GradientsParams::new()));
            }
            return Err(Error::NotDifferentiable);
        }
        let sum = (losses.clone() * like(&losses, factors)).sum();
        let gradients = GradientsParams::from_grads(sum.backward(), self);
        Ok((numbers(losses.inner()), gradients))
    }
}

/// A micro-batch whose samples count by given coefficients.
///
/// [`WeightedSources`] and [`Validation`] draw them; make them yourself to train on a fixed sequence of
/// batches, or with coefficients of your own.
#[derive(Clone, Debug)]
pub struct WeightedBatch<B> {
    /// The data.
    pub data: B,
    /// Index of each sample's source; all 0 in a validation set.
    pub sources: Vec<usize>,
    /// Coefficient of each sample: `1 / (B q_i)` makes the source losses unbiased, with `B` the size
    /// of the whole draw (not of this micro-batch) and `q_i` the proportion at which source `i` is drawn.
    pub coefficients: Vec<f64>,
}

impl<B> WeightedBatch<B> {
    /// `sum_j p_(source of j) coefficient_j loss_j`, differentiable in weights and model.
    ///
    /// # Shapes
    ///
    /// - output: `[1]`
    pub fn weighted_loss<W: SampleLosses<B>>(
        &self,
        weights: &SourceWeights,
        model: &W,
    ) -> Tensor<1> {
        let losses = model.sample_losses(&self.data);
        let sources: Vec<i64> = self.sources.iter().map(|&source| source as i64).collect();
        let p = weights.probabilities();
        let p = p
            .clone()
            .select(0, Tensor::from_data(sources.as_slice(), &p.device()));
        // Weights may live on another device or in another float type than the model.
        let p = p.to_device(&losses.device()).cast(losses.dtype());
        let coefficients = like(&losses, &self.coefficients);
        (losses * p * coefficients).sum()
    }

    /// Loss and gradients of [`weighted_loss`](Self::weighted_loss). Its parts are the source losses
    /// `l_i = sum over samples of source i of coefficient_j loss_j`; the gradient in the logits is in
    /// closed form, `(diag(p) - p p^T) l`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a source without a weight or a number of losses that is not that of the
    /// samples, [`Error::NotDifferentiable`] for losses that do not depend on the model.
    pub fn weighted_gradients<W: SampleLosses<B>>(
        &self,
        weights: &SourceWeights,
        model: &W,
    ) -> Result<Gradients> {
        let p = weights.weights();
        if let Some(unknown) = self.sources.iter().find(|&&source| source >= p.len()) {
            return Err(Error::setting(
                "source of a sample",
                unknown,
                format!("below {}, the number of source weights", p.len()),
                "make one weight for every source of the training set",
            ));
        }
        let samples = || self.coefficients.iter().zip(&self.sources);
        let factors: Vec<f64> = samples().map(|(c, &source)| c * p[source]).collect();
        let (losses, of_lower) = model.differentiate(&self.data, &factors)?;

        let mut parts = vec![0.0; p.len()];
        for (loss, (coefficient, &source)) in losses.iter().zip(samples()) {
            parts[source] += coefficient * loss;
        }
        let mut of_upper = GradientsParams::new();
        let logits = weights.parameter();
        let gradient = like(&logits.val().inner(), &weights.chain(&parts));
        of_upper.register(logits.id, gradient);
        Ok(Gradients {
            loss: p.iter().zip(&parts).map(|(p, part)| p * part).sum(),
            parts,
            of_upper,
            of_lower,
        })
    }

    /// `sum_j coefficient_j loss_j`, differentiable in the model.
    ///
    /// # Shapes
    ///
    /// - output: `[1]`
    pub fn loss<W: SampleLosses<B>>(&self, model: &W) -> Tensor<1> {
        let losses = model.sample_losses(&self.data);
        let coefficients = like(&losses, &self.coefficients);
        (losses * coefficients).sum()
    }

    /// Loss and gradients of [`loss`](Self::loss).
    ///
    /// # Errors
    ///
    /// As [`weighted_gradients`](Self::weighted_gradients).
    pub fn gradients<W: SampleLosses<B>>(&self, model: &W) -> Result<Gradients> {
        let (losses, of_lower) = model.differentiate(&self.data, &self.coefficients)?;
        let terms = losses.iter().zip(&self.coefficients);
        Ok(Gradients {
            loss: terms.map(|(loss, coefficient)| loss * coefficient).sum(),
            of_lower,
            ..Gradients::default()
        })
    }
}

/// The lower objective `L2(lambda, w) = sum_i p_i l_i(w)` over drawn samples, with the unbiased source
/// losses `l_i = 1 / (B q_i) * (sum over the draw's samples of source i)`.
///
/// [`Gradients::parts`] are the source losses. The gradient in the logits is in closed form,
/// `(diag(p) - p p^T) l(w)`.
#[derive(Clone, Debug)]
pub struct WeightedSources<S> {
    draws: Draws<S>,
}

impl<S: Samples> WeightedSources<S> {
    /// The objective over `draws` of training samples.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for draws that cannot work: no source, an empty one, a batch of 0 or of
    /// more samples than there are.
    pub fn new(draws: Draws<S>) -> Result<Self> {
        draws.validate("training set")?;
        Ok(Self { draws })
    }

    /// The draws and, through them, the samples.
    pub fn draws(&self) -> &Draws<S> {
        &self.draws
    }
}

impl<S, W> LowerObjective<SourceWeights, W> for WeightedSources<S>
where
    S: Samples,
    W: SampleLosses<S::Batch>,
{
    type Batch = WeightedBatch<S::Batch>;

    fn sample(&mut self) -> Result<Vec<Self::Batch>> {
        weighted_draw(&mut self.draws)
    }

    fn loss(&self, weights: &SourceWeights, model: &W, batch: &Self::Batch) -> Tensor<1> {
        batch.weighted_loss(weights, model)
    }

    fn gradients(
        &self,
        weights: &SourceWeights,
        model: &W,
        batch: &Self::Batch,
    ) -> Result<Gradients> {
        batch.weighted_gradients(weights, model)
    }

    fn progress(&self) -> Option<String> {
        Some(self.draws.progress())
    }

    fn resume(&mut self, progress: &str) -> Result<()> {
        self.draws.resume(progress)
    }

    fn share(&mut self, rank: usize, ranks: usize) -> Result<()> {
        self.draws.share(rank, ranks)
    }
}

/// The upper objective `L1(w)`: the mean loss of drawn validation samples; with a [`Pull`], `L1(w)` and the pull.
///
/// With a pull, [`Gradients::parts`] are the two terms, `[L1(w), strength KL(p | q)]`; without one there are none.
#[derive(Clone, Debug)]
pub struct Validation<S> {
    draws: Draws<S>,
    pull: Option<Pull>,
}

impl<S: Samples> Validation<S> {
    /// The objective over `draws` of validation samples.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for draws that cannot work: no samples, a batch of 0 or of more than there are.
    pub fn new(draws: Draws<S>) -> Result<Self> {
        draws.validate("validation set")?;
        Ok(Self { draws, pull: None })
    }

    /// Adds a pull of the source weights to a prior. Default: none.
    #[must_use]
    pub fn pull(mut self, pull: Pull) -> Self {
        self.pull = Some(pull);
        self
    }

    /// The draws and, through them, the samples.
    pub fn draws(&self) -> &Draws<S> {
        &self.draws
    }
}

impl<S, W> UpperObjective<SourceWeights, W> for Validation<S>
where
    S: Samples,
    W: SampleLosses<S::Batch>,
{
    type Batch = WeightedBatch<S::Batch>;

    fn sample(&mut self) -> Result<Vec<Self::Batch>> {
        let mut batches = weighted_draw(&mut self.draws)?;
        // The plain mean over the draw, also where samples come from several files.
        let mean = 1.0 / self.draws.batch() as f64;
        for batch in &mut batches {
            batch.coefficients.fill(mean);
        }
        Ok(batches)
    }

    fn loss(&self, weights: &SourceWeights, model: &W, batch: &Self::Batch) -> Tensor<1> {
        let loss = batch.loss(model);
        let Some(pull) = &self.pull else {
            return loss;
        };
        let pull = pull.loss(weights) * share(batch);
        let pull = pull.to_device(&loss.device()).cast(loss.dtype());
        loss + pull
    }

    fn gradients(
        &self,
        weights: &SourceWeights,
        model: &W,
        batch: &Self::Batch,
    ) -> Result<Gradients> {
        let mut gradients = batch.gradients(model)?;
        let Some(pull) = &self.pull else {
            return Ok(gradients);
        };
        let (value, slopes) = pull.gradient(weights)?;
        let share = share(batch);
        let slopes: Vec<f64> = slopes.iter().map(|slope| share * slope).collect();
        let logits = weights.parameter();
        let slopes = like(&logits.val().inner(), &slopes);
        gradients.of_upper.register(logits.id, slopes);
        gradients.parts = vec![gradients.loss, share * value];
        gradients.loss += share * value;
        Ok(gradients)
    }

    fn progress(&self) -> Option<String> {
        Some(self.draws.progress())
    }

    fn resume(&mut self, progress: &str) -> Result<()> {
        self.draws.resume(progress)
    }

    fn share(&mut self, rank: usize, ranks: usize) -> Result<()> {
        self.draws.share(rank, ranks)
    }
}

/// The share of a draw that a validation micro-batch is: its part of a term that counts once a draw.
fn share<B>(batch: &WeightedBatch<B>) -> f64 {
    batch.coefficients.iter().sum()
}

/// The reweighting problem over draws of training sources and of a validation set. Its upper variable
/// is [`SourceWeights`] with one logit a source, its lower variable any model with [`SampleLosses`].
///
/// # Errors
///
/// Those of [`WeightedSources::new`] and [`Validation::new`].
pub fn problem<S: Samples, V: Samples>(
    training: Draws<S>,
    validation: Draws<V>,
) -> Result<Bilevel<Validation<V>, WeightedSources<S>>> {
    Ok(Bilevel {
        upper: Validation::new(validation)?,
        lower: WeightedSources::new(training)?,
    })
}

/// The next draw, each sample with its coefficient `1 / (B q_i)`.
fn weighted_draw<S: Samples>(draws: &mut Draws<S>) -> Result<Vec<WeightedBatch<S::Batch>>> {
    let batch = draws.batch() as f64;
    let scale: Vec<f64> = draws
        .proportions()
        .iter()
        .map(|q| 1.0 / (batch * q))
        .collect();
    let drawn = draws.draw()?;
    Ok(drawn
        .into_iter()
        .map(|(picks, data)| WeightedBatch {
            data,
            sources: picks.iter().map(|pick| pick.source).collect(),
            coefficients: picks.iter().map(|pick| scale[pick.source]).collect(),
        })
        .collect())
}

/// `values` with the device and float type of `tensor`.
fn like(tensor: &Tensor<1>, values: &[f64]) -> Tensor<1> {
    let data = TensorData::from(values).convert_dtype(tensor.dtype());
    Tensor::from_data(data, (&tensor.device(), tensor.dtype()))
}
