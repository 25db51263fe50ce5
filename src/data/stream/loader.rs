//! Threads that read samples before they are needed.

use std::collections::VecDeque;
use std::fs::File;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use super::Streamed;
use crate::data::{Sample, Source};
use crate::error::Result;

/// Threads at most: they take their cores from the training, and one reads a thousand samples a second or more.
const THREADS: usize = 4;

/// A sample by its source and its number within the source.
type Pick = (usize, usize);

struct Job {
    pick: Pick,
    answer: mpsc::Sender<Result<Sample>>,
}

/// Reads samples in the order in which they were asked for. What is read and waits is as much as was asked for ahead.
#[derive(Debug)]
pub(crate) struct Loader {
    sources: Arc<[Source]>,
    asked: Mutex<VecDeque<(Pick, mpsc::Receiver<Result<Sample>>)>>,
    jobs: Option<mpsc::Sender<Job>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    pub fn start(sources: Arc<[Source]>) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let (jobs, queue) = mpsc::channel();
        let (queue, over) = (
            Arc::new(Mutex::new(queue)),
            Arc::new(AtomicBool::new(false)),
        );
        let threads = (0..(cores / 2).clamp(1, THREADS)).filter_map(|_| {
            let (sources, queue, over) = (sources.clone(), queue.clone(), over.clone());
            let thread = thread::Builder::new().name("scalebio-loader".to_owned());
            thread.spawn(move || work(&sources, &queue, &over)).ok()
        });
        let threads: Vec<_> = threads.collect();
        Self {
            // Without a thread, nothing is asked for, and samples are read when they are needed.
            jobs: (!threads.is_empty()).then_some(jobs),
            threads,
            sources,
            asked: Mutex::default(),
            over,
        }
    }

    /// Asks for samples that will be needed, after those that were asked for before.
    pub fn ask(&self, picks: impl Iterator<Item = Pick>) {
        let mut asked = lock(&self.asked);
        for pick in picks {
            let (answer, sample) = mpsc::channel();
            let sent = self
                .jobs
                .as_ref()
                .map(|jobs| jobs.send(Job { pick, answer }));
            if matches!(sent, Some(Ok(()))) {
                asked.push_back((pick, sample));
            }
        }
    }

    /// The sample, when it has been read; one that was not asked for is read here and now. Those that were asked for
    /// before it, and were not taken, are forgotten.
    pub fn sample(&self, pick: Pick) -> Result<Sample> {
        let mut asked = lock(&self.asked);
        let found = asked.iter().position(|(other, _)| *other == pick);
        let waiting = found.and_then(|place| asked.drain(..=place).next_back());
        drop(asked);
        // A thread that ended before it answered is no reason to end the run.
        let read = waiting.and_then(|(_, sample)| sample.recv().ok());
        read.unwrap_or_else(|| sample(&self.sources, &mut Vec::new(), pick))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(sources: &[Source], queue: &Mutex<mpsc::Receiver<Job>>, over: &AtomicBool) {
    let mut files = Vec::new();
    loop {
        let job = lock(queue).recv();
        let Ok(Job { pick, answer }) = job else {
            return;
        };
        if over.load(Ordering::Relaxed) {
            return;
        }
        // Nobody waits for a sample that was forgotten.
        let _ = answer.send(sample(sources, &mut files, pick));
    }
}

/// Reads a sample; `files` are those of the sources that are open.
fn sample(sources: &[Source], files: &mut Vec<Option<File>>, pick: Pick) -> Result<Sample> {
    let (source, index) = pick;
    files.resize_with(files.len().max(source + 1), || None);
    match sources[source].samples.streamed() {
        Some(streamed) => Streamed::sample(streamed, &mut files[source], index),
        None => Ok(sources[source].in_memory()?[index].clone()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
