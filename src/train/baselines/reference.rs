//! RHO-LOSS on an experiment.

use std::collections::BTreeMap;

use super::Outcome;
use super::selection::{Candidates, Chosen};
use super::session::{Extra, Session};
use crate::Result;
use crate::baselines::{ReferenceConfig, top};
use crate::data::Sample;
use crate::reweight::{Draws, Pick, Samples, Sampling};

use super::super::experiment::Stream;

/// Samples that are drawn by number.
#[derive(Clone, Copy)]
struct Numbered(usize);

impl Samples for Numbered {
    type Batch = ();

    fn sizes(&self) -> Vec<usize> {
        vec![self.0]
    }

    fn batch(&self, _: &[Pick]) -> Result<()> {
        Ok(())
    }
}

/// Trains a reference on the validation set, then the model on the best of each candidate batch.
pub(super) fn run(session: &mut Session, config: &ReferenceConfig) -> Result<Outcome> {
    let experiment = session.experiment;
    let candidates = Candidates::read(experiment)?;
    let picks = candidates.picks();
    let samples = Session::samples(experiment.sources(), &picks)?;
    let (steps, batch) = (session.config().steps, session.config().batch);
    let mut model = session.trainer(steps)?;

    let reference_steps = config.reference_steps.unwrap_or(steps);
    let mut reference = session.trainer(reference_steps)?;
    let mut draws = experiment.validation_draws();
    let validation = std::slice::from_ref(experiment.validation());
    while reference.steps() < reference_steps {
        let drawn = Session::samples(validation, &draws.picks())?;
        session.mean_step(&mut reference, "reference", &drawn, Extra::default())?;
    }

    // The loss under the reference never changes, so it is computed once, when a sample is first drawn.
    let mut known: Vec<Option<f64>> = vec![None; samples.len()];
    let mut times = vec![0; samples.len()];
    let size = config.candidates(batch).min(samples.len());
    let mut draws = Draws::new(Numbered(samples.len()), size)
        .sampling(Sampling::Proportional)
        .seed(experiment.seed(Stream::Training));
    while model.steps() < steps {
        let drawn: Vec<usize> = draws.picks().iter().map(|pick| pick.index).collect();
        let new: Vec<usize> = drawn
            .iter()
            .copied()
            .filter(|&i| known[i].is_none())
            .collect();
        let of = |indices: &[usize]| {
            indices
                .iter()
                .map(|&i| samples[i])
                .collect::<Vec<&Sample>>()
        };
        let losses = session.losses(reference.model(), &of(&new))?;
        new.iter()
            .zip(losses)
            .for_each(|(&i, l)| known[i] = Some(l));
        let losses = session.losses(model.model(), &of(&drawn))?;
        let excess: Vec<f64> = drawn
            .iter()
            .zip(losses)
            .map(|(&i, loss)| loss - known[i].unwrap_or_default())
            .collect();
        let best = top(&excess, batch);
        let kept: Vec<usize> = best.iter().map(|&place| drawn[place]).collect();
        kept.iter().for_each(|&i| times[i] += 1);
        let mean = |of: &mut dyn Iterator<Item = f64>, n: usize| of.sum::<f64>() / n as f64;
        let numbers = BTreeMap::from([
            ("excess", mean(&mut excess.iter().copied(), excess.len())),
            (
                "kept_excess",
                mean(&mut best.iter().map(|&i| excess[i]), best.len()),
            ),
        ]);
        let extra = Extra {
            numbers,
            weights: None,
        };
        session.mean_step(&mut model, "training", &of(&kept), extra)?;
    }
    Ok(Outcome::Selection(Chosen::samples(candidates, &times)))
}
