//! LESS on an experiment.

use std::io::Write;

use serde::Serialize;

use super::Outcome;
use super::selection::{Candidates, Chosen};
use super::session::{Extra, Session, check};
use crate::baselines::{Influence, InfluenceConfig, Projection, ValidationGroups, top};
use crate::data::Sample;
use crate::models::CausalLm;
use crate::{Error, Result};

/// A line of `scores.jsonl`.
#[derive(Serialize)]
struct Score<'a> {
    source: &'a str,
    /// From 0 in the order of the file.
    record: usize,
    score: f64,
}

/// Scores every sample at the checkpoints of a warm-up on uniform weights, and selects the records with the best mean of their
/// samples' scores.
pub(super) fn run(session: &mut Session, config: &InfluenceConfig) -> Result<Outcome> {
    let experiment = session.experiment;
    let candidates = Candidates::read(experiment)?;
    let picks = candidates.picks();
    let samples = Session::samples(experiment.sources(), &picks)?;
    let validation: Vec<&Sample> = experiment.validation().in_memory()?.iter().collect();
    let groups: Vec<&[&Sample]> = match config.groups {
        ValidationGroups::Whole => vec![&validation[..]],
        ValidationGroups::Samples => validation.chunks(1).collect(),
    };
    let projection = Projection::new(session.config().seed, config.dimension);
    let mut influence = Influence::new(samples.len(), groups.len());

    let steps = session.config().steps;
    let warmup = config.warmup_steps(steps);
    let mut trainer = session.trainer(steps)?;
    let mut draws = experiment.training_draws();
    for checkpoint in 1..=config.checkpoints {
        let (mut rates, start) = (0.0, trainer.steps());
        while trainer.steps() < warmup * checkpoint / config.checkpoints {
            rates += trainer.rate();
            let drawn = Session::samples(experiment.sources(), &draws.picks())?;
            session.mean_step(&mut trainer, "warm-up", &drawn, Extra::default())?;
        }
        let rate = rates / (trainer.steps() - start) as f64;
        let model = trainer.model();
        let groups = groups
            .iter()
            .map(|group| projected(session, &projection, model, group))
            .collect::<Result<Vec<_>>>()?;
        let directions = samples.iter().map(|sample| {
            let gradient = session.mean_gradient(model, &[sample])?;
            let direction = projection.project(model, &trainer.direction(gradient));
            finite(direction, session.steps())
        });
        influence.add(rate, &groups, directions)?;
    }
    let scores = candidates.records_of(&influence.scores());
    let kept = (config.share * scores.len() as f64).round().max(1.0) as usize;
    let chosen = top(&scores, kept);
    write_scores(session, &candidates, &scores)?;
    let chosen = Chosen::records(candidates, &chosen);
    Ok(Outcome::Selection(chosen))
}

/// The projected mean gradient of a group of validation samples.
fn projected(
    session: &mut Session,
    projection: &Projection,
    model: &CausalLm,
    group: &[&Sample],
) -> Result<Vec<f64>> {
    let gradient = session.mean_gradient(model, group)?;
    finite(projection.project(model, &gradient), session.steps())
}

fn finite(projected: Vec<f64>, step: usize) -> Result<Vec<f64>> {
    let sum = projected.iter().sum();
    check(sum, "the gradient of a sample", step)?;
    Ok(projected)
}

fn write_scores(session: &Session, candidates: &Candidates, scores: &[f64]) -> Result<()> {
    let path = session.path("scores.jsonl");
    let sources = session.experiment.sources();
    crate::files::replace_with(&path, |file| {
        for (record, &score) in candidates.records().iter().zip(scores) {
            let line = Score {
                source: &sources[record.source].name,
                record: record.number,
                score,
            };
            serde_json::to_writer(&mut *file, &line).map_err(|e| Error::file(&path, e))?;
            file.write_all(b"\n").map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    })
}
