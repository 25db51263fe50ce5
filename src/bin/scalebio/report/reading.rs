//! The files of a run, as its writer left them: also of one that is still going on, or was interrupted.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use scalebio::train::{Compare, Comparison, WeightsReport};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A run that learned source weights.
pub struct Reweighting {
    pub folder: PathBuf,
    pub config: Value,
    pub weights: WeightsReport,
    /// The sources of `steps`, sorted by name.
    pub names: Vec<String>,
    pub steps: Vec<Step>,
    /// Whether the last line of the metrics was cut off, as by an interruption.
    pub cut_off: bool,
}

/// A line of its metrics. What was not finite when it was written is NaN.
pub struct Step {
    pub numbers: Numbers,
    /// By source, as are the next two.
    pub weights: Vec<f64>,
    pub losses_w: Vec<f64>,
    pub losses_u: Vec<f64>,
}

/// What a line of metrics says of the whole step.
#[derive(Deserialize)]
pub struct Numbers {
    pub step: usize,
    #[serde(deserialize_with = "number")]
    pub l1_w: f64,
    #[serde(deserialize_with = "number")]
    pub l2_w: f64,
    #[serde(deserialize_with = "number")]
    pub l2_u: f64,
    #[serde(deserialize_with = "number")]
    pub gap: f64,
    #[serde(deserialize_with = "number")]
    pub hypergradient_norm: f64,
    #[serde(deserialize_with = "number")]
    pub gradient_norm_w: f64,
    #[serde(deserialize_with = "number")]
    pub gradient_norm_u: f64,
    pub lr_upper: f64,
    pub lr_lower: f64,
    pub lr_auxiliary: f64,
    pub seconds: f64,
    pub tokens: u64,
}

#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    numbers: Numbers,
    weights: BTreeMap<String, Option<f64>>,
    source_losses_w: BTreeMap<String, Option<f64>>,
    source_losses_u: BTreeMap<String, Option<f64>>,
}

/// A run that trained a model on one file.
pub struct Finetuning {
    pub folder: PathBuf,
    pub config: Value,
    pub steps: Vec<FinetuneLine>,
    pub cut_off: bool,
}

/// A line of its metrics.
#[derive(Deserialize)]
pub struct FinetuneLine {
    pub step: usize,
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    pub validation_loss: Option<f64>,
    #[serde(deserialize_with = "number")]
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub seconds: f64,
    pub tokens: u64,
}

/// JSON has no NaN and no infinity: they are written as null.
fn number<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// A method that ScaleBiO is compared with.
pub struct Baseline {
    pub folder: PathBuf,
    pub config: Value,
    pub weights: WeightsReport,
    /// The lines of its metrics that are steps of a training.
    pub steps: Vec<StageLine>,
    pub cut_off: bool,
}

/// A step of one of its trainings.
#[derive(Deserialize)]
pub struct StageLine {
    pub stage: String,
    pub step: usize,
    #[serde(deserialize_with = "number")]
    pub loss: f64,
}

/// Methods beside each other.
pub struct Compared {
    pub folder: PathBuf,
    pub comparison: Comparison,
    /// Number of runs that are not finished.
    pub remaining: usize,
}

/// A folder with the files of one run, or of a comparison.
#[allow(clippy::large_enum_variant)] // There is one.
pub enum Run {
    Reweighting(Reweighting),
    Finetuning(Finetuning),
    Baseline(Baseline),
    Compared(Compared),
}

impl Run {
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Err(format!(
                "{}: not the folder of a run, since it has no config.json; name one that a run wrote its files to (--out)",
                folder.display()
            )
            .into());
        }
        let config: Value =
            serde_json::from_str(&text(&path)?).map_err(|error| at(&path, error))?;
        if config.get("methods").is_some() {
            let compare = Compare::resume(folder)?;
            return Ok(Self::Compared(Compared {
                folder: folder.to_owned(),
                comparison: compare.summary()?,
                remaining: compare.remaining().len(),
            }));
        }
        if config.get("baseline").is_some() {
            return Baseline::read(folder, config).map(Self::Baseline);
        }
        // Only a run that learns weights has a learning rate for them.
        if config.get("lr_upper").is_some() {
            Reweighting::read(folder, config).map(Self::Reweighting)
        } else {
            Finetuning::read(folder, config).map(Self::Finetuning)
        }
    }
}

impl Reweighting {
    fn read(folder: &Path, config: Value) -> Result<Self> {
        let weights = WeightsReport::read(folder.join("weights.json"))?;
        let mut names: Vec<String> = weights.sources.iter().map(|s| s.name.clone()).collect();
        names.sort_unstable();
        let path = folder.join("metrics.jsonl");
        let (lines, cut_off) = lines::<Line>(&path)?;
        let mut steps = Vec::new();
        for (number, line) in lines {
            let values = |field: &str, map: BTreeMap<String, Option<f64>>| {
                if !map.keys().eq(&names) {
                    let here: Vec<_> = map.into_keys().collect();
                    return Err(format!(
                        "{}:{number}: the sources of `{field}` are {}, but those of weights.json are {}",
                        path.display(),
                        here.join(", "),
                        names.join(", ")
                    ));
                }
                Ok(map.into_values().map(|v| v.unwrap_or(f64::NAN)).collect())
            };
            steps.push(Step {
                weights: values("weights", line.weights)?,
                losses_w: values("source_losses_w", line.source_losses_w)?,
                losses_u: values("source_losses_u", line.source_losses_u)?,
                numbers: line.numbers,
            });
            consecutive(&path, number, &steps, |step| step.numbers.step)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            config,
            weights,
            names,
            steps,
            cut_off,
        })
    }
}

impl Finetuning {
    fn read(folder: &Path, config: Value) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let (lines, cut_off) = lines(&path)?;
        let mut steps = Vec::new();
        for (number, line) in lines {
            steps.push(line);
            consecutive(&path, number, &steps, |step: &FinetuneLine| step.step)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            config,
            steps,
            cut_off,
        })
    }
}

impl Baseline {
    fn read(folder: &Path, config: Value) -> Result<Self> {
        let (lines, cut_off) = lines::<Value>(&folder.join("metrics.jsonl"))?;
        // Other lines are scores of sources or samples.
        let steps = lines.into_iter();
        let steps = steps.filter_map(|(_, line)| serde_json::from_value(line).ok());
        Ok(Self {
            folder: folder.to_owned(),
            config,
            weights: WeightsReport::read(folder.join("weights.json"))?,
            steps: steps.collect(),
            cut_off,
        })
    }
}

/// A step that comes again, or is missing, is a sign of two runs in one file.
fn consecutive<T>(path: &Path, line: usize, steps: &[T], of: fn(&T) -> usize) -> Result<()> {
    match steps {
        [.., before, last] if of(last) != of(before) + 1 => Err(format!(
            "{}:{line}: step {} follows step {}; the file must have a line for each step, in order",
            path.display(),
            of(last),
            of(before)
        )
        .into()),
        _ => Ok(()),
    }
}

/// The records of a file with one a line, by number of line, and whether the last was cut off and is left out.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<(Vec<(usize, T)>, bool)> {
    let text = text(path)?;
    let mut records = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(record) => records.push((index + 1, record)),
            // A writer ends every line: this one was not written to its end.
            Err(_) if !line.ends_with('\n') => return Ok((records, true)),
            Err(error) => {
                // The position in the message is that in the line.
                let error = error.to_string();
                let message = error.split(" at line ").next().unwrap_or_default();
                let (column, path) = (error.rsplit(' ').next().unwrap_or_default(), path.display());
                return Err(format!("{path}:{}: {message} (column {column})", index + 1).into());
            }
        }
    }
    Ok((records, false))
}

fn text(path: &Path) -> Result<String> {
    // An interrupted write may end within a character; that line is left out anyhow.
    let bytes = fs::read(path).map_err(|error| at(path, error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn at(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
