//! Data-parallel runs: any number of ranks learns the same, and all of them end together.

mod differences;
mod exact;
#[cfg(all(feature = "llm", unix))]
mod jobs;
#[cfg(feature = "llm")]
mod training;

use std::thread;
use std::time::Duration;

use scalebio::collective::{Ranks, Threads};

/// Long enough for a step beside other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// What each rank does, in a thread of its own; the results by rank. A rank that panics ends its collective.
fn on_ranks<T: Send>(ranks: usize, run: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    on_threads(Threads::new(ranks, PATIENCE).unwrap(), run)
}

fn on_threads<T: Send>(threads: Vec<Threads>, run: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let run = &run;
    thread::scope(|scope| {
        let ranks = threads.into_iter().map(Ranks::new);
        let ranks: Vec<_> = ranks.map(|ranks| scope.spawn(move || run(ranks))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
