//! All data of a run: the sources, the validation set, the test set, and the tokenizer.

use std::path::{Path, PathBuf};

use super::files::DataFiles;
use super::{Record, Records, Sample, Tokenizer};
use crate::error::{Error, Result};

/// How a folder of records becomes samples. Checked by [`Corpus::open`].
#[derive(Clone, Debug)]
pub struct CorpusConfig {
    max_length: usize,
    tokenizer: Option<Tokenizer>,
    vocabulary: usize,
}

impl CorpusConfig {
    /// Samples have at most `max_length` tokens, at least 2: the first token of a sample is never predicted.
    pub fn new(max_length: usize) -> Self {
        Self {
            max_length,
            tokenizer: None,
            vocabulary: 4096,
        }
    }

    /// Uses this tokenizer. Without one, a byte-level BPE is trained on the text of the sources.
    #[must_use]
    pub fn tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// Sets how many tokens a tokenizer trained on the sources has at most, at least 257. Default: 4096.
    #[must_use]
    pub fn vocabulary(mut self, vocabulary: usize) -> Self {
        self.vocabulary = vocabulary;
        self
    }
}

/// The data of a run, as tokens.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The sources, `train_<name>.jsonl` or `.json`, sorted by name. At least two.
    pub sources: Vec<Source>,
    /// The validation set, `val.jsonl` or `.json`.
    pub validation: Source,
    /// The test set, `test.jsonl` or `.json`, if there is one.
    pub test: Option<Source>,
    /// The tokenizer, given or trained on the sources.
    pub tokenizer: Tokenizer,
}

/// The samples of one data file.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name of a source; `val` or `test` for these sets.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The samples, in the order of the file, each with at least one label token. At least one.
    pub samples: Vec<Sample>,
    /// The number of records in the file. A long text gives several samples.
    pub records: usize,
    /// The number of samples left out because they have no label token: a prompt that fills the length, a text of one
    /// token, or a single token that was left over after cutting a long text.
    pub skipped: usize,
}

impl Corpus {
    /// Reads the data files of a folder: `train_<source>`, `val` and possibly `test`, each `.jsonl` or `.json`. Other
    /// files are ignored. For the records see [`Records`].
    ///
    /// A text longer than the allowed length is cut into consecutive samples. An instruction with its response is
    /// truncated instead, and then ends without end of text.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if a length or vocabulary is too small; [`Error::File`] for a folder with fewer than two
    /// sources, no validation set or two files for one thing, and for a file without a usable sample;
    /// [`Error::Record`] for the first bad record, with its line; [`Error::Io`] for a file that cannot be read.
    pub fn open(folder: impl AsRef<Path>, config: CorpusConfig) -> Result<Self> {
        check_length(config.max_length)?;
        let files = DataFiles::find(folder.as_ref())?;
        let tokenizer = match config.tokenizer {
            Some(tokenizer) => tokenizer,
            None => train_tokenizer(files.sources.values(), config.vocabulary)?,
        };
        let read = |name: String, path| Source::read(name, path, &tokenizer, config.max_length);
        let sources = files
            .sources
            .into_iter()
            .map(|(name, path)| read(name, path));
        Ok(Self {
            sources: sources.collect::<Result<_>>()?,
            validation: read("val".to_owned(), files.validation)?,
            test: match files.test {
                Some(path) => Some(read("test".to_owned(), path)?),
                None => None,
            },
            tokenizer,
        })
    }
}

impl Source {
    /// Reads the samples of one data file, of at most `max_length` tokens, at least 2; longer texts are cut and longer
    /// responses truncated as in [`Corpus::open`].
    ///
    /// # Errors
    ///
    /// Those of [`Corpus::open`] that concern one file.
    pub fn read(
        name: impl Into<String>,
        path: impl Into<PathBuf>,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> Result<Self> {
        check_length(max_length)?;
        let mut source = Self {
            name: name.into(),
            path: path.into(),
            samples: Vec::new(),
            records: 0,
            skipped: 0,
        };
        let mut records = Records::open(&source.path)?;
        while let Some(record) = records.next() {
            let samples = samples_of(record?, tokenizer, max_length)
                .map_err(|error| Error::record(&source.path, records.record_line(), error))?;
            source.records += 1;
            samples.into_iter().for_each(|sample| source.add(sample));
        }
        source.check_samples(max_length)?;
        Ok(source)
    }

    /// The record that each sample comes from, from 0 in the order of the file, which is read again.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and [`Error::File`] if the file has changed since.
    pub(crate) fn records_of_samples(
        &self,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> Result<Vec<usize>> {
        let mut owners = Vec::with_capacity(self.samples.len());
        for (number, record) in Records::open(&self.path)?.enumerate() {
            let samples = samples_of(record?, tokenizer, max_length)?;
            let used = samples.iter().filter(|sample| sample.label_tokens() > 0);
            owners.extend(used.map(|_| number));
        }
        if owners.len() == self.samples.len() {
            return Ok(owners);
        }
        let message = "changed since it was read; leave the data alone until the run is over";
        Err(Error::file(&self.path, message))
    }

    /// A set of questions as samples: of each, the answer is learned.
    pub(crate) fn of_questions(
        path: &Path,
        samples: impl IntoIterator<Item = Result<Sample>>,
        max_length: usize,
    ) -> Result<Self> {
        check_length(max_length)?;
        let mut source = Self {
            name: String::new(),
            path: path.to_owned(),
            samples: Vec::new(),
            records: 0,
            skipped: 0,
        };
        for sample in samples {
            let mut sample = sample?;
            sample.truncate(max_length);
            source.records += 1;
            source.add(sample);
        }
        source.check_samples(max_length)?;
        Ok(source)
    }

    fn check_samples(&self, max_length: usize) -> Result<()> {
        if !self.samples.is_empty() {
            return Ok(());
        }
        let message = format!(
            "no usable sample in {} records: each needs a token to learn after its first token and \
             within the first {max_length} (the max length)",
            self.records
        );
        Err(Error::file(&self.path, message))
    }

    fn add(&mut self, sample: Sample) {
        if sample.label_tokens() == 0 {
            self.skipped += 1;
        } else {
            self.samples.push(sample);
        }
    }
}

/// The samples of one record: the pieces of a text, or a conversation cut at the end.
fn samples_of(record: Record, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Sample>> {
    let is_text = matches!(record, Record::Text { .. });
    let mut sample = tokenizer.encode_record(record)?;
    if is_text {
        return Ok(sample.pieces(max_length).collect());
    }
    sample.truncate(max_length);
    Ok(vec![sample])
}

fn check_length(max_length: usize) -> Result<()> {
    if max_length < 2 {
        return Err(Error::setting(
            "max length",
            max_length,
            "at least 2",
            "the first token of a sample is never predicted; hundreds are usual",
        ));
    }
    Ok(())
}

/// Trains a tokenizer on all text of the files, read record by record.
pub(crate) fn train_tokenizer<'a>(
    paths: impl Iterator<Item = &'a PathBuf> + Send,
    vocabulary: usize,
) -> Result<Tokenizer> {
    let mut records = Vec::new();
    for path in paths {
        records.push(Records::open(path)?);
    }
    // The tokenizer takes texts, not results: it is given those before the first error.
    let mut error = None;
    let texts = records.into_iter().flatten().map_while(|record| {
        let segments = record.map_err(|e| error = Some(e)).ok()?.into_segments();
        Some(segments.into_iter().map(|s| s.text).collect::<String>())
    });
    let tokenizer = Tokenizer::train(texts, vocabulary);
    error.map_or(tokenizer, Err)
}
