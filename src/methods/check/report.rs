//! What a check of gradients found.

use std::fmt;

use super::newton::{norm, sum};

/// What [`HypergradientCheck`](super::HypergradientCheck) found. Displayed, it names the entries that differ most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HypergradientReport {
    /// The hypergradient at `(x, w*(x))`.
    pub hypergradient: Comparison,
    /// The gradient of `F` in `x`, at the `(x, w)` that was given, as are those below.
    pub upper_of_upper: Comparison,
    /// The gradient of `F` in `w`.
    pub upper_of_lower: Comparison,
    /// The gradient of `G` in `x`.
    pub lower_of_upper: Comparison,
    /// The gradient of `G` in `w`.
    pub lower_of_lower: Comparison,
    /// Relative residual of the linear system `H_ww v = F_w`, by gradients. Where it is large, the hypergradient is not
    /// to be trusted: the system is ill-conditioned, or the gradients of `G` are no gradients. 0 with a penalty.
    pub residual: f64,
}

/// A gradient beside its differences, entry by entry.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Comparison {
    /// The entries that were compared: `path[i, j]`, or `[i]` of a module that is a parameter itself.
    pub names: Vec<String>,
    /// By the objectives' gradients.
    pub gradient: Vec<f64>,
    /// By central differences of losses.
    pub differences: Vec<f64>,
    /// Norm of what differences cannot tell from zero.
    pub(super) negligible: f64,
}

impl HypergradientReport {
    /// Whether all five relative errors are at most `tolerance`.
    pub fn passes(&self, tolerance: f64) -> bool {
        // NaN fails.
        self.comparisons()
            .iter()
            .all(|(_, c)| c.relative_error() <= tolerance)
    }

    fn comparisons(&self) -> [(&'static str, &Comparison); 5] {
        [
            ("hypergradient", &self.hypergradient),
            ("gradient of the upper objective in x", &self.upper_of_upper),
            ("gradient of the upper objective in w", &self.upper_of_lower),
            ("gradient of the lower objective in x", &self.lower_of_upper),
            ("gradient of the lower objective in w", &self.lower_of_lower),
        ]
    }
}

impl Comparison {
    /// `|gradient - differences| / max(|gradient|, |differences|)`, Euclidean norms over the entries compared. NaN if
    /// one of them is.
    pub fn relative_error(&self) -> f64 {
        let difference = norm(&sum(&self.gradient, -1.0, &self.differences));
        if difference == 0.0 {
            return 0.0;
        }
        let size = norm(&self.gradient).max(norm(&self.differences));
        difference / size.max(self.negligible)
    }

    /// Positions of the entries, those that differ most first.
    pub fn worst(&self) -> Vec<usize> {
        let off = |i: &usize| (self.gradient[*i] - self.differences[*i]).abs();
        let mut order: Vec<usize> = (0..self.gradient.len()).collect();
        order.sort_by(|i, j| off(j).total_cmp(&off(i)));
        order
    }
}

impl fmt::Display for HypergradientReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, comparison) in self.comparisons() {
            writeln!(
                f,
                "{name}: relative error {:.1e} over {} entries",
                comparison.relative_error(),
                comparison.names.len()
            )?;
            for i in comparison.worst().into_iter().take(3) {
                writeln!(
                    f,
                    "  {}: {:+.6e}, by differences {:+.6e}",
                    comparison.names[i], comparison.gradient[i], comparison.differences[i]
                )?;
            }
        }
        write!(f, "linear system: relative residual {:.1e}", self.residual)
    }
}
