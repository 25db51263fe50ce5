//! Weights that look at nothing but the sources themselves.

/// Equal weights for `sources` sources, `p_i = 1 / m`.
pub fn uniform(sources: usize) -> Vec<f64> {
    vec![1.0 / sources as f64; sources]
}

/// Weights proportional to the number of samples of each source, `p_i = n_i / n`.
///
/// Samples and not tokens, because the loss of a sample is the mean over its tokens here: all samples in one reshuffled order
/// give the sources these weights in the training loss.
pub fn proportional(samples: &[usize]) -> Vec<f64> {
    let total: usize = samples.iter().sum();
    let share = |&n: &usize| n as f64 / total as f64;
    samples.iter().map(share).collect()
}
