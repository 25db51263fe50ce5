//! The subcommands, and what happens before and after them. The examples of the same names include this file.

use std::error::Error;
use std::ffi::OsString;
use std::iter;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod compare;
mod console;
mod evaluate;
mod finetune;
mod plan;
mod plot;
mod report;
mod resample;
mod reweight;
mod table;
mod training;

/// Learns how much each source of a language model's training data should count (ScaleBiO, arXiv 2406.19976), and does
/// what comes before and after: plans memory, draws a training set, trains on it, measures the result.
#[derive(Debug, Parser)]
#[command(name = "scalebio", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

// To add a subcommand: a file with `Args` and `run`, and a line here and in `Command::run`.
#[derive(Debug, Subcommand)]
enum Command {
    Reweight(Box<reweight::Args>),
    Resample(Box<resample::Args>),
    Finetune(Box<finetune::Args>),
    Evaluate(Box<evaluate::Args>),
    Plan(Box<plan::Args>),
    Compare(Box<compare::Args>),
    Report(Box<report::Args>),
}

impl Command {
    fn run(&self) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Reweight(args) => reweight::run(args),
            Self::Resample(args) => resample::run(args),
            Self::Finetune(args) => finetune::run(args),
            Self::Evaluate(args) => evaluate::run(args),
            Self::Plan(args) => plan::run(args),
            Self::Compare(args) => compare::run(args),
            Self::Report(args) => report::run(args),
        }
    }
}

/// The program, or one subcommand of it as a program.
pub fn main(subcommand: Option<&str>) -> ExitCode {
    let arguments = std::env::args_os();
    let parsed = match subcommand {
        None => parse(Program::command(), arguments),
        Some(name) => parse(
            Program::command().multicall(true),
            iter::once(OsString::from(name)).chain(arguments.skip(1)),
        ),
    };
    let result = match parsed {
        Ok(program) => program.command.run(),
        Err(error) => error.exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(
    command: clap::Command,
    arguments: impl Iterator<Item = OsString>,
) -> Result<Program, clap::Error> {
    Program::from_arg_matches(&command.try_get_matches_from(arguments)?)
}
