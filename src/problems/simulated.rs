//! Two finite sums of quadratics, for which every quantity of a bilevel problem is exact.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use safetensors::SafeTensors;

use super::Vector;
use super::dense::{Dense, dot, sum};
use super::quadratics::Quadratics;
use crate::{Bilevel, Error, Minibatches, Result};

/// The problem `simulated` of benchopt's `benchmark_bilevel`: both objectives are means of quadratics with rank-one
/// terms, in the lower variable `z` and the upper variable `x`.
///
/// ```text
/// sample i:  1/2 (a_i.z)^2 + 1/2 (b_i.x)^2 + (x.c_i) (d_i.z) + l_i.z + m_i.x
/// mean:      1/2 z'Az + 1/2 x'Bx + x'Cz + l.z + m.x
/// ```
///
/// Then `h(x) = F(x, z*(x))` is quadratic too, and with the means of `G` and of `F`
///
/// ```text
/// z*(x)   = -A_G^-1 (l_G + C_G' x)
/// grad h  = F_x(x, z*) - C_G A_G^-1 F_z(x, z*)
/// hess h  = J' A_F J + B_F + C_F J + (C_F J)',   J = -A_G^-1 C_G'
/// ```
///
/// are solved for with a Cholesky factorization in float64.
///
/// # Reference
///
/// Dagréou et al., *A framework for bilevel optimization that enables stochastic and global variance reduction
/// algorithms*, NeurIPS 2022, arXiv 2201.13409; <https://github.com/benchopt/benchmark_bilevel>.
#[derive(Clone, Debug)]
pub struct Simulated {
    lower: Factors,
    upper: Factors,
    /// `J'`, one row an upper coordinate: row `j` is the derivative of `z*` in `x_j`.
    jacobian: Dense,
    /// `z*(0)`.
    at_zero: Vec<f64>,
    solution: Vec<f64>,
    optimum: f64,
}

/// How far a point of [`Simulated`] is from its solution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// `|grad h(x)|^2`.
    pub hypergradient_squared: f64,
    /// `h(x) - min h`.
    pub excess: f64,
    /// `|z*(x) - z|^2`.
    pub lower_distance_squared: f64,
}

impl Simulated {
    /// Reads `problem.safetensors`: float32 tensors `g_hi`, `g_ho`, `g_c1`, `g_c2`, `g_li`, `g_lo` of the lower
    /// objective, one row a sample (`a`, `b`, `c`, `d`, `l`, `m` above), and the same with `f_` of the upper objective.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or [`Error::File`] for a file that is damaged, has tensors of other types or shapes, or values
    /// that are not finite, and for data whose lower objective is not strongly convex in `z` or whose `h` is not in `x`.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        Self::from_bytes(&bytes).map_err(|message| Error::file(path, message))
    }

    fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| format!("not a complete safetensors file: {error}"))?;
        let lower = Factors::read(&file, "g")?;
        let upper = Factors::read(&file, "f")?;
        let dims = |factors: &Factors| (factors.mean.a.columns, factors.mean.b.columns);
        if dims(&lower) != dims(&upper) {
            return Err(format!(
                "the lower objective is one of {:?} variables (lower, upper), the upper objective of {:?}; they must be the same",
                dims(&lower),
                dims(&upper)
            ));
        }
        let (g, f) = (&lower.mean, &upper.mean);
        let not_convex = |what| {
            format!("{what} is singular; there must be at least as many samples as variables")
        };
        let negated =
            |matrix: Dense| Dense::new(matrix.columns, matrix.values.iter().map(|v| -v).collect());
        let solve = |right: &Dense| {
            let solved = g.a.solve(right).map(negated);
            solved.ok_or_else(|| not_convex("the Hessian of the lower objective in z"))
        };
        let jacobian = solve(&g.c)?;
        let at_zero = solve(&Dense::new(g.l.len(), g.l.clone()))?.values;
        let mut simulated = Self {
            jacobian,
            at_zero,
            solution: vec![0.0; f.m.len()],
            optimum: 0.0,
            lower,
            upper,
        };
        // h is quadratic: one Newton step from 0 is exact. Column j of the Hessian is a difference of gradients.
        let zero = simulated.solution.clone();
        let at_zero = simulated.slope(&zero);
        let mut hessian = Vec::new();
        for j in 0..zero.len() {
            let mut unit = zero.clone();
            unit[j] = 1.0;
            hessian.extend(sum(&simulated.slope(&unit), -1.0, &at_zero));
        }
        let step = Dense::new(zero.len(), hessian).solve(&Dense::new(zero.len(), at_zero));
        let step = step.ok_or_else(|| not_convex("the Hessian of h in x"))?;
        simulated.solution = sum(&zero, -1.0, &step.values);
        simulated.optimum = simulated.value(&simulated.solution);
        Ok(simulated)
    }

    /// Number of samples of the upper and of the lower objective, in this order.
    pub fn samples(&self) -> [usize; 2] {
        [self.upper.samples(), self.lower.samples()]
    }

    /// The problem without noise: every draw is the whole of both sums.
    pub fn problem(&self, device: &Device) -> Bilevel<Quadratics, Quadratics> {
        Bilevel {
            upper: Quadratics::whole(&self.upper.mean, device),
            lower: Quadratics::whole(&self.lower.mean, device),
        }
    }

    /// The problem by minibatches of samples: `upper` of the upper, `lower` of the lower objective. Give them seeds of
    /// their own: with one seed both would draw the same indices.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for minibatches of another number of [`samples`](Self::samples), or that cannot be drawn.
    pub fn stochastic(
        &self,
        upper: Minibatches,
        lower: Minibatches,
        device: &Device,
    ) -> Result<Bilevel<Quadratics, Quadratics>> {
        Ok(Bilevel {
            upper: Quadratics::drawn(&self.upper.rows, upper, device)?,
            lower: Quadratics::drawn(&self.lower.rows, lower, device)?,
        })
    }

    /// The benchmark's start, `x = -2` and `z = 0`, in float64 on `device`.
    pub fn start(&self, device: &Device) -> (Vector, Vector) {
        let [x, z] = [(-2.0, &self.solution), (0.0, &self.at_zero)].map(|(value, like)| {
            Tensor::from_data(vec![value; like.len()].as_slice(), (device, DType::F64))
        });
        (Vector::from_tensor(x), Vector::from_tensor(z))
    }

    /// `z*(x) = argmin_z G(x, z)`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another number of coordinates than the problem has.
    pub fn lower_solution(&self, upper: &[f64]) -> Result<Vec<f64>> {
        self.check("upper variable", upper, &self.solution)?;
        Ok(self.best_response(upper))
    }

    /// `grad h(x)`, the hypergradient.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another number of coordinates than the problem has.
    pub fn hypergradient(&self, upper: &[f64]) -> Result<Vec<f64>> {
        self.check("upper variable", upper, &self.solution)?;
        Ok(self.slope(upper))
    }

    /// `argmin h`.
    pub fn solution(&self) -> &[f64] {
        &self.solution
    }

    /// Compares a point with the solution.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another number of coordinates than the problem has.
    pub fn measure(&self, upper: &[f64], lower: &[f64]) -> Result<Measured> {
        self.check("upper variable", upper, &self.solution)?;
        self.check("lower variable", lower, &self.at_zero)?;
        let slope = self.slope(upper);
        let off = sum(&self.best_response(upper), -1.0, lower);
        Ok(Measured {
            hypergradient_squared: dot(&slope, &slope),
            excess: self.value(upper) - self.optimum,
            lower_distance_squared: dot(&off, &off),
        })
    }

    fn check(&self, name: &'static str, given: &[f64], like: &[f64]) -> Result<()> {
        if given.len() == like.len() {
            return Ok(());
        }
        Err(Error::setting(
            name,
            format!("{} numbers", given.len()),
            format!("{} numbers", like.len()),
            "start from `Simulated::start`",
        ))
    }

    fn best_response(&self, x: &[f64]) -> Vec<f64> {
        sum(&self.at_zero, 1.0, &self.jacobian.transposed_times(x))
    }

    /// `grad h(x) = F_x + J' F_z` at `z*(x)`.
    fn slope(&self, x: &[f64]) -> Vec<f64> {
        let z = self.best_response(x);
        let [of_x, of_z] = self.upper.mean.gradients(x, &z);
        sum(&of_x, 1.0, &self.jacobian.times(&of_z))
    }

    /// `h(x)`.
    fn value(&self, x: &[f64]) -> f64 {
        self.upper.mean.value(x, &self.best_response(x))
    }
}

/// The samples of one objective.
#[derive(Clone, Debug)]
struct Factors {
    /// `a`, `b`, `c`, `d`, `l`, `m`, one row a sample.
    rows: [Dense; 6],
    mean: Mean,
}

/// `1/2 z'Az + 1/2 x'Bx + x'Cz + l.z + m.x`.
#[derive(Clone, Debug)]
pub(super) struct Mean {
    pub a: Dense,
    pub b: Dense,
    pub c: Dense,
    pub l: Vec<f64>,
    pub m: Vec<f64>,
}

impl Factors {
    fn read(file: &SafeTensors, prefix: &str) -> std::result::Result<Self, String> {
        let read = |name: &str| matrix(file, &format!("{prefix}_{name}"));
        let rows = [
            read("hi")?,
            read("ho")?,
            read("c1")?,
            read("c2")?,
            read("li")?,
            read("lo")?,
        ];
        let count = |m: &Dense| m.values.len() / m.columns;
        // Columns of z: a, d, l. Columns of x: b, c, m.
        for (matrix, like) in [(3, 0), (4, 0), (2, 1), (5, 1)] {
            if rows[matrix].columns != rows[like].columns {
                return Err(format!(
                    "tensors of `{prefix}_` do not agree on the number of variables"
                ));
            }
        }
        if rows.iter().any(|m| count(m) != count(&rows[0])) {
            return Err(format!(
                "tensors of `{prefix}_` do not agree on the number of samples"
            ));
        }
        let [a, b, c, d, l, m] = &rows;
        let mean = Mean {
            a: a.mean_product(a),
            b: b.mean_product(b),
            c: c.mean_product(d),
            l: l.mean_row(),
            m: m.mean_row(),
        };
        Ok(Self { rows, mean })
    }

    fn samples(&self) -> usize {
        self.rows[0].rows().count()
    }
}

/// A float32 tensor `[samples, variables]`, neither of them 0.
fn matrix(file: &SafeTensors, name: &str) -> std::result::Result<Dense, String> {
    let tensor = file.tensor(name).map_err(|error| error.to_string())?;
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    if dtype != safetensors::Dtype::F32 || shape.len() != 2 || shape.contains(&0) {
        return Err(format!(
            "tensor `{name}` is {dtype} of shape {shape:?}, but must be F32 of shape [samples, variables]"
        ));
    }
    let value = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let values: Vec<f64> = tensor.data().chunks_exact(4).map(value).collect();
    match values.iter().find(|v| !v.is_finite()) {
        Some(value) => Err(format!("tensor `{name}` holds {value}")),
        None => Ok(Dense::new(shape[1], values)),
    }
}

impl Mean {
    /// Gradients in `x` and in `z`.
    fn gradients(&self, x: &[f64], z: &[f64]) -> [Vec<f64>; 2] {
        let of_x = sum(&sum(&self.b.times(x), 1.0, &self.c.times(z)), 1.0, &self.m);
        let of_z = sum(
            &sum(&self.a.times(z), 1.0, &self.c.transposed_times(x)),
            1.0,
            &self.l,
        );
        [of_x, of_z]
    }

    fn value(&self, x: &[f64], z: &[f64]) -> f64 {
        // Twice a quadratic without constant is its slope along the point, and its linear part once more.
        let [of_x, of_z] = self.gradients(x, z);
        (dot(x, &sum(&of_x, 1.0, &self.m)) + dot(z, &sum(&of_z, 1.0, &self.l))) / 2.0
    }
}
