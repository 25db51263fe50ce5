//! Scripts with which a shell completes the program's flags.

use std::io;

use clap::Command;
use clap_complete::Shell;

use super::console::print;

const EXAMPLES: &str = "\
Examples:
  scalebio completions bash > ~/.local/share/bash-completion/completions/scalebio
  scalebio completions zsh > ~/.zfunc/_scalebio           # with ~/.zfunc in $fpath
  scalebio completions fish > ~/.config/fish/completions/scalebio.fish";

/// Print the script with which a shell completes the program's flags
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: &Args, mut program: Command) -> io::Result<()> {
    let mut script = Vec::new(); // clap_complete panics where its output ends early
    clap_complete::generate(args.shell, &mut program, "scalebio", &mut script);
    print(format_args!("{}", String::from_utf8_lossy(&script)))
}
