//! Classical problems: gradients equal to autodiff and to central differences, and the closed forms of `simulated`.

use std::path::{Path, PathBuf};

use approx::assert_relative_eq;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use scalebio::problems::{Simulated, Vector};
use scalebio::{Gradients, LowerObjective, Minibatches, Order, Result, UpperObjective};

use crate::zoo::{self, devices, flex, largest_difference, values};

/// All numbers of a module, in the order of its parameters.
pub fn flatten<M: Module>(module: &M) -> Vec<f64> {
    struct Values(Vec<f64>);
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(param.val().into_data().iter::<f64>());
        }
    }
    let mut visitor = Values(Vec::new());
    module.visit(&mut visitor);
    visitor.0
}

/// The gradient of a module, in the same order; parameters without an entry have gradient zero.
pub fn flat_gradient<M: Module>(module: &M, gradients: &GradientsParams) -> Vec<f64> {
    struct Values<'a>(Vec<f64>, &'a GradientsParams);
    impl ModuleVisitor for Values<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match self.1.get::<D>(param.id) {
                Some(gradient) => self.0.extend(gradient.into_data().iter::<f64>()),
                None => self
                    .0
                    .resize(self.0.len() + param.val().shape().num_elements(), 0.0),
            }
        }
    }
    let mut visitor = Values(Vec::new(), gradients);
    module.visit(&mut visitor);
    visitor.0
}

/// `module` with its numbers replaced, in the same order.
pub fn with_values<M: Module>(module: &M, values: &[f64]) -> M {
    struct Replace<'a>(&'a [f64]);
    impl ModuleMapper for Replace<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, old, mapper) = param.consume();
            let (mine, rest) = self.0.split_at(old.shape().num_elements());
            self.0 = rest;
            let data = TensorData::new(mine.to_vec(), old.shape());
            let new = Tensor::from_data(data, (&old.device(), old.dtype())).require_grad();
            Param::from_mapped_value(id, new, mapper)
        }
    }
    module.clone().map(&mut Replace(values))
}

/// Asserts that given gradients are those of autodiff and of central differences of the loss, all in float64.
pub fn assert_gradients<X: Module, W: Module>(
    x: &X,
    w: &W,
    given: &Gradients,
    loss: impl Fn(&X, &W) -> Tensor<1>,
) {
    let autodiff = Gradients::of(&loss(x, w), x, w).unwrap();
    assert_relative_eq!(given.loss, autodiff.loss, max_relative = 1e-10);
    let (x0, w0) = (flatten(x), flatten(w));
    let point = [x0.clone(), w0.clone()].concat();
    let of =
        |g: &Gradients| [flat_gradient(x, &g.of_upper), flat_gradient(w, &g.of_lower)].concat();
    let (given, autodiff) = (of(given), of(&autodiff));
    let scale = autodiff.iter().fold(1e-3, |max: f64, g| max.max(g.abs()));
    let difference = largest_difference(&given, &autodiff);
    assert!(
        difference <= 1e-10 * scale,
        "{difference} {given:?} {autodiff:?}"
    );
    // Every coordinate of a small problem, some of a large one.
    let step = 1e-5;
    for i in (0..point.len()).step_by(point.len().div_ceil(60)) {
        let at = |shift: f64| {
            let mut moved = point.clone();
            moved[i] += shift;
            let (x1, w1) = moved.split_at(x0.len());
            loss(&with_values(x, x1), &with_values(w, w1)).into_scalar::<f64>()
        };
        let difference = (at(step) - at(-step)) / (2.0 * step);
        assert!(
            (given[i] - difference).abs() <= 1e-6 * scale,
            "{i}: {} {difference}",
            given[i]
        );
    }
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub fn simulated() -> Simulated {
    Simulated::read(fixture("simulated/problem.safetensors")).unwrap()
}

fn golden() -> serde_json::Value {
    let text = std::fs::read_to_string(fixture("simulated/golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Eigenvalues of a symmetric matrix by Jacobi's rotations, ascending.
fn eigenvalues(mut a: Vec<Vec<f64>>) -> Vec<f64> {
    let n = a.len();
    for _ in 0..12 {
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q].abs() < 1e-15 {
                    continue;
                }
                let angle = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
                let (s, c) = angle.sin_cos();
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                let (top, bottom) = a.split_at_mut(q);
                for (x, y) in top[p].iter_mut().zip(&mut bottom[0]) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
            }
        }
    }
    let mut values: Vec<f64> = (0..n).map(|i| a[i][i]).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The Hessian of a quadratic, from differences of its gradient, which are exact.
fn hessian(size: usize, gradient: impl Fn(&[f64]) -> Vec<f64>) -> Vec<Vec<f64>> {
    let zero = gradient(&vec![0.0; size]);
    let column = |i| {
        let mut unit = vec![0.0; size];
        unit[i] = 1.0;
        gradient(&unit)
            .iter()
            .zip(&zero)
            .map(|(a, b)| a - b)
            .collect()
    };
    (0..size).map(column).collect()
}

/// The closed forms of `simulated` are those of the reference in numpy, at the start and in their spectra.
#[test]
fn simulated_is_the_problem_of_the_benchmark() {
    let (simulated, golden) = (simulated(), golden());
    let expected = |name: &str| golden["problem"][name].as_f64().unwrap();
    let (x, z) = simulated.start(&flex());
    let start = simulated
        .measure(&values(x.val()), &values(z.val()))
        .unwrap();
    assert_relative_eq!(
        start.hypergradient_squared,
        expected("gradh0_sq"),
        max_relative = 1e-10
    );
    assert_relative_eq!(
        start.excess,
        expected("h0_minus_hstar"),
        max_relative = 1e-10
    );
    let distance = golden["soba"][0][3].as_f64().unwrap();
    assert_relative_eq!(start.lower_distance_squared, distance, max_relative = 1e-10);

    let mut problem = simulated.problem(&flex());
    let whole = LowerObjective::<Vector, Vector>::sample(&mut problem.lower).unwrap();
    let of_z = |at: &[f64]| {
        let z = zoo::vector(at, &flex());
        let gradients = LowerObjective::gradients(&problem.lower, &x, &z, &whole[0]).unwrap();
        values(gradients.of_lower.get::<1>(z.id).unwrap())
    };
    let hypergradient = |at: &[f64]| simulated.hypergradient(at).unwrap();
    for (name, spectrum) in [
        ("eig_g_zz", eigenvalues(hessian(100, of_z))),
        ("eig_h", eigenvalues(hessian(100, hypergradient))),
    ] {
        let [low, high] = [0, 1].map(|i| golden["problem"][name][i].as_f64().unwrap());
        assert_relative_eq!(spectrum[0], low, max_relative = 1e-9);
        assert_relative_eq!(spectrum[99], high, max_relative = 1e-9);
    }
}

/// `h` is least at the solution, its slope is the hypergradient, and `z*` is where the lower gradient vanishes.
#[test]
fn simulated_solution_is_one() {
    let simulated = simulated();
    let solution = simulated.solution().to_vec();
    let z = simulated.lower_solution(&solution).unwrap();
    let there = simulated.measure(&solution, &z).unwrap();
    assert!(there.hypergradient_squared < 1e-24, "{there:?}");
    assert!(there.excess.abs() < 1e-12 && there.lower_distance_squared < 1e-24);

    let (x, z) = (zoo::vector(&solution, &flex()), zoo::vector(&z, &flex()));
    let mut problem = simulated.problem(&flex());
    let whole = LowerObjective::<Vector, Vector>::sample(&mut problem.lower).unwrap();
    let lower = LowerObjective::gradients(&problem.lower, &x, &z, &whole[0]).unwrap();
    let slope = values(lower.of_lower.get::<1>(z.id).unwrap());
    assert!(slope.iter().all(|g| g.abs() < 1e-12));

    // The excess is half the hypergradient's product with the way, for a quadratic: two routes to one number.
    let point: Vec<f64> = (0..100).map(|i| f64::from(i).sin()).collect();
    let hypergradient = simulated.hypergradient(&point).unwrap();
    let half: f64 = hypergradient
        .iter()
        .zip(point.iter().zip(&solution))
        .map(|(g, (x, s))| 0.5 * g * (x - s))
        .sum();
    assert_relative_eq!(
        simulated.measure(&point, &[0.0; 100]).unwrap().excess,
        half,
        max_relative = 1e-9
    );
}

/// Hand-written gradients of both objectives, whole and by minibatches, are those of the loss.
#[test]
fn simulated_gradients_are_those_of_the_loss() {
    let simulated = simulated();
    for device in devices() {
        let point =
            |shift: f64| -> Vec<f64> { (0..100).map(|i| (f64::from(i) + shift).cos()).collect() };
        let (x, z) = (
            zoo::vector(&point(0.3), &device),
            zoo::vector(&point(1.9), &device),
        );
        let [upper, lower] = simulated.samples().map(|n| Minibatches::new(n, 64).seed(5));
        for mut problem in [
            simulated.problem(&device),
            simulated.stochastic(upper, lower, &device).unwrap(),
        ] {
            let (f, g) = (&mut problem.upper, &mut problem.lower);
            for batch in UpperObjective::<Vector, Vector>::sample(f).unwrap() {
                let given = UpperObjective::gradients(f, &x, &z, &batch).unwrap();
                assert_gradients(&x, &z, &given, |x, z| UpperObjective::loss(f, x, z, &batch));
            }
            for batch in LowerObjective::<Vector, Vector>::sample(g).unwrap() {
                let given = LowerObjective::gradients(g, &x, &z, &batch).unwrap();
                assert_gradients(&x, &z, &given, |x, z| LowerObjective::loss(g, x, z, &batch));
            }
        }
    }
}

/// The mean over an epoch of minibatches, one of them short, is the whole; slots are passed on.
#[test]
fn simulated_minibatches_are_unbiased_over_an_epoch() -> Result<()> {
    let simulated = simulated();
    let (x, z) = (
        zoo::vector(&[0.3; 100], &flex()),
        zoo::vector(&[-0.2; 100], &flex()),
    );
    let mut whole = simulated.problem(&flex()).lower;
    let batch = LowerObjective::<Vector, Vector>::sample(&mut whole)?.remove(0);
    assert_eq!(LowerObjective::<Vector, Vector>::slot(&whole, &batch), None);
    let exact = LowerObjective::gradients(&whole, &x, &z, &batch)?;
    let of_z = |g: &Gradients| values(g.of_lower.get::<1>(z.id).unwrap());

    let [upper, lower] = simulated
        .samples()
        .map(|n| Minibatches::new(n, 100).order(Order::FixedBatches));
    let mut drawn = simulated.stochastic(upper, lower, &flex())?.lower;
    let (mut loss, mut gradient, mut slots) = (0.0, vec![0.0; 100], Vec::new());
    for _ in 0..11 {
        let batch = LowerObjective::<Vector, Vector>::sample(&mut drawn)?.remove(0);
        let slot = LowerObjective::<Vector, Vector>::slot(&drawn, &batch).unwrap();
        assert_eq!(slot.of, 11);
        slots.push(slot.index);
        let part = LowerObjective::gradients(&drawn, &x, &z, &batch)?;
        loss += part.loss / 11.0;
        gradient
            .iter_mut()
            .zip(of_z(&part))
            .for_each(|(sum, g)| *sum += g / 11.0);
    }
    assert_eq!(drawn.position(), 11);
    slots.sort_unstable();
    assert_eq!(slots, (0..11).collect::<Vec<_>>());
    assert_relative_eq!(loss, exact.loss, max_relative = 1e-10);
    assert!(largest_difference(&gradient, &of_z(&exact)) < 1e-12);
    Ok(())
}

/// A damaged file, and points or minibatches of other sizes, are errors that name what is wrong.
#[test]
fn simulated_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.safetensors");
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Simulated::read(&path).unwrap_err().to_string()
    };
    let bytes = std::fs::read(fixture("simulated/problem.safetensors")).unwrap();
    for damaged in [&bytes[..0], &bytes[..100], &bytes[..bytes.len() - 1]] {
        let message = message(damaged);
        assert!(
            message.contains("p.safetensors") && message.contains("not a complete"),
            "{message}"
        );
    }
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut changed = bytes.clone();
    changed[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(message(&changed).contains("holds NaN"));
    let text = String::from_utf8_lossy(&bytes[8..start]).replace("g_hi", "g_xx");
    changed = [&bytes[..8], text.as_bytes(), &bytes[start..]].concat();
    assert!(message(&changed).contains("g_hi"));
    let zeros = [&bytes[..start], &vec![0; bytes.len() - start]].concat();
    assert!(message(&zeros).contains("singular"));
    let missing = Simulated::read(folder.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(missing.contains("none"), "{missing}");

    let simulated = simulated();
    let short = simulated.hypergradient(&[0.0; 99]).unwrap_err().to_string();
    assert!(
        short.contains("99 numbers") && short.contains("100 numbers"),
        "{short}"
    );
    assert!(simulated.lower_solution(&[0.0; 101]).is_err());
    assert!(simulated.measure(&[0.0; 100], &[0.0; 3]).is_err());
    let few = simulated.stochastic(
        Minibatches::new(1024, 8),
        Minibatches::new(1000, 8),
        &flex(),
    );
    let few = few.unwrap_err().to_string();
    assert!(few.contains("1000") && few.contains("1024"), "{few}");
    assert!(
        simulated
            .stochastic(
                Minibatches::new(1024, 0),
                Minibatches::new(1024, 8),
                &flex()
            )
            .is_err()
    );
}
