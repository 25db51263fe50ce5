//! DoReMi on an experiment.

use burn::module::Module;

use super::Outcome;
use super::session::{Extra, Session, check, tokens};
use crate::Result;
use crate::baselines::{GroupDro, GroupDroConfig, excess};
use crate::data::{IGNORED, Sample, TokenBatch};
use crate::models::{CausalLm, token_losses};

/// Trains a reference on uniform weights, then a proxy model on the weights of group DRO. Both start at the base model and see
/// the same draws.
pub(super) fn run(session: &mut Session, config: &GroupDroConfig) -> Result<Outcome> {
    let experiment = session.experiment;
    let sources = experiment.sources();
    let steps = session.config().steps;
    let reference_steps = config.reference_steps.unwrap_or(steps);
    let mut reference = session.trainer(reference_steps)?;
    let mut draws = experiment.training_draws();
    while reference.steps() < reference_steps {
        let drawn = Session::samples(sources, &draws.picks())?;
        session.mean_step(&mut reference, "reference", &drawn, Extra::default())?;
    }

    let mut dro = GroupDro::new(config, sources.len());
    let mut proxy = session.trainer(steps)?;
    let mut draws = experiment.training_draws();
    while proxy.steps() < steps {
        let picks = draws.picks();
        let owners: Vec<usize> = picks.iter().map(|pick| pick.source).collect();
        let drawn = Session::samples(sources, &picks)?;
        let given = label_losses(session, reference.model(), &drawn)?;
        let losses = label_losses(session, proxy.model(), &drawn)?;
        let parts = owners.iter().zip(losses.iter().zip(&given));
        let parts = parts.map(|(&source, (losses, given))| (source, &losses[..], &given[..]));
        dro.update(&excess(parts, sources.len()))?;
        let coefficients = by_token(&owners, &drawn, dro.weights());
        let weights = dro.weights().to_vec();
        let extra = Extra {
            weights: Some(&weights),
            ..Extra::default()
        };
        session.step(&mut proxy, "proxy", &drawn, &coefficients, extra)?;
    }
    Ok(Outcome::Weights(dro.average()))
}

/// Coefficients with which losses of samples make up `sum_i p_i (mean loss over the tokens of source i)`.
fn by_token(owners: &[usize], samples: &[&Sample], weights: &[f64]) -> Vec<f64> {
    let mut all = vec![0; weights.len()];
    for (&source, sample) in owners.iter().zip(samples) {
        all[source] += sample.label_tokens();
    }
    let share = |(&source, sample): (&usize, &&Sample)| {
        weights[source] * sample.label_tokens() as f64 / all[source] as f64
    };
    owners.iter().zip(samples).map(share).collect()
}

/// The losses of the label tokens of each sample.
fn label_losses(
    session: &mut Session,
    model: &CausalLm,
    samples: &[&Sample],
) -> Result<Vec<Vec<f64>>> {
    session.scored_tokens += tokens(samples);
    let model = model.valid(); // no tape
    let device = model.device();
    let mut all = Vec::with_capacity(samples.len());
    for chunk in samples.chunks(session.chunk()) {
        let batch = TokenBatch::new(chunk);
        let logits = model.logits(batch.ids(&device), batch.mask(&device));
        let losses = token_losses(logits, batch.labels(&device)).into_data();
        let losses: Vec<f64> = losses.iter::<f64>().collect();
        let width = batch.length().saturating_sub(1).max(1);
        for (row, sample) in losses.chunks(width).zip(chunk) {
            let labels = sample.labels().skip(1).zip(row);
            let learned = labels.filter(|(label, _)| *label != IGNORED);
            let learned: Vec<f64> = learned.map(|(_, &loss)| loss).collect();
            check(
                learned.iter().sum(),
                "the loss of a sample",
                session.steps(),
            )?;
            all.push(learned);
        }
    }
    Ok(all)
}
