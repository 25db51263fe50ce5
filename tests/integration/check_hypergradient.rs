//! `check_hypergradient` passes sound problems, finds planted faults and says which gradient has them.

use std::cell::Cell;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use scalebio::methods::{HypergradientCheck, HypergradientReport, check_hypergradient};
use scalebio::problems::{HyperCleaning, Images, Protocol, Regularization, Table};
use scalebio::reweight::{self, Draws, SourceWeights};
use scalebio::{Bilevel, Error, Gradients, LowerObjective, Result, UpperObjective};

use crate::problems::simulated;
use crate::zoo::samples::{Normal, Regression, Rows};
use crate::zoo::{
    self, Drawn, Vector, coupled, devices, flex, largest_difference, three_sources, values, vector,
};

/// The promise of the issue for every problem of this crate.
const TOLERANCE: f64 = 1e-3;

fn on_coupled(check: &HypergradientCheck, device: &Device) -> HypergradientReport {
    let (x, w) = (vector(&coupled::X, device), vector(&coupled::W, device));
    check.run(&mut coupled::problem(), &x, &w).unwrap()
}

/// Sound gradients pass, in float64 by far.
#[test]
fn toys_pass() {
    for device in devices() {
        let report = on_coupled(&HypergradientCheck::new(), &device);
        assert!(report.passes(1e-7), "{report}");
        let (x, w) = (
            vector(&[0.3, -0.2, 0.1], &device),
            vector(&[1.0, 0.0], &device),
        );
        let report = check_hypergradient(&mut three_sources::problem(), &x, &w).unwrap();
        assert!(report.passes(1e-7), "{report}");
        // The closed form of algorithm.md, section 5, for the derivative at these logits.
        let exact = [0.44407, 0.06962, -0.51369];
        assert!(largest_difference(&report.hypergradient.gradient, &exact) < 1e-5);
        assert!(largest_difference(&report.hypergradient.differences, &exact) < 1e-5);
    }
}

/// Float32 is enough for the tolerance on well-conditioned problems: the differences are as long as it needs.
#[test]
fn toys_pass_in_float32() {
    let device = flex();
    let single =
        |values: [f64; 2]| Vector::from_tensor(Tensor::from_data(values, (&device, DType::F32)));
    let (x, w) = (single(coupled::X), single(coupled::W));
    let report = check_hypergradient(&mut coupled::problem(), &x, &w).unwrap();
    assert!(report.passes(TOLERANCE), "{report}");
    let exact = on_coupled(&HypergradientCheck::new(), &device)
        .hypergradient
        .gradient;
    assert!(
        largest_difference(&report.hypergradient.gradient, &exact) < 1e-3,
        "{report}"
    );
}

/// On `simulated` both sides of the comparison are the exact hypergradient.
#[test]
fn simulated_passes_and_gives_the_exact_hypergradient() {
    let simulated = simulated();
    let (x, z) = simulated.start(&flex());
    let report = HypergradientCheck::new()
        .entries(6)
        .run(&mut simulated.problem(&flex()), &x, &z)
        .unwrap();
    assert!(report.passes(1e-6), "{report}");
    let exact = simulated.hypergradient(&values(x.val())).unwrap();
    for (i, name) in report.hypergradient.names.iter().enumerate() {
        let entry: usize = name[1..name.len() - 1].parse().unwrap();
        for given in [
            report.hypergradient.gradient[i],
            report.hypergradient.differences[i],
        ] {
            assert!(
                (given - exact[entry]).abs() <= 1e-5 * exact[entry].abs(),
                "{report}"
            );
        }
    }
}

/// Numbers in LIBSVM's text: `samples` rows of three features around a mean for each of `classes`.
fn table(samples: usize, classes: usize, seed: u64) -> Table {
    let mut normal = Normal::new(seed);
    let rows = (0..samples).map(|i| {
        let class = i % classes;
        let features = (1..=3).map(|j| {
            let mean = if j == class + 1 { 1.0 } else { 0.0 };
            format!(" {j}:{}", mean + normal.draw())
        });
        format!("{class}{}\n", features.collect::<String>())
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rows.collect::<String>()).unwrap();
    Table::read_libsvm(file.path()).unwrap()
}

/// Selection of regularization, logistic and softmax, passes.
#[test]
fn regularization_passes() {
    let device = flex();
    let logistic = Regularization::logistic(&table(40, 2, 0), &table(30, 2, 1)).unwrap();
    let softmax = Regularization::softmax(&table(40, 3, 2), &table(30, 3, 3)).unwrap();
    for regularization in [logistic, softmax] {
        let (x, z) = regularization.start(0, (&device, DType::F64));
        let mut problem = regularization.problem((&device, DType::F64));
        let report = check_hypergradient(&mut problem, &x, &z).unwrap();
        assert!(report.passes(TOLERANCE), "{report}");
    }
}

/// Hyper-cleaning passes on its stand-in.
#[test]
fn hyper_cleaning_passes() {
    let device = flex();
    let protocol = Protocol::benchopt().sizes(30, 20);
    let (images, test) = (Images::synthetic(50, 0), Images::synthetic(10, 1));
    let cleaning = HyperCleaning::new(&images, &test, &protocol).unwrap();
    let (x, z) = cleaning.start((&device, DType::F64));
    let report = HypergradientCheck::new()
        .entries(5)
        .run(&mut cleaning.problem((&device, DType::F64)), &x, &z)
        .unwrap();
    assert!(report.passes(TOLERANCE), "{report}");
}

/// Source weights pass on a small denoising toy, whose minibatch is drawn once for all evaluations.
#[test]
fn denoising_passes() {
    let mut normal = Normal::new(0);
    let mut rows = |noise: f64| -> Vec<Vec<f64>> {
        let mut row = || {
            let x = [normal.draw(), normal.draw()];
            vec![x[0], x[1], x[0] - 2.0 * x[1] + noise * normal.draw()]
        };
        (0..100).map(|_| row()).collect()
    };
    let (training, validation) = (vec![rows(0.1), rows(1.0), rows(3.0)], vec![rows(0.0)]);
    let device = flex().inner();
    let draws = |sources| {
        Draws::new(
            Regression(Rows {
                sources,
                device: device.clone(),
            }),
            32,
        )
    };
    let mut problem = reweight::problem(draws(training), draws(validation)).unwrap();
    let logits = zoo::tensor(&[0.2, -0.1, 0.4], &flex());
    let x = SourceWeights::from_logits(["a", "b", "c"].map(str::to_owned), logits).unwrap();
    let report = check_hypergradient(&mut problem, &x, &vector(&[0.0, 0.0], &flex())).unwrap();
    assert!(report.passes(TOLERANCE), "{report}");
}

/// An objective whose gradients, written by hand, are those of the loss times a factor in `x` and one in `w`.
struct ByHand<L> {
    loss: L,
    in_x: f64,
    in_w: f64,
}

impl<L: Fn(&Vector, &Vector) -> Tensor<1>> ByHand<L> {
    fn faulty(&self, x: &Vector, w: &Vector) -> Result<Gradients> {
        fn scaled(of: &Vector, mut gradients: GradientsParams, factor: f64) -> GradientsParams {
            if let Some(gradient) = gradients.remove::<1>(of.id) {
                gradients.register(of.id, gradient * factor);
            }
            gradients
        }
        let right = Gradients::of(&(self.loss)(x, w), x, w)?;
        Ok(Gradients {
            of_upper: scaled(x, right.of_upper, self.in_x),
            of_lower: scaled(w, right.of_lower, self.in_w),
            ..Gradients {
                loss: right.loss,
                ..Gradients::default()
            }
        })
    }
}

impl<L: Fn(&Vector, &Vector) -> Tensor<1>> UpperObjective<Vector, Vector> for ByHand<L> {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, x: &Vector, w: &Vector, (): &()) -> Tensor<1> {
        (self.loss)(x, w)
    }

    fn gradients(&self, x: &Vector, w: &Vector, (): &()) -> Result<Gradients> {
        self.faulty(x, w)
    }
}

impl<L: Fn(&Vector, &Vector) -> Tensor<1>> LowerObjective<Vector, Vector> for ByHand<L> {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, x: &Vector, w: &Vector, (): &()) -> Tensor<1> {
        (self.loss)(x, w)
    }

    fn gradients(&self, x: &Vector, w: &Vector, (): &()) -> Result<Gradients> {
        self.faulty(x, w)
    }
}

/// A sign or a factor 2 planted in any of the four gradients fails the check, of the hypergradient and of the one
/// gradient that has it; the three others are acquitted. The differences know nothing of it.
#[test]
fn planted_signs_and_factors_are_found_where_they_are() {
    let device = flex();
    let sound = on_coupled(&HypergradientCheck::new(), &device);
    for check in [
        HypergradientCheck::new(),
        HypergradientCheck::new().penalty(1000.0),
    ] {
        for factor in [-1.0, 2.0] {
            for fault in 0..4 {
                let mut factors = [1.0; 4];
                factors[fault] = factor;
                let mut problem = Bilevel {
                    upper: ByHand {
                        loss: coupled::upper_loss,
                        in_x: factors[0],
                        in_w: factors[1],
                    },
                    lower: ByHand {
                        loss: coupled::lower_loss,
                        in_x: factors[2],
                        in_w: factors[3],
                    },
                };
                let (x, w) = (vector(&coupled::X, &device), vector(&coupled::W, &device));
                let report = check.run(&mut problem, &x, &w).unwrap();
                let errors = [
                    &report.upper_of_upper,
                    &report.upper_of_lower,
                    &report.lower_of_upper,
                    &report.lower_of_lower,
                ]
                .map(|comparison| comparison.relative_error());
                for (i, error) in errors.iter().enumerate() {
                    let found = if i == fault {
                        *error > 0.49
                    } else {
                        *error < 1e-7
                    };
                    assert!(found, "factor {factor} in {fault}: {report}");
                }
                assert!(
                    report.hypergradient.relative_error() > 0.05,
                    "{fault}: {report}"
                );
                assert!(!report.passes(TOLERANCE));
                let differences = &report.hypergradient.differences;
                let off = largest_difference(differences, &sound.hypergradient.differences);
                assert!(off < 1e-12, "{off}");
            }
        }
    }
}

/// With a penalty the relative error is the penalty's bias, which falls as 1 / alpha.
#[test]
fn with_a_penalty_the_error_is_its_bias() {
    let error = |alpha| {
        let report = on_coupled(&HypergradientCheck::new().penalty(alpha), &flex());
        assert!(report.lower_of_lower.relative_error() < 1e-7);
        report.hypergradient.relative_error()
    };
    let errors = [100.0, 1000.0, 10_000.0].map(error);
    for pair in errors.windows(2) {
        let ratio = pair[0] / pair[1];
        assert!((9.0..11.0).contains(&ratio), "{errors:?}");
    }
    assert!(errors[0] > 1e-3 && errors[2] < TOLERANCE, "{errors:?}");
}

/// Noisy objectives are drawn from once: with a draw for each evaluation the differences would be noise.
#[test]
fn a_problem_is_drawn_from_once() {
    let draws = Cell::new(0);
    let draw = || {
        draws.set(draws.get() + 1);
        Ok(vec![f64::from(draws.get()); 2])
    };
    let mut problem = Bilevel {
        upper: Drawn::new(draw, |x: &Vector, w: &Vector, noise: &f64| {
            coupled::upper_loss(x, w) * *noise
        }),
        lower: Drawn::new(draw, |x: &Vector, w: &Vector, noise: &f64| {
            coupled::lower_loss(x, w) * *noise
        }),
    };
    let (x, w) = (vector(&coupled::X, &flex()), vector(&coupled::W, &flex()));
    let report = check_hypergradient(&mut problem, &x, &w).unwrap();
    assert!(report.passes(1e-7), "{report}");
    assert_eq!(draws.get(), 2);
}

/// Of many entries a random subset is checked, named as the user knows them, the same for the same seed.
#[test]
fn of_many_entries_a_seeded_subset_is_checked() {
    type Pair = Vec<Param<Tensor<2>>>;
    let device = flex();
    let matrix = || Param::from_tensor(Tensor::<2>::ones([8, 10], (&device, DType::F64)));
    let pair = || vec![matrix(), matrix()];
    let names = |check: HypergradientCheck| {
        let mut problem = Bilevel {
            upper: |_: &Pair, w: &Pair| (w[0].val() * w[1].val() - 3.0).square().sum(),
            lower: |x: &Pair, w: &Pair| {
                ((w[0].val() - x[0].val()).square() + (w[1].val() - x[1].val().sin()).square())
                    .sum()
            },
        };
        let report = check.run(&mut problem, &pair(), &pair()).unwrap();
        assert!(report.passes(1e-6), "{report}");
        report.hypergradient.names
    };
    let first = names(HypergradientCheck::new());
    assert_eq!(first.len(), 24);
    assert!(
        first[0].starts_with("0[") && first[23].starts_with("1["),
        "{first:?}"
    );
    assert_eq!(first, names(HypergradientCheck::new()));
    assert_ne!(first, names(HypergradientCheck::new().seed(1)));
    let all = names(HypergradientCheck::new().entries(200));
    assert_eq!(all.len(), 160);
    assert_eq!(
        [&*all[0], &all[9], &all[10], &all[159]],
        ["0[0, 0]", "0[0, 9]", "0[1, 0]", "1[7, 9]"]
    );
}

/// The report says which entries differ most, and displays them.
#[test]
fn the_worst_entries_come_first() {
    let device = flex();
    let mut problem = Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 1.0).square().sum(),
        // No derivative at 0, where the second entry is.
        lower: |x: &Vector, w: &Vector| {
            (w.val() - x.val()).square().sum()
                + x.val().abs().sum() * 0.1
                + x.val().clamp_min(0.0).sum()
        },
    };
    let (x, w) = (
        vector(&[0.5, 0.0, -0.5], &device),
        vector(&[0.0; 3], &device),
    );
    let report = check_hypergradient(&mut problem, &x, &w).unwrap();
    assert_eq!(report.lower_of_upper.worst()[0], 1, "{report}");
    assert!(report.lower_of_upper.relative_error() > 0.1);
    let text = report.to_string();
    assert!(
        text.contains("gradient of the lower objective in x: relative error"),
        "{text}"
    );
    assert!(text.contains("  [1]: "), "{text}");
}

/// What cannot be checked is an error that says why.
#[test]
fn what_cannot_be_checked_is_an_error() {
    let device = flex();
    let run = |lower: fn(&Vector, &Vector) -> Tensor<1>, check: HypergradientCheck| {
        let upper = |_: &Vector, w: &Vector| w.val().square().sum();
        let (x, w) = (vector(&[1.0, 2.0], &device), vector(&[0.5, -1.0], &device));
        check
            .run(&mut Bilevel { upper, lower }, &x, &w)
            .unwrap_err()
    };
    let unbounded = run(|x, w| (x.val() * w.val()).sum(), HypergradientCheck::new());
    assert!(matches!(unbounded, Error::NotSolved { .. }), "{unbounded}");
    assert!(
        unbounded
            .to_string()
            .contains("the lower problem is not solved"),
        "{unbounded}"
    );
    let nan = run(|_, w| w.val().log().sum(), HypergradientCheck::new());
    assert!(matches!(nan, Error::NonFinite { .. }), "{nan}");
    // Finite at the start, but without a finite gradient there.
    let kink = run(
        |_, w| (w.val() - 0.5).abs().sqrt().sum(),
        HypergradientCheck::new(),
    );
    assert!(matches!(kink, Error::NotSolved { .. }), "{kink}");
    let vector_valued = run(|x, w| w.val() - x.val(), HypergradientCheck::new());
    assert!(
        matches!(vector_valued, Error::NotScalar { elements: 2 }),
        "{vector_valued}"
    );
    for check in [
        HypergradientCheck::new().entries(0),
        HypergradientCheck::new().penalty(0.0),
        HypergradientCheck::new().penalty(f64::NAN),
    ] {
        let setting = run(|x, w| (w.val() - x.val()).square().sum(), check);
        assert!(matches!(setting, Error::Setting { .. }), "{setting}");
    }
    let (x, w) = (vector(&coupled::X, &device), vector(&coupled::W, &device));
    let frozen = check_hypergradient(&mut coupled::problem(), &x, &w.no_grad()).unwrap_err();
    assert!(
        matches!(
            frozen,
            Error::NotTrainable {
                variable: "lower variable"
            }
        ),
        "{frozen}"
    );
}
