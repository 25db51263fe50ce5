//! A report on the folder of a run: one page, and its charts as files.

mod bitmap;
mod charts;
mod comparison;
mod dots;
mod page;
mod reading;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use charts::Figure;
pub use comparison::{HEAD, rows, sentences, weights};
use page::Page;
use reading::Run;

use super::console::say;

const EXAMPLES: &str = "\
The page needs nothing else to be read. The run may be going on, or be interrupted: then it says so.

Examples:
  scalebio report runs/reweight-1
  scalebio report runs/compare-1 --out comparison.html";

/// Show a run, or a comparison, on one page with its charts, which are also files
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder that reweight, finetune, compare or a method of it wrote to
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The page to write [default: report.html in DIR]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let page = write(&args.folder, args.out.as_deref())?;
    say!("report   {}", page.display())?;
    say!("charts   {}", args.folder.join("plots").display())?;
    Ok(())
}

/// Writes the page, and the charts to the folder `plots` of the run; returns the path of the page.
pub fn write(folder: &Path, out: Option<&Path>) -> Result<PathBuf, Box<dyn Error>> {
    let (page, figures): (Page, Vec<Figure>) = match Run::read(folder)? {
        Run::Reweighting(run) => (page::reweighting(&run), charts::reweighting(&run)),
        Run::Baseline(run) => (page::baseline(&run), charts::baseline(&run)),
        Run::Compared(run) => (comparison::page(&run), comparison::figures(&run)),
        Run::Finetuning(run) => (page::finetuning(&run), charts::finetuning(&run)),
    };
    let html = page.html(&figures)?;
    let out = out.map_or_else(|| folder.join("report.html"), Path::to_owned);
    let plots = folder.join("plots");
    fs::create_dir_all(&plots).map_err(|error| format!("{}: {error}", plots.display()))?;
    for Figure { id, scene, .. } in &figures {
        save(&plots.join(format!("{id}.svg")), scene.svg().as_bytes())?;
        save(&plots.join(format!("{id}.png")), &bitmap::png(scene)?)?;
    }
    save(&out, html.as_bytes())?;
    Ok(out)
}

fn save(path: &Path, content: &[u8]) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}
