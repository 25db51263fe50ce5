//! The upper variable: one logit a source.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};

use crate::{Error, Result};

/// The weights of `m` data sources, `p = softmax(lambda)`, with one logit `lambda_i` a source.
///
/// With a [floor](Self::with_floor) `f`, `p = f + (1 - m f) softmax(lambda)`.
///
/// # Reference
///
/// Pan et al., *ScaleBiO*, arXiv 2406.19976, section 3: `lambda` starts at 0, that is, at uniform weights.
#[derive(Module, Debug)]
pub struct SourceWeights {
    logits: Param<Tensor<1>>,
    #[module(skip)]
    names: Vec<String>,
    #[module(skip)]
    floor: f64,
}

impl SourceWeights {
    /// Uniform weights (all logits 0) for the sources `names`, on `device` in its default float type.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for fewer than two sources or two of the same name.
    pub fn uniform<S: Into<String>>(
        names: impl IntoIterator<Item = S>,
        device: &Device,
    ) -> Result<Self> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let logits = Tensor::zeros([names.len()], device);
        Self::from_logits(names, logits)
    }

    /// Weights with the given logits, whose device and float type the weights take.
    ///
    /// # Shapes
    ///
    /// - logits: `[sources]`
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for fewer than two sources, two of the same name, or another number of
    /// logits than of names.
    pub fn from_logits<S: Into<String>>(
        names: impl IntoIterator<Item = S>,
        logits: Tensor<1>,
    ) -> Result<Self> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        if names.len() < 2 {
            return Err(Error::setting(
                "sources",
                names.len(),
                "at least 2",
                "there is nothing to weigh against a single source",
            ));
        }
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::setting(
                "sources",
                format!("`{}` twice", pair[0]),
                "distinct names",
                "rename one of the two sources",
            ));
        }
        let [given] = logits.dims();
        if given != names.len() {
            return Err(Error::setting(
                "logits",
                format!("{given} numbers"),
                format!("{} numbers, one a source", names.len()),
                "use `SourceWeights::uniform` to start at equal weights",
            ));
        }
        Ok(Self {
            logits: Param::from_tensor(logits),
            names,
            floor: 0.0,
        })
    }

    /// Keeps every weight at `floor` or above: `p = floor + (1 - m floor) softmax(lambda)` for `m` sources. Default: 0.
    ///
    /// No source can be lost, not even one that the validation set has no use for: at most `1 - (m - 1) floor` is left
    /// for any one. The gradients are those of this `p`, so that a source at its floor stays in the training loss at that
    /// share; this is not the same as to clip the weights of a run without a floor afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] unless `0 <= floor < 1 / m`.
    pub fn with_floor(mut self, floor: f64) -> Result<Self> {
        let sources = self.names.len();
        if !(floor >= 0.0 && floor * (sources as f64) < 1.0) {
            return Err(Error::setting(
                "floor",
                floor,
                format!("at least 0 and below 1/{sources} for {sources} sources"),
                "the weights add up to 1; 0 is no floor",
            ));
        }
        self.floor = floor;
        Ok(self)
    }

    /// No weight is below it.
    pub fn floor(&self) -> f64 {
        self.floor
    }

    /// `1 - m floor`, what softmax shares out.
    fn free(&self) -> f64 {
        1.0 - self.names.len() as f64 * self.floor
    }

    /// Names of the sources.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The logits `lambda`, differentiable.
    ///
    /// # Shapes
    ///
    /// - output: `[sources]`
    pub fn logits(&self) -> Tensor<1> {
        self.logits.val()
    }

    /// The logits `lambda` as numbers.
    pub fn logit_values(&self) -> Vec<f64> {
        numbers(self.logits.val())
    }

    /// The weights `p`, differentiable.
    ///
    /// # Shapes
    ///
    /// - output: `[sources]`
    pub fn probabilities(&self) -> Tensor<1> {
        softmax(self.logits.val(), 0) * self.free() + self.floor
    }

    /// The weights `p` as numbers, computed in double precision.
    pub fn weights(&self) -> Vec<f64> {
        let mut weights = self.softmax();
        for weight in &mut weights {
            *weight = self.floor + self.free() * *weight;
        }
        weights
    }

    fn softmax(&self) -> Vec<f64> {
        let logits = self.logit_values();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= sum;
        }
        weights
    }

    /// The penalty hypergradient in closed form, `alpha (diag(p) - p p^T) (l(w) - l(u))`, from the
    /// source losses `lower = l(w)` and `auxiliary = l(u)`. With a floor `f` the Jacobian is `(1 - m f) (diag(s) - s s^T)`
    /// with `s = softmax(lambda)`.
    pub fn hypergradient(&self, alpha: f64, lower: &[f64], auxiliary: &[f64]) -> Vec<f64> {
        let gaps: Vec<f64> = lower
            .iter()
            .zip(auxiliary)
            .map(|(lower, auxiliary)| alpha * (lower - auxiliary))
            .collect();
        self.chain(&gaps)
    }

    /// From derivatives in the weights `p` to derivatives in the logits: the Jacobian of `p`, which is symmetric, times
    /// `slopes`.
    pub(super) fn chain(&self, slopes: &[f64]) -> Vec<f64> {
        let s = self.softmax();
        let mean: f64 = s.iter().zip(slopes).map(|(s, slope)| s * slope).sum();
        let free = self.free();
        let terms = s.iter().zip(slopes);
        terms
            .map(|(s, slope)| free * (s * (slope - mean)))
            .collect()
    }

    /// The parameter itself, for gradients in closed form.
    pub(super) fn parameter(&self) -> &Param<Tensor<1>> {
        &self.logits
    }
}

/// The elements of a tensor in double precision.
pub(super) fn numbers(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}
