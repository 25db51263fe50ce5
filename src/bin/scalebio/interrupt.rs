//! Ctrl-C: once, and what is being done is ended where it can go on later; twice, and the program ends at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What a shell gives a program that Ctrl-C has ended.
pub const STATUS: i32 = 130;

/// Whether an end was asked for, by Ctrl-C or, as batch systems do, by SIGTERM.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub fn catch() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: a signal that finds the flag set ends the program, one that does not sets it.
            flag::register_conditional_shutdown(signal, STATUS, Arc::clone(&asked))?;
            flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Self(asked))
    }

    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// From now on the first one ends the program at once.
    pub fn release(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
