//! The three gradients of a penalty method at one point, and the penalty hypergradient that they give.

use burn::module::Module;
use burn::optim::GradientsParams;

use super::oracle::Oracle;
use crate::solver::gradients::{combine, global_norm};
use crate::solver::{PerVariable, Step};
use crate::{LowerObjective, Result, UpperObjective};

/// How the gradients are weighed.
pub(super) struct Weights {
    /// Of `F` in the direction of `w`.
    pub upper: f64,
    /// Of `G` in the direction of `w`.
    pub lower: f64,
    /// Of the value gap `G(x, w) - G(x, u)` in the direction of `x`, beside `F` itself.
    pub gap: f64,
}

/// Directions for the three variables, and the step that reports them.
pub(super) struct Directions {
    pub step: Step,
    pub of_x: GradientsParams,
    pub of_w: GradientsParams,
    pub of_u: GradientsParams,
}

/// The directions at `(x, w, u)` on the draw, all finite:
///
/// ```text
/// of_x = grad_x [F(x, w) + gap (G(x, w) - G(x, u))]
/// of_w = grad_w [upper F(x, w) + lower G(x, w)]
/// of_u = grad_u G(x, u)
/// ```
///
/// `step` comes with its index, penalty and rates.
pub(super) fn directions<F, G, X, W>(
    oracle: &Oracle<F, G, X, W>,
    (x, w, u): (&X, &W, &W),
    weights: &Weights,
    step: Step,
) -> Result<Directions>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    let f_w = oracle.f(x, w)?;
    let g_w = oracle.g(x, w)?;
    let g_u = oracle.g(x, u)?;
    let Weights { upper, lower, gap } = *weights;
    let of_x = [
        (1.0, f_w.of_upper),
        (gap, g_w.of_upper),
        (-gap, g_u.of_upper),
    ];
    let of_x = combine(x, of_x.into());
    let of_w = combine(w, vec![(upper, f_w.of_lower), (lower, g_w.of_lower)]);
    let of_u = combine(u, vec![(1.0, g_u.of_lower)]);
    let step = Step {
        gradient_norms: PerVariable {
            upper: global_norm(x, &of_x),
            lower: global_norm(w, &of_w),
            auxiliary: global_norm(u, &of_u),
        },
        upper_loss: f_w.loss,
        lower_loss: g_w.loss,
        auxiliary_loss: Some(g_u.loss),
        upper_parts: f_w.parts,
        lower_parts: g_w.parts,
        auxiliary_parts: g_u.parts,
        ..step
    };
    step.check_finite()?;
    Ok(Directions {
        step,
        of_x,
        of_w,
        of_u,
    })
}
