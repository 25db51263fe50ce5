//! One page with everything in it, from the template `page.html`.

use std::path::Path;

use minijinja::Environment;
use minijinja::value::Serde;
use scalebio::train::{SourceReport, Status, WeightsReport};
use serde::Serialize;
use serde_json::Value;

use super::super::plot::{AXIS, GRID, MUTED, SERIES, TEXT};
use super::charts::Figure;
use super::reading::{Baseline, Finetuning, Result, Reweighting};

/// What a page says. Text is escaped where the template takes it.
#[derive(Default, Serialize)]
pub struct Page {
    pub title: String,
    pub about: String,
    pub notes: Vec<Note>,
    /// A name and a value each.
    pub facts: Vec<(&'static str, String)>,
    pub tables: Vec<Table>,
    pub settings: Vec<(String, String)>,
}

/// A sentence on how the run stands.
#[derive(Serialize)]
pub struct Note {
    /// `good` or `warning`.
    kind: &'static str,
    text: String,
}

#[derive(Serialize)]
pub struct Table {
    pub title: &'static str,
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
}

#[derive(Serialize)]
pub struct Cell {
    pub text: String,
    /// Length of a bar behind the text, from 0 to 8.
    pub share: Option<f64>,
    pub best: bool,
}

impl Cell {
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            share: None,
            best: false,
        }
    }

    /// A weight and a bar, as long as the table allows for the largest weight.
    pub fn weight(weight: f64, largest: f64) -> Self {
        let share = (8.0 * weight / largest.max(f64::MIN_POSITIVE)).clamp(0.0, 8.0);
        Self {
            share: Some((share * 100.0).round() / 100.0),
            ..Self::new(format!("{weight:.4}"))
        }
    }
}

impl Note {
    pub fn good(text: impl Into<String>) -> Self {
        let (kind, text) = ("good", text.into());
        Self { kind, text }
    }

    pub fn warning(text: impl Into<String>) -> Self {
        let (kind, text) = ("warning", text.into());
        Self { kind, text }
    }
}

impl Page {
    /// The page as HTML.
    pub fn html(&self, figures: &[Figure]) -> Result<String> {
        let inks = SERIES.iter().chain([&TEXT, &AXIS, &GRID, &MUTED]);
        let document = Document {
            page: self,
            figures: figures.iter().map(Drawn::of).collect(),
            inks: inks
                .map(|ink| {
                    let (class, [light, dark]) = (ink.class, ink.css());
                    Color { class, light, dark }
                })
                .collect(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let mut environment = Environment::new();
        // What is filled in is escaped, because the name ends in .html.
        environment.add_template("page.html", include_str!("page.html"))?;
        let template = environment.get_template("page.html")?;
        Ok(template.render(Serde(document))?)
    }
}

/// All that the template fills in.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    page: &'a Page,
    figures: Vec<Drawn<'a>>,
    inks: Vec<Color>,
    version: &'static str,
}

#[derive(Serialize)]
struct Drawn<'a> {
    id: &'static str,
    svg: String,
    caption: &'a str,
}

impl<'a> Drawn<'a> {
    fn of(figure: &'a Figure) -> Self {
        Self {
            id: figure.id,
            svg: figure.scene.svg(),
            caption: &figure.caption,
        }
    }
}

#[derive(Serialize)]
struct Color {
    class: &'static str,
    light: String,
    dark: String,
}

/// The page of a run that learns weights.
pub fn reweighting(run: &Reweighting) -> Page {
    let (steps, report) = (run.steps.len(), &run.weights);
    let mut page = Page {
        title: title(&run.folder),
        about: "Source weights learned by ScaleBiO.".to_owned(),
        settings: settings(&run.config),
        ..Page::default()
    };
    let of = planned(&run.config, steps);
    page.notes.push(match report.status {
        Status::Running => Note::warning(format!(
            "Running or interrupted: {} of {of} steps. The weights are those after the last of them.",
            report.step
        )),
        Status::OutOfReach => Note::warning(format!(
            "The weights were still moving when the learning rates were used up (reach {:.2}): more steps or a larger \
             learning rate of the weights (--lr-upper) would take them further.",
            report.reach
        )),
        Status::Converged => Note::good("The weights have settled."),
        Status::Stopped => Note::good(format!(
            "Stopped after {} of {of} steps: the weights moved less than --stop-below over --stop-window steps.",
            report.step
        )),
    });
    cut_off(&mut page, run.cut_off);
    let numbers = run.steps.iter().map(|step| &step.numbers);
    let losses = numbers.clone().map(|n| (n.l1_w, n.l2_w, n.l2_u));
    let broken = losses.filter(|(a, b, c)| !(a + b + c).is_finite()).count();
    if broken > 0 {
        let text =
            format!("{broken} steps have a loss that is not finite; the curves leave them out.");
        page.notes.push(Note::warning(text));
    }
    page.facts
        .push(("steps", format!("{} of {of}", report.step)));
    page.facts.push(("seed", report.seed.to_string()));
    page.facts
        .push(("reach of a logit", format!("{:.3}", report.reach)));
    if let (Some(first), Some(last)) = (run.steps.first(), run.steps.last()) {
        let (first, last) = (&first.numbers, &last.numbers);
        page.facts
            .push(("validation loss L1(w)", fall(first.l1_w, last.l1_w)));
        page.facts
            .push(("training loss L2(w)", fall(first.l2_w, last.l2_w)));
    }
    taken(&mut page, numbers.map(|n| (n.seconds, n.tokens)));
    page.tables.push(weights(run));
    page
}

fn weights(run: &Reweighting) -> Table {
    // A tenth of the steps: single ones are noisy.
    let last = run.steps.len().div_ceil(10);
    let recent = &run.steps[run.steps.len() - last..];
    let loss = |name: &str| {
        let index = run.names.iter().position(|n| n == name)?;
        let sum: f64 = recent.iter().map(|step| step.losses_w[index]).sum();
        (!recent.is_empty()).then_some(sum / last as f64)
    };
    let mut table = weight_table(&run.weights);
    table.caption = format!(
        "After {} steps, the largest first. The loss is the mean over the last {last} steps, in nats.",
        run.weights.step
    );
    table.head.push("loss of w".to_owned());
    for row in &mut table.rows {
        let loss = loss(&row[0].text);
        row.push(Cell::new(
            loss.map_or("-".to_owned(), |loss| format!("{loss:.3}")),
        ));
    }
    table
}

/// The sources by weight.
fn weight_table(report: &WeightsReport) -> Table {
    let mut sources: Vec<_> = report.sources.iter().collect();
    sources.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    let uniform = 1.0 / sources.len().max(1) as f64;
    let largest = sources.first().map_or(1.0, |source| source.weight);
    let row = |source: &&SourceReport| {
        vec![
            Cell::new(&source.name),
            Cell::new(source.samples.to_string()),
            Cell::weight(source.weight, largest),
            Cell::new(format!("{:.2}", source.weight / uniform)),
            Cell::new(format!("{:.3}", source.logit)),
        ]
    };
    let head = ["source", "samples", "weight", "times uniform", "logit"];
    Table {
        title: "Weights",
        caption: "The largest first.".to_owned(),
        head: head.map(str::to_owned).to_vec(),
        rows: sources.iter().map(row).collect(),
    }
}

/// The page of a method that ScaleBiO is compared with.
pub fn baseline(run: &Baseline) -> Page {
    let name = run.config["baseline"]["method"].as_str();
    let name = name.unwrap_or("a method");
    let mut page = Page {
        title: title(&run.folder),
        about: format!("Source weights by {name}, or the shares of what it selected."),
        settings: settings(&run.config),
        tables: vec![weight_table(&run.weights)],
        ..Page::default()
    };
    page.facts.push(("seed", run.weights.seed.to_string()));
    cut_off(&mut page, run.cut_off);
    page
}

/// The page of a fine-tuning.
pub fn finetuning(run: &Finetuning) -> Page {
    let steps = run.steps.len();
    let mut page = Page {
        title: title(&run.folder),
        about: "Training of a model on one file of records.".to_owned(),
        settings: settings(&run.config),
        ..Page::default()
    };
    let of = planned(&run.config, steps);
    page.notes.push(if steps < of {
        Note::warning(format!("Running or interrupted: {steps} of {of} steps."))
    } else {
        Note::good("The training is complete.")
    });
    cut_off(&mut page, run.cut_off);
    page.facts.push(("steps", format!("{steps} of {of}")));
    if let (Some(first), Some(last)) = (run.steps.first(), run.steps.last()) {
        page.facts
            .push(("training loss", fall(first.loss, last.loss)));
    }
    let measured: Vec<_> = run.steps.iter().filter_map(|s| s.validation_loss).collect();
    if let (Some(first), Some(last)) = (measured.first(), measured.last()) {
        page.facts.push(("validation loss", fall(*first, *last)));
    }
    taken(&mut page, run.steps.iter().map(|s| (s.seconds, s.tokens)));
    page
}

/// What the settings of a run say on its length.
fn planned(config: &Value, taken: usize) -> usize {
    let steps = config.get("steps").and_then(Value::as_u64);
    steps.map_or(taken, |steps| steps as usize)
}

fn cut_off(page: &mut Page, cut_off: bool) {
    if cut_off {
        page.notes.push(Note::warning(
            "The last line of metrics.jsonl is not written to its end, and is left out.",
        ));
    }
}

/// Time and tokens of all steps.
fn taken(page: &mut Page, steps: impl Iterator<Item = (f64, u64)>) {
    let (seconds, tokens) = steps.fold((0.0, 0), |sum, s| (sum.0 + s.0, sum.1 + s.1));
    page.facts.push(("time of the steps", duration(seconds)));
    page.facts.push(("tokens", thousands(tokens)));
    if seconds > 0.0 {
        let rate = (tokens as f64 / seconds).round() as u64;
        page.facts.push(("tokens a second", thousands(rate)));
    }
}

pub fn title(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}

fn fall(from: f64, to: f64) -> String {
    format!("{from:.3} → {to:.3}")
}

pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Every setting by its name; those within others by both names.
pub fn settings(config: &Value) -> Vec<(String, String)> {
    let Value::Object(fields) = config else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (name, value) in fields {
        match value {
            Value::Object(_) => {
                let inner = settings(value).into_iter();
                all.extend(inner.map(|(inner, value)| (format!("{name}.{inner}"), value)));
            }
            Value::String(text) => all.push((name.clone(), text.clone())),
            Value::Null => all.push((name.clone(), "default".to_owned())),
            value => all.push((name.clone(), value.to_string())),
        }
    }
    all
}
