//! Running the methods of [`baselines`](crate::baselines) on an experiment.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::config::ReweightConfig;
use super::experiment::Experiment;
use super::log::{RunFolder, WeightsReport, write_json};
use crate::Result;
use crate::baselines::{self, Baseline};
pub use selection::{SelectedSource, Selection};
use session::Session;

mod alignment;
mod group_dro;
mod influence;
mod reference;
mod selection;
mod session;

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

/// What a method gives, before it is written.
enum Outcome {
    Weights(Vec<f64>),
    Selection(selection::Chosen),
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
    /// learning rate of the model, clipping, LISA, seed and device.
    ///
    /// The folder `out` gets `weights.json`, as from [`reweight`](Self::reweight), `metrics.jsonl` with a line a step,
    /// `config.json`, and, of a method that selects, `mix.jsonl` with the selected records and `selection.json`; of LESS also
    /// `scores.jsonl`, a line a record.
    ///
    /// A record that says the same as one of the validation or the test set is never selected.
    ///
    /// # Errors
    ///
    /// Settings that cannot work, a folder that already holds a run, a file that cannot be read or written, a loss or a gradient
    /// that is not finite.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use scalebio::train::{Experiment, ReweightConfig};
    ///
    /// let experiment = Experiment::open(ReweightConfig::new("examples/data"))?;
    /// let result = experiment.baseline(&"doremi".parse()?, "runs/doremi")?;
    /// for source in &result.weights.sources {
    ///     println!("{} {:.4}", source.name, source.weight);
    /// }
    /// # Ok::<(), scalebio::Error>(())
    /// ```
    pub fn baseline(&self, baseline: &Baseline, out: impl AsRef<Path>) -> Result<BaselineResult> {
        let (config, out) = (self.config(), out.as_ref());
        baseline.validate(config.steps)?;
        selection::check_out(out)?;
        let mut session = Session::new(self)?;
        let settings = Settings {
            experiment: config,
            baseline,
        };
        // Last, so that settings that cannot work leave no folder behind.
        session.log_to(RunFolder::create(out, &settings)?);
        let sizes: Vec<usize> = self.sources().iter().map(|s| s.samples.len()).collect();
        let outcome = match baseline {
            Baseline::Uniform => Outcome::Weights(baselines::uniform(sizes.len())),
            Baseline::Proportional => Outcome::Weights(baselines::proportional(&sizes)),
            Baseline::Influence(settings) => influence::run(&mut session, settings)?,
            Baseline::Reference(settings) => reference::run(&mut session, settings)?,
            Baseline::Alignment(settings) => alignment::run(&mut session, settings)?,
            Baseline::GroupDro(settings) => group_dro::run(&mut session, settings)?,
        };
        let (weights, selection) = match outcome {
            Outcome::Weights(weights) => (weights, None),
            Outcome::Selection(chosen) => {
                let selection = chosen.write(self, baseline, out)?;
                let weights = selection.sources.iter().map(|source| source.weight);
                (weights.collect(), Some(selection))
            }
        };
        let names = self.sources().iter().map(|source| source.name.clone());
        let steps = session.steps();
        let weights = WeightsReport::fixed(names.zip(weights).zip(sizes), steps, config.seed);
        let weights_path = out.join("weights.json");
        write_json(&weights_path, &weights)?;
        Ok(BaselineResult {
            weights,
            weights_path,
            selection,
            training_tokens: session.training_tokens,
            scored_tokens: session.scored_tokens,
        })
    }
}
