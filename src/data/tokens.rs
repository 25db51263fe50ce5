//! Tokenizers: from text to token ids, and which of them are learned.
//!
//! # The border between prompt and response
//!
//! A prompt and its response are one text, and a tokenizer may want one token for the end of the one and the start of
//! the other (`:` and `)` become `:)`). Three ways are common, and each goes wrong somewhere:
//!
//! * Tokenizing the prompt alone and masking as many tokens of the whole text is off by one at such a token, and off by
//!   all special tokens where the two calls do not add the same.
//! * Tokenizing each segment alone gives the later ones a start of text: SentencePiece-like tokenizers write a space
//!   before them that is not there.
//! * Tokenizing the whole text once is right but for the token on the border, which is neither prompt nor response.
//!
//! Here the whole text is normalized and cut into words once, then the words are cut at the borders, and only then does
//! the model of the tokenizer (its merges) see them. So every token lies in one segment, the response is predicted from
//! the tokens that a prompt alone has when the model is used, all of the response is learned, and without a border the
//! ids are those of the tokenizer itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::normalizer::Range;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, Model, NormalizedString, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer,
};

use super::chat::ChatTemplate;
use super::{Sample, Segment};
use crate::error::{Error, Result};
use crate::files::Checksum;

mod bounds;

pub(super) use bounds::Bounds;

/// What known families of models call the token that ends a text. The first that is in the vocabulary counts.
const END_OF_TEXT: [&str; 6] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
];

/// Bytes, and the end of text: what a byte-level vocabulary has before its first merge.
const SMALLEST_VOCABULARY: usize = 257;

/// A tokenizer: that of a pretrained model, or one trained on the data at hand.
///
/// # Example
///
/// ```
/// use scalebio::data::{Segment, Tokenizer};
///
/// let tokenizer = Tokenizer::train(["low lower lowest"].into_iter(), 260)?;
/// let prompt = Segment { text: "lower".to_owned(), learned: false };
/// let response = Segment { text: " low".to_owned(), learned: true };
/// let sample = tokenizer.encode(&[prompt, response])?;
/// assert!(!sample.learned[0]);
/// assert_eq!(sample.ids.last().copied(), tokenizer.end_of_text());
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// The file it came from; none if it was trained here.
    path: Option<PathBuf>,
    vocabulary_size: usize,
    end_of_text: Option<u32>,
    /// How the model wants conversations written down, if its folder says.
    pub(super) chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`. Truncation and padding that the file asks for are left out: the data are
    /// cut and padded here.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::File`] if it is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
            let message = format!("not a tokenizer.json of Hugging Face's `tokenizers`: {e}");
            Error::file(path, message)
        })?;
        Self::new(inner, Some(path.to_owned()))
    }

    /// Trains a byte-level BPE with at most `vocabulary_size` tokens, one of them `<|endoftext|>`. It can encode any
    /// text. The same texts give the same tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if `vocabulary_size` has no room for the 256 bytes and the end of text.
    pub fn train<S: AsRef<str> + Send>(
        texts: impl Iterator<Item = S> + Send,
        vocabulary_size: usize,
    ) -> Result<Self> {
        if vocabulary_size < SMALLEST_VOCABULARY {
            return Err(Error::setting(
                "vocabulary",
                vocabulary_size,
                format!("at least {SMALLEST_VOCABULARY}"),
                "each of the 256 bytes and the end of text needs a token; some thousands are usual",
            ));
        }
        // Neither adds a space at the start nor, as post-processor, any token.
        let bytes = ByteLevel::default()
            .add_prefix_space(false)
            .trim_offsets(false);
        let trainer = BpeTrainer::builder()
            .vocab_size(vocabulary_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT[0], true)])
            .show_progress(false)
            .build();
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner
            .with_pre_tokenizer(Some(bytes))
            .with_decoder(Some(bytes));
        inner
            .train(&mut TrainerWrapper::from(trainer), texts)
            .map_err(|e| failure(None, format!("training failed: {e}")))?;
        Self::new(inner, None)
    }

    fn new(mut inner: tokenizers::Tokenizer, path: Option<PathBuf>) -> Result<Self> {
        inner
            .with_padding(None)
            .with_truncation(None)
            .map_err(|e| failure(path.as_deref(), e))?;
        let dropping = match inner.get_model() {
            ModelWrapper::BPE(bpe) if bpe.dropout.is_some() => Some(bpe.clone()),
            _ => None,
        };
        if let Some(mut bpe) = dropping {
            bpe.dropout = None; // merges left out at random: no two runs would be the same
            inner.with_model(bpe);
        }
        let largest = inner.get_vocab(true).into_values().max();
        Ok(Self {
            vocabulary_size: largest.map_or(0, |id| id as usize + 1),
            end_of_text: END_OF_TEXT
                .iter()
                .find_map(|token| inner.token_to_id(token)),
            inner: Arc::new(inner),
            path,
            chat: None,
        })
    }

    /// Uses `token` as end of text, instead of the best-known name in the vocabulary (`<|endoftext|>`, `</s>` ...).
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the vocabulary has no such token.
    pub fn with_end_of_text(mut self, token: &str) -> Result<Self> {
        let id = self.inner.token_to_id(token).ok_or_else(|| {
            Error::setting(
                "end of text",
                format!("`{token}`"),
                format!("a token in the vocabulary of {}", self.name()),
                "look it up in tokenizer_config.json, as `eos_token`",
            )
        })?;
        self.end_of_text = Some(id);
        Ok(self)
    }

    /// Writes the tokenizer as a `tokenizer.json`. The file appears complete or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let json = self.inner.to_string(true).map_err(|e| failure(None, e))?;
        crate::files::replace(path, json.as_bytes())
    }

    /// A checksum of everything that decides which tokens a record becomes.
    pub(super) fn fingerprint(&self) -> Result<String> {
        let json = self.inner.to_string(false).map_err(|e| failure(None, e))?;
        let chat = self.chat.as_ref().map(ChatTemplate::parts);
        let rest = format!("{:?} {chat:?}", self.end_of_text);
        let mut sum = Checksum::default();
        sum.add(json.as_bytes());
        sum.add(rest.as_bytes());
        Ok(sum.text())
    }

    /// Returns the largest token id plus one: what a model's vocabulary must have at least.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// Returns the token that ends a text, if one is known.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Checks that a model with a vocabulary of `size` tokens knows every token of this tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if it does not, with both sizes and the tokenizer's file.
    pub fn check_vocabulary(&self, size: usize) -> Result<()> {
        if self.vocabulary_size <= size {
            return Ok(());
        }
        let (needed, name) = (self.vocabulary_size, self.name());
        Err(Error::setting(
            "the model's vocabulary",
            size,
            format!("at least {needed}, the tokens of {name}"),
            "use the tokenizer that belongs to the model, or a model with a larger vocabulary",
        ))
    }

    /// Turns the segments, which follow each other without a gap, into tokens. No token lies in two segments.
    ///
    /// The tokenizer adds its own special tokens before and after the text. One end of text follows, if one is known and
    /// the tokens do not end with it already. Of these only the end of text is learned, if the last segment is.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the tokenizer has no token for some of the text and none for unknown text.
    pub fn encode(&self, segments: &[Segment]) -> Result<Sample> {
        self.try_encode(segments, true)
            .map_err(|e| failure(self.path.as_deref(), format!("cannot encode a text: {e}")))
    }

    /// Turns a text into the tokens that the tokenizer gives it, with its own special tokens, but no end of text after it:
    /// what a model reads before it continues.
    ///
    /// # Errors
    ///
    /// [`Error::File`] as for [`encode`](Self::encode).
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true);
        let encoding = encoding
            .map_err(|e| failure(self.path.as_deref(), format!("cannot encode a text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Turns tokens into text, without special tokens.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the tokenizer cannot decode them.
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        let text = self.inner.decode(tokens, true);
        text.map_err(|e| failure(self.path.as_deref(), format!("cannot decode tokens: {e}")))
    }

    /// As [`encode`](Self::encode), for a text that holds its special tokens: none are added.
    pub(super) fn encode_as_it_is(&self, segments: &[Segment]) -> Result<Sample> {
        self.try_encode(segments, false)
            .map_err(|e| failure(self.path.as_deref(), format!("cannot encode a text: {e}")))
    }

    fn try_encode(&self, segments: &[Segment], add_special: bool) -> tokenizers::Result<Sample> {
        let text: String = segments.iter().map(|s| s.text.as_str()).collect();
        let mut borders = vec![0];
        for segment in segments {
            borders.push(borders[borders.len() - 1] + segment.text.len());
        }
        let added = self.inner.get_added_vocabulary();
        let mut words = added.extract_and_normalize(self.inner.get_normalizer(), &text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        words.split(|_, word| Ok(cut(word, &borders)))?;
        words.tokenize(|word| self.inner.get_model().tokenize(word.get()))?;

        let in_text = learned_tokens(&words, segments, &borders);
        let ends_learned = segments.last().is_some_and(|s| s.learned);
        let encoding = words.into_encoding(None, 0, OffsetType::None)?;
        let encoding = self.inner.post_process(encoding, None, add_special)?;
        let mut sample = Sample {
            ids: encoding.get_ids().to_vec(),
            learned: Vec::with_capacity(encoding.len() + 1),
        };
        let mut in_text = in_text.into_iter().peekable();
        let special = encoding.get_special_tokens_mask();
        for (id, special) in sample.ids.iter().zip(special) {
            let learned = if *special == 0 {
                in_text.next().unwrap_or(false)
            } else {
                // Some models begin a text with the token that ends it: only after the text is it learned.
                ends_learned && in_text.peek().is_none() && Some(*id) == self.end_of_text
            };
            sample.learned.push(learned);
        }
        if let Some(end) = self.end_of_text.filter(|_| add_special)
            && sample.ids.last() != Some(&end)
        {
            sample.ids.push(end);
            sample.learned.push(ends_learned);
        }
        Ok(sample)
    }

    /// Its file, for messages.
    fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "the tokenizer trained on the sources".to_owned(),
        }
    }
}

/// Cuts a word at the borders that lie inside it.
fn cut(word: NormalizedString, borders: &[usize]) -> Vec<NormalizedString> {
    let (start, end) = word.offsets_original();
    let mut pieces = Vec::new();
    let mut done = 0;
    for border in borders.iter().filter(|b| (start + 1..end).contains(*b)) {
        // The borders are known in the text as given, but what is cut is the word as it was normalized.
        let before = word.convert_offsets(Range::Original(0..border - start));
        let here = before.map_or(done, |range| range.end);
        if here > done {
            pieces.extend(word.slice(Range::Normalized(done..here)));
            done = here;
        }
    }
    if done == 0 {
        return vec![word];
    }
    pieces.extend(word.slice(Range::Normalized(done..word.len())));
    pieces
}

/// Whether each token of the text is learned: whether its segment is.
fn learned_tokens(
    words: &PreTokenizedString,
    segments: &[Segment],
    borders: &[usize],
) -> Vec<bool> {
    let mut learned = Vec::new();
    for (_, (start, end), tokens) in words.get_splits(OffsetReferential::Original, OffsetType::Byte)
    {
        // Only a special token written half in one segment, half in the next could not be cut. It is complete in the
        // later one, and predicted there.
        let last_byte = start.max(end.saturating_sub(1));
        let segment = borders[1..].partition_point(|border| *border <= last_byte);
        let is_learned = segments.get(segment).is_some_and(|s| s.learned);
        learned.extend(tokens.iter().flatten().map(|_| is_learned));
    }
    learned
}

fn failure(path: Option<&Path>, cause: impl ToString) -> Error {
    Error::file(path.unwrap_or(Path::new("trained tokenizer")), cause)
}
