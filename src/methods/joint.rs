//! The step of methods that move `x`, `w` and one auxiliary variable together, every gradient at the same point: with
//! any [`Estimator`], at constant or at Polyak's steps.

use burn::module::Module;
use burn::optim::GradientsParams;

use super::estimator::{Estimator, Memory};
use super::oracle::Oracle;
use super::polyak::Polyak;
use super::progress::Rule;
use super::vector::linear;
use crate::solver::gradients::global_norm;
use crate::solver::{PerVariable, Step, Update, Variable};
use crate::{Gradients, LowerObjective, Result, UpperObjective};

/// The hyper-parameters that such methods share.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub upper: Update,
    pub lower: Update,
    pub auxiliary: Update,
    pub estimator: Estimator,
    pub polyak: Option<Polyak>,
}

/// Where the three variables stand.
#[derive(Debug)]
pub(super) struct Point<'a, X, W> {
    pub x: &'a X,
    pub w: &'a W,
    pub auxiliary: &'a W,
}

impl<X, W> Clone for Point<'_, X, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<X, W> Copy for Point<'_, X, W> {}

/// What each variable descends.
#[derive(Default)]
pub(super) struct Direction {
    pub x: GradientsParams,
    pub w: GradientsParams,
    pub auxiliary: GradientsParams,
}

impl<X: Module, W: Module> Point<'_, X, W> {
    /// `sum_k c_k d_k`.
    pub fn linear(&self, terms: &[(f64, &Direction)]) -> Direction {
        let of = |part: fn(&Direction) -> &GradientsParams| -> Vec<(f64, &GradientsParams)> {
            terms.iter().map(|(factor, d)| (*factor, part(d))).collect()
        };
        Direction {
            x: linear(self.x, &of(|d| &d.x)),
            w: linear(self.w, &of(|d| &d.w)),
            auxiliary: linear(self.auxiliary, &of(|d| &d.auxiliary)),
        }
    }
}

/// The directions of one draw, whose sum a step takes: the part that depends on the draw of `G`, and the one that
/// depends on the draw of `F`.
pub(super) struct Parts {
    pub of_g: Direction,
    pub of_f: Direction,
    /// The losses on the draw.
    pub step: Step,
}

impl Parts {
    /// The losses of `F` and `G` at `w`, in step `k`.
    pub fn losses(k: usize, f: &mut Gradients, g: &mut Gradients) -> Step {
        Step {
            upper_loss: f.loss,
            lower_loss: g.loss,
            upper_parts: std::mem::take(&mut f.parts),
            lower_parts: std::mem::take(&mut g.parts),
            ..Step::at(k)
        }
    }
}

/// What tells these methods apart.
pub(super) trait Directions<X: Module, W: Module> {
    /// The directions at `point` on the draw of step `k`.
    fn at<F, G>(
        &self,
        k: usize,
        point: Point<'_, X, W>,
        oracle: &Oracle<F, G, X, W>,
    ) -> Result<Parts>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>;

    /// How far the function is above its lowest value whose gradient is `of_g`, for `w` and the auxiliary variable
    /// (infinite where it has none), and `F` for `x`.
    fn excess(&self, step: &Step, polyak: &Polyak) -> PerVariable;
}

/// The rule of a method.
pub(super) struct Joint<D, X, W> {
    directions: D,
    settings: Settings,
    x: Variable<X>,
    w: Variable<W>,
    auxiliary: Variable<W>,
    memory: Memory<X, W>,
}

impl<D, X: Module, W: Module> Joint<D, X, W> {
    pub fn new(directions: D, settings: Settings, x: X, w: W, auxiliary: W) -> Result<Self> {
        settings
            .auxiliary
            .validate("update of the auxiliary variable")?;
        if let Some(polyak) = &settings.polyak {
            polyak.validate()?;
        }
        Ok(Self {
            x: Variable::upper(x, &settings.upper)?,
            w: Variable::lower(w, &settings.lower)?,
            auxiliary: Variable::lower(auxiliary, &settings.auxiliary)?,
            memory: Memory::new(settings.estimator)?,
            directions,
            settings,
        })
    }
}

impl<D, X, W> Rule<X, W> for Joint<D, X, W>
where
    D: Directions<X, W>,
    X: Module,
    W: Module,
{
    fn step<F, G>(&mut self, k: usize, oracle: &mut Oracle<F, G, X, W>) -> Result<Step>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
    {
        oracle.draw(k)?;
        let point = Point {
            x: self.x.module(),
            w: self.w.module(),
            auxiliary: self.auxiliary.module(),
        };
        let parts = self.directions.at(k, point, oracle)?;
        let mut step = parts.step;
        // Loss and gradient of one draw: what the estimator has of former draws fits no loss that is known.
        let drawn_norms = self.settings.polyak.map(|_| {
            let of_g = &parts.of_g;
            [
                global_norm(point.w, &of_g.w),
                global_norm(point.auxiliary, &of_g.auxiliary),
            ]
        });
        let drawn = (parts.of_g, parts.of_f);
        let again = |point: Point<'_, X, W>| self.directions.at(k, point, oracle);
        let direction = self.memory.estimate(point, drawn, oracle, again)?;
        step.gradient_norms = PerVariable {
            upper: global_norm(point.x, &direction.x),
            lower: global_norm(point.w, &direction.w),
            auxiliary: global_norm(point.auxiliary, &direction.auxiliary),
        };
        step.check_finite()?;
        step.rates = PerVariable {
            upper: self.settings.upper.rate_at(k),
            lower: self.settings.lower.rate_at(k),
            auxiliary: self.settings.auxiliary.rate_at(k),
        };
        if let (Some(polyak), Some([lower, auxiliary])) = (&self.settings.polyak, drawn_norms) {
            let norms = PerVariable {
                upper: step.gradient_norms.upper,
                lower,
                auxiliary,
            };
            let excess = self.directions.excess(&step, polyak);
            step.rates = polyak.rates(excess, norms, step.rates);
        }
        self.w.step(step.rates.lower, direction.w);
        self.auxiliary
            .step(step.rates.auxiliary, direction.auxiliary);
        self.x.step(step.rates.upper, direction.x);
        Ok(step)
    }

    fn upper(&self) -> &X {
        self.x.module()
    }

    fn lower(&self) -> &W {
        self.w.module()
    }
}
