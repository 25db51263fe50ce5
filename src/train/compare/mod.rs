//! ScaleBiO beside other methods: each chooses the training data, and the same model is trained on what each chose.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::ReweightConfig;
use super::log::write_json;
use crate::baselines::Baseline;
use crate::data::DataFiles;
use crate::{Error, Result};

mod job;
mod summary;
mod usage;

pub use job::{Cost, MethodRun, TestLoss};
pub use summary::{Comparison, MethodSummary, SourceSpread, Spread};

/// A way to choose training data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Method {
    /// One of this crate's own, or no choice at all.
    Own(OwnMethod),
    /// One that ScaleBiO is compared with.
    Baseline(Baseline),
}

/// The methods that are no [`Baseline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method")]
pub enum OwnMethod {
    /// Source weights learned by ScaleBiO.
    #[serde(rename = "scalebio")]
    ScaleBio,
    /// Training on the validation set itself: a yardstick, since it needs none of the sources.
    #[serde(rename = "validation")]
    Validation,
}

impl Method {
    /// All methods, with the default settings of the baselines.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Own(OwnMethod::ScaleBio)];
        all.extend(Baseline::all().map(Self::Baseline));
        all.push(Self::Own(OwnMethod::Validation));
        all
    }

    /// Its name: `scalebio`, `validation`, or that of the baseline.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Own(OwnMethod::ScaleBio) => "scalebio",
            Self::Own(OwnMethod::Validation) => "validation",
            Self::Baseline(baseline) => baseline.name(),
        }
    }
}

impl fmt::Display for Method {
    /// The name of the method.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    /// The method of this name, with its default settings.
    fn from_str(name: &str) -> Result<Self> {
        let all = Self::all();
        let names: Vec<_> = all.iter().map(Self::name).collect();
        let allowed = format!("one of {}", names.join(", "));
        let found = all.into_iter().find(|method| method.name() == name);
        found.ok_or_else(|| {
            let remedy = "spell it as it stands here";
            Error::setting("method", format!("`{name}`"), allowed, remedy)
        })
    }
}

/// What a [`Compare`] compares, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareConfig {
    /// The data, the model and the budget of every method: each learns with these steps, batches and learning rates. Its
    /// `seed` is not used. The data must have a test set.
    pub experiment: ReweightConfig,
    /// The methods, each once. Default: all, with their default settings.
    pub methods: Vec<Method>,
    /// The seeds with which each method runs, each once. Default: 0 alone; three or more show how much chance decides.
    pub seeds: Vec<u64>,
    /// Training tokens of each fine-tuning, to within a batch. Default: as many as `steps` batches of samples of average
    /// length have.
    pub tokens: Option<u64>,
}

impl CompareConfig {
    /// The defaults for an experiment.
    pub fn new(experiment: ReweightConfig) -> Self {
        Self {
            experiment,
            methods: Method::all(),
            seeds: vec![0],
            tokens: None,
        }
    }

    fn validate(&self) -> Result<()> {
        self.experiment.validate()?;
        let names: Vec<_> = self.methods.iter().map(Method::name).collect();
        distinct("methods", &names, "name each method once")?;
        distinct("seeds", &self.seeds, "3 seeds show how much chance decides")?;
        for method in &self.methods {
            if let Method::Baseline(baseline) = method {
                baseline.validate(self.experiment.steps)?;
            }
        }
        if self.tokens == Some(0) {
            let remedy = "leave it out for as many as the steps of the experiment take";
            return Err(Error::setting("tokens", 0, "at least 1", remedy));
        }
        let data = &self.experiment.data;
        if DataFiles::find(data)?.test.is_none() {
            let message = "no test set, on which the results are compared; add it as `test.jsonl`";
            return Err(Error::file(data, message));
        }
        Ok(())
    }

    /// What differs from another configuration, but for methods and seeds that only one of them has.
    fn difference(&self, other: &Self) -> Option<String> {
        for method in &self.methods {
            let same_name = |other: &&Method| other.name() == method.name();
            if other
                .methods
                .iter()
                .find(same_name)
                .is_some_and(|o| o != method)
            {
                return Some(format!("the settings of `{method}` are others"));
            }
        }
        let fields = |config: &Self| {
            let value = serde_json::to_value(&config.experiment).unwrap_or_default();
            let mut fields: Vec<_> = value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            fields.push(("tokens".to_owned(), Value::from(config.tokens)));
            fields
        };
        fields(self)
            .into_iter()
            .zip(fields(other))
            .find(|(own, other)| own.1 != other.1 && own.0 != "seed")
            .map(|((name, own), (_, other))| format!("`{name}` is {own} there and {other} here"))
    }
}

fn distinct<T: PartialEq + fmt::Display>(
    name: &'static str,
    values: &[T],
    remedy: &'static str,
) -> Result<()> {
    let allowed = "at least one, and each once";
    if values.is_empty() {
        return Err(Error::setting(name, "none", allowed, remedy));
    }
    let again = |(i, value): &(usize, &T)| values[..*i].contains(value);
    match values.iter().enumerate().find(again) {
        Some((_, value)) => {
            let given = format!("`{value}` twice");
            Err(Error::setting(name, given, allowed, remedy))
        }
        None => Ok(()),
    }
}

/// One method with one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The method.
    pub method: Method,
    /// The seed of its run and of the fine-tuning after it.
    pub seed: u64,
}

/// A comparison in a folder: as many [`jobs`](Self::jobs) as there are methods and seeds, each of which may run in a process of
/// its own, and a [`Comparison`] of their results.
///
/// A job lets its method choose the training data, trains the base model on them for the same number of tokens, and measures
/// the loss on the test set. A job that is finished is never run again: open the folder anew to go on after an interruption,
/// or with further methods or seeds.
///
/// The data that a method chooses are
/// * for one that gives weights, records drawn by them: a source's share of the samples is its weight. Nothing is drawn twice
///   if the sources have enough records, else records are drawn with replacement;
/// * for one that selects, its selection;
/// * for `validation`, the validation set.
///
/// The fine-tuning draws them in an order of their own each epoch, as [`Finetuning`](super::Finetuning) does, with AdamW and the
/// model's learning rate of the experiment.
///
/// # Example
///
/// ```no_run
/// use scalebio::train::{Compare, CompareConfig, ReweightConfig};
///
/// let mut config = CompareConfig::new(ReweightConfig::new("examples/data"));
/// config.seeds = vec![0, 1, 2];
/// let compare = Compare::open(config, "runs/compare")?;
/// for job in compare.remaining() {
///     compare.run(&job)?;
/// }
/// for method in compare.finish()?.methods {
///     println!("{:<14} {:.4}", method.method.name(), method.loss.mean);
/// }
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Compare {
    config: CompareConfig,
    folder: PathBuf,
}

impl Compare {
    /// Starts a comparison in the folder `out`, or goes on with the one that is there.
    ///
    /// # Errors
    ///
    /// Settings that cannot work; data without a test set; a folder that holds a comparison with other settings, or another
    /// run. More or fewer methods or seeds are no other settings.
    pub fn open(config: CompareConfig, out: impl AsRef<Path>) -> Result<Self> {
        config.validate()?;
        let folder = out.as_ref().to_owned();
        let path = folder.join("config.json");
        if path.exists() {
            let there = read(&path)?;
            if let Some(difference) = CompareConfig::difference(&there, &config) {
                let message = format!(
                    "holds a comparison with other settings ({difference}); choose another folder, or the same settings to go on"
                );
                return Err(Error::file(&folder, message));
            }
        }
        fs::create_dir_all(&folder).map_err(|source| Error::io(&folder, source))?;
        write_json(&path, &config)?;
        Ok(Self { config, folder })
    }

    /// The comparison that is in a folder, with its settings.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::File`] for a folder without one.
    pub fn resume(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let config = read(&folder.join("config.json"))?;
        Ok(Self { config, folder })
    }

    /// The settings.
    pub fn config(&self) -> &CompareConfig {
        &self.config
    }

    /// All methods, each with all seeds: first all methods with the first seed.
    pub fn jobs(&self) -> Vec<Job> {
        let config = &self.config;
        let with = |&seed| config.methods.iter().map(move |method| (method, seed));
        let pairs = config.seeds.iter().flat_map(with);
        pairs
            .map(|(method, seed)| Job {
                method: method.clone(),
                seed,
            })
            .collect()
    }

    /// The jobs that are not finished.
    pub fn remaining(&self) -> Vec<Job> {
        let mut jobs = self.jobs();
        jobs.retain(|job| !self.result_path(job).exists());
        jobs
    }

    /// The folder of a job: `METHOD/seed-SEED`.
    pub fn job_folder(&self, job: &Job) -> PathBuf {
        let seed = format!("seed-{}", job.seed);
        self.folder.join(job.method.name()).join(seed)
    }

    /// Written last, so that a job with this file is finished.
    fn result_path(&self, job: &Job) -> PathBuf {
        self.job_folder(job).join("run.json")
    }

    /// Runs a job in this process, or returns its result if it is finished. What an interrupted one left is removed.
    ///
    /// The [`Cost::peak_memory`] is that of the process: it is the method's if the process does nothing else.
    ///
    /// # Errors
    ///
    /// Those of [`Experiment::open`](super::Experiment::open), of the method, of [`resample`](super::resample) and of
    /// [`Finetuning`](super::Finetuning).
    pub fn run(&self, job: &Job) -> Result<MethodRun> {
        let path = self.result_path(job);
        if path.exists() {
            return read(&path);
        }
        let folder = self.job_folder(job);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|source| Error::io(&folder, source))?;
        }
        fs::create_dir_all(&folder).map_err(|source| Error::io(&folder, source))?;
        let run = job::run(&self.config, job, &folder)?;
        write_json(&path, &run)?;
        Ok(run)
    }

    /// Compares the results of the jobs that are finished.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or is none of a job's.
    pub fn summary(&self) -> Result<Comparison> {
        let mut runs = Vec::new();
        for job in self.jobs() {
            let path = self.result_path(&job);
            if path.exists() {
                runs.push(read(&path)?);
            }
        }
        Ok(Comparison::new(&self.config, runs))
    }

    /// Compares the results of all jobs, and writes them to `comparison.json`.
    ///
    /// # Errors
    ///
    /// A job that is not finished; a file that cannot be read or written.
    pub fn finish(&self) -> Result<Comparison> {
        let remaining = self.remaining();
        if let Some(job) = remaining.first() {
            let message = format!(
                "{} runs are not finished, the first {} with seed {}; run the remaining jobs first",
                remaining.len(),
                job.method,
                job.seed
            );
            return Err(Error::file(&self.folder, message));
        }
        let comparison = self.summary()?;
        write_json(&self.folder.join("comparison.json"), &comparison)?;
        Ok(comparison)
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_slice(&text).map_err(|error| Error::file(path, error))
}
