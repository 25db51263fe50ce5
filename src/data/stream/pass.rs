//! One pass over the records of a file, on all cores.

use std::collections::VecDeque;
use std::num::NonZero;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use crate::data::reader::{Place, RawRecords};
use crate::error::{Error, Result};

/// Bytes, or a few more, and records, that a thread works on at a time.
const CHUNK: usize = 1 << 17;
const RECORDS: usize = 512;
/// Chunks a thread that have been read, and are not done.
const WAITING: usize = 3;

/// Some records in a row.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    records: Vec<(Place, Range<usize>)>,
}

/// A chunk that is done, with the results up to the first error.
type Done<R> = (Chunk, Vec<Result<R>>);

impl Chunk {
    /// Reads on. The second is how the file ended, if it has.
    fn read(records: &mut RawRecords, bytes: &mut Vec<u8>) -> (Self, Option<Result<()>>) {
        let mut chunk = Self::default();
        while chunk.bytes.len() < CHUNK && chunk.records.len() < RECORDS {
            let place = match records.read(bytes) {
                Ok(Some(place)) => place,
                Ok(None) => return (chunk, Some(Ok(()))),
                Err(error) => return (chunk, Some(Err(error))),
            };
            let start = chunk.bytes.len();
            chunk.bytes.extend_from_slice(bytes);
            chunk.records.push((place, start..chunk.bytes.len()));
        }
        (chunk, None)
    }

    fn work<R>(&self, work: impl Fn(&[u8], Place) -> Result<R>) -> Vec<Result<R>> {
        let mut results = Vec::with_capacity(self.records.len());
        for (place, range) in &self.records {
            let result = work(&self.bytes[range.clone()], *place);
            let failed = result.is_err();
            results.push(result);
            if failed {
                break;
            }
        }
        results
    }
}

/// Does `work` on every record of a file, on all cores, and hands what comes out to `take` in the order of the file, up to
/// the first error. A few megabytes of the file are in memory at a time.
pub(in crate::data) fn each_record<R: Send>(
    path: &Path,
    work: impl Fn(&[u8], Place) -> Result<R> + Sync,
    mut take: impl FnMut(&[u8], Place, R) -> Result<()>,
) -> Result<()> {
    let mut records = RawRecords::open(path)?;
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (jobs, queue) = mpsc::channel::<(Chunk, mpsc::Sender<Done<R>>)>();
    let queue = Mutex::new(queue);
    let run = || {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((chunk, answer)) = job else {
                return;
            };
            let results = chunk.work(&work);
            // Nobody waits for it after an error in a chunk before.
            let _ = answer.send((chunk, results));
        }
    };
    let mut finish = |(chunk, results): Done<R>| -> Result<()> {
        for ((place, range), result) in chunk.records.into_iter().zip(results) {
            take(&chunk.bytes[range], place, result?)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let jobs = jobs; // ends here, and with it the threads, for which the scope waits
        let (mut waiting, mut spawned, mut bytes) = (VecDeque::new(), 0, Vec::new());
        loop {
            let (chunk, end) = Chunk::read(&mut records, &mut bytes);
            let (answer, done) = mpsc::channel();
            waiting.push_back(done);
            // A small file needs one thread only.
            if spawned < threads {
                match thread::Builder::new().spawn_scoped(scope, run) {
                    Ok(_) => spawned += 1,
                    Err(error) if spawned == 0 => return Err(Error::io(path, error)),
                    Err(_) => {} // a system at its limit: those that are there do it
                }
            }
            let sent = jobs.send((chunk, answer));
            let keep = if end.is_some() || sent.is_err() {
                0
            } else {
                WAITING * threads
            };
            while waiting.len() > keep
                && let Some(done) = waiting.pop_front()
            {
                let done = done.recv().map_err(|_| {
                    Error::file(
                        path,
                        "a thread that worked on its records ended before them",
                    )
                });
                finish(done?)?;
            }
            if let Some(end) = end {
                return end;
            }
        }
    })
}
