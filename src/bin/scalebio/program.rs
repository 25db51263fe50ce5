//! The subcommands, and what happens before and after them. The examples of the same names include this file.

use std::error::Error;
use std::ffi::OsString;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use console::note;
use record::Record;

mod compare;
mod completions;
mod computing;
mod config;
mod console;
mod evaluate;
mod finetune;
mod interrupt;
mod job;
mod plan;
mod plot;
mod record;
mod report;
mod resample;
mod reweight;
#[cfg(feature = "remote")]
mod serve;
mod stability;
mod table;
mod training;

const SESSION: &str = "\
From sources to a better model:
  scalebio plan --model HF_DIR --lisa-blocks 2              # will it fit?
  scalebio reweight --data DIR --model HF_DIR --lisa-blocks 2 --out runs/a
  scalebio resample --data DIR --weights runs/a/weights.json --samples 10000 --out runs/mix
  scalebio finetune runs/mix/mix.jsonl --model HF_DIR --out runs/tuned
  scalebio evaluate runs/tuned/model DIR/test.jsonl
  scalebio report runs/a                                    # a page with curves
  scalebio compare --data DIR --model HF_DIR                # was it worth it? ScaleBiO beside other methods

Each subcommand has a --help of its own, with its defaults, and takes its flags also from a file
(--config FILE.toml). Files and formats: docs/formats.md.";

/// Learn how much each source of a language model's training data should count (ScaleBiO)
#[derive(Debug, Parser)]
#[command(name = "scalebio", version, after_help = SESSION, disable_help_subcommand = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

// To add a subcommand: a file with `Args` and `run`, and a line here and in `Command::run`. Print with `console::say`.
#[derive(Debug, Subcommand)]
enum Command {
    Plan(Box<plan::Args>),
    Reweight(Box<reweight::Args>),
    Resample(Box<resample::Args>),
    Finetune(Box<finetune::Args>),
    Evaluate(Box<evaluate::Args>),
    Compare(Box<compare::Args>),
    Report(Box<report::Args>),
    #[cfg(feature = "remote")]
    Serve(serve::Args),
    Completions(completions::Args),
}

impl Command {
    fn run(&self, record: &Record) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Plan(args) => plan::run(args),
            Self::Reweight(args) => reweight::run(args, record),
            Self::Resample(args) => resample::run(args, record),
            Self::Finetune(args) => finetune::run(args, record),
            Self::Evaluate(args) => evaluate::run(args),
            Self::Compare(args) => compare::run(args, record),
            Self::Report(args) => report::run(args),
            #[cfg(feature = "remote")]
            Self::Serve(args) => serve::run(args),
            Self::Completions(args) => Ok(completions::run(args, command())?),
        }
    }
}

/// The program, or one subcommand of it as a program.
pub fn main(subcommand: Option<&str>) -> ExitCode {
    let line = std::env::args_os();
    let (command, line, at) = match subcommand {
        None => (command(), line.collect(), 1),
        Some(name) => {
            let name = OsString::from(name);
            let line = [name].into_iter().chain(line.skip(1)).collect();
            (command().multicall(true), line, 0)
        }
    };
    let line = match config::merge(&command, line, at) {
        Ok(line) => line,
        Err(message) => {
            job::complain(message);
            return ExitCode::from(2); // as for a flag that is wrong on the command line
        }
    };
    let parsed = command.clone().try_get_matches_from(line);
    let program = parsed.and_then(|matches| {
        let (name, flags) = matches.subcommand().unwrap_or(("", &matches));
        let record = Record::new(command.find_subcommand(name).unwrap_or(&command), flags);
        Ok((Program::from_arg_matches(&matches)?, record))
    });
    match program {
        Ok((program, record)) => run(&program.command, &record),
        Err(error) => job::exit(&error),
    }
}

fn run(command: &Command, record: &Record) -> ExitCode {
    // A defect, or a device that gave up: still one line, and no backtrace. Not before it is known that nobody makes an error
    // of it, as is made of a device that is lost.
    let panics = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&panics);
    panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string);
        let what = panic.payload_as_str().unwrap_or("unknown");
        let place = place.unwrap_or_default();
        let line = format!("error: {what} (a defect, at {place})");
        noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }));
    let work = || scalebio::catch_lost_device(|| command.run(record));
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            job::complain(error);
            ExitCode::FAILURE
        }
        Err(_) => {
            for line in &*panics.lock().unwrap_or_else(PoisonError::into_inner) {
                note(format_args!("{line}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn command() -> clap::Command {
    Program::command().mut_subcommands(|subcommand| {
        let name = subcommand.get_name();
        match name == "completions"
            || subcommand
                .get_arguments()
                .any(|arg| arg.get_id() == config::CONFIG)
        {
            true => subcommand,
            false => subcommand.arg(config::flag()),
        }
    })
}
