//! Records: one example of text each, read from `.jsonl` and `.json` files.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Message;
use crate::error::{Error, Result};

/// What an error says about the forms there are.
const FORMS: &str = "a record is {\"text\"}, {\"instruction\", \"input\", \"output\"}, {\"messages\"} or {\"conversations\"}";

/// One example of text, as a data file holds it. Fields with other names are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    path: PathBuf,
    file: BufReader<File>,
    /// Line of the next byte, from 1.
    line: usize,
    /// Bytes before the next one on its line.
    column: usize,
    /// Line on which the last record starts.
    record_line: usize,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// A record a line.
    Lines,
    /// An array; `first` until its first record was read.
    Array { first: bool },
    /// Nothing more to read.
    Ended,
}

impl Records {
    /// Opens a file of records. The name ends in `.jsonl` where a record a line is the only form allowed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let start = file.fill_buf().map_err(|e| Error::io(path, e))?;
        if start.starts_with("\u{feff}".as_bytes()) {
            file.consume(3);
        }
        let mut records = Self {
            path: path.to_owned(),
            file,
            line: 1,
            column: 0,
            record_line: 0,
            layout: Layout::Lines,
        };
        let only_lines = path.extension().is_some_and(|e| e == "jsonl");
        if !only_lines && records.peek_past_space()? == Some(b'[') {
            records.advance(b'[');
            records.layout = Layout::Array { first: true };
        }
        Ok(records)
    }

    /// The line on which the last record starts, from 1.
    pub(super) fn record_line(&self) -> usize {
        self.record_line
    }

    fn next_line(&mut self) -> Result<Option<Record>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = self.file.read_until(b'\n', &mut bytes);
            if read.map_err(|e| Error::io(&self.path, e))? == 0 {
                return Ok(None);
            }
            let (line, column) = (self.line, self.column);
            self.line += 1;
            self.column = 0;
            // Without its line break, so that an error at its end is on this line.
            let record = bytes.trim_ascii_end();
            if !record.is_empty() {
                self.record_line = line;
                return self.parse(record, line, column).map(Some);
            }
        }
    }

    fn next_element(&mut self, first: bool) -> Result<Option<Record>> {
        match self.peek_past_space()? {
            Some(b']') => {
                self.advance(b']');
                return match self.peek_past_space()? {
                    None => Ok(None),
                    Some(_) => Err(self.not_json("something follows the end of the array")),
                };
            }
            Some(b',') if !first => self.advance(b','),
            Some(_) if first => {}
            Some(_) => return Err(self.not_json("expected `,` or `]` after a record")),
            None => return Err(self.not_json("the file ends before the `]` of the array")),
        }
        self.layout = Layout::Array { first: false };
        self.peek_past_space()?;
        let (line, column) = (self.line, self.column);
        self.record_line = line;
        let bytes = self.take_element()?;
        if bytes.is_empty() {
            return Err(self.not_json("expected a record"));
        }
        self.parse(&bytes, line, column).map(Some)
    }

    /// The bytes up to the `,` or `]` that ends an element of the array. Whether they are JSON is not seen here.
    fn take_element(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
        while let Some(byte) = self.peek()? {
            if quoted {
                quoted = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
            } else {
                match byte {
                    b'"' => quoted = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' | b',' if depth == 0 => break,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
            }
            bytes.push(byte);
            self.advance(byte);
        }
        Ok(bytes)
    }

    /// Reads the record that starts after `column` bytes of `line`.
    fn parse(&self, bytes: &[u8], line: usize, column: usize) -> Result<Record> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let valid = &bytes[..e.valid_up_to()];
            let breaks = valid.iter().filter(|byte| **byte == b'\n').count();
            let before = match valid.iter().rposition(|byte| *byte == b'\n') {
                Some(last) => valid.len() - last - 1,
                None => column + valid.len(),
            };
            let message = format!(
                "not UTF-8: invalid byte at column {}; save the file as UTF-8",
                before + 1
            );
            Error::record(&self.path, line + breaks, message)
        })?;
        let value = serde_json::from_str(text).map_err(|e| {
            let (mut row, mut place) = (e.line().max(1), e.column());
            if place == 0 && row > 1 {
                // serde_json counts a line break as the start of the next line; it ends the one that is wrong.
                row -= 1;
                place = text.lines().nth(row - 1).map_or(0, str::len) + 1;
            }
            if row == 1 {
                place += column;
            }
            let message = e.to_string();
            // Its message ends with a place inside this record; the place in the file is told instead.
            let cause = message.split(" at line ").next().unwrap_or(&message);
            let message = format!("not JSON: {cause}, at column {place}");
            Error::record(&self.path, line + row - 1, message)
        })?;
        Record::from_json(value).map_err(|message| Error::record(&self.path, line, message))
    }

    fn not_json(&self, cause: &str) -> Error {
        let message = format!("not JSON: {cause}, at column {}", self.column + 1);
        Error::record(&self.path, self.line, message)
    }

    fn peek_past_space(&mut self) -> Result<Option<u8>> {
        loop {
            match self.peek()? {
                Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) => self.advance(byte),
                other => return Ok(other),
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            match self.file.fill_buf() {
                Ok(bytes) => return Ok(bytes.first().copied()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(&self.path, e)),
            }
        }
    }

    /// Goes past the byte that `peek` returned.
    fn advance(&mut self, byte: u8) {
        self.file.consume(1);
        if byte == b'\n' {
            self.line += 1;
            self.column = 0;
        } else {
            self.column += 1;
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = match self.layout {
            Layout::Lines => self.next_line(),
            Layout::Array { first } => self.next_element(first),
            Layout::Ended => Ok(None),
        };
        if !matches!(record, Ok(Some(_))) {
            self.layout = Layout::Ended;
        }
        record.transpose()
    }
}

impl Record {
    fn from_json(value: Value) -> std::result::Result<Self, String> {
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

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
