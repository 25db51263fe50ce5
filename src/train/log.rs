//! The files of a run: `weights.json`, `metrics.jsonl`, `config.json`. Described in docs/formats.md.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::replace;
use crate::reweight::SourceWeights;
use crate::solver::Step;
use crate::{Error, Result};

/// The version of `weights.json`. It grows with every change that an older reader would misunderstand.
const SCHEMA_VERSION: u32 = 1;
/// A logit whose exponential is 0 in double precision. JSON has no minus infinity.
const ZERO: f64 = -746.0;

/// The folder of the checkpoints in that of a run.
pub(super) const CHECKPOINTS: &str = "checkpoints";

/// The learned weights: what `weights.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsReport {
    /// Version of the format, 1.
    pub schema_version: u32,
    /// Number of steps taken.
    pub step: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Sum of the learning rates of the logits so far: how far Adam can have moved one.
    pub reach: f64,
    /// Whether the weights have settled.
    pub status: Status,
    /// The sources, sorted by name.
    pub sources: Vec<SourceReport>,
    /// The average weights, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<AverageReport>,
}

/// Weights averaged over the last steps, see [`Stability::average`](super::Stability::average).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AverageReport {
    /// Number of steps, the last of which is that of the report: the weights after each of them count alike.
    pub steps: usize,
    /// The mean weight of each source; they add up to 1.
    pub weights: BTreeMap<String, f64>,
}

/// One source of a [`WeightsReport`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// Its weight; the weights of all sources add up to 1.
    pub weight: f64,
    /// Its logit. Without a floor the weights are the softmax of the logits.
    pub logit: f64,
    /// Number of its samples.
    pub samples: usize,
}

/// Whether the weights have settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The run has steps to go.
    Running,
    /// Over the last quarter of the reach, every weight `p` moved slower than a quarter of Adam's full speed,
    /// `2 p (1 - p)` a unit of reach, or slower than a tenth of a uniform weight.
    Converged,
    /// The weights were still moving when the learning rates were used up: more steps, or a larger learning
    /// rate of the weights, would take them further.
    OutOfReach,
    /// The run stopped before its last step since the weights moved less than was asked for, see
    /// [`Stability::stop_below`](super::Stability::stop_below). The step of the report says when.
    Stopped,
}

impl fmt::Display for Status {
    /// As in the files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Converged => "converged",
            Self::OutOfReach => "out_of_reach",
            Self::Stopped => "stopped",
        })
    }
}

impl Status {
    /// The status at the end of a run, from the reach and the weights before each step and after the last.
    pub(super) fn at_end(history: &[(f64, Vec<f64>)]) -> Self {
        let Some((reach, weights)) = history.last() else {
            return Self::Running;
        };
        let quarter = history.iter().rfind(|(at, _)| *at <= 0.75 * reach);
        let Some((start, before)) = quarter else {
            return Self::OutOfReach;
        };
        let span = reach - start;
        let uniform = 1.0 / weights.len() as f64;
        let moving = weights.iter().zip(before).any(|(p, before)| {
            let slow = (0.25 * 2.0 * p * (1.0 - p)).max(0.1 * uniform);
            (p - before).abs() > slow * span
        });
        if moving {
            Self::OutOfReach
        } else {
            Self::Converged
        }
    }
}

impl WeightsReport {
    pub(super) fn new(
        weights: &SourceWeights,
        samples: &[usize],
        step: usize,
        seed: u64,
        reach: f64,
        status: Status,
    ) -> Self {
        let values = weights.weights().into_iter().zip(weights.logit_values());
        let sources = weights.names().iter().zip(samples).zip(values);
        Self {
            schema_version: SCHEMA_VERSION,
            step,
            seed,
            reach,
            status,
            sources: sources
                .map(|((name, &samples), (weight, logit))| SourceReport {
                    name: name.clone(),
                    weight,
                    logit,
                    samples,
                })
                .collect(),
            average: None,
        }
    }

    /// Weights that no logits were learned for: of a source of weight 0 the logit is that at which softmax underflows.
    pub(super) fn fixed(
        sources: impl Iterator<Item = ((String, f64), usize)>,
        step: usize,
        seed: u64,
    ) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            step,
            seed,
            reach: 0.0,
            status: Status::Converged,
            sources: sources
                .map(|((name, weight), samples)| SourceReport {
                    name,
                    weight,
                    logit: weight.ln().max(ZERO),
                    samples,
                })
                .collect(),
            average: None,
        }
    }

    /// Reads a `weights.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::File`] for a file that cannot be read, is not of this form or of another version.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let report: Self = serde_json::from_str(&text).map_err(|error| Error::file(path, error))?;
        if report.schema_version != SCHEMA_VERSION {
            let message = format!(
                "has schema_version {}, but this version of scalebio reads {SCHEMA_VERSION}",
                report.schema_version
            );
            return Err(Error::file(path, message));
        }
        Ok(report)
    }
}

/// One line of `metrics.jsonl`: losses and gradients before the step's update.
#[derive(Debug, Serialize)]
pub(super) struct Metrics<'a> {
    step: usize,
    l1_w: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull: Option<f64>,
    l2_w: f64,
    l2_u: f64,
    gap: f64,
    source_losses_w: BTreeMap<&'a str, f64>,
    source_losses_u: BTreeMap<&'a str, f64>,
    weights: BTreeMap<&'a str, f64>,
    hypergradient_norm: f64,
    gradient_norm_w: f64,
    gradient_norm_u: f64,
    alpha: f64,
    lr_upper: f64,
    lr_lower: f64,
    lr_auxiliary: f64,
    seconds: f64,
    tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_moved: Option<u64>,
    /// Bytes that each of several ranks handed to their collective.
    #[serde(skip_serializing_if = "Option::is_none")]
    collective_bytes: Option<u64>,
}

impl<'a> Metrics<'a> {
    pub fn new(
        step: &Step,
        names: &'a [String],
        weights: &[f64],
        seconds: f64,
        tokens: u64,
    ) -> Self {
        let by_name = |values: &[f64]| {
            names
                .iter()
                .map(String::as_str)
                .zip(values.iter().copied())
                .collect()
        };
        let (rates, norms) = (step.learning_rates(), step.gradient_norms());
        // With a pull the upper objective has two terms, of which the validation loss is the first.
        let (l1_w, pull) = match step.upper_parts() {
            [loss, pull] => (*loss, Some(*pull)),
            _ => (step.upper_loss(), None),
        };
        Self {
            step: step.index(),
            l1_w,
            pull,
            l2_w: step.lower_loss(),
            l2_u: step.auxiliary_loss(),
            gap: step.value_gap(),
            source_losses_w: by_name(step.lower_parts()),
            source_losses_u: by_name(step.auxiliary_parts()),
            weights: by_name(weights),
            hypergradient_norm: norms.upper,
            gradient_norm_w: norms.lower,
            gradient_norm_u: norms.auxiliary,
            alpha: step.penalty(),
            lr_upper: rates.upper,
            lr_lower: rates.lower,
            lr_auxiliary: rates.auxiliary,
            seconds,
            tokens,
            bytes_moved: step.bytes_moved(),
            collective_bytes: (step.collective_bytes() > 0).then(|| step.collective_bytes()),
        }
    }
}

/// The folder of a run.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
    /// Locked, so that no second process writes to this run; the lock ends with the process, however that ends. `None`
    /// where another rank writes the files, and this one nothing.
    metrics: Option<File>,
    /// Bytes of whole lines in it.
    position: u64,
}

impl RunFolder {
    /// Makes the folder if it is not there, and starts the run's files in it.
    pub fn create(path: &Path, config: &impl Serialize) -> Result<Self> {
        fs::create_dir_all(path).map_err(|source| Error::io(path, source))?;
        for name in [
            "weights.json",
            "metrics.jsonl",
            "config.json",
            "model",
            CHECKPOINTS,
        ] {
            if path.join(name).exists() {
                let message =
                    format!("already holds a run or a model (`{name}`); choose another folder");
                return Err(Error::file(path, message));
            }
        }
        let metrics = path.join("metrics.jsonl");
        let file = File::create_new(&metrics).map_err(|source| Error::io(&metrics, source))?;
        lock(&file, &metrics)?;
        let folder = Self {
            path: path.to_owned(),
            metrics: Some(file),
            position: 0,
        };
        folder.write("config.json", config)?;
        Ok(folder)
    }

    /// The folder of a run whose files another rank writes.
    pub fn of_another_rank(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            metrics: None,
            position: 0,
        }
    }

    /// Opens the folder of a run that goes on where `metrics.jsonl` had `position` bytes: what follows is cut off.
    pub fn resume(path: &Path, position: u64) -> Result<Self> {
        let metrics = path.join("metrics.jsonl");
        let io = |source| Error::io(&metrics, source);
        let file = File::options().read(true).write(true).open(&metrics);
        let mut file = file.map_err(io)?;
        lock(&file, &metrics)?;
        let found = file.metadata().map_err(io)?.len();
        if found < position {
            let message = format!(
                "has {found} bytes, but had {position} when the checkpoint was written; the run cannot go on without \
                 the lines that are missing"
            );
            return Err(Error::file(&metrics, message));
        }
        file.set_len(position).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            metrics: Some(file),
            position,
        })
    }

    /// Bytes of `metrics.jsonl`, all of which are on the disk.
    pub fn synced_position(&self) -> Result<u64> {
        let synced = self.metrics.as_ref().map_or(Ok(()), File::sync_data);
        synced.map_err(|source| Error::io(&self.metrics_path(), source))?;
        Ok(self.position)
    }

    pub fn checkpoints_path(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    pub fn weights_path(&self) -> PathBuf {
        self.path.join("weights.json")
    }

    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub fn model_path(&self) -> PathBuf {
        self.path.join("model")
    }

    pub fn write_weights(&self, report: &WeightsReport) -> Result<()> {
        self.write("weights.json", report)
    }

    pub fn append_metrics(&mut self, metrics: &impl Serialize) -> Result<()> {
        let path = self.metrics_path();
        let mut line = serde_json::to_vec(metrics).map_err(|error| Error::file(&path, error))?;
        line.push(b'\n');
        if let Some(file) = &mut self.metrics {
            // One write a line, so that a reader never sees half of one.
            file.write_all(&line)
                .map_err(|source| Error::io(&path, source))?;
        }
        self.position += line.len() as u64;
        Ok(())
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        match self.metrics {
            Some(_) => write_json(&self.path.join(name), value),
            None => Ok(()),
        }
    }
}

/// Refuses a `metrics.jsonl` that another process has locked.
fn lock(file: &File, path: &Path) -> Result<()> {
    if cfg!(windows) {
        return Ok(()); // there a lock keeps readers out too
    }
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let message = "another process is writing this run; wait for it, or end it";
            Err(Error::file(path, message))
        }
        // Some network file systems have no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::file(path, error))?;
    text.push(b'\n');
    replace(path, &text)
}

#[cfg(test)]
mod tests {
    use super::Status;

    /// A run of `m` sources in which the first logit moves at full speed up to a share of the reach.
    fn status(m: usize, share: f64) -> Status {
        let history: Vec<_> = (0..=100)
            .map(|step| {
                let reach = 0.02 * f64::from(step);
                let logit = reach.min(share * 2.0);
                let first = logit.exp() / (logit.exp() + m as f64 - 1.0);
                let mut weights = vec![(1.0 - first) / (m as f64 - 1.0); m];
                weights[0] = first;
                (reach, weights)
            })
            .collect();
        Status::at_end(&history)
    }

    #[test]
    fn weights_that_move_to_the_end_are_out_of_reach_however_many_sources_there_are() {
        for sources in [2, 7, 100] {
            assert_eq!(status(sources, 1.0), Status::OutOfReach, "{sources}");
            assert_eq!(status(sources, 0.7), Status::Converged, "{sources}");
        }
    }
}
