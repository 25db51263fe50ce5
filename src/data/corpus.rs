//! All data of a run: the sources, the validation set, the test set, and the tokenizer.

use std::path::{Path, PathBuf};

use super::files::DataFiles;
use super::stream::each_record;
use super::tokens::Bounds;
use super::{Record, Records, Sample, SampleStore, Tokenizer};
use crate::error::{Error, Result};

/// Sources with more bytes together are streamed, unless asked for otherwise.
const STREAM_ABOVE: u64 = 256 << 20;
/// Bytes of text that a tokenizer is trained on, if the sources are larger than that.
const TOKENIZER_TEXT: usize = 32 << 20;

/// How a folder of records becomes samples. Checked by [`Corpus::open`].
#[derive(Clone, Debug)]
pub struct CorpusConfig {
    max_length: usize,
    tokenizer: Option<Tokenizer>,
    vocabulary: usize,
    stream: Option<bool>,
    index: Option<PathBuf>,
}

impl CorpusConfig {
    /// Samples have at most `max_length` tokens, at least 2: the first token of a sample is never predicted.
    pub fn new(max_length: usize) -> Self {
        Self {
            max_length,
            tokenizer: None,
            vocabulary: 4096,
            stream: None,
            index: None,
        }
    }

    /// Uses this tokenizer. Without one, a byte-level BPE is trained on the text of the sources; on 32 MiB of it, in equal
    /// parts from the beginning of each, if they have more than 256 MiB together.
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

    /// Leaves the samples of the sources in their files, as [`Source::stream`] does, or holds them in memory. The samples
    /// are the same. Default: `None`, in their files if these have more than 256 MiB together.
    #[must_use]
    pub fn stream(mut self, stream: Option<bool>) -> Self {
        self.stream = stream;
        self
    }

    /// Keeps the indices of streamed sources in a folder, see [`Source::stream`]. Default: nowhere.
    #[must_use]
    pub fn index(mut self, folder: Option<PathBuf>) -> Self {
        self.index = folder;
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
    pub samples: SampleStore,
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
        let (length, cache) = (config.max_length, config.index.as_deref());
        let stream = is_streamed(config.stream, files.sources.values())?;
        let read = |name: String, path| Source::read(name, path, &tokenizer, length);
        let sources = files.sources.into_iter().map(|(name, path)| match stream {
            true => Source::stream(name, path, &tokenizer, length, cache),
            false => read(name, path),
        });
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
        let (path, mut samples) = (path.into(), Vec::new());
        let (mut records, mut skipped) = (0, 0);
        each_record(
            &path,
            |bytes, place| {
                let record = Record::parse(&path, bytes, place)?;
                samples_of(record, tokenizer, max_length)
                    .map_err(|error| Error::record(&path, place.line, error))
            },
            |_, _, found| {
                records += 1;
                let before = samples.len() + found.len();
                samples.extend(found.into_iter().filter(|s| s.label_tokens() > 0));
                skipped += before - samples.len();
                Ok(())
            },
        )?;
        let source = Self {
            name: name.into(),
            path,
            samples: samples.into(),
            records,
            skipped,
        };
        source.check_samples(max_length)?;
        Ok(source)
    }

    /// Leaves the samples in the file: it is read once, for an index of some five bytes a record, and a sample is read again and
    /// tokenized each time it is drawn, which a training lets threads in the background do. A piece of a long text costs as
    /// much time as all of the text. The samples are those of [`read`](Self::read).
    ///
    /// The index is kept in the folder `cache`, if there is one, for the next start. It counts as long as the file has the same
    /// path, size and time of change, the tokenizer is the same, and so are `max_length` and the version of the program;
    /// otherwise, and where it is damaged, it is made again. Folders of this kind may be deleted at any time.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read). While samples are drawn, an error if the file has changed since it was indexed.
    pub fn stream(
        name: impl Into<String>,
        path: impl Into<PathBuf>,
        tokenizer: &Tokenizer,
        max_length: usize,
        cache: Option<&Path>,
    ) -> Result<Self> {
        check_length(max_length)?;
        let path = path.into();
        let samples = SampleStore::streamed_from(&path, tokenizer, max_length, cache)?;
        let (records, skipped) = samples.streamed().map_or((0, 0), |s| s.totals());
        let source = Self {
            name: name.into(),
            path,
            samples,
            records,
            skipped,
        };
        source.check_samples(max_length)?;
        Ok(source)
    }

    /// The samples.
    ///
    /// # Errors
    ///
    /// [`Error::File`] for a source that is streamed.
    pub fn in_memory(&self) -> Result<&[Sample]> {
        self.samples.in_memory().ok_or_else(|| {
            let message = "is streamed, but all of its samples are needed at once; hold them in memory (stream = false), or use \
                           a part of the data";
            Error::file(&self.path, message)
        })
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
        let mut owners = Vec::with_capacity(self.in_memory()?.len());
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
        let (mut kept, mut records) = (Vec::new(), 0);
        for sample in samples {
            let mut sample = sample?;
            sample.truncate(max_length);
            records += 1;
            if sample.label_tokens() > 0 {
                kept.push(sample);
            }
        }
        let source = Self {
            name: String::new(),
            path: path.to_owned(),
            skipped: records - kept.len(),
            samples: kept.into(),
            records,
        };
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
}

/// The samples of one record: the pieces of a text, or a conversation cut at the end.
pub(super) fn samples_of(
    record: Record,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Vec<Sample>> {
    let is_text = record.is_text();
    let sample = tokenizer.encode_record(record)?;
    Ok(cut(sample, is_text, max_length))
}

fn cut(mut sample: Sample, is_text: bool, max_length: usize) -> Vec<Sample> {
    if is_text {
        return sample.pieces(max_length).collect();
    }
    sample.truncate(max_length);
    vec![sample]
}

/// How many samples a record gives.
pub(super) struct SampleCount {
    /// Those with a label token.
    pub samples: usize,
    /// Those without.
    pub skipped: usize,
    /// None of them has more tokens.
    pub longest: usize,
}

/// Counts what [`samples_of`] gives, without tokens where the `bounds` of the tokenizer say it already.
pub(super) fn count_samples(
    record: Record,
    tokenizer: &Tokenizer,
    bounds: Option<&Bounds>,
    max_length: usize,
) -> Result<SampleCount> {
    let (is_text, is_chat) = (record.is_text(), record.is_chat());
    let segments = tokenizer.segments(record)?;
    if let Some(longest) = bounds.and_then(|b| b.one_sample(&segments, max_length, is_text)) {
        return Ok(SampleCount {
            samples: 1,
            skipped: 0,
            longest,
        });
    }
    let sample = tokenizer.encode_segments(&segments, is_chat)?;
    let samples = cut(sample, is_text, max_length);
    let kept = || samples.iter().filter(|sample| sample.label_tokens() > 0);
    Ok(SampleCount {
        samples: kept().count(),
        skipped: samples.len() - kept().count(),
        longest: kept().map(|sample| sample.ids.len()).max().unwrap_or(0),
    })
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

/// Whether files are streamed: as asked for, or else if they are large.
pub(crate) fn is_streamed<'a>(
    asked: Option<bool>,
    mut paths: impl Iterator<Item = &'a PathBuf>,
) -> Result<bool> {
    let bytes = paths.try_fold(0, |sum, path| {
        let found = path.metadata().map_err(|e| Error::io(path, e))?;
        Ok::<_, Error>(sum + found.len())
    })?;
    Ok(asked.unwrap_or(bytes > STREAM_ABOVE))
}

/// Trains a tokenizer on the text of the files, read record by record: on all of it, or, if the files are so large that they are
/// streamed, on as much from the beginning of each as makes [`TOKENIZER_TEXT`] together. Memory grows with the different words.
pub(crate) fn train_tokenizer<'a>(
    paths: impl Iterator<Item = &'a PathBuf> + Clone,
    vocabulary: usize,
) -> Result<Tokenizer> {
    let limit = match is_streamed(None, paths.clone())? {
        true => TOKENIZER_TEXT / paths.clone().count().max(1),
        false => usize::MAX,
    };
    let mut files = Vec::new();
    for path in paths {
        files.push(Records::open(path)?);
    }
    // The tokenizer takes texts, not results: it is given those before the first error.
    let mut error = None;
    let texts = files.into_iter().flat_map(|records| {
        records.scan(0, move |read: &mut usize, record| {
            let is_enough = *read >= limit;
            let text = record.map(|record| {
                let segments = record.into_segments().into_iter();
                segments.map(|s| s.text).collect::<String>()
            });
            *read += text.as_ref().map_or(0, String::len);
            (!is_enough).then_some(text)
        })
    });
    let texts = texts.map_while(|text| text.map_err(|e| error = Some(e)).ok());
    let tokenizer = Tokenizer::train(texts, vocabulary);
    error.map_or(tokenizer, Err)
}
