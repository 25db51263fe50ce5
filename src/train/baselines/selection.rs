//! The records that a method selects, from their files and into one.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::experiment::Experiment;
use super::super::log::write_json;
use super::super::resample::index::{content, contents};
use crate::baselines::Baseline;
use crate::data::RawRecords;
use crate::files::replace_with;
use crate::reweight::Pick;
use crate::{Error, Result};

/// The version of `selection.json`.
const SCHEMA_VERSION: u32 = 1;

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
    /// Number of records that were selected from: those that give a sample and are in neither the validation nor the test set.
    pub candidates: usize,
    /// Number of records selected.
    pub records: usize,
    /// Number of samples selected: of LESS, those of the selected records; of RHO-LOSS, those that it trained on, as often as it
    /// did.
    pub samples: usize,
    /// The source's share of all samples selected.
    pub weight: f64,
}

/// A record that may be selected.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub source: usize,
    /// From 0 in the order of the file.
    pub number: usize,
    /// Its samples, by their place in the source.
    samples: Vec<usize>,
}

/// The records that may be selected, in the order of sources and files.
#[derive(Clone, Debug)]
pub(super) struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Reads the files of the sources again.
    pub fn read(experiment: &Experiment) -> Result<Self> {
        let held_out = [experiment.validation()]
            .into_iter()
            .chain(experiment.test());
        let held_out: Vec<PathBuf> = held_out.map(|source| source.path.clone()).collect();
        let held_out = contents(held_out.iter())?;
        let mut candidates = Vec::new();
        for (index, source) in experiment.sources().iter().enumerate() {
            let mut open = Vec::with_capacity(source.records);
            each_record(&source.path, |records, place, bytes| {
                let value = records.parse(bytes, place)?;
                open.push(!held_out.contains(&content(value, bytes).0));
                Ok(())
            })?;
            let length = experiment.config().max_length;
            let owners = source.records_of_samples(experiment.tokenizer(), length)?;
            let start = candidates.len();
            for (sample, number) in owners.into_iter().enumerate() {
                if !open.get(number).copied().unwrap_or(false) {
                    continue;
                }
                let last = candidates[start..].last_mut();
                match last.filter(|last: &&mut Candidate| last.number == number) {
                    Some(last) => last.samples.push(sample),
                    None => candidates.push(Candidate {
                        source: index,
                        number,
                        samples: vec![sample],
                    }),
                }
            }
        }
        if candidates.is_empty() {
            let message = "every record is in the validation or the test set too; nothing is left to select from";
            return Err(Error::file(&experiment.config().data, message));
        }
        Ok(Self(candidates))
    }

    pub fn records(&self) -> &[Candidate] {
        &self.0
    }

    /// All samples of all records.
    pub fn picks(&self) -> Vec<Pick> {
        let of = |record: &Candidate| {
            let source = record.source;
            let samples = record.samples.clone().into_iter();
            samples.map(move |index| Pick { source, index })
        };
        self.0.iter().flat_map(of).collect()
    }

    /// The mean over the samples of each record, of numbers in the order of [`picks`](Self::picks).
    pub fn records_of(&self, numbers: &[f64]) -> Vec<f64> {
        let mut rest = numbers;
        let mut next = |record: &Candidate| {
            let (own, others) = rest.split_at(record.samples.len());
            rest = others;
            own.iter().sum::<f64>() / own.len() as f64
        };
        self.0.iter().map(&mut next).collect()
    }
}

/// What a method chose: how often each sample of each candidate.
#[derive(Debug)]
pub(super) struct Chosen {
    candidates: Candidates,
    /// Times that a sample of the candidate was chosen; 0 for one that was not selected.
    times: Vec<usize>,
}

impl Chosen {
    /// Records, by their place among the candidates: all their samples, once.
    pub fn records(candidates: Candidates, chosen: &[usize]) -> Self {
        let mut times = vec![0; candidates.0.len()];
        for &record in chosen {
            times[record] = candidates.0[record].samples.len();
        }
        Self { candidates, times }
    }

    /// Samples, each so many times, in the order of [`Candidates::picks`].
    pub fn samples(candidates: Candidates, times: &[usize]) -> Self {
        let mut rest = times;
        let mut next = |record: &Candidate| {
            let (own, others) = rest.split_at(record.samples.len());
            rest = others;
            own.iter().sum()
        };
        let times = candidates.0.iter().map(&mut next).collect();
        Self { candidates, times }
    }

    /// Writes `mix.jsonl` and `selection.json`.
    pub fn write(
        &self,
        experiment: &Experiment,
        baseline: &Baseline,
        out: &Path,
    ) -> Result<Selection> {
        let sources = experiment.sources();
        let mut selected: Vec<SelectedSource> = sources
            .iter()
            .map(|source| SelectedSource {
                name: source.name.clone(),
                candidates: 0,
                records: 0,
                samples: 0,
                weight: 0.0,
            })
            .collect();
        let mut wanted: Vec<Vec<bool>> = sources.iter().map(|s| vec![false; s.records]).collect();
        let total: usize = self.times.iter().sum();
        for (record, &times) in self.candidates.0.iter().zip(&self.times) {
            let source = &mut selected[record.source];
            source.candidates += 1;
            source.records += usize::from(times > 0);
            source.samples += times;
            source.weight = source.samples as f64 / total as f64;
            wanted[record.source][record.number] = times > 0;
        }
        let path = out.join("mix.jsonl");
        replace_with(&path, |file| {
            for (source, wanted) in sources.iter().zip(&wanted) {
                let mut wanted = wanted.iter();
                each_record(&source.path, |_, _, bytes| {
                    if wanted.next() != Some(&true) {
                        return Ok(());
                    }
                    let line = on_one_line(bytes);
                    file.write_all(&line).map_err(|e| Error::io(&path, e))
                })?;
            }
            Ok(())
        })?;
        let selection = Selection {
            schema_version: SCHEMA_VERSION,
            baseline: baseline.clone(),
            path,
            sources: selected,
        };
        write_json(&out.join("selection.json"), &selection)?;
        Ok(selection)
    }
}

/// An error for a folder that holds a selection already.
pub(super) fn check_out(out: &Path) -> Result<()> {
    for name in ["mix.jsonl", "selection.json", "scores.jsonl"] {
        if out.join(name).exists() {
            let message = format!("already holds a selection (`{name}`); choose another folder");
            return Err(Error::file(out, message));
        }
    }
    Ok(())
}

fn each_record(
    path: &Path,
    mut take: impl FnMut(&mut RawRecords, crate::data::Place, &[u8]) -> Result<()>,
) -> Result<()> {
    let (mut records, mut bytes) = (RawRecords::open(path)?, Vec::new());
    while let Some(place) = records.read(&mut bytes)? {
        take(&mut records, place, &bytes)?;
    }
    Ok(())
}

/// A record with a line break after it and none in it: in JSON those between tokens are white space, and others are escaped.
fn on_one_line(record: &[u8]) -> Vec<u8> {
    let flat = |byte: &u8| match byte {
        b'\n' | b'\r' => b' ',
        other => *other,
    };
    let mut line: Vec<u8> = record.trim_ascii_end().iter().map(flat).collect();
    line.push(b'\n');
    line
}
