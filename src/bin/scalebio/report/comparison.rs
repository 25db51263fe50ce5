//! A comparison of methods in words, tables and a page.

use scalebio::train::{Comparison, MethodSummary, Spread};

use super::charts::Figure;
use super::dots;
use super::page::{Cell, Note, Page, Table, settings, thousands, title};
use super::reading::Compared;

/// What stands above the columns of [`rows`].
pub const HEAD: [&str; 8] = [
    "method",
    "test loss",
    "less ScaleBiO's",
    "tokens of gradients",
    "tokens of losses",
    "CPU-seconds",
    "peak memory, MB",
    "tokens trained on",
];

/// A row a method, as text.
pub fn rows(comparison: &Comparison) -> Vec<Vec<String>> {
    let several = several(comparison);
    let row = |method: &MethodSummary| {
        let cost = &method.cost;
        let against = method.against_scalebio.as_ref();
        let unknown = || "-".to_owned();
        vec![
            method.method.to_string(),
            match several {
                true => format!("{:.4} ± {:.4}", method.loss.mean, method.loss.deviation),
                false => format!("{:.4}", method.loss.mean),
            },
            against.map_or_else(unknown, |s| match several {
                true => format!("{:+.4} [{:+.4}, {:+.4}]", s.mean, s.lowest, s.highest),
                false => format!("{:+.4}", s.mean),
            }),
            thousands(cost.training_tokens),
            thousands(cost.scored_tokens),
            cost.cpu_seconds
                .map_or_else(unknown, |seconds| format!("{seconds:.1}")),
            cost.peak_memory
                .map_or_else(unknown, |bytes| format!("{:.0}", bytes as f64 / 1e6)),
            thousands(method.tokens),
        ]
    };
    comparison.methods.iter().map(row).collect()
}

/// The mean weight of every source (rows) by every method that has weights (columns), with what stands above them.
pub fn weights(comparison: &Comparison) -> (Vec<String>, Vec<Vec<String>>) {
    let several = several(comparison);
    let methods: Vec<_> = comparison
        .methods
        .iter()
        .filter(|method| !method.weights.is_empty())
        .collect();
    let head = methods.iter().map(|method| method.method.to_string());
    let head = ["source".to_owned()].into_iter().chain(head).collect();
    let sources = methods.first().map(|method| &method.weights[..]);
    let sources = sources.unwrap_or_default().iter().enumerate();
    let row = |(index, source): (usize, &scalebio::train::SourceSpread)| {
        let weights = methods.iter().map(|method| method.weights[index].weight);
        let weights = weights.map(|weight| match several {
            true => format!("{:.3} ± {:.3}", weight.mean, weight.deviation),
            false => format!("{:.3}", weight.mean),
        });
        [source.name.clone()].into_iter().chain(weights).collect()
    };
    (head, sources.map(row).collect())
}

/// Whether there is a spread to show.
fn several(comparison: &Comparison) -> bool {
    comparison.config.seeds.len() > 1
}

/// Where another method does better than ScaleBiO.
pub fn sentences(comparison: &Comparison) -> Vec<String> {
    if comparison.scalebio().is_none() {
        return Vec::new();
    }
    let better = |method: &MethodSummary| {
        let against = method
            .against_scalebio
            .filter(|against| against.mean < 0.0)?;
        let seeds = comparison
            .runs
            .iter()
            .filter(|run| run.method == method.method);
        Some(format!(
            "{} is better than ScaleBiO here, by {:.4} nats on average{}.",
            method.method,
            -against.mean,
            consistency(against, seeds.count())
        ))
    };
    let better: Vec<_> = comparison.methods.iter().filter_map(better).collect();
    match better.is_empty() {
        true => vec![
            "No other method is better than ScaleBiO here, on average over the seeds.".to_owned(),
        ],
        false => better,
    }
}

fn consistency(against: Spread, seeds: usize) -> &'static str {
    match (seeds, against.highest < 0.0) {
        (1, _) => ", with the only seed there is",
        (_, true) => ", with every seed",
        (_, false) => ", but not with every seed",
    }
}

pub fn page(compared: &Compared) -> Page {
    let Compared {
        folder,
        comparison,
        remaining,
    } = compared;
    let config = &comparison.config;
    let (jobs, seeds) = (comparison.runs.len() + remaining, config.seeds.len());
    let mut page = Page {
        title: title(folder),
        about: "Each method chose training data; the same model was trained on each choice for as many tokens, and measured on \
                the test set."
            .to_owned(),
        settings: settings(&serde_json::to_value(config).unwrap_or_default()),
        ..Page::default()
    };
    if *remaining > 0 {
        page.notes.push(Note::warning(format!(
            "Running or interrupted: {} of {jobs} runs are finished. Start again with the same settings and --out to go on.",
            comparison.runs.len()
        )));
    }
    let better = |method: &MethodSummary| method.against_scalebio.is_some_and(|s| s.mean < 0.0);
    let note = match comparison.methods.iter().any(better) {
        true => Note::warning,
        false => Note::good,
    };
    page.notes
        .extend(sentences(comparison).into_iter().map(note));
    page.facts
        .push(("methods", config.methods.len().to_string()));
    page.facts.push(("seeds", seeds.to_string()));
    page.facts
        .push(("steps of a method", config.experiment.steps.to_string()));
    if let Some(run) = comparison.runs.first() {
        page.facts
            .push(("test samples", thousands(run.test.samples as u64)));
    }
    if !comparison.methods.is_empty() {
        page.tables.push(results(comparison));
        page.tables.push(sources(comparison));
    }
    page
}

fn results(comparison: &Comparison) -> Table {
    let means = comparison.methods.iter().map(|method| method.loss.mean);
    let least = means.fold(f64::INFINITY, f64::min);
    let mut rows: Vec<(f64, Vec<Cell>)> = comparison
        .methods
        .iter()
        .zip(rows(comparison))
        .map(|(method, row)| {
            let mut cells: Vec<_> = row.into_iter().map(Cell::new).collect();
            cells[1].best = method.loss.mean <= least;
            (method.loss.mean, cells)
        })
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    Table {
        title: "Results",
        caption: "The least loss first: mean ± standard deviation over the seeds, in nats; the difference to ScaleBiO with the \
                  same seed as mean [lowest, highest]. Tokens of gradients and of losses, seconds and memory (the peak of a \
                  process that does nothing else, data included) are those of choosing the data; then every model is \
                  trained on the last column's tokens."
            .to_owned(),
        head: HEAD.map(str::to_owned).to_vec(),
        rows: rows.into_iter().map(|(_, cells)| cells).collect(),
    }
}

fn sources(comparison: &Comparison) -> Table {
    let (head, rows) = weights(comparison);
    let cells = |row: Vec<String>| row.into_iter().map(Cell::new).collect();
    Table {
        title: "Weights",
        caption: "Mean ± standard deviation over the seeds. Of a method that selects samples, the sources' shares of its selection."
            .to_owned(),
        head,
        rows: rows.into_iter().map(cells).collect(),
    }
}

/// The loss of every run.
pub fn figures(compared: &Compared) -> Vec<Figure> {
    let mut rows: Vec<dots::Row> = compared
        .comparison
        .methods
        .iter()
        .map(|method| {
            let runs = compared.comparison.runs.iter();
            let runs = runs.filter(|run| run.method == method.method);
            dots::Row {
                name: method.method.to_string(),
                mean: method.loss.mean,
                values: runs
                    .map(|run| (format!("seed {}", run.seed), run.test.sample_loss))
                    .collect(),
            }
        })
        .collect();
    rows.sort_by(|a, b| a.mean.total_cmp(&b.mean));
    vec![Figure {
        id: "losses",
        scene: dots::scene("Test loss", "mean loss of a test sample, in nats", &rows),
        caption: "A dot is a seed, a line the mean.".to_owned(),
    }]
}
