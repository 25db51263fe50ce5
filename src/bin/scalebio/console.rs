//! What is printed: to standard output what was computed, to standard error what is going on.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Whether another rank of a data-parallel run prints.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on only errors are printed.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// `println!` that goes on where nobody reads any more (`| head`), so that a run still saves what it computed.
macro_rules! say {
    () => { $crate::program::console::line(format_args!("")) };
    ($($part:tt)*) => { $crate::program::console::line(format_args!($($part)*)) };
}
pub(super) use say;

/// What [`say`] calls.
pub fn line(text: Arguments<'_>) -> io::Result<()> {
    print(format_args!("{text}\n"))
}

/// `print!`, likewise.
pub fn print(text: Arguments<'_>) -> io::Result<()> {
    if is_silent() {
        return Ok(());
    }
    let mut out = io::stdout();
    let written = out.write_fmt(text).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(io::Error::new(
            error.kind(),
            format!("standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// A line on standard error, if it can be written.
pub fn note(text: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line on standard error about how far a run has come.
pub fn progress(text: Arguments<'_>) {
    if !is_silent() {
        note(text);
    }
}

/// A progress bar on a terminal, and nothing elsewhere.
pub fn bar(name: &str, steps: usize) -> ProgressBar {
    if is_silent() || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    let template = "{prefix} [{bar:30}] {pos}/{len}, {eta} left  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_prefix(name.to_owned())
}
