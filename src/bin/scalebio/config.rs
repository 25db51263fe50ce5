//! Flags from a file: `--config FILE.toml`. Keys are the long names of flags, and those of arguments without a name.

use std::any::TypeId;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The name of the flag.
pub const CONFIG: &str = "config";

/// The flag, for subcommands that have none of this name.
pub fn flag() -> Arg {
    Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE.toml")
        .value_parser(path)
        .help(
            "Take flags from this file, such as config.toml of a run; flags given here\n\
             win, and --flag=false turns one of the file off",
        )
}

fn path(text: &str) -> Result<PathBuf, String> {
    match is_flags(Path::new(text)) {
        true => Ok(text.into()),
        false => Err("a file of flags is named FILE.toml".to_owned()),
    }
}

/// Whether a file is one of flags, by its name.
pub fn is_flags(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "toml")
}

/// The name of a flag or of an argument in the file.
pub fn name(arg: &Arg) -> String {
    match arg.get_long() {
        Some(name) => name.to_owned(),
        None => arg.get_id().as_str().replace('_', "-"),
    }
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Nothing: it is there or not.
    Switch,
    Boolean,
    Whole,
    Number,
    Text,
    Texts,
}

impl Kind {
    pub fn of(arg: &Arg) -> Self {
        let value = arg.get_value_parser().type_id();
        let is = |types: &[TypeId]| types.iter().any(|id| value == *id);
        match arg.get_action() {
            ArgAction::SetTrue => Self::Switch,
            ArgAction::Append => Self::Texts,
            _ if is(&[TypeId::of::<bool>()]) => Self::Boolean,
            _ if is(&[
                TypeId::of::<usize>(),
                TypeId::of::<u64>(),
                TypeId::of::<u32>(),
            ]) =>
            {
                Self::Whole
            }
            _ if is(&[TypeId::of::<f64>()]) => Self::Number,
            _ => Self::Text,
        }
    }

    /// The words of a value of the file on a command line, or what the value must be.
    fn words(self, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
        match (self, value) {
            (Self::Switch | Self::Boolean, DeValue::Boolean(on)) => Ok(vec![on.to_string()]),
            (Self::Switch | Self::Boolean, _) => Err("true or false"),
            (Self::Whole | Self::Number, DeValue::Integer(whole)) => {
                let number = i128::from_str_radix(whole.as_str(), whole.radix());
                match number {
                    Ok(number) if self == Self::Number || number >= 0 => {
                        Ok(vec![number.to_string()])
                    }
                    _ => Err("a whole number of at least 0"),
                }
            }
            (Self::Whole, _) => Err("a whole number of at least 0"),
            (Self::Number, DeValue::Float(number)) => Ok(vec![number.as_str().to_owned()]),
            (Self::Number, _) => Err("a number"),
            (Self::Text | Self::Texts, DeValue::String(text)) => Ok(vec![text.to_string()]),
            (Self::Text, _) => Err("a string"),
            (Self::Texts, DeValue::Array(texts)) => {
                let texts = texts
                    .iter()
                    .map(|text| text.get_ref().as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or("strings in brackets")
            }
            (Self::Texts, _) => Err("strings in brackets"),
        }
    }
}

/// A command line with the flags of the file that it names, where it has not got them itself. The subcommand is at `at`.
pub fn merge(
    command: &Command,
    mut line: Vec<OsString>,
    at: usize,
) -> Result<Vec<OsString>, String> {
    let named = line.get(at).and_then(|word| word.to_str());
    let Some(subcommand) = named.and_then(|name| command.find_subcommand(name)) else {
        return Ok(line);
    };
    let off = take_switched_off(subcommand, &mut line, at);
    // What is wrong with the command line itself, clap says with the usage when the whole of it is parsed.
    let optional = subcommand.clone().mut_args(|arg| arg.required(false));
    let Ok(matches) = optional.try_get_matches_from(&line[at..]) else {
        return Ok(line);
    };
    let file = matches.try_get_one::<PathBuf>(CONFIG).ok().flatten();
    let Some(file) = file.filter(|file| is_flags(file)) else {
        return Ok(line);
    };
    let entries = read(subcommand, file)?;
    let missing = |arg: &Arg| {
        let given = matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        !given && !off.contains(&name(arg))
    };
    let mut arguments = Vec::new();
    for arg in subcommand.get_arguments().filter(|arg| missing(arg)) {
        let Some((_, words)) = entries.iter().find(|(id, _)| *id == name(arg)) else {
            continue;
        };
        match (Kind::of(arg), arg.get_long()) {
            (_, None) => arguments.extend(words.iter().map(OsString::from)),
            (Kind::Switch, Some(name)) if words[0] == "true" => {
                line.insert(at + 1, format!("--{name}").into());
            }
            (Kind::Switch, Some(_)) => {}
            (_, Some(name)) => {
                for word in words {
                    line.insert(at + 1, format!("--{name}={word}").into());
                }
            }
        }
    }
    if !arguments.is_empty() && !line.iter().any(|word| word == "--") {
        line.push("--".into());
    }
    line.extend(arguments);
    Ok(line)
}

/// Takes `--flag=true` and `--flag=false` out of a command line for flags without a value, and returns those that are off.
fn take_switched_off(subcommand: &Command, line: &mut Vec<OsString>, at: usize) -> Vec<String> {
    let mut off = Vec::new();
    let end = line
        .iter()
        .position(|word| word == "--")
        .unwrap_or(line.len());
    let switches = subcommand
        .get_arguments()
        .filter(|arg| Kind::of(arg) == Kind::Switch);
    let switches: Vec<_> = switches.filter_map(Arg::get_long).collect();
    for i in (at + 1..end).rev() {
        let word = line[i]
            .to_str()
            .and_then(|word| word.strip_prefix("--")?.split_once('='));
        match word.map(|(name, value)| (name.to_owned(), value == "true", value == "false")) {
            Some((name, true, _)) if switches.contains(&name.as_str()) => {
                line[i] = format!("--{name}").into();
            }
            Some((name, _, true)) if switches.contains(&name.as_str()) => {
                line.remove(i);
                off.push(name);
            }
            _ => {}
        }
    }
    off
}

/// The flags of a file by name, each with its words on a command line.
fn read(subcommand: &Command, file: &Path) -> Result<Vec<(String, Vec<String>)>, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let at = |start: usize, message: String| {
        let line = text[..start].matches('\n').count() + 1;
        format!("{}:{line}: {message}", file.display())
    };
    let table = DeTable::parse(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        at(start, format!("not TOML: {}", error.message()))
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let words = entries.into_iter().map(|(key, value)| {
        let words = entry(subcommand, key.get_ref(), value)
            .map_err(|message| at(key.span().start, message))?;
        Ok((key.get_ref().to_string(), words))
    });
    words.collect()
}

/// The words of one flag, or what is wrong with it.
fn entry(
    subcommand: &Command,
    key: &str,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<String>, String> {
    let mut flags = subcommand
        .get_arguments()
        .filter(|arg| arg.get_id() != CONFIG);
    let Some(arg) = flags.find(|arg| name(arg) == key) else {
        return Err(unknown(subcommand, key));
    };
    let value = value.get_ref();
    let words = Kind::of(arg).words(value).map_err(|must| {
        let is = match value {
            DeValue::Integer(number) => number.to_string(),
            DeValue::Array(_) => "an array".to_owned(),
            other => format!("a {}", other.type_str()),
        };
        format!("`{key}` is {is}, but must be {must}")
    })?;
    for word in words.iter().filter(|_| Kind::of(arg) != Kind::Switch) {
        let shown = match Kind::of(arg) {
            Kind::Text | Kind::Texts => format!("{word:?}"),
            _ => word.clone(),
        };
        check(arg, word).map_err(|message| format!("`{key}` is {shown}: {message}"))?;
    }
    Ok(words)
}

/// Asks clap whether a flag takes a value.
fn check(arg: &Arg, word: &str) -> Result<(), String> {
    let (arg, line) = match arg.get_long() {
        Some(name) => (arg.clone(), vec![format!("--{name}={word}")]),
        None => (arg.clone().index(1), vec!["--".to_owned(), word.to_owned()]),
    };
    let command = Command::new(CONFIG).no_binary_name(true);
    let parsed = command.arg(arg.required(false)).try_get_matches_from(line);
    parsed.map(drop).map_err(
        |error| match (error.source(), error.get(ContextKind::ValidValue)) {
            (Some(source), _) => source.to_string(),
            (None, Some(ContextValue::Strings(values))) => {
                format!("use one of {}", values.join(", "))
            }
            (None, _) => error.kind().to_string(),
        },
    )
}

/// The message for a key that is no flag, with the flag that is nearest to it.
fn unknown(subcommand: &Command, key: &str) -> String {
    let key_as_flag = format!("--{}", key.replace('_', "-"));
    let optional = subcommand.clone().mut_args(|arg| arg.required(false));
    let parsed = optional
        .no_binary_name(true)
        .try_get_matches_from([&key_as_flag]);
    let nearest = match parsed
        .as_ref()
        .map_err(|error| error.get(ContextKind::SuggestedArg))
    {
        Err(Some(ContextValue::String(flag))) => Some(flag.as_str()),
        _ => subcommand
            .get_arguments()
            .any(|arg| arg.get_long() == key_as_flag.strip_prefix("--"))
            .then_some(key_as_flag.as_str()),
    };
    let hint = match nearest.and_then(|flag| flag.strip_prefix("--")) {
        Some(flag) if flag != CONFIG && flag != key => format!("; did you mean `{flag}`?"),
        _ => format!("; see scalebio {} --help", subcommand.get_name()),
    };
    format!("`{key}` is no flag of {}{hint}", subcommand.get_name())
}
