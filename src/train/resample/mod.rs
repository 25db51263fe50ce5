//! A training set drawn by learned weights.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use self::index::Index;
use super::log::{WeightsReport, write_json};
use crate::data::DataFiles;
use crate::files::replace_with;
use crate::reweight::{Mixture, Shortage};
use crate::{Error, Result};

pub(super) mod index;
mod snippets;

/// The field of the weight column.
const COLUMN: &str = "weight";
/// The version of `resample.json`.
const SCHEMA_VERSION: u32 = 1;

/// Memory that a sample takes until it is written.
const SAMPLE_BYTES: usize = size_of::<Drawn>();

/// What happens to a record that is in its source more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duplicates {
    /// Only the first is drawn from.
    #[default]
    Drop,
    /// All are drawn from; they are counted all the same.
    Keep,
}

/// What [`resample`] draws, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResampleConfig {
    /// Folder with `train_<source>`, `val` and possibly `test` files; see [`Corpus`](crate::data::Corpus). The sources may
    /// be larger than those that the weights were learned on, and larger than memory.
    pub data: PathBuf,
    /// The `weights.json` of a run, with a weight for each source of the folder and for no other.
    pub weights: PathBuf,
    /// Number of samples, from 1 to 4294967295, each of which takes 8 bytes of memory.
    pub samples: usize,
    /// Whether a record may be drawn more than once. Default: no.
    pub replacement: bool,
    /// What happens where a source has fewer records than its weight asks for. Default: an error.
    pub shortage: Shortage,
    /// What happens to a record that is in its source more than once. Default: it is drawn once at most.
    pub duplicates: Duplicates,
    /// Whether each record gets a field `weight`, `p_i N / n_i` with the weight `p_i` of its source and the number `n_i` that
    /// were drawn from it: so weighted, the mean loss over the samples is `sum_i p_i l_i` exactly, also where counts were
    /// rounded or redistributed. Every source of a weight above 0 must then give at least one sample. Default: no.
    pub weight_column: bool,
    /// Whether the samples are in random order. Otherwise they are in that of the sources' names, and within a source in
    /// that of its file (those drawn twice side by side). Default: yes.
    pub shuffle: bool,
    /// Seed of all draws. Default: 0.
    pub seed: u64,
}

impl ResampleConfig {
    /// The defaults.
    pub fn new(data: impl Into<PathBuf>, weights: impl Into<PathBuf>, samples: usize) -> Self {
        Self {
            data: data.into(),
            weights: weights.into(),
            samples,
            replacement: false,
            shortage: Shortage::default(),
            duplicates: Duplicates::default(),
            weight_column: false,
            shuffle: true,
            seed: 0,
        }
    }
}

/// What was drawn: the content of `resample.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResampleReport {
    /// Version of the format, 1.
    pub schema_version: u32,
    /// The settings.
    pub config: ResampleConfig,
    /// The sources, sorted by name.
    pub sources: Vec<ResampledSource>,
}

/// One source of a [`ResampleReport`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResampledSource {
    /// Name of the source.
    pub name: String,
    /// Its weight in `weights.json`.
    pub weight: f64,
    /// Number of records in its file.
    pub records: usize,
    /// Number of them that are in the validation or test set too, and are never drawn.
    pub held_out: usize,
    /// Number of the others that repeat an earlier one.
    pub duplicates: usize,
    /// Number of records that are none of the forms that this crate trains on. They are drawn like the others.
    pub other_form: usize,
    /// Number of records that were drawn from.
    pub available: usize,
    /// Number of samples drawn.
    pub samples: usize,
}

/// Draws a training set from the sources of a folder by the weights of a run.
///
/// Each source gives `p_i N` samples, rounded by largest remainder ([`Mixture::counts`]), each of its records with the same
/// probability. A record that says the same as one of the validation or the test set is never drawn, also if its fields are
/// in another order or it has further fields. Records are written as they stand in their files.
///
/// The folder `out` gets `mix.jsonl`, the samples; `mixing/`, what other programs need to draw by the same weights
/// themselves; and last `resample.json`, the [`ResampleReport`]. Each file appears whole or not at all.
///
/// The files are read twice, and need about 12 bytes of memory a record of the largest source, 4 to 8 a record of the
/// others, and 8 a sample.
///
/// # Errors
///
/// Settings that cannot work, a weight column without a sample of some source among them; more samples than memory holds; a `weights.json` that is none or whose weights do not add up to 1; a source without a weight or
/// a weight without a source; a source that is too small; an `out` that already holds a mix; a record that is not a JSON
/// object, or has a field `weight` already; a file that cannot be read or written.
pub fn resample(config: &ResampleConfig, out: impl AsRef<Path>) -> Result<ResampleReport> {
    check_samples(config.samples)?;
    let out = out.as_ref();
    check_out(out)?;
    let mixture = mixture(&config.weights)?;
    let files = DataFiles::find(&config.data)?;
    let mixture = in_order(&mixture, &files, config)?;
    let held_out = index::contents([&files.validation].into_iter().chain(&files.test))?;
    let column = config.weight_column.then_some(COLUMN);
    let indices = files
        .sources
        .values()
        .map(|path| Index::read(path, &held_out, config.duplicates, column))
        .collect::<Result<Vec<_>>>()?;
    let counts = counts(&mixture, &indices, config)?;
    if config.weight_column {
        check_column(&mixture, &counts, &indices, config.samples)?;
    }

    let picks = picks(&counts, &indices, config)?;
    fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let mix = out.join("mix.jsonl");
    write_mix(&mix, &mixture, &counts, &indices, picks, config)?;
    let mixing = out.join("mixing");
    fs::create_dir_all(&mixing).map_err(|e| Error::io(&mixing, e))?;
    let paths: Vec<&Path> = files.sources.values().map(PathBuf::as_path).collect();
    snippets::write(&mixing, &mixture, &paths, &indices, &counts, config)?;
    let report = report(config, &mixture, &counts, &indices);
    write_json(&out.join("resample.json"), &report)?;
    Ok(report)
}

fn check_samples(samples: usize) -> Result<()> {
    if samples == 0 {
        return Err(Error::setting(
            "samples",
            0,
            "at least 1",
            "ask for as many as the training set is to have",
        ));
    }
    if u32::try_from(samples).is_err() {
        return Err(Error::setting(
            "samples",
            samples,
            format!(
                "at most {}, for which {SAMPLE_BYTES} bytes of memory each are 32 GiB",
                u32::MAX
            ),
            "ask for fewer, and draw several mixes with seeds of their own",
        ));
    }
    Ok(())
}

/// That no source of a weight above 0 gives nothing: no weights of the others' samples would make up for its loss.
fn check_column(
    mixture: &Mixture,
    counts: &[usize],
    indices: &[Index],
    samples: usize,
) -> Result<()> {
    let weights = mixture.weights();
    let left_out = (0..counts.len()).filter(|&i| counts[i] == 0 && weights[i] > 0.0);
    let Some(i) = left_out.min_by(|&a, &b| weights[a].total_cmp(&weights[b])) else {
        return Ok(());
    };
    let (name, weight) = (&mixture.names()[i], weights[i]);
    if indices[i].available() == 0 {
        return Err(Error::setting(
            "weight-column",
            "asked for",
            format!(
                "left out where source `{name}`, of weight {weight}, has no record to draw from"
            ),
            "add records to it, or leave the column out",
        ));
    }
    let enough = (1.0 / weight).ceil() as u64;
    Err(Error::setting(
        "samples",
        samples,
        format!(
            "so many with a weight column that source `{name}`, of weight {weight}, gives one: {enough} are enough"
        ),
        "ask for more, or leave the column out",
    ))
}

fn check_out(out: &Path) -> Result<()> {
    for name in ["mix.jsonl", "mixing", "resample.json"] {
        if out.join(name).exists() {
            let message = format!("already holds a mix (`{name}`); choose another folder");
            return Err(Error::file(out, message));
        }
    }
    Ok(())
}

fn mixture(path: &Path) -> Result<Mixture> {
    let report = WeightsReport::read(path)?;
    let sources = report.sources.into_iter().map(|s| (s.name, s.weight));
    Mixture::new(sources).map_err(|error| Error::file(path, error))
}

/// The mixture with the sources in the order of the files, of which each must have a weight and each weight one.
fn in_order(mixture: &Mixture, files: &DataFiles, config: &ResampleConfig) -> Result<Mixture> {
    let weights: std::collections::BTreeMap<&str, f64> = mixture
        .names()
        .iter()
        .map(String::as_str)
        .zip(mixture.weights().iter().copied())
        .collect();
    let listed = |names: Vec<&str>| format!("`{}`", names.join("`, `"));
    let missing: Vec<&str> = weights
        .keys()
        .filter(|name| !files.sources.contains_key(**name))
        .copied()
        .collect();
    if !missing.is_empty() {
        let message = format!(
            "no file `train_<source>.jsonl` or `.json` for {}, which {} has a weight for; add it, or learn weights for the \
             sources that are there",
            listed(missing),
            config.weights.display()
        );
        return Err(Error::file(&config.data, message));
    }
    let unknown: Vec<&str> = files
        .sources
        .keys()
        .map(String::as_str)
        .filter(|name| !weights.contains_key(name))
        .collect();
    if !unknown.is_empty() {
        let message = format!(
            "no weight for {}, which {} has; remove the file from the folder, or learn weights for all sources",
            listed(unknown),
            config.data.display()
        );
        return Err(Error::file(&config.weights, message));
    }
    Mixture::new(weights)
}

fn counts(mixture: &Mixture, indices: &[Index], config: &ResampleConfig) -> Result<Vec<usize>> {
    let available: Vec<usize> = indices
        .iter()
        .map(|index| match index.available() {
            0 => 0,
            _ if config.replacement => usize::MAX,
            available => available,
        })
        .collect();
    mixture.counts_within(config.samples, &available, config.shortage)
}

/// One sample: the number of its source, and that of its record among those that may be drawn. Half the size of a
/// [`Pick`](crate::reweight::Pick), since there may be as many as there are records.
#[derive(Clone, Copy)]
struct Drawn {
    source: u32,
    record: u32,
}

fn picks(counts: &[usize], indices: &[Index], config: &ResampleConfig) -> Result<Vec<Drawn>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(config.seed);
    let mut picks = Vec::new();
    picks.try_reserve_exact(config.samples).map_err(|_| {
        Error::setting(
            "samples",
            config.samples,
            format!("so few that {SAMPLE_BYTES} bytes each fit into memory"),
            "ask for fewer, and draw several mixes with seeds of their own",
        )
    })?;
    for ((source, &count), index) in (0_u32..).zip(counts).zip(indices) {
        // Records are numbered with 32 bits, which `Index` checks.
        let size = index.available() as u32;
        if config.replacement {
            let start = picks.len();
            picks.extend((0..count).map(|_| Drawn {
                source,
                record: random.random_range(0..size),
            }));
            picks[start..].sort_unstable_by_key(|pick| pick.record);
        } else {
            // Each record in turn, with the probability that those still wanted are of those still to come.
            let mut wanted = count as u32;
            for record in 0..size {
                if random.random_range(0..size - record) < wanted {
                    picks.push(Drawn { source, record });
                    wanted -= 1;
                }
            }
        }
    }
    if config.shuffle {
        picks.shuffle(&mut random);
    }
    Ok(picks)
}

fn write_mix(
    path: &Path,
    mixture: &Mixture,
    counts: &[usize],
    indices: &[Index],
    picks: Vec<Drawn>,
    config: &ResampleConfig,
) -> Result<()> {
    let mut files = indices
        .iter()
        .map(Index::open)
        .collect::<Result<Vec<_>>>()?;
    let samples = config.samples as f64;
    let shares = mixture.weights().iter().zip(counts);
    let columns: Vec<String> = shares
        .map(|(weight, &count)| format!("\"{COLUMN}\":{}}}", weight * samples / count as f64))
        .collect();
    let mut bytes = Vec::new();
    replace_with(path, |out| {
        for Drawn { source, record } in picks {
            let source = source as usize;
            indices[source].record(&mut files[source], record as usize, &mut bytes)?;
            if config.weight_column {
                bytes.pop();
                bytes.truncate(bytes.trim_ascii_end().len());
                if bytes.last() != Some(&b'{') {
                    bytes.push(b',');
                }
                bytes.extend_from_slice(columns[source].as_bytes());
            }
            bytes.push(b'\n');
            out.write_all(&bytes).map_err(|e| Error::io(path, e))?;
        }
        Ok(())
    })
}

fn report(
    config: &ResampleConfig,
    mixture: &Mixture,
    counts: &[usize],
    indices: &[Index],
) -> ResampleReport {
    let shares = mixture.names().iter().zip(mixture.weights());
    let drawn = counts.iter().zip(indices);
    ResampleReport {
        schema_version: SCHEMA_VERSION,
        config: config.clone(),
        sources: shares
            .zip(drawn)
            .map(|((name, &weight), (&samples, index))| ResampledSource {
                name: name.clone(),
                weight,
                records: index.records(),
                held_out: index.held_out,
                duplicates: index.duplicates,
                other_form: index.other_form,
                available: index.available(),
                samples,
            })
            .collect(),
    }
}
