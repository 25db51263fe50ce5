//! Compares bilevel methods on the same problems, in the same logs.
//!
//! ```text
//! cargo run --release --example bilevel_bench
//! cargo run --release --example bilevel_bench -- --problem simulated-minibatch --methods penalty,soba-saga --seeds 3
//! ```
//!
//! Every method gets the same number of gradients. Prints where each ends, and writes to the folder `--out`:
//! `results.csv` (a row a logged iteration), `methods.csv` (hyper-parameters), a figure a problem, and `index.html`, one
//! page with curves per iteration, per gradient and per second that needs nothing else to be read.

#[path = "../common/simulated.rs"]
mod data;
mod methods;
mod page;
#[allow(dead_code)] // a part of it is for reports only
#[path = "../../src/bin/scalebio/plot/mod.rs"]
mod plot;
mod problems;
mod record;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::Parser;
use problems::PROBLEMS;
use record::{Comparison, Trace, methods_csv, results_csv};

#[derive(Parser)]
#[command(about = "Compares bilevel methods on the same problems, in the same logs")]
struct Arguments {
    /// Problems, separated by commas: simulated, simulated-minibatch, sources.
    #[arg(long, value_delimiter = ',', default_value = "simulated")]
    problem: Vec<String>,
    /// Methods, separated by commas; all that fit the problem if left out.
    #[arg(long, value_delimiter = ',')]
    methods: Option<Vec<String>>,
    /// Gradients that each run may take: of one objective at one point, over a whole draw.
    #[arg(long, default_value_t = 12_000)]
    budget: usize,
    /// Runs of each method on a problem with noise. Without noise there is one.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Folder of the results.
    #[arg(long, default_value = "runs/bilevel_bench")]
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if arguments.budget == 0 || arguments.seeds == 0 {
        return Err("--budget and --seeds must be at least 1".into());
    }
    let mut comparisons = Vec::new();
    for name in &arguments.problem {
        let run = PROBLEMS.iter().find(|problem| problem.0 == name);
        let known = PROBLEMS.map(|problem| problem.0).join(", ");
        let run = run.ok_or_else(|| format!("no problem `{name}`; there are: {known}"))?;
        let comparison = (run.1)(&arguments)?;
        println!("{}", comparison.title());
        print!("{}", table(&comparison));
        comparisons.push(comparison);
    }
    fs::create_dir_all(&arguments.out)?;
    let mut files = vec![
        ("results.csv".to_owned(), results_csv(&comparisons)),
        ("methods.csv".to_owned(), methods_csv(&comparisons)),
        ("index.html".to_owned(), page::html(&comparisons)),
    ];
    for comparison in &comparisons {
        let figure = page::figure(comparison);
        files.push((format!("{}.svg", comparison.problem), figure));
    }
    for (name, text) in files {
        let path = arguments.out.join(&name);
        fs::write(&path, text)?;
        println!("{}", path.display());
    }
    Ok(())
}

fn table(comparison: &Comparison) -> String {
    let mut text = format!(
        "{:>22}  {:>10}  {:>10}  {:>9}  {:>8}\n",
        "method", "|grad h|^2", "iterations", "gradients", "seconds"
    );
    for Trace {
        method,
        points,
        ended,
        ..
    } in &comparison.traces
    {
        let Some(last) = points.last() else { continue };
        text += &format!(
            "{method:>22}  {:>10.2e}  {:>10}  {:>9}  {:>8.2}{}\n",
            last.value,
            last.iteration,
            last.gradients,
            last.seconds,
            ended
                .as_ref()
                .map_or(String::new(), |why| format!("  {why}"))
        );
    }
    text
}
