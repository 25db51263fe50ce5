//! The gradients of a step, which do not depend on each other: those of `w`, then that of `u`, or both at the same time.

use std::mem::take;
use std::panic::resume_unwind;
use std::thread;

use burn::module::Module;
use burn::optim::GradientsParams;

use super::gradients::{combine, total};
use super::variable::untied;
use crate::{Bilevel, Gradients, LowerObjective, Result, UpperObjective};

/// What a step needs to know at `(x, w, u)`. The gradients in `w` and `u` are moved from the objectives' to the last two
/// fields.
pub(super) struct Evaluation {
    /// Micro-batches in the draws of `F` and of `G`.
    pub drawn: [u64; 2],
    /// `F(x, w)`
    pub f_w: Gradients,
    /// `G(x, w)`
    pub g_w: Gradients,
    /// `G(x, u)`
    pub g_u: Gradients,
    /// `grad_w [F(x, w) + alpha G(x, w)]`
    pub of_w: GradientsParams,
    /// `alpha grad_u G(x, u)`
    pub of_u: GradientsParams,
    /// Bytes that were handed to a collective to sum all this over ranks.
    pub bytes: u64,
}

/// The micro-batches of `F` and of `G`.
pub(super) type Draws<F, G, X, W> = (
    Vec<<F as UpperObjective<X, W>>::Batch>,
    Vec<<G as LowerObjective<X, W>>::Batch>,
);

/// Evaluates a problem on the draws of `F` and `G`, with the penalty `alpha`, at `x`, `w`, `u`.
pub(super) type Tasks<F, G, X, W> = fn(
    &Bilevel<F, G>,
    &[<F as UpperObjective<X, W>>::Batch],
    &[<G as LowerObjective<X, W>>::Batch],
    f64,
    &X,
    &W,
    &W,
) -> Result<Evaluation>;

/// One after the other.
pub(super) fn in_turn<F, G, X, W>(
    Bilevel { upper: f, lower: g }: &Bilevel<F, G>,
    f_draw: &[F::Batch],
    g_draw: &[G::Batch],
    alpha: f64,
    x: &X,
    w: &W,
    u: &W,
) -> Result<Evaluation>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    let (f_w, g_w, of_w) = at_w((f, f_draw), (g, g_draw), alpha, x, w)?;
    let (g_u, of_u) = at_u((g, g_draw), alpha, x, u)?;
    Ok(Evaluation {
        drawn: [f_draw.len() as u64, g_draw.len() as u64],
        f_w,
        g_w,
        g_u,
        of_w,
        of_u,
        bytes: 0,
    })
}

/// `w` on this thread and `u` on another. Each is computed as in [`in_turn`], so that the results do not depend on which
/// thread is faster.
pub(super) fn in_parallel<F, G, X, W>(
    Bilevel { upper: f, lower: g }: &Bilevel<F, G>,
    f_draw: &[F::Batch],
    g_draw: &[G::Batch],
    alpha: f64,
    x: &X,
    w: &W,
    u: &W,
) -> Result<Evaluation>
where
    F: UpperObjective<X, W, Batch: Sync> + Sync,
    G: LowerObjective<X, W, Batch: Sync> + Sync,
    X: Module,
    W: Module,
{
    thread::scope(|scope| {
        // A module can be sent to a thread, but not shared with one. Nor may two threads' tapes share a leaf: Burn would
        // merge the tapes, and each thread could wait for a lock that the other has.
        let (x_u, u) = (untied(x.clone()), untied(u.clone()));
        let at_u = scope.spawn(move || at_u((g, g_draw), alpha, &x_u, &u));
        let at_w = at_w((f, f_draw), (g, g_draw), alpha, x, w);
        let at_u = at_u.join().unwrap_or_else(|panic| resume_unwind(panic));
        let ((f_w, g_w, of_w), (g_u, of_u)) = (at_w?, at_u?);
        Ok(Evaluation {
            drawn: [f_draw.len() as u64, g_draw.len() as u64],
            f_w,
            g_w,
            g_u,
            of_w,
            of_u,
            bytes: 0,
        })
    })
}

fn at_w<F, G, X, W>(
    (f, f_draw): (&F, &[F::Batch]),
    (g, g_draw): (&G, &[G::Batch]),
    alpha: f64,
    x: &X,
    w: &W,
) -> Result<(Gradients, Gradients, GradientsParams)>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    let mut f_w = total(f_draw, x, w, |batch| f.gradients(x, w, batch))?;
    let mut g_w = total(g_draw, x, w, |batch| g.gradients(x, w, batch))?;
    // At once, so that the two gradients become one before the next is computed.
    let terms = vec![
        (1.0, take(&mut f_w.of_lower)),
        (alpha, take(&mut g_w.of_lower)),
    ];
    Ok((f_w, g_w, combine(w, terms)))
}

fn at_u<G, X, W>(
    (g, g_draw): (&G, &[G::Batch]),
    alpha: f64,
    x: &X,
    u: &W,
) -> Result<(Gradients, GradientsParams)>
where
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    let mut g_u = total(g_draw, x, u, |batch| g.gradients(x, u, batch))?;
    let terms = vec![(alpha, take(&mut g_u.of_lower))];
    Ok((g_u, combine(u, terms)))
}
