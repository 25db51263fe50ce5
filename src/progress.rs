//! How far seeded draws have come, as text for a checkpoint: their number, and the settings that make it mean anything.

use crate::{Error, Result};

/// What separates the number from the settings.
const BAR: &str = " of: ";

/// `draws` draws with `settings`.
pub(crate) fn progress(draws: u64, settings: &str) -> String {
    format!("{draws}{BAR}{settings}")
}

/// The number of draws in a text of [`progress`].
///
/// # Errors
///
/// A text that is none, and one with other settings.
pub(crate) fn draws(progress: &str, settings: &str) -> Result<u64> {
    let number = progress
        .split_once(BAR)
        .filter(|(_, found)| *found == settings)
        .and_then(|(draws, _)| draws.parse().ok());
    number.ok_or_else(|| {
        let found = progress
            .split_once(BAR)
            .map_or(progress, |(_, found)| found);
        Error::setting(
            "what the checkpoint drew",
            format!("`{found}`"),
            format!("`{settings}`"),
            "resume with the data and the settings of the run that was checkpointed",
        )
    })
}

/// Resumes what draws nothing.
///
/// # Errors
///
/// A text that is not empty.
pub(crate) fn nothing_drawn(progress: &str) -> Result<()> {
    if progress.is_empty() {
        return Ok(());
    }
    Err(Error::setting(
        "what the checkpoint drew",
        format!("`{progress}`"),
        "nothing, here where nothing is drawn",
        "resume with the problem of the run that was checkpointed; what draws implements `progress` and `resume`",
    ))
}
