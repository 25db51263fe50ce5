//! `config.toml` of a folder: all flags of what was run, so that `--config` repeats it.

use std::fs;
use std::path::Path;

use clap::{Arg, ArgMatches, Command};

use super::config::{CONFIG, Kind, name};

/// The file.
const FILE: &str = "config.toml";
/// Flags that say where, and not what.
const LEFT_OUT: [&str; 4] = [CONFIG, "out", "help", "version"];

/// All flags of a subcommand, given or by default.
#[derive(Debug)]
pub struct Record {
    text: String,
}

impl Record {
    pub fn new(subcommand: &Command, matches: &ArgMatches) -> Self {
        let command = subcommand.get_name();
        let version = env!("CARGO_PKG_VERSION");
        let folder = std::env::current_dir().unwrap_or_default();
        let mut text = format!(
            "# scalebio {command} --config THIS_FILE --out DIR does the same again.\n\
             # Written by scalebio {version}; paths are relative to the folder in which it was started:\n\
             # {}\n",
            folder.display().to_string().replace(['\n', '\r'], " "),
        );
        let flags = subcommand.get_arguments();
        for arg in flags.filter(|arg| !LEFT_OUT.contains(&arg.get_id().as_str())) {
            if let Some(value) = value(arg, matches) {
                text += &format!("{} = {value}\n", name(arg));
            }
        }
        Self { text }
    }

    /// Refuses a folder in which the file is already.
    pub fn check(&self, folder: &Path) -> Result<(), String> {
        let path = folder.join(FILE);
        match path.exists() {
            true => Err(format!(
                "{}: already holds a run (`{FILE}`); choose another folder",
                folder.display()
            )),
            false => Ok(()),
        }
    }

    /// Writes the file.
    pub fn save(&self, folder: &Path) -> Result<(), String> {
        let path = folder.join(FILE);
        fs::write(&path, &self.text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The value of a flag as TOML; nothing for one that was not given and has no default.
fn value(arg: &Arg, matches: &ArgMatches) -> Option<String> {
    let id = arg.get_id().as_str();
    let words: Option<Vec<&str>> = matches.get_raw(id)?.map(|word| word.to_str()).collect();
    let words = words?; // a path that is not Unicode has no place in TOML
    let quoted = |word: &&str| toml::Value::from(*word).to_string();
    Some(match Kind::of(arg) {
        Kind::Switch => matches.get_flag(id).to_string(),
        Kind::Texts => {
            let texts: Vec<_> = words.iter().map(quoted).collect();
            format!("[{}]", texts.join(", "))
        }
        Kind::Text => quoted(words.first()?),
        Kind::Boolean => matches.get_one::<bool>(id)?.to_string(),
        Kind::Whole => words.first()?.parse::<u128>().ok()?.to_string(),
        Kind::Number => toml::Value::from(words.first()?.parse::<f64>().ok()?).to_string(),
    })
}
