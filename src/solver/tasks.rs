//! The three gradients of a step, which do not depend on each other: one after the other, or at the same time.

use std::panic::resume_unwind;
use std::thread;

use burn::module::Module;

use super::gradients::total;
use super::variable::untied;
use crate::{Bilevel, Gradients, LowerObjective, Result, UpperObjective};

/// Losses and gradients of `F(x, w)`, `G(x, w)` and `G(x, u)`, from the draws of `F` and of `G` and the variables
/// `x`, `w`, `u`.
pub(super) type Tasks<F, G, X, W> = fn(
    &Bilevel<F, G>,
    &[<F as UpperObjective<X, W>>::Batch],
    &[<G as LowerObjective<X, W>>::Batch],
    &X,
    &W,
    &W,
) -> Result<[Gradients; 3]>;

/// One after the other.
pub(super) fn in_turn<F, G, X, W>(
    Bilevel { upper: f, lower: g }: &Bilevel<F, G>,
    f_draw: &[F::Batch],
    g_draw: &[G::Batch],
    x: &X,
    w: &W,
    u: &W,
) -> Result<[Gradients; 3]>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    Ok([
        total(f_draw, x, w, |batch| f.gradients(x, w, batch))?,
        total(g_draw, x, w, |batch| g.gradients(x, w, batch))?,
        total(g_draw, x, u, |batch| g.gradients(x, u, batch))?,
    ])
}

/// Those of `w` on this thread and that of `u` on another. Each is computed as in [`in_turn`], so that the results do
/// not depend on which thread is faster.
pub(super) fn in_parallel<F, G, X, W>(
    problem: &Bilevel<F, G>,
    f_draw: &[F::Batch],
    g_draw: &[G::Batch],
    x: &X,
    w: &W,
    u: &W,
) -> Result<[Gradients; 3]>
where
    F: UpperObjective<X, W, Batch: Sync> + Sync,
    G: LowerObjective<X, W, Batch: Sync> + Sync,
    X: Module,
    W: Module,
{
    let Bilevel { upper: f, lower: g } = problem;
    thread::scope(|scope| {
        // A module can be sent to a thread, but not shared with one. Two tapes must not share a leaf either: Burn would
        // merge them, and then one thread waits for the other's lock, which waits for its own.
        let (x_u, u) = (untied(x.clone()), u.clone());
        let of_u = scope.spawn(move || total(g_draw, &x_u, &u, |b| g.gradients(&x_u, &u, b)));
        let f_w = total(f_draw, x, w, |batch| f.gradients(x, w, batch));
        let g_w = total(g_draw, x, w, |batch| g.gradients(x, w, batch));
        let g_u = of_u.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok([f_w?, g_w?, g_u?])
    })
}
