//! Running the methods of [`baselines`](crate::baselines) on an experiment.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::ReweightConfig;
use super::experiment::Experiment;
use super::log::{RunFolder, WeightsReport};
use crate::baselines::{self, Baseline};
use crate::{Error, Result};

/// The version of `selection.json`.
#[expect(dead_code)]
const SCHEMA_VERSION: u32 = 1;

/// What a [`Baseline`] gave, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct BaselineResult {
    /// The weights, as in `weights.json`; for a method that selects, those that its selection implies.
    pub weights: WeightsReport,
    /// The file with the weights.
    pub weights_path: PathBuf,
    /// The selected set, if the method selects.
    pub selection: Option<Selection>,
    /// Tokens of all gradients, without padding: forward and backward, for whatever purpose (training the model, a reference
    /// model or a warm-up, or gradients of single samples).
    pub training_tokens: u64,
    /// Tokens of all losses without a gradient: forward only.
    pub scored_tokens: u64,
}

/// The records that a method selected: the content of `selection.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Version of the format, 1.
    pub schema_version: u32,
    /// The method and its settings.
    pub baseline: Baseline,
    /// The file with the selected records, each as it stands in its source, on a line; in the order of the sources' names, and
    /// within a source in that of its file.
    pub path: PathBuf,
    /// The sources, sorted by name.
    pub sources: Vec<SelectedSource>,
}

/// One source of a [`Selection`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectedSource {
    /// Name of the source.
    pub name: String,
    /// Number of records that were selected from: those with a sample and outside of the validation and the test set.
    pub candidates: usize,
    /// Number of records selected.
    pub records: usize,
    /// Number of samples selected: of LESS, those of the selected records; of RHO-LOSS, those that it trained on, as often as it
    /// did.
    pub samples: usize,
    /// The source's share of all samples selected.
    pub weight: f64,
}

/// What the folder's config.json holds.
#[derive(Debug, Serialize)]
struct Settings<'a> {
    #[serde(flatten)]
    experiment: &'a ReweightConfig,
    baseline: &'a Baseline,
}

impl Experiment {
    /// Runs a method that ScaleBiO is compared with, on the data, the model and the budget of this experiment: its steps, batch,
    /// learning rate of the model, seed and device.
    ///
    /// The folder `out` gets `weights.json`, as from [`reweight`](Self::reweight), `metrics.jsonl` with a line a step,
    /// `config.json`, and, of a method that selects, `mix.jsonl` with the selected records and `selection.json`.
    ///
    /// # Errors
    ///
    /// Settings that cannot work, a folder that already holds a run, a file that cannot be read or written, a loss that is not
    /// finite.
    pub fn baseline(&self, baseline: &Baseline, out: impl AsRef<Path>) -> Result<BaselineResult> {
        let config = self.config();
        baseline.validate(config.steps)?;
        let sizes: Vec<usize> = self.sources().iter().map(|s| s.samples.len()).collect();
        let weights = match baseline {
            Baseline::Uniform => baselines::uniform(sizes.len()),
            Baseline::Proportional => baselines::proportional(&sizes),
            _ => {
                return Err(Error::setting(
                    "baseline",
                    baseline,
                    "uniform or proportional",
                    "the others are being written",
                ));
            }
        };
        let settings = Settings {
            experiment: config,
            baseline,
        };
        let folder = RunFolder::create(out.as_ref(), &settings)?;
        let names = self.sources().iter().map(|source| source.name.clone());
        let weights = WeightsReport::fixed(names.zip(weights).zip(sizes), 0, config.seed);
        folder.write_weights(&weights)?;
        Ok(BaselineResult {
            weights,
            weights_path: folder.weights_path(),
            selection: None,
            training_tokens: 0,
            scored_tokens: 0,
        })
    }
}
