//! Questions with the answer that is right, as GSM8K and MATH have them.

use std::path::Path;

use serde_json::Value;

use super::reader::RawRecords;
use crate::error::{Error, Result};

/// A record `{"question": ..., "answer": ...}`. Fields with other names are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub question: String,
    /// The right answer, also with the way there.
    pub answer: String,
}

impl Question {
    /// Reads a file whose records are questions; `None` if its first record is of another form. The file is as for
    /// [`Records`](super::Records).
    ///
    /// # Errors
    ///
    /// [`Error::Record`] for a record that is not JSON or, after the first, not a question, with its line; [`Error::Io`] if
    /// the file cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Option<Vec<Self>>> {
        let path = path.as_ref();
        let mut records = RawRecords::open(path)?;
        let (mut questions, mut bytes) = (Vec::new(), Vec::new());
        while let Some(place) = records.read(&mut bytes)? {
            let value = records.parse(&bytes, place)?;
            match Self::from_json(&value) {
                Some(question) => questions.push(question),
                None if questions.is_empty() && !is_meant(&value) => return Ok(None),
                None => {
                    let message = "a question is {\"question\", \"answer\"}, each a string; a file of questions has no other records";
                    return Err(Error::record(path, place.line, message));
                }
            }
        }
        Ok((!questions.is_empty()).then_some(questions))
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        Some(Self {
            question: text("question")?,
            answer: text("answer")?,
        })
    }
}

/// Whether a record that is not a question was meant to be one.
fn is_meant(value: &Value) -> bool {
    value.get("question").is_some() && value.get("answer").is_some()
}
