//! Small smooth problems solved to the last digits, in plain numbers: Newton's method with conjugate gradients.

use crate::{Error, Result};

/// Newton steps at most. Far from a solution each step is damped; near one, the digits double.
const STEPS: usize = 100;

/// Loss and gradient at a point.
type Evaluated = (f64, Vec<f64>);

/// `argmin` of a loss from `start`, by its gradients. `precision` is that of the float type they were computed in.
///
/// Solved is a point from which the next Newton step is shorter than `precision^(2/3) max(1, |point|)`, or than
/// `precision^(1/2) max(1, |point|)` where rounding lets no further step improve anything.
pub(super) fn minimize(
    start: Vec<f64>,
    precision: f64,
    mut evaluate: impl FnMut(&[f64]) -> Result<Evaluated>,
) -> Result<Vec<f64>> {
    let mut point = start;
    let (mut loss, mut gradient) = evaluate(&point)?;
    let first = norm(&gradient);
    let mut length = f64::INFINITY;
    for _ in 0..STEPS {
        if !norm(&gradient).is_finite() {
            break;
        }
        let scale = norm(&point).max(1.0);
        let tolerance = (norm(&gradient) / first).min(0.1).max(precision.sqrt());
        let negative: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let of = |at: &[f64]| Ok(evaluate(at)?.1);
        let product = differences(&point, precision, of);
        let step = conjugate_gradients(product, &negative, tolerance, Curvature::Positive)?.0;
        length = norm(&step);
        let Some((next, reached)) =
            damped(&point, &step, (loss, &gradient), precision, &mut evaluate)?
        else {
            if length <= precision.sqrt() * scale {
                return Ok(point);
            }
            break;
        };
        point = next;
        (loss, gradient) = reached;
        if length <= precision.powf(2.0 / 3.0) * scale {
            return Ok(point);
        }
    }
    Err(Error::NotSolved {
        steps: STEPS,
        length,
        allowed: precision.powf(2.0 / 3.0) * norm(&point).max(1.0),
        gradient: norm(&gradient),
    })
}

/// The longest of `step`, `step / 2`, ... that decreases the loss, and what is there.
fn damped(
    point: &[f64],
    step: &[f64],
    (loss, gradient): (f64, &[f64]),
    precision: f64,
    evaluate: &mut impl FnMut(&[f64]) -> Result<Evaluated>,
) -> Result<Option<(Vec<f64>, Evaluated)>> {
    let slope = dot(gradient, step);
    let mut factor = 1.0;
    for _ in 0..40 {
        let next = sum(point, factor, step);
        let reached = evaluate(&next)?;
        // Below the rounding of the loss, the gradient tells what the loss cannot.
        let expected = (factor * slope).abs();
        let lost = expected <= 1e3 * precision * loss.abs().max(reached.0.abs());
        if reached.0 <= loss + 1e-4 * factor * slope || lost && norm(&reached.1) < norm(gradient) {
            return Ok(Some((next, reached)));
        }
        factor /= 2.0;
    }
    Ok(None)
}

/// A root of a gradient field near `start`, without damping.
pub(super) fn root(
    start: Vec<f64>,
    precision: f64,
    mut field: impl FnMut(&[f64]) -> Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    let mut point = start;
    let mut last = f64::INFINITY;
    for _ in 0..STEPS {
        let negative: Vec<f64> = field(&point)?.iter().map(|f| -f).collect();
        let product = differences(&point, precision, &mut field);
        let step = conjugate_gradients(product, &negative, precision.sqrt(), Curvature::Any)?.0;
        let length = norm(&step);
        // No shorter than before: rounding is all that is left, or there is no root.
        if length >= last {
            break;
        }
        last = length;
        point = sum(&point, 1.0, &step);
    }
    Ok(point)
}

/// The Hessian at `point` as a product, by central differences of gradients.
pub(super) fn differences(
    point: &[f64],
    precision: f64,
    mut gradient: impl FnMut(&[f64]) -> Result<Vec<f64>>,
) -> impl FnMut(&[f64]) -> Result<Vec<f64>> {
    let size = precision.cbrt() * norm(point).max(1.0);
    move |direction| {
        let e = size / norm(direction);
        let plus = gradient(&sum(point, e, direction))?;
        let minus = gradient(&sum(point, -e, direction))?;
        let difference = plus.iter().zip(&minus);
        Ok(difference.map(|(p, m)| (p - m) / (2.0 * e)).collect())
    }
}

/// What conjugate gradients do where `p'Ap <= 0`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Curvature {
    /// Stop with what there is: every iterate so far is a direction of descent.
    Positive,
    /// Go on: a definite matrix of either sign has a solution.
    Any,
}

/// `A^-1 b` for a symmetric matrix, and the relative residual that was reached: at most `tolerance`, unless rounding or
/// a matrix that is not definite prevents it.
pub(super) fn conjugate_gradients(
    mut product: impl FnMut(&[f64]) -> Result<Vec<f64>>,
    b: &[f64],
    tolerance: f64,
    curvature: Curvature,
) -> Result<(Vec<f64>, f64)> {
    let mut solution = vec![0.0; b.len()];
    let (mut residual, mut direction) = (b.to_vec(), b.to_vec());
    let size = norm(b);
    for iteration in 0..(2 * b.len()).min(1000) {
        let square = dot(&residual, &residual);
        if square.sqrt() <= tolerance * size || norm(&direction) == 0.0 {
            break;
        }
        let image = product(&direction)?;
        let bend = dot(&direction, &image);
        if bend <= 0.0 && curvature == Curvature::Positive {
            if iteration == 0 {
                solution = direction;
            }
            break;
        }
        // Exactly flat, or not a number: no step along it is defined.
        if bend == 0.0 || !bend.is_finite() {
            break;
        }
        let factor = square / bend;
        solution = sum(&solution, factor, &direction);
        residual = sum(&residual, -factor, &image);
        direction = sum(&residual, dot(&residual, &residual) / square, &direction);
    }
    let reached = if size == 0.0 {
        0.0
    } else {
        norm(&residual) / size
    };
    Ok((solution, reached))
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `a + factor b`.
pub(super) fn sum(a: &[f64], factor: f64, b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}
