//! The records of a file as they stand in it, before anything is known of their content.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// Where a record starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Bytes of the file before it.
    pub offset: u64,
    /// Its line, from 1.
    pub line: usize,
    /// Bytes of that line before it.
    column: usize,
}

/// Reads the records of a `.jsonl` or `.json` file one after the other, without parsing them.
#[derive(Debug)]
pub(crate) struct RawRecords {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes before the next one.
    offset: u64,
    /// Line of the next byte, from 1.
    line: usize,
    /// Bytes before the next one on its line.
    column: usize,
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

impl RawRecords {
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let start = file.fill_buf().map_err(|e| Error::io(path, e))?;
        let mark = if start.starts_with("\u{feff}".as_bytes()) {
            3
        } else {
            0
        };
        file.consume(mark);
        let mut records = Self {
            path: path.to_owned(),
            file,
            offset: mark as u64,
            line: 1,
            column: 0,
            layout: Layout::Lines,
        };
        let only_lines = path.extension().is_some_and(|e| e == "jsonl");
        if !only_lines && records.peek_past_space()? == Some(b'[') {
            records.advance(b'[');
            records.layout = Layout::Array { first: true };
        }
        Ok(records)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the next record into `bytes`, without white space before it. `None` after the last; also after an error.
    pub fn read(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Place>> {
        bytes.clear();
        let place = match self.layout {
            Layout::Lines => self.next_line(bytes),
            Layout::Array { first } => self.next_element(first, bytes),
            Layout::Ended => Ok(None),
        };
        if !matches!(place, Ok(Some(_))) {
            self.layout = Layout::Ended;
        }
        place
    }

    /// Parses a record that was read at `place`; where it is not JSON, nothing is read after it.
    pub fn parse(&mut self, bytes: &[u8], place: Place) -> Result<Value> {
        let value = parse(&self.path, bytes, place);
        if value.is_err() {
            self.end();
        }
        value
    }

    /// Reads nothing more.
    pub fn end(&mut self) {
        self.layout = Layout::Ended;
    }

    fn next_line(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Place>> {
        loop {
            bytes.clear();
            let read = self.file.read_until(b'\n', bytes);
            let read = read.map_err(|e| Error::io(&self.path, e))?;
            if read == 0 {
                return Ok(None);
            }
            let mut place = self.place();
            self.offset += read as u64;
            self.line += 1;
            self.column = 0;
            // Without its line break, so that an error at its end is on this line.
            bytes.truncate(bytes.trim_ascii_end().len());
            let space = bytes.len() - bytes.trim_ascii_start().len();
            if !bytes.is_empty() {
                bytes.drain(..space);
                place.offset += space as u64;
                place.column += space;
                return Ok(Some(place));
            }
        }
    }

    fn next_element(&mut self, first: bool, bytes: &mut Vec<u8>) -> Result<Option<Place>> {
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
        let place = self.place();
        self.take_element(bytes)?;
        if bytes.is_empty() {
            return Err(self.not_json("expected a record"));
        }
        Ok(Some(place))
    }

    /// The bytes up to the `,` or `]` that ends an element of the array. Whether they are JSON is not seen here.
    fn take_element(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
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
        Ok(())
    }

    fn place(&self) -> Place {
        Place {
            offset: self.offset,
            line: self.line,
            column: self.column,
        }
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
        self.offset += 1;
        if byte == b'\n' {
            self.line += 1;
            self.column = 0;
        } else {
            self.column += 1;
        }
    }
}

/// Reads the bytes of a record as JSON.
pub(super) fn parse(path: &Path, bytes: &[u8], place: Place) -> Result<Value> {
    let Place { line, column, .. } = place;
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
        Error::record(path, line + breaks, message)
    })?;
    serde_json::from_str(text).map_err(|e| {
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
        Error::record(path, line + row - 1, message)
    })
}
