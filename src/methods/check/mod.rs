//! Gradients and the hypergradient of a problem against central differences.

mod flat;
mod newton;
mod report;

use burn::module::Module;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::index;

use self::flat::{entries, gradient, names, placed};
use self::newton::{Curvature, conjugate_gradients, differences, minimize, norm, root, sum};
use super::differences::size_and_precision;
use super::oracle::number;
use crate::solver::gradients::total;
use crate::{Bilevel, Error, Gradients, LowerObjective, Result, UpperObjective};

pub use report::{Comparison, HypergradientReport};

/// Compares the hypergradient, and the four gradients it is made of, with central differences of losses alone.
///
/// Brings to light what no loss curve shows: a sign or a factor in gradients written by hand, a normalizer that depends
/// on `x`, a loss that is not smooth. One draw of each objective is taken and kept for everything.
///
/// * **Gradients.** Those of `F` and of `G`, in `x` and in `w`, at `(x, w)`, against differences of their losses there.
/// * **Hypergradient.** With `w* = argmin_w G(x, w)`, solved by Newton's method from `w`, that of the objectives' own
///   gradients against differences of `F(x, w*(x))`, solved anew for each difference. The solutions come from
///   differentiating the losses: gradients written by hand have no part in what they are compared with.
///
/// The hypergradient is `F_x - H_xw v` with `H_ww v = F_w`: what [`Soba`](super::Soba) computes, and the limit of the
/// penalty hypergradient as `alpha` grows. With [`penalty`](Self::penalty) it is the penalty hypergradient itself,
/// whose relative error then is its bias at this point, `O(1 / alpha)`.
///
/// # Precision
///
/// A difference steps by `eps^(1/3) max(1, |entry|)`, where `eps` is the precision of the coarsest float type of the
/// variables. Sound gradients of a well-conditioned problem differ by about 1e-8 in float64 and 1e-3 in float32. A
/// gradient below `1e4 eps^(2/3)` of its loss counts as zero: its differences are rounding. That is 4e-7 of the loss in
/// float64, but a quarter of it in float32: there a fault is only seen in a gradient that is larger. Check in float64
/// where the objectives allow it.
///
/// # Cost
///
/// For small problems: some dozens to thousands of gradients for each checked entry of `x`, and all entries as plain
/// numbers on the host. Beyond [`entries`](Self::entries) entries a random subset is checked.
#[derive(Clone, Debug)]
#[must_use]
pub struct HypergradientCheck {
    penalty: Option<f64>,
    entries: usize,
    seed: u64,
}

/// [`HypergradientCheck`] with its defaults.
///
/// # Errors
///
/// Those of [`HypergradientCheck::run`].
///
/// # Example
///
/// ```
/// use burn::{module::Param, tensor::{DType, Device, Tensor}};
/// use scalebio::Bilevel;
/// use scalebio::methods::check_hypergradient;
///
/// type Vector = Param<Tensor<1>>;
///
/// let device = Device::flex().autodiff();
/// let vector = |values: [f64; 2]| Vector::from_tensor(Tensor::from_data(values, (&device, DType::F64)));
/// let mut problem = Bilevel {
///     upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
///     lower: |x: &Vector, w: &Vector| (w.val() - x.val().sin()).square().sum(),
/// };
/// let report = check_hypergradient(&mut problem, &vector([0.5, 1.0]), &vector([0.0, 0.0]))?;
/// assert!(report.passes(1e-6), "{report}");
/// # Ok::<(), scalebio::Error>(())
/// ```
pub fn check_hypergradient<F, G, X, W>(
    problem: &mut Bilevel<F, G>,
    upper: &X,
    lower: &W,
) -> Result<HypergradientReport>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    HypergradientCheck::new().run(problem, upper, lower)
}

impl HypergradientCheck {
    /// The hypergradient without penalty, up to 24 entries of each variable, seed 0.
    pub fn new() -> Self {
        Self {
            penalty: None,
            entries: 24,
            seed: 0,
        }
    }

    /// Checks the penalty hypergradient `F_x(w) + alpha (G_x(w) - G_x(u))` with `w = argmin F + alpha G` and
    /// `u = argmin G`. Greater than 0. Default: its limit for a large `alpha`.
    pub fn penalty(mut self, alpha: f64) -> Self {
        self.penalty = Some(alpha);
        self
    }

    /// How many entries of a variable are checked at most, at least 1; a random subset where there are more.
    /// Default: 24.
    pub fn entries(mut self, limit: usize) -> Self {
        self.entries = limit;
        self
    }

    /// Seed of that subset. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks `problem` at the upper variable `upper` and the lower variable `lower`, which also is where the search
    /// for `w*` starts. `problem` is drawn from once.
    ///
    /// # Errors
    ///
    /// * [`Error::NotSolved`] where `w*` is not found.
    /// * [`Error::NonFinite`] for a loss that is NaN or infinite at `(upper, lower)`.
    /// * [`Error::NotTrainable`], [`Error::NotDifferentiable`] and [`Error::NotScalar`] for variables and losses that
    ///   cannot be differentiated.
    /// * [`Error::Setting`] for a setting that cannot work.
    pub fn run<F, G, X, W>(
        &self,
        problem: &mut Bilevel<F, G>,
        upper: &X,
        lower: &W,
    ) -> Result<HypergradientReport>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        self.validate()?;
        let fixed = Fixed::draw(problem, upper, lower)?;
        let [x, w] = [entries(upper), entries(lower)];
        for (variable, entries) in [("upper variable", &x), ("lower variable", &w)] {
            if entries.is_empty() {
                return Err(Error::NotTrainable { variable });
            }
        }
        let mut random = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        let mut pick = |of: &[f64]| {
            let count = self.entries.min(of.len());
            let mut chosen = index::sample(&mut random, of.len(), count).into_vec();
            chosen.sort_unstable();
            chosen
        };
        let (of_x, of_w) = (pick(&x), pick(&w));
        let gradients = fixed.gradients([&of_x, &of_w], &x, &w)?;

        let solution = fixed.solve(&x, w)?;
        let (own, residual) = match self.penalty {
            None => fixed.implicit(&x, &solution)?,
            Some(alpha) => (fixed.penalized(&x, &solution, alpha)?, 0.0),
        };
        let hypergradient = fixed.compare(&of_x, &own, names(upper), &x, |x| {
            fixed.f_loss(x, &fixed.solve(x, solution.clone())?)
        })?;
        let [
            upper_of_upper,
            upper_of_lower,
            lower_of_upper,
            lower_of_lower,
        ] = gradients;
        Ok(HypergradientReport {
            hypergradient,
            upper_of_upper,
            upper_of_lower,
            lower_of_upper,
            lower_of_lower,
            residual,
        })
    }

    fn validate(&self) -> Result<()> {
        if let Some(alpha) = self.penalty.filter(|a| !(*a > 0.0 && a.is_finite())) {
            return Err(Error::setting(
                "penalty",
                alpha,
                "a finite number greater than 0",
                "leave it out for the limit of large penalties",
            ));
        }
        if self.entries == 0 {
            return Err(Error::setting(
                "entries",
                self.entries,
                "at least 1",
                "24 is the default",
            ));
        }
        Ok(())
    }
}

impl Default for HypergradientCheck {
    fn default() -> Self {
        Self::new()
    }
}

/// A problem with one draw, over plain numbers.
struct Fixed<'a, F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    f: &'a F,
    g: &'a G,
    x: &'a X,
    w: &'a W,
    upper_draw: Vec<F::Batch>,
    lower_draw: Vec<G::Batch>,
    precision: f64,
}

/// A loss at `(x, w)`.
type Loss<'a> = dyn Fn(&[f64], &[f64]) -> Result<f64> + 'a;

/// Loss and gradients as plain numbers.
struct Flat {
    loss: f64,
    of_x: Vec<f64>,
    of_w: Vec<f64>,
}

impl<'a, F, G, X, W> Fixed<'a, F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    fn draw(problem: &'a mut Bilevel<F, G>, x: &'a X, w: &'a W) -> Result<Self> {
        let lower_draw = problem.lower.sample()?;
        let upper_draw = problem.upper.sample()?;
        let empty = |objective| Err(Error::EmptyDraw { step: 0, objective });
        if lower_draw.is_empty() {
            return empty("lower objective");
        }
        if upper_draw.is_empty() {
            return empty("upper objective");
        }
        Ok(Self {
            f: &problem.upper,
            g: &problem.lower,
            upper_draw,
            lower_draw,
            precision: size_and_precision(x).1.max(size_and_precision(w).1),
            x,
            w,
        })
    }

    fn placed(&self, x: &[f64], w: &[f64]) -> (X, W) {
        (placed(self.x, x), placed(self.w, w))
    }

    fn flat(x: &X, w: &W, gradients: &Gradients) -> Flat {
        Flat {
            loss: gradients.loss,
            of_x: gradient(x, &gradients.of_upper),
            of_w: gradient(w, &gradients.of_lower),
        }
    }

    /// `F`, by the gradients of the objective.
    fn f_own(&self, x: &[f64], w: &[f64]) -> Result<Flat> {
        let (x, w) = self.placed(x, w);
        let own = total(&self.upper_draw, &x, &w, |b| self.f.gradients(&x, &w, b))?;
        Ok(Self::flat(&x, &w, &own))
    }

    /// `G`, by the gradients of the objective.
    fn g_own(&self, x: &[f64], w: &[f64]) -> Result<Flat> {
        let (x, w) = self.placed(x, w);
        let own = total(&self.lower_draw, &x, &w, |b| self.g.gradients(&x, &w, b))?;
        Ok(Self::flat(&x, &w, &own))
    }

    fn f_loss(&self, x: &[f64], w: &[f64]) -> Result<f64> {
        let (x, w) = self.placed(x, w);
        let batches = self.upper_draw.iter();
        batches.map(|b| number(self.f.loss(&x, &w, b))).sum()
    }

    fn g_loss(&self, x: &[f64], w: &[f64]) -> Result<f64> {
        let (x, w) = self.placed(x, w);
        let batches = self.lower_draw.iter();
        batches.map(|b| number(self.g.loss(&x, &w, b))).sum()
    }

    /// `w*(x)`, by differentiating the loss.
    fn solve(&self, x: &[f64], start: Vec<f64>) -> Result<Vec<f64>> {
        minimize(start, self.precision, |w| {
            let (x, w) = self.placed(x, w);
            let of_loss = total(&self.lower_draw, &x, &w, |b| {
                Gradients::of(&self.g.loss(&x, &w, b), &x, &w)
            })?;
            Ok((of_loss.loss, gradient(&w, &of_loss.of_lower)))
        })
    }

    /// `F_x - H_xw v` with `H_ww v = F_w`, and the relative residual of that system.
    fn implicit(&self, x: &[f64], w: &[f64]) -> Result<(Vec<f64>, f64)> {
        let f = self.f_own(x, w)?;
        let product = differences(w, self.precision, |w| Ok(self.g_own(x, w)?.of_w));
        let tolerance = self.precision.sqrt();
        let (v, residual) = conjugate_gradients(product, &f.of_w, tolerance, Curvature::Any)?;
        if norm(&v) == 0.0 {
            return Ok((f.of_x, residual));
        }
        let mixed = differences(w, self.precision, |w| Ok(self.g_own(x, w)?.of_x))(&v)?;
        Ok((sum(&f.of_x, -1.0, &mixed), residual))
    }

    /// `F_x(w) + alpha (G_x(w) - G_x(u))` with `w = argmin F + alpha G`, from `u = argmin G`.
    fn penalized(&self, x: &[f64], u: &[f64], alpha: f64) -> Result<Vec<f64>> {
        let w = root(u.to_vec(), self.precision, |w| {
            Ok(sum(&self.f_own(x, w)?.of_w, alpha, &self.g_own(x, w)?.of_w))
        })?;
        let at_w = sum(&self.f_own(x, &w)?.of_x, alpha, &self.g_own(x, &w)?.of_x);
        Ok(sum(&at_w, -alpha, &self.g_own(x, u)?.of_x))
    }

    /// The gradients of `F` in `x` and in `w`, and those of `G`, in the entries `chosen` of `x` and of `w`.
    fn gradients(&self, chosen: [&[usize]; 2], x: &[f64], w: &[f64]) -> Result<[Comparison; 4]> {
        let (f, g) = (self.f_own(x, w)?, self.g_own(x, w)?);
        for (quantity, value) in [("the upper loss", f.loss), ("the lower loss", g.loss)] {
            if !value.is_finite() {
                return Err(Error::NonFinite {
                    step: 0,
                    quantity: quantity.to_owned(),
                    value,
                });
            }
        }
        let in_x = |own: &Flat, loss: &Loss| {
            self.compare(chosen[0], &own.of_x, names(self.x), x, |x| loss(x, w))
        };
        let in_w = |own: &Flat, loss: &Loss| {
            self.compare(chosen[1], &own.of_w, names(self.w), w, |w| loss(x, w))
        };
        let f_loss = |x: &[f64], w: &[f64]| self.f_loss(x, w);
        let g_loss = |x: &[f64], w: &[f64]| self.g_loss(x, w);
        Ok([
            in_x(&f, &f_loss)?,
            in_w(&f, &f_loss)?,
            in_x(&g, &g_loss)?,
            in_w(&g, &g_loss)?,
        ])
    }

    /// The entries `chosen` of `own` beside central differences of `loss` at `point`.
    fn compare(
        &self,
        chosen: &[usize],
        own: &[f64],
        mut names: Vec<String>,
        point: &[f64],
        loss: impl Fn(&[f64]) -> Result<f64>,
    ) -> Result<Comparison> {
        let mut largest = 0.0_f64;
        let mut differences = Vec::new();
        for &i in chosen {
            let step = self.precision.cbrt() * point[i].abs().max(1.0);
            let mut moved = point.to_vec();
            moved[i] = point[i] + step;
            let plus = loss(&moved)?;
            moved[i] = point[i] - step;
            let minus = loss(&moved)?;
            differences.push((plus - minus) / (2.0 * step));
            largest = largest.max(plus.abs()).max(minus.abs());
        }
        Ok(Comparison {
            names: chosen
                .iter()
                .map(|&i| std::mem::take(&mut names[i]))
                .collect(),
            gradient: chosen.iter().map(|&i| own[i]).collect(),
            differences,
            negligible: 1e4 * self.precision.powf(2.0 / 3.0) * largest,
        })
    }
}
