//! Records: one example of text each, read from `.jsonl` and `.json` files.

use std::path::Path;

use serde_json::{Map, Value};

use super::Message;
use super::reader::{self, Place, RawRecords};
use crate::error::{Error, Result};

/// What an error says about the forms there are.
const FORMS: &str = "a record is {\"text\"}, {\"instruction\", \"input\", \"output\"}, {\"messages\"} or {\"conversations\"}";

/// One example of text, as a data file holds it. Fields with other names are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// `{"text": ...}`: text all of which is learned.
    Text {
        /// The text.
        text: String,
    },
    /// `{"instruction": ..., "input": ..., "output": ...}`: an instruction of which the response is learned.
    Alpaca {
        /// What to do.
        instruction: String,
        /// What to do it with. Empty if the instruction stands alone, also if the record has no such field.
        input: String,
        /// The response.
        output: String,
    },
    /// `{"messages": [{"role": ..., "content": ...}]}`, or ShareGPT's `{"conversations": [{"from": ..., "value": ...}]}` (also
    /// `items`): a conversation of which the turns of the assistant are learned.
    Chat {
        /// The turns.
        messages: Vec<Message>,
    },
}

/// The records of a file, in order: an iterator that reads as it goes and ends after an error.
///
/// A `.jsonl` file holds a record a line; empty lines are skipped. A `.json` file holds an array of records, laid out in
/// any way, or also a record a line. Both are UTF-8, with or without a byte-order mark.
///
/// # Errors
///
/// An item is [`Error::Record`] with the line on which the bad record starts, or, where the text is not UTF-8 or not
/// JSON, the line of the offending byte; [`Error::Io`] if the file cannot be read on.
///
/// # Example
///
/// ```
/// use scalebio::data::{Record, Records};
/// # let path = std::env::temp_dir().join(format!("scalebio-records-{}.jsonl", std::process::id()));
/// std::fs::write(&path, "{\"text\": \"Cats sleep.\"}\n{\"txt\": \"Dogs bark.\"}\n")?;
///
/// let mut records = Records::open(&path)?;
/// assert_eq!(records.next().unwrap()?, Record::Text { text: "Cats sleep.".to_owned() });
/// let error = records.next().unwrap().unwrap_err();
/// assert!(error.to_string().contains(".jsonl:2: "));
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Records {
    raw: RawRecords,
    bytes: Vec<u8>,
}

impl Records {
    /// Opens a file of records. The name ends in `.jsonl` where a record a line is the only form allowed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self {
            raw: RawRecords::open(path.as_ref())?,
            bytes: Vec::new(),
        })
    }

    fn read(&mut self) -> Result<Option<Record>> {
        let Some(place) = self.raw.read(&mut self.bytes)? else {
            return Ok(None);
        };
        let record = Record::parse(self.raw.path(), &self.bytes, place);
        if record.is_err() {
            self.raw.end();
        }
        record.map(Some)
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

impl Record {
    /// Reads a record that stands at `place` of a file.
    pub(super) fn parse(path: &Path, bytes: &[u8], place: Place) -> Result<Self> {
        let value = reader::parse(path, bytes, place)?;
        Self::from_json(value).map_err(|message| Error::record(path, place.line, message))
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self, Self::Text { .. })
    }

    pub(super) fn is_chat(&self) -> bool {
        matches!(self, Self::Chat { .. })
    }

    pub(crate) fn from_json(value: Value) -> std::result::Result<Self, String> {
        let Value::Object(mut fields) = value else {
            return Err(format!(
                "a record must be an object, but this is {}; {FORMS}",
                kind(&value)
            ));
        };
        let has = |name: &str| fields.contains_key(name);
        // Alpaca's own file adds the whole prompt and response as a `text`: the parts say more than that.
        let has_text = has("text") && !(has("instruction") && has("output"));
        let has_instruction = has("instruction") || has("output");
        let has_either = has_text || has_instruction;
        for name in ["messages", "conversations", "items"] {
            // `items` is also a name for other things.
            if has_either && name == "items" {
                continue;
            }
            let Some(turns) = fields.remove(name) else {
                continue;
            };
            if has_either {
                return Err(format!(
                    "`{name}` beside `text`, `instruction` or `output` in one record, so that its form is not clear; {FORMS}"
                ));
            }
            let messages = match name {
                "messages" => Message::list(turns)?,
                _ => Message::share_gpt(name, turns)?,
            };
            return Ok(Self::Chat { messages });
        }
        match (has_text, has_instruction) {
            (true, true) => Err(format!(
                "`text` and `instruction` or `output` in one record, so that its form is not clear; {FORMS}"
            )),
            (false, false) => Err(format!(
                "neither `text` nor `instruction` is there; {FORMS}"
            )),
            (true, false) => Ok(Self::Text {
                text: take(&mut fields, "text")?,
            }),
            (false, true) => Ok(Self::Alpaca {
                instruction: take(&mut fields, "instruction")?,
                output: take(&mut fields, "output")?,
                input: if fields.contains_key("input") {
                    take(&mut fields, "input")?
                } else {
                    String::new()
                },
            }),
        }
    }
}

fn take(fields: &mut Map<String, Value>, name: &str) -> std::result::Result<String, String> {
    match fields.remove(name) {
        Some(Value::String(string)) => Ok(string),
        Some(other) => Err(format!(
            "`{name}` must be a string, but is {}",
            kind(&other)
        )),
        None => Err(format!("the field `{name}` is missing; {FORMS}")),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
