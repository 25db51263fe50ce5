//! From a record to the text a model reads, and the part of it that the model learns.

use super::Record;

/// A stretch of text, all of it learned or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether the model learns to predict it. A prompt is read, but not learned.
    pub learned: bool,
}

impl Record {
    /// Returns the text of the record: `text` as it is; an instruction in the prompt of Stanford Alpaca, as ScaleBiO's
    /// authors write it (with a line break after `### Response:`), and its output, of which only the output is learned; the
    /// turns of a conversation one after the other, without a chat template, which is the tokenizer's
    /// ([`Tokenizer::encode_record`](super::Tokenizer::encode_record)).
    ///
    /// # Example
    ///
    /// ```
    /// use scalebio::data::Record;
    ///
    /// let record = Record::Alpaca {
    ///     instruction: "Name a cat.".to_owned(),
    ///     input: String::new(),
    ///     output: "Tom".to_owned(),
    /// };
    /// let [prompt, response] = record.into_segments().try_into().unwrap();
    /// assert!(prompt.text.ends_with("### Instruction:\nName a cat.\n\n### Response:\n") && !prompt.learned);
    /// assert!(response.text == "Tom" && response.learned);
    /// ```
    pub fn into_segments(self) -> Vec<Segment> {
        match self {
            Self::Chat { messages } => messages
                .into_iter()
                .map(|message| Segment {
                    learned: message.is_learned(),
                    text: message.content,
                })
                .collect(),
            Self::Text { text } => vec![Segment {
                text,
                learned: true,
            }],
            Self::Alpaca {
                instruction,
                input,
                output,
            } => vec![
                Segment {
                    text: prompt(&instruction, &input),
                    learned: false,
                },
                Segment {
                    text: output,
                    learned: true,
                },
            ],
        }
    }
}

fn prompt(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. \
             Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Response:\n"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        )
    }
}
