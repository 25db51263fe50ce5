//! Several runs that differ by their seed, and how far their weights lie apart.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::compare::Spread;
use super::experiment::Experiment;
use super::log::{Status, WeightsReport, write_json};
use super::reweighting::Reweighting;
use crate::solver::Step;
use crate::{Error, Result};

/// The version of `seeds.json`.
const SCHEMA_VERSION: u32 = 1;

/// Weights of several runs of one configuration: what `seeds.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedsReport {
    /// Version of the format, 1.
    pub schema_version: u32,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Steps that the run of each seed took.
    pub steps: Vec<usize>,
    /// How the run of each seed ended.
    pub statuses: Vec<Status>,
    /// The sources, sorted by name.
    pub sources: Vec<SeedWeights>,
}

/// One source of a [`SeedsReport`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedWeights {
    /// Name of the source.
    pub name: String,
    /// Its weight by each seed.
    pub weights: Vec<f64>,
    /// How they lie; the means of all sources add up to 1.
    #[serde(flatten)]
    pub spread: Spread,
}

impl SeedsReport {
    /// The spread over `reports`, one a seed.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for no report, and for reports of different sources.
    pub fn new(reports: &[WeightsReport]) -> Result<Self> {
        let Some(first) = reports.first() else {
            return Err(none());
        };
        let names = |report: &WeightsReport| -> Vec<String> {
            report.sources.iter().map(|s| s.name.clone()).collect()
        };
        let expected = names(first);
        if let Some(other) = reports.iter().map(names).find(|names| *names != expected) {
            return Err(Error::setting(
                "sources of a seed",
                other.join(", "),
                expected.join(", "),
                "compare runs on the same data",
            ));
        }
        let spread = |(index, name): (usize, String)| {
            let weights = reports.iter().map(|report| report.sources[index].weight);
            let weights: Vec<f64> = weights.collect();
            SeedWeights {
                name,
                spread: Spread::of(&weights),
                weights,
            }
        };
        Ok(Self {
            schema_version: SCHEMA_VERSION,
            seeds: reports.iter().map(|report| report.seed).collect(),
            steps: reports.iter().map(|report| report.step).collect(),
            statuses: reports.iter().map(|report| report.status).collect(),
            sources: expected.into_iter().enumerate().map(spread).collect(),
        })
    }

    /// Writes the report as JSON, whole or not at all.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        write_json(path.as_ref(), self)
    }
}

/// Runs of one experiment that differ by their seed, one after the other: an iterator over the steps of all of them. Each run
/// has its folder `seed-<seed>`; `seeds.json` beside them has the spread over the runs that are done.
///
/// # Example
///
/// ```no_run
/// use scalebio::train::{Experiment, ReweightConfig};
///
/// let experiment = Experiment::open(ReweightConfig::new("path/to/data"))?;
/// let mut runs = experiment.seeds(&[0, 1, 2], "runs/spread")?;
/// for step in runs.by_ref() {
///     step?;
/// }
/// for source in runs.report()?.sources {
///     println!("{} {:.3} +- {:.3}", source.name, source.spread.mean, source.spread.deviation);
/// }
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "runs do nothing until their steps are taken"]
pub struct SeedRuns {
    experiment: Experiment,
    seeds: VecDeque<u64>,
    out: PathBuf,
    current: Option<Reweighting>,
    reports: Vec<WeightsReport>,
    failed: bool,
}

impl SeedRuns {
    pub(super) fn new(experiment: Experiment, seeds: &[u64], out: &Path) -> Result<Self> {
        if seeds.is_empty() {
            return Err(none());
        }
        if let Some(pair) = (1..seeds.len()).find(|&i| seeds[..i].contains(&seeds[i])) {
            return Err(Error::setting(
                "seeds",
                format!("{} twice", seeds[pair]),
                "distinct seeds",
                "a seed gives the same run again",
            ));
        }
        let summary = out.join("seeds.json");
        if summary.exists() {
            let message = "is already there; choose another folder";
            return Err(Error::file(&summary, message.to_owned()));
        }
        Ok(Self {
            experiment,
            seeds: seeds.iter().copied().collect(),
            out: out.to_owned(),
            current: None,
            reports: Vec::new(),
            failed: false,
        })
    }

    /// The data and, with the seed of the run that is under way, the settings.
    pub fn experiment(&self) -> &Experiment {
        &self.experiment
    }

    /// The run that is under way, or the last one.
    pub fn current(&self) -> Option<&Reweighting> {
        self.current.as_ref()
    }

    /// The weights of the runs that are done, in the order of the seeds.
    pub fn reports(&self) -> &[WeightsReport] {
        &self.reports
    }

    /// The spread over the runs that are done.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if none is.
    pub fn report(&self) -> Result<SeedsReport> {
        SeedsReport::new(&self.reports)
    }

    /// The file with the spread.
    pub fn summary_path(&self) -> PathBuf {
        self.out.join("seeds.json")
    }

    /// The next step of the current run or, after its last, the first one of the next.
    fn advance(&mut self) -> Result<Option<Step>> {
        loop {
            if let Some(run) = &mut self.current
                && let Some(step) = run.next()
            {
                let step = step?;
                if run.is_over() {
                    self.reports.push(run.report());
                    let ranks = self.experiment.ranks();
                    if ranks.is_first() {
                        let written = self.report()?.write(self.summary_path());
                        ranks.together(written)?;
                    } else {
                        ranks.together(Ok(()))?;
                    }
                }
                return Ok(Some(step));
            }
            let Some(seed) = self.seeds.pop_front() else {
                return Ok(None);
            };
            self.current = None; // its memory is the next one's
            self.experiment.reseed(seed);
            let folder = self.out.join(format!("seed-{seed}"));
            self.current = Some(self.experiment.reweight(folder)?);
        }
    }
}

impl Iterator for SeedRuns {
    type Item = Result<Step>;

    /// Takes a step of the run that is under way, or the first one of the next. `None` after the last step of the last
    /// seed, or after an error.
    fn next(&mut self) -> Option<Result<Step>> {
        if self.failed {
            return None;
        }
        let step = self.advance();
        self.failed = step.is_err();
        step.transpose()
    }
}

fn none() -> Error {
    Error::setting("seeds", "none", "at least 1", "for instance 0, 1 and 2")
}
