//! Several samples side by side, padded to one length.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{IGNORED, Sample};

/// Samples padded on the right to the longest of them. It lives on the host; each tensor is made on the device where it
/// is asked for.
///
/// # Shapes
///
/// All tensors are `[samples, length]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<i64>,
    mask: Vec<i64>,
    labels: Vec<i64>,
    label_tokens: Vec<usize>,
    length: usize,
}

impl TokenBatch {
    /// Pads the samples to the longest of them. How far they are padded changes neither labels nor their number.
    ///
    /// # Example
    ///
    /// ```
    /// use scalebio::burn::tensor::Device;
    /// use scalebio::data::{Sample, TokenBatch};
    ///
    /// let short = Sample { ids: vec![5, 6], learned: vec![true, true] };
    /// let long = Sample { ids: vec![7, 8, 9], learned: vec![false, false, true] };
    /// let batch = TokenBatch::new(&[&short, &long]);
    /// assert_eq!((batch.samples(), batch.length()), (2, 3));
    /// assert_eq!(batch.label_tokens(), [1, 1]);
    ///
    /// let labels = batch.labels(&Device::flex());
    /// assert_eq!(labels.into_data().iter::<i64>().collect::<Vec<_>>(), [-100, 6, -100, -100, -100, 9]);
    /// ```
    pub fn new(samples: &[&Sample]) -> Self {
        let length = samples.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let mut batch = Self {
            ids: Vec::with_capacity(samples.len() * length),
            mask: Vec::with_capacity(samples.len() * length),
            labels: Vec::with_capacity(samples.len() * length),
            label_tokens: samples.iter().map(|s| s.label_tokens()).collect(),
            length,
        };
        for (row, sample) in samples.iter().enumerate() {
            let end = (row + 1) * length;
            batch.ids.extend(sample.ids.iter().map(|id| i64::from(*id)));
            batch.mask.resize(batch.ids.len(), 1);
            batch.labels.extend(sample.labels());
            // Any token does as padding, for the mask hides it; 0 is in every vocabulary.
            batch.ids.resize(end, 0);
            batch.mask.resize(end, 0);
            batch.labels.resize(end, IGNORED);
        }
        batch
    }

    /// Returns the number of samples.
    pub fn samples(&self) -> usize {
        self.label_tokens.len()
    }

    /// Returns the length of the longest sample, to which the others are padded.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns the number of label tokens of each sample.
    pub fn label_tokens(&self) -> &[usize] {
        &self.label_tokens
    }

    /// Returns the tokens, 0 in the padding.
    pub fn ids(&self, device: &Device) -> Tensor<2, Int> {
        self.tensor(&self.ids, device)
    }

    /// Returns 1 where there is a token and 0 in the padding.
    pub fn mask(&self, device: &Device) -> Tensor<2, Int> {
        self.tensor(&self.mask, device)
    }

    /// Returns the token where it is learned, and [`IGNORED`] in a prompt, at the first position and in the padding.
    pub fn labels(&self, device: &Device) -> Tensor<2, Int> {
        self.tensor(&self.labels, device)
    }

    fn tensor(&self, values: &[i64], device: &Device) -> Tensor<2, Int> {
        let data = TensorData::new(values.to_vec(), [self.samples(), self.length]);
        Tensor::from_data(data, device)
    }
}
