//! What is known of the tokens of a text before it is tokenized.

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Model, PostProcessor, SplitDelimiterBehavior};

use super::Tokenizer;
use crate::data::Segment;

/// Bounds on the number of tokens, for a byte-level BPE (GPT-2, Llama 3, Qwen): each token stands for one byte or more, and no
/// byte is left out.
#[derive(Debug)]
pub(in crate::data) struct Bounds {
    /// Bytes that a byte can become before the text is cut into tokens.
    growth: usize,
    /// Special tokens that a text gets, with the end of text.
    special: usize,
    /// Bytes of the longest token that is looked for in the text.
    longest_added: usize,
    end_of_text: Option<String>,
}

impl Tokenizer {
    /// The bounds, if this is a tokenizer of which they are known.
    pub(in crate::data) fn bounds(&self) -> Option<Bounds> {
        let ModelWrapper::BPE(bpe) = self.inner.get_model() else {
            return None;
        };
        let marks = [&bpe.continuing_subword_prefix, &bpe.end_of_word_suffix];
        let has_marks = marks
            .iter()
            .any(|m| m.as_ref().is_some_and(|m| !m.is_empty()));
        let mut bytes = ByteLevel::alphabet().into_iter();
        let knows_bytes = bytes.all(|c| bpe.token_to_id(&c.to_string()).is_some());
        if has_marks || !knows_bytes || !cuts_bytes(self.inner.get_pre_tokenizer()?) {
            return None;
        }
        let processor = self.inner.get_post_processor();
        let added = self.inner.get_added_tokens_decoder();
        Some(Bounds {
            growth: match self.inner.get_normalizer() {
                None => 1,
                Some(NormalizerWrapper::NFC(_)) => 3, // at most, says the Unicode standard, in UTF-8
                Some(_) => return None,
            },
            special: processor.map_or(0, |p| p.added_tokens(false)) + 1,
            longest_added: added.values().map(|t| t.content.len()).max().unwrap_or(0),
            end_of_text: self.end_of_text.and_then(|id| self.inner.id_to_token(id)),
        })
    }
}

/// Whether the parts of a text that become tokens are all of its bytes, and nothing else.
fn cuts_bytes(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(bytes) => !bytes.add_prefix_space,
        PreTokenizerWrapper::Sequence(parts) => {
            let (last, before) = match parts.as_ref().split_last() {
                Some((last, before)) => (last, before),
                None => return false,
            };
            let keeps = |part: &PreTokenizerWrapper| match part {
                PreTokenizerWrapper::Digits(_) => true,
                PreTokenizerWrapper::Split(split) => {
                    split.behavior != SplitDelimiterBehavior::Removed
                }
                _ => false,
            };
            matches!(last, PreTokenizerWrapper::ByteLevel(_))
                && cuts_bytes(last)
                && before.iter().all(keeps)
        }
        _ => false,
    }
}

impl Bounds {
    /// If these segments are sure to give one sample with a label token: a number of tokens that it does not exceed.
    /// `is_cut` says that what is longer than a sample becomes several, and is not truncated.
    pub fn one_sample(
        &self,
        segments: &[Segment],
        max_length: usize,
        is_cut: bool,
    ) -> Option<usize> {
        let bytes: usize = segments.iter().map(|segment| segment.text.len()).sum();
        let whole = self.growth * bytes + self.special;
        let is_learned = |segment: &Segment| segment.learned && !segment.text.is_empty();
        let first = segments.iter().position(is_learned)?;
        let (before, learned) = (&segments[..first], &segments[first].text);
        let is_one = if is_cut {
            // The end of text follows the first token at least, and is learned; unless it was there already.
            let end = self.end_of_text.as_ref()?;
            first == 0 && whole <= max_length && !learned.contains(end.as_str())
        } else {
            // The first token of the first learned segment is one that has others before it, and is not cut off. Nothing before
            // an ASCII character is composed with it.
            let length: usize = before.iter().map(|segment| segment.text.len()).sum();
            let solid = before.iter().map(|segment| segment.text.trim().len());
            learned.starts_with(|c: char| c.is_ascii())
                && solid.sum::<usize>() > self.longest_added
                && self.growth * length + self.special < max_length
        };
        is_one.then(|| whole.min(max_length))
    }
}
