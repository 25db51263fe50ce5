//! What this process has used so far, as Linux counts it; elsewhere nothing is known.

use std::fs;
use std::time::Instant;

/// Ticks a second in which Linux counts processor time, on every machine.
const TICKS: f64 = 100.0;

/// A point in time to count from.
pub(super) struct Usage {
    started: Instant,
    processor: Option<f64>,
}

impl Usage {
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            processor: processor(),
        }
    }

    /// Seconds on the clock since then.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Seconds of all cores since then.
    pub fn cpu_seconds(&self) -> Option<f64> {
        Some(processor()? - self.processor?)
    }
}

/// Seconds of all threads of this process, also of those that have ended.
fn processor() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program stands in brackets and may have spaces. Fields 14 and 15 of the line are user and system time.
    let fields = text.rsplit(')').next()?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: Option<f64> = ticks.map(|field| field.parse::<f64>().ok()).sum();
    Some(ticks? / TICKS)
}

/// The most memory that was resident, in bytes.
pub(super) fn peak_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{Usage, peak_memory};

    #[test]
    fn a_busy_thread_takes_processor_time_and_memory_is_known() {
        let usage = Usage::start();
        let mut sum = 0u64;
        while usage.cpu_seconds().is_some_and(|seconds| seconds < 0.05) {
            sum = (0..100_000).fold(sum, |sum, i| std::hint::black_box(sum ^ i));
        }
        assert!(usage.cpu_seconds().is_some() && usage.seconds() > 0.0);
        assert!(peak_memory().is_some_and(|bytes| bytes > 1_000_000));
    }
}
