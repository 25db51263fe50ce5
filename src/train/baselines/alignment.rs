//! One-step gradient alignment on an experiment.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Outcome;
use super::session::{Extra, Session};
use crate::Result;
use crate::baselines::{AlignmentConfig, aligned, cosine};
use crate::data::{Sample, Source};
use crate::reweight::{Draws, Pick, TokenSources};

/// A line of `metrics.jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    stage: &'static str,
    source: &'a str,
    samples: usize,
    cosine: f64,
}

/// Compares the mean gradient of each source with that of the validation set after a warm-up on uniform weights, each over the
/// distinct samples that the draws of the steps left give.
pub(super) fn run(session: &mut Session, config: &AlignmentConfig) -> Result<Outcome> {
    let experiment = session.experiment;
    let steps = session.config().steps;
    let warmup = config.warmup_steps(steps);
    let mut trainer = session.trainer(steps)?;
    let mut draws = experiment.training_draws();
    while trainer.steps() < warmup {
        let drawn = Session::samples(experiment.sources(), &draws.picks())?;
        session.mean_step(&mut trainer, "warm-up", &drawn, Extra::default())?;
    }
    let model = trainer.model();
    let validation = std::slice::from_ref(experiment.validation());
    let drawn = distinct(&mut experiment.validation_draws(), steps - warmup);
    let target = session.mean_gradient(model, &of_source(validation, &drawn, 0)?)?;
    let drawn = distinct(&mut draws, steps - warmup);
    let mut cosines = Vec::new();
    // One source after the other, so that no more than two gradients are held.
    for (index, source) in experiment.sources().iter().enumerate() {
        let samples = of_source(experiment.sources(), &drawn, index)?;
        let cosine = match samples.is_empty() {
            true => 0.0, // fewer draws than sources: nothing is known of this one
            false => cosine(model, &session.mean_gradient(model, &samples)?, &target),
        };
        session.log(&Line {
            stage: "alignment",
            source: &source.name,
            samples: samples.len(),
            cosine,
        })?;
        cosines.push(cosine);
    }
    Ok(Outcome::Weights(aligned(&cosines, config.temperature)))
}

/// The distinct samples of so many draws.
fn distinct(draws: &mut Draws<TokenSources>, number: usize) -> BTreeSet<(usize, usize)> {
    let picks = (0..number).flat_map(|_| draws.picks());
    picks
        .map(|Pick { source, index }| (source, index))
        .collect()
}

fn of_source<'s>(
    sources: &'s [Source],
    drawn: &BTreeSet<(usize, usize)>,
    source: usize,
) -> Result<Vec<&'s Sample>> {
    let (indices, samples) = (
        drawn.range((source, 0)..(source + 1, 0)),
        sources[source].in_memory()?,
    );
    Ok(indices.map(|&(_, index)| &samples[index]).collect())
}
