//! What all runs of a comparison say together.

use serde::{Deserialize, Serialize};

use super::job::{Cost, MethodRun};
use super::{CompareConfig, Method, OwnMethod};

/// The version of `comparison.json`.
const SCHEMA_VERSION: u32 = 1;
const SCALEBIO: Method = Method::Own(OwnMethod::ScaleBio);

/// The methods beside each other: the content of `comparison.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Version of the format, 1.
    pub schema_version: u32,
    /// The settings.
    pub config: CompareConfig,
    /// The methods, in the order of the settings.
    pub methods: Vec<MethodSummary>,
    /// All runs: for each seed all methods.
    pub runs: Vec<MethodRun>,
}

/// A method over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodSummary {
    /// The method.
    #[serde(flatten)]
    pub method: Method,
    /// Loss on the test set, the mean over its samples, in nats.
    pub loss: Spread,
    /// The loss less that of ScaleBiO with the same seed; none of ScaleBiO itself, or without it.
    pub against_scalebio: Option<Spread>,
    /// The weights of the sources, sorted by name; of a method that selects, the shares of its selection. Empty for `validation`.
    pub weights: Vec<SourceSpread>,
    /// What choosing the data took: means over the seeds, of memory the largest.
    pub cost: Cost,
    /// Tokens of the fine-tuning, the mean over the seeds.
    pub tokens: u64,
}

/// The weights of a source over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceSpread {
    /// Name of the source.
    pub name: String,
    /// Its weight.
    pub weight: Spread,
}

/// A number over all seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of a seed, `sqrt(sum (x - mean)^2 / (n - 1))`; 0 for a single seed.
    pub deviation: f64,
    /// The smallest.
    pub lowest: f64,
    /// The largest.
    pub highest: f64,
}

impl Spread {
    /// Of at least one value.
    pub(in crate::train) fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self {
            mean,
            deviation: (squares / (n - 1.0).max(1.0)).sqrt(),
            lowest: values.iter().copied().fold(f64::INFINITY, f64::min),
            highest: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

impl Comparison {
    /// Of any of the runs; methods of which there is none are left out.
    pub(super) fn new(config: &CompareConfig, runs: Vec<MethodRun>) -> Self {
        let of = |method: &Method| -> Vec<&MethodRun> {
            runs.iter().filter(|run| run.method == *method).collect()
        };
        let references = of(&SCALEBIO);
        let methods = config.methods.iter();
        Self {
            schema_version: SCHEMA_VERSION,
            config: config.clone(),
            methods: methods
                .filter_map(|method| MethodSummary::new(method, &of(method), &references))
                .collect(),
            runs,
        }
    }

    /// The summary of ScaleBiO, if it was compared.
    pub fn scalebio(&self) -> Option<&MethodSummary> {
        self.methods.iter().find(|own| own.method == SCALEBIO)
    }
}

impl MethodSummary {
    /// Of all runs of a method, if there are any, beside those of ScaleBiO with the same seeds.
    fn new(method: &Method, runs: &[&MethodRun], references: &[&MethodRun]) -> Option<Self> {
        if runs.is_empty() {
            return None;
        }
        let spread = |of: &dyn Fn(&MethodRun) -> f64| {
            Spread::of(&runs.iter().map(|run| of(run)).collect::<Vec<_>>())
        };
        let against = |run: &&MethodRun| {
            let reference = references.iter().find(|other| other.seed == run.seed)?;
            Some(run.test.sample_loss - reference.test.sample_loss)
        };
        let differences: Vec<f64> = runs.iter().filter_map(against).collect();
        let compared = *method != SCALEBIO && !differences.is_empty();
        let names = runs.first().map(|run| &run.weights[..]).unwrap_or_default();
        let weights = names.iter().enumerate();
        let weights = weights.map(|(i, source)| SourceSpread {
            name: source.name.clone(),
            weight: spread(&|run| run.weights[i].weight),
        });
        let costs = || runs.iter().map(|run| &run.cost);
        Some(Self {
            method: method.clone(),
            loss: spread(&|run| run.test.sample_loss),
            against_scalebio: compared.then(|| Spread::of(&differences)),
            weights: weights.collect(),
            cost: Cost {
                training_tokens: spread(&|run| run.cost.training_tokens as f64).mean.round() as u64,
                scored_tokens: spread(&|run| run.cost.scored_tokens as f64).mean.round() as u64,
                seconds: spread(&|run| run.cost.seconds).mean,
                cpu_seconds: costs()
                    .map(|cost| cost.cpu_seconds)
                    .sum::<Option<f64>>()
                    .map(|sum| sum / runs.len() as f64),
                peak_memory: costs().filter_map(|cost| cost.peak_memory).max(),
            },
            tokens: spread(&|run| run.tokens as f64).mean.round() as u64,
        })
    }
}
