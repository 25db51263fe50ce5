//! The problem as a method sees it: a draw of each objective, and their gradients at any point, counted.

use std::cell::Cell;

use burn::module::Module;

use crate::solver::gradients::total;
use crate::{Bilevel, Error, Gradients, LowerObjective, Result, UpperObjective};

/// Draws of both objectives, and gradients on them.
pub(super) struct Oracle<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    problem: Bilevel<F, G>,
    upper_draw: Vec<F::Batch>,
    lower_draw: Vec<G::Batch>,
    calls: Cell<usize>,
}

impl<F, G, X, W> Oracle<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    pub fn new(problem: Bilevel<F, G>) -> Self {
        Self {
            problem,
            upper_draw: Vec::new(),
            lower_draw: Vec::new(),
            calls: Cell::new(0),
        }
    }

    /// Draws the micro-batches of both objectives for step `step`, the lower ones first.
    pub fn draw(&mut self, step: usize) -> Result<()> {
        let empty = |objective| Error::EmptyDraw { step, objective };
        self.lower_draw = self.problem.lower.sample()?;
        if self.lower_draw.is_empty() {
            return Err(empty("lower objective"));
        }
        self.upper_draw = self.problem.upper.sample()?;
        if self.upper_draw.is_empty() {
            return Err(empty("upper objective"));
        }
        Ok(())
    }

    /// Loss and gradients of `F` at `(x, w)` on the draw.
    pub fn f(&self, x: &X, w: &W) -> Result<Gradients> {
        self.calls.set(self.calls.get() + 1);
        let f = &self.problem.upper;
        total(&self.upper_draw, x, w, |batch| f.gradients(x, w, batch))
    }

    /// Loss and gradients of `G` at `(x, w)` on the draw.
    pub fn g(&self, x: &X, w: &W) -> Result<Gradients> {
        self.calls.set(self.calls.get() + 1);
        let g = &self.problem.lower;
        total(&self.lower_draw, x, w, |batch| g.gradients(x, w, batch))
    }

    /// Number of gradients since the last call of this.
    pub fn take_calls(&self) -> usize {
        self.calls.take()
    }
}
