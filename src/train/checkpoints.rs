//! Checkpoints of a run that learns source weights: when they are due, and what they hold beside the solver's state.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::ReweightConfig;
use super::experiment::Experiment;
use crate::data::Source;
use crate::files::Checksum;
use crate::models::CausalLm;
use crate::{Error, Result};

/// Settings that do not change a run, or by rounding only. What is in folders and files is compared by content.
const FREE: [&str; 12] = [
    "data",
    "model",
    "tokenizer",
    "device",
    "devices",
    "placement",
    "device_memory",
    "checkpoint_steps",
    "checkpoint_minutes",
    "offload",
    "stream",
    "index",
];

/// What a run was made of. Maps from names to texts, so that differences can be named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    settings: BTreeMap<String, String>,
    /// The training sources and the validation set: numbers of samples, and checksums of their tokens.
    data: BTreeMap<String, String>,
    /// The base model's config.json and values.
    model: BTreeMap<String, String>,
}

/// Reach and weights before each step of a run and after the last.
pub(super) type History = Vec<(f64, Vec<f64>)>;

/// What a checkpoint holds beside the solver's state. Floats are texts, which come back with all their bits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub origin: Origin,
    /// Bytes of `metrics.jsonl`.
    pub metrics: u64,
    /// Reach and weights before each step and after the last.
    history: Vec<(String, Vec<String>)>,
}

impl Note {
    pub fn new(origin: &Origin, metrics: u64, history: &[(f64, Vec<f64>)]) -> Self {
        let texts = |weights: &[f64]| weights.iter().map(f64::to_string).collect();
        let history = history.iter();
        Self {
            origin: origin.clone(),
            metrics,
            history: history
                .map(|(reach, weights)| (reach.to_string(), texts(weights)))
                .collect(),
        }
    }

    /// Reads the note of the checkpoint at `path`, of which `steps` steps were taken.
    pub fn read(note: &Value, path: &Path, steps: usize) -> Result<(Self, History)> {
        let wrong = |message: String| {
            let message =
                format!("not a checkpoint of a run that learns source weights: {message}");
            Error::file(path, message)
        };
        let note: Self =
            serde_json::from_value(note.clone()).map_err(|error| wrong(error.to_string()))?;
        let number = |text: &String| text.parse().map_err(|_| wrong(format!("number `{text}`")));
        let history = note.history.iter().map(|(reach, weights)| {
            let weights = weights.iter().map(number).collect::<Result<Vec<f64>>>()?;
            Ok((number(reach)?, weights))
        });
        let history: Vec<_> = history.collect::<Result<_>>()?;
        if history.len() != steps + 1 {
            return Err(wrong(format!("{} weights of {steps} steps", history.len())));
        }
        Ok((note, history))
    }
}

impl Origin {
    pub fn new(experiment: &Experiment, model: &CausalLm) -> Result<Self> {
        let sources = experiment.sources().iter().map(|s| ("source", s));
        let sets = sources.chain([("validation set", experiment.validation())]);
        let data = sets.map(|(kind, source)| {
            let text = format!("{} samples {}", source.samples.len(), content(source)?);
            Ok((format!("{kind} `{}`", source.name), text))
        });
        let mut values = Values(Checksum::default());
        model.visit(&mut values);
        let mut of_model = BTreeMap::from([(
            "base model".to_owned(),
            format!(
                "{} parameters with checksum {}",
                model.num_params(),
                values.0.text()
            ),
        )]);
        if let Some(folder) = &experiment.config().model {
            let path = folder.join("config.json");
            let text = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
            let sum = Checksum::of(&*text).map_err(|error| Error::io(&path, error))?;
            of_model.insert("config.json of the base model".to_owned(), sum.text());
        }
        Ok(Self {
            settings: settings(experiment.config())?,
            data: data.collect::<Result<_>>()?,
            model: of_model,
        })
    }

    /// What the ranks of a run must agree on that starts after `steps` steps.
    pub fn facts(&self, steps: usize) -> BTreeMap<String, String> {
        let parts = [
            (&self.settings, "the setting "),
            (&self.data, "the "),
            (&self.model, "the "),
        ];
        let parts = parts.into_iter().flat_map(|(facts, kind)| {
            let facts = facts.iter();
            facts.map(move |(name, fact)| (format!("{kind}{name}"), fact.clone()))
        });
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let steps = match steps {
            0 => "no step".to_owned(),
            steps => format!("the checkpoint of step {steps}"),
        };
        let others = [
            ("the version of scalebio", version),
            ("what the run starts from", steps),
        ];
        let others = others.map(|(name, fact)| (name.to_owned(), fact));
        parts.chain(others).collect()
    }

    /// An error about the checkpoint at `path`, which is of a run with the origin `self`, if `here` is another.
    pub fn compare(&self, here: &Self, path: &Path) -> Result<()> {
        let parts = [
            (&self.settings, &here.settings, "the setting "),
            (&self.data, &here.data, "the "),
            (&self.model, &here.model, "the "),
        ];
        for (found, here, kind) in parts {
            for name in found.keys().chain(here.keys()) {
                let none = "missing".to_owned();
                let [found, here] = [found, here].map(|map| map.get(name).unwrap_or(&none));
                if found != here {
                    let message = format!(
                        "{kind}{name} is {found} in the checkpoint, but {here} here; a run can only go on with what it \
                         was started with"
                    );
                    return Err(Error::file(path, message));
                }
            }
        }
        Ok(())
    }
}

/// The checksum of a source's tokens; of one that is streamed, of what they are made from.
fn content(source: &Source) -> Result<String> {
    if let Some(streamed) = source.samples.streamed() {
        return Ok(format!("from {}", streamed.origin()?));
    }
    let mut sum = Checksum::default();
    for sample in source.in_memory()? {
        sum.add(&(sample.ids.len() as u64).to_le_bytes());
        for (id, learned) in sample.ids.iter().zip(&sample.learned) {
            sum.add(&(u64::from(*id) << 1 | u64::from(*learned)).to_le_bytes());
        }
    }
    Ok(format!("with checksum {}", sum.text()))
}

/// The settings that determine a run, as texts.
fn settings(config: &ReweightConfig) -> Result<BTreeMap<String, String>> {
    let value = serde_json::to_value(config).map_err(|e| Error::file(Path::new("config"), e))?;
    let settings = value.as_object().into_iter().flatten();
    let settings = settings.filter(|(name, _)| !FREE.contains(&name.as_str()));
    Ok(settings
        .map(|(name, value)| (name.clone(), value.to_string()))
        .collect())
}

/// Sums up the values of a module.
struct Values(Checksum);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.add(param.val().into_data().as_bytes());
    }
}

/// When the next checkpoint is due.
#[derive(Debug)]
pub(super) struct Schedule {
    steps: Option<usize>,
    time: Option<Duration>,
    /// Step and time of the last checkpoint, or of the start.
    last: (usize, Instant),
}

impl Schedule {
    pub fn new(config: &ReweightConfig, step: usize) -> Self {
        let minutes = config.checkpoint_minutes;
        Self {
            steps: config.checkpoint_steps,
            // So many minutes that they are no duration are never over.
            time: minutes.and_then(|minutes| Duration::try_from_secs_f64(60.0 * minutes).ok()),
            last: (step, Instant::now()),
        }
    }

    pub fn is_due(&self, step: usize) -> bool {
        let (last, at) = self.last;
        self.steps.is_some_and(|steps| step >= last + steps)
            || self.time.is_some_and(|time| at.elapsed() >= time)
    }

    pub fn written(&mut self, step: usize) {
        self.last = (step, Instant::now());
    }
}
