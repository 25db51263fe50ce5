//! The run of a method: what all of them share, around the rule that tells them apart.

use burn::module::Module;

use super::Progress;
use super::oracle::Oracle;
use crate::solver::Step;
use crate::{Bilevel, LowerObjective, Result, UpperObjective, catch_lost_device};

/// What one method does in one step. It holds the method's variables.
pub(super) trait Rule<X: Module, W: Module> {
    /// Step `k`: draws, computes, and then moves the variables. What can fail comes first, where the method allows it.
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>;

    /// The upper variable.
    fn upper(&self) -> &X;

    /// The lower variable.
    fn lower(&self) -> &W;
}

pub(super) struct Iteration<F, G, X, W, R>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    oracle: Oracle<F, G, X, W>,
    rule: R,
    steps: usize,
    failed: bool,
}

/// The run of `rule` on `problem`.
pub(super) fn iterate<F, G, X, W, R>(problem: Bilevel<F, G>, rule: R) -> Box<dyn Progress<X, W>>
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
    R: Rule<X, W> + 'static,
{
    Box::new(Iteration {
        oracle: Oracle::new(problem),
        rule,
        steps: 0,
        failed: false,
    })
}

impl<F, G, X, W, R> Iterator for Iteration<F, G, X, W, R>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
    R: Rule<X, W>,
{
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Result<Step>> {
        if self.failed {
            return None;
        }
        let step =
            catch_lost_device(|| self.rule.step(self.steps, &mut self.oracle)).map(|mut step| {
                self.steps += 1;
                step.gradient_calls = self.oracle.take_calls();
                step
            });
        self.failed = step.is_err();
        Some(step)
    }
}

impl<F, G, X, W, R> Progress<X, W> for Iteration<F, G, X, W, R>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
    R: Rule<X, W>,
{
    fn upper(&self) -> &X {
        self.rule.upper()
    }

    fn lower(&self) -> &W {
        self.rule.lower()
    }
}
