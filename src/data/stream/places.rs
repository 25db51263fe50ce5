//! Numbers in few bytes: where the records of a file are, and how many samples each of them gives.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Records between two that are known without counting from the one before.
const BLOCK: usize = 64;

/// Where the records of a file are: some three bytes each, as the bytes between two records and those of a record.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Places {
    numbers: Vec<u8>,
    /// Of every record whose number is a multiple of [`BLOCK`]: the end of the one before, and its place in `numbers`.
    blocks: Vec<(u64, usize)>,
    records: usize,
    /// End of the last record.
    end: u64,
}

impl Places {
    /// Adds a record that starts at or after the end of the one before.
    pub fn push(&mut self, start: u64, length: usize) {
        if self.records.is_multiple_of(BLOCK) {
            self.blocks.push((self.end, self.numbers.len()));
        }
        write(&mut self.numbers, start - self.end);
        write(&mut self.numbers, length as u64);
        self.end = start + length as u64;
        self.records += 1;
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records
    }

    /// End of the last record.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Start and length of a record.
    pub fn get(&self, number: usize) -> Option<(u64, usize)> {
        if number >= self.records {
            return None;
        }
        let (mut end, mut position) = *self.blocks.get(number / BLOCK)?;
        for _ in 0..number % BLOCK {
            end += read(&self.numbers, &mut position)? + read(&self.numbers, &mut position)?;
        }
        let start = end + read(&self.numbers, &mut position)?;
        let length = read(&self.numbers, &mut position)?;
        Some((start, usize::try_from(length).ok()?))
    }

    /// Puts a record into `bytes`, which are empty if there is none of this number.
    pub fn read(&self, file: &mut File, number: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        let (start, length) = self.get(number).unwrap_or_default();
        bytes.resize(length, 0);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(bytes)
    }

    /// The numbers from which [`from_bytes`](Self::from_bytes) makes the places again.
    pub fn bytes(&self) -> &[u8] {
        &self.numbers
    }

    /// `None` for bytes that are no places.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mut places, mut position) = (Self::default(), 0);
        places.numbers.reserve_exact(bytes.len());
        while position < bytes.len() {
            let start = places.end.checked_add(read(bytes, &mut position)?)?;
            let length = read(bytes, &mut position)?;
            start.checked_add(length)?;
            places.push(start, usize::try_from(length).ok()?);
        }
        Some(places)
    }
}

/// How many samples each record gives: a byte each, where they are fewer than 128.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counts {
    numbers: Vec<u8>,
    /// Of every record whose number is a multiple of [`BLOCK`]: the samples before it, and its place in `numbers`.
    blocks: Vec<(usize, usize)>,
    records: usize,
    samples: usize,
}

impl Counts {
    pub fn push(&mut self, samples: usize) {
        if self.records.is_multiple_of(BLOCK) {
            self.blocks.push((self.samples, self.numbers.len()));
        }
        write(&mut self.numbers, samples as u64);
        self.samples += samples;
        self.records += 1;
    }

    pub fn records(&self) -> usize {
        self.records
    }

    /// Number of samples of all records.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The record that a sample is from, which of its samples it is, and how many it has.
    pub fn find(&self, sample: usize) -> Option<(usize, usize, usize)> {
        let block = self.blocks.partition_point(|(before, _)| *before <= sample);
        let block = block.checked_sub(1)?;
        let (mut before, mut position) = self.blocks[block];
        for record in block * BLOCK..self.records {
            let count = read(&self.numbers, &mut position)? as usize;
            if sample < before + count {
                return Some((record, sample - before, count));
            }
            before += count;
        }
        None
    }

    pub fn bytes(&self) -> &[u8] {
        &self.numbers
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mut counts, mut position) = (Self::default(), 0);
        counts.numbers.reserve_exact(bytes.len());
        while position < bytes.len() {
            let count = usize::try_from(read(bytes, &mut position)?).ok()?;
            counts.samples.checked_add(count)?;
            counts.push(count);
        }
        Some(counts)
    }
}

/// Seven bits a byte, the lowest first; the eighth says that another byte follows.
fn write(numbers: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        numbers.push(number as u8 | 0x80);
        number >>= 7;
    }
    numbers.push(number as u8);
}

fn read(numbers: &[u8], position: &mut usize) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *numbers.get(*position)?;
        *position += 1;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None; // more than 64 bits
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}
