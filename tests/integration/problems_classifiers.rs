//! Regularization selection and hyper-cleaning: gradients, unbiased minibatches, data that do not fit, and what is learned.

use approx::{assert_abs_diff_eq, assert_relative_eq};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use scalebio::problems::{
    HyperCleaning, Images, Matrix, Protocol, Regularization, SampleBatch, Table, ValidationLoss,
    Vector,
};
use scalebio::{
    Bilevel, LowerObjective, Minibatches, Order, Result, ScaleBio, Update, UpperObjective,
};

use crate::problems::{assert_gradients, flatten};
use crate::zoo::{self, devices, flex, samples::Normal};

fn matrix(rows: usize, values: Vec<f64>, device: &Device) -> Matrix {
    let shape = [rows, values.len() / rows];
    Param::from_tensor(Tensor::from_data(
        TensorData::new(values, shape),
        (device, DType::F64),
    ))
}

/// Random rows with labels out of `labels`.
fn table(seed: u64, samples: usize, columns: usize, labels: &[f64]) -> Table {
    let mut normal = Normal::new(seed);
    Table {
        columns,
        features: (0..samples * columns).map(|_| normal.draw()).collect(),
        labels: (0..samples).map(|i| labels[i % labels.len()]).collect(),
    }
}

pub fn logistic() -> Regularization {
    let labels = [-1.0, 1.0, 1.0];
    Regularization::logistic(&table(1, 20, 4, &labels), &table(2, 12, 3, &labels)).unwrap()
}

pub fn softmax() -> Regularization {
    let labels = [2.0, 7.0, 5.0];
    Regularization::softmax(&table(3, 20, 4, &labels), &table(4, 12, 4, &labels)).unwrap()
}

pub fn cleaning(protocol: Protocol) -> HyperCleaning {
    let images = Images::synthetic(32, 1);
    // Fewer pixels than they have, so that all coordinates are compared.
    let few = |images: Images| Images {
        pixels: images
            .pixels
            .chunks_exact(images.size)
            .flat_map(|image| &image[..4])
            .copied()
            .collect(),
        size: 4,
        ..images
    };
    HyperCleaning::new(
        &few(images),
        &few(Images::synthetic(9, 2)),
        &protocol.sizes(20, 12),
    )
    .unwrap()
}

/// Every problem, whole and by minibatches of both kinds: `check(problem, x, z)`.
fn each_problem(batch: Order, check: &mut dyn FnMut(&mut dyn Pair, &Vector, &Matrix)) {
    for device in devices() {
        let options = (&device, DType::F64);
        let batches = |seed| {
            let batches = |samples| Minibatches::new(samples, 6).order(batch).seed(seed);
            (batches(12), batches(20))
        };
        for regularization in [logistic(), softmax()] {
            let (x, z) = regularization.start(3, options);
            let mut normal = Normal::new(5);
            let random: Vec<f64> = flatten(&z).iter().map(|_| normal.draw()).collect();
            let z = matrix(z.dims()[0], random, &device);
            check(&mut regularization.problem(options), &x, &z);
            let (upper, lower) = batches(7);
            check(
                &mut regularization.stochastic(upper, lower, options).unwrap(),
                &x,
                &z,
            );
        }
        for protocol in [Protocol::benchopt(), Protocol::boat()] {
            let cleaning = cleaning(protocol);
            let (_, z) = cleaning.start(options);
            let mut normal = Normal::new(6);
            let mut random =
                |count: usize| -> Vec<f64> { (0..count).map(|_| normal.draw()).collect() };
            let x = zoo::vector(&random(20), &device);
            let z = matrix(z.dims()[0], random(z.dims()[0] * 10), &device);
            check(&mut cleaning.problem(options), &x, &z);
            let (upper, lower) = batches(8);
            check(
                &mut cleaning.stochastic(upper, lower, options).unwrap(),
                &x,
                &z,
            );
        }
    }
}

/// A problem with a linear classifier, whichever its lower objective is.
trait Pair {
    fn upper(&mut self) -> &mut ValidationLoss;
    fn draw(&mut self) -> SampleBatch;
    fn loss(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> Tensor<1>;
    fn gradients(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> scalebio::Gradients;
    fn slot(&self, batch: &SampleBatch) -> Option<scalebio::Slot>;
}

impl<G: LowerObjective<Vector, Matrix, Batch = SampleBatch>> Pair for Bilevel<ValidationLoss, G> {
    fn upper(&mut self) -> &mut ValidationLoss {
        &mut self.upper
    }

    fn draw(&mut self) -> SampleBatch {
        let mut draw = self.lower.sample().unwrap();
        assert_eq!(draw.len(), 1);
        draw.remove(0)
    }

    fn loss(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> Tensor<1> {
        self.lower.loss(x, z, batch)
    }

    fn gradients(&self, x: &Vector, z: &Matrix, batch: &SampleBatch) -> scalebio::Gradients {
        self.lower.gradients(x, z, batch).unwrap()
    }

    fn slot(&self, batch: &SampleBatch) -> Option<scalebio::Slot> {
        self.lower.slot(batch)
    }
}

/// Hand-written gradients are those of the loss, for samples drawn once or several times.
#[test]
fn gradients_are_those_of_the_loss() {
    for order in [Order::FixedBatches, Order::Independent] {
        each_problem(order, &mut |problem, x, z| {
            for _ in 0..2 {
                let batch = problem.draw();
                let given = problem.gradients(x, z, &batch);
                assert_gradients(x, z, &given, |x, z| problem.loss(x, z, &batch));
                let upper = problem.upper();
                let batch = upper.sample().unwrap().remove(0);
                let given = upper.gradients(x, z, &batch).unwrap();
                assert_gradients(x, z, &given, |x, z| upper.loss(x, z, &batch));
            }
        });
    }
}

/// The mean over an epoch of slots, one of them short, is the whole objective: the loss, and so its gradients.
#[test]
fn slots_are_unbiased() {
    let mut whole = None;
    each_problem(Order::FixedBatches, &mut |problem, x, z| {
        let first = problem.draw();
        let Some(slot) = problem.slot(&first) else {
            let upper = problem.upper();
            let batch = upper.sample().unwrap().remove(0);
            let f = upper.loss(x, z, &batch).into_scalar::<f64>();
            whole = Some((problem.loss(x, z, &first).into_scalar::<f64>(), f));
            return;
        };
        assert_eq!(slot.of, 4);
        let (g, f) = whole.unwrap();
        let mut sum = problem.loss(x, z, &first).into_scalar::<f64>();
        for _ in 1..4 {
            let batch = problem.draw();
            sum += problem.loss(x, z, &batch).into_scalar::<f64>();
        }
        assert_relative_eq!(sum / 4.0, g, max_relative = 1e-10);
        let upper = problem.upper();
        let sum: f64 = (0..2)
            .map(|_| {
                let batch = upper.sample().unwrap().remove(0);
                assert_eq!(upper.slot(&batch).unwrap().of, 2);
                upper.loss(x, z, &batch).into_scalar::<f64>()
            })
            .sum();
        assert_relative_eq!(sum / 2.0, f, max_relative = 1e-10);
        assert_eq!(upper.position(), 2);
    });
}

/// At `z = 0` the mean losses are `log 2` and `log C`, weighted by `sigmoid(x)` in hyper-cleaning; of one sample
/// everything is known.
#[test]
fn losses_have_their_known_values() -> Result<()> {
    let options = (&flex(), DType::F64);
    let at_zero = |problem: &mut dyn Pair, x: &Vector, z: &Matrix| {
        let z = matrix(z.dims()[0], vec![0.0; z.dims()[0] * z.dims()[1]], &flex());
        let batch = problem.draw();
        let lower = problem.loss(x, &z, &batch).into_scalar::<f64>();
        let batch = problem.upper().sample().unwrap().remove(0);
        [
            problem.upper().loss(x, &z, &batch).into_scalar::<f64>(),
            lower,
        ]
    };
    for (regularization, expected) in [(logistic(), 2_f64.ln()), (softmax(), 3_f64.ln())] {
        let (x, z) = regularization.start(0, options);
        for loss in at_zero(&mut regularization.problem(options), &x, &z) {
            assert_relative_eq!(loss, expected, max_relative = 1e-12);
        }
    }
    for (protocol, weight) in [
        (Protocol::boat(), 0.5),
        (Protocol::benchopt(), 1.0 / (1.0 + 2_f64.exp())),
    ] {
        let cleaning = cleaning(protocol);
        let (x, z) = cleaning.start(options);
        let [upper, lower] = at_zero(&mut cleaning.problem(options), &x, &z);
        assert_relative_eq!(upper, 10_f64.ln(), max_relative = 1e-12);
        assert_relative_eq!(lower, weight * 10_f64.ln(), max_relative = 1e-12);
    }

    // Features (1, 2) with the label that counts as 1, and (0, 0); z = (3, -1), x = (log 2, 0): a.z = 1.
    let training = Table {
        columns: 2,
        features: vec![1.0, 2.0, 0.0, 0.0],
        labels: vec![4.0, 3.0],
    };
    let mut problem = Regularization::logistic(&training, &training)?.problem(options);
    let (x, z) = (
        zoo::vector(&[2_f64.ln(), 0.0], &flex()),
        matrix(2, vec![3.0, -1.0], &flex()),
    );
    let batch = problem.draw();
    let expected = ((1.0 + (-1_f64).exp()).ln() + 2_f64.ln()) / 2.0 + 0.5 * (2.0 * 9.0 + 1.0);
    assert_relative_eq!(
        problem.loss(&x, &z, &batch).into_scalar::<f64>(),
        expected,
        max_relative = 1e-12
    );
    Ok(())
}

/// The benchmark's starts: random for logistic regression, by seed, and constant elsewhere.
#[test]
fn starts_are_those_of_the_benchmark() {
    let options = (&flex(), DType::F64);
    let start = |problem: Regularization, seed| {
        let (x, z) = problem.start(seed, options);
        (flatten(&x), flatten(&z))
    };
    assert_eq!(start(logistic(), 1), start(logistic(), 1));
    assert_ne!(start(logistic(), 1), start(logistic(), 2));
    let (x, z) = start(logistic(), 1);
    assert!(x.len() == 4 && x.iter().all(|x| *x <= 0.0) && z.len() == 4);
    assert_eq!(start(softmax(), 1), (vec![-2.0; 3], vec![0.0; 12]));
    let (x, z) = cleaning(Protocol::benchopt()).start(options);
    assert_eq!((flatten(&x), flatten(&z)), (vec![-2.0; 20], vec![0.0; 40]));
    let (x, z) = cleaning(Protocol::boat()).start(options);
    assert_eq!((flatten(&x), flatten(&z)), (vec![0.0; 20], vec![0.0; 50]));
}

/// Labels and tables that do not fit are errors that say what is there and what is possible.
#[test]
fn data_that_do_not_fit_are_refused() {
    let two = table(1, 6, 2, &[0.0, 1.0]);
    let measured = |labels: usize| {
        let labels: Vec<f64> = (0..labels).map(|label| label as f64 / 7.0).collect();
        table(1, labels.len(), 2, &labels)
    };
    let cases = [
        (
            Regularization::logistic(&table(1, 6, 2, &[1.0, 2.0, 3.0]), &two),
            "3 classes",
        ),
        (
            Regularization::logistic(&table(1, 6, 2, &[1.0]), &two),
            "1 classes",
        ),
        (
            Regularization::softmax(&table(1, 6, 2, &[1.0]), &two),
            "at least 2",
        ),
        (
            Regularization::softmax(&measured(1001), &two),
            "a set of 1001 classes, but must be a set of at least 2 classes and at most 1000",
        ),
        (
            Regularization::softmax(&measured(1001), &two),
            "is this column the label?",
        ),
        (
            Regularization::softmax(&two, &table(1, 6, 2, &[0.0, 4.0])),
            "label is 4",
        ),
        (
            Regularization::softmax(
                &two,
                &Table {
                    columns: 3,
                    ..two.clone()
                },
            ),
            "12 values of 6 samples and 3 columns",
        ),
        (
            Regularization::softmax(&two, &Table::default()),
            "0 samples",
        ),
    ];
    for (result, expected) in cases {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let few = logistic().stochastic(Minibatches::new(12, 2), Minibatches::new(12, 2), &flex());
    let message = few.unwrap_err().to_string();
    assert!(
        message.contains("of 12 samples") && message.contains("of 20 samples"),
        "{message}"
    );

    let images = Images::synthetic(30, 1);
    let refuse = |images: &Images, test: &Images, protocol: Protocol, expected: &str| {
        let message = HyperCleaning::new(images, test, &protocol)
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
    };
    let small = || Protocol::boat().sizes(20, 10);
    refuse(&images, &images, Protocol::boat(), "5000 and 5000");
    refuse(&images, &images, small().sizes(0, 5), "at least 1 each");
    refuse(
        &images,
        &images,
        small().sizes(usize::MAX, 5),
        "30 together",
    );
    for probability in [-0.1, 1.1, f64::NAN] {
        refuse(
            &images,
            &images,
            small().corruption(probability),
            "from 0 to 1",
        );
    }
    refuse(
        &images,
        &Images {
            size: 72,
            pixels: images.pixels[..30 * 72].to_vec(),
            ..images.clone()
        },
        small(),
        "72 pixels",
    );
    refuse(
        &Images {
            pixels: vec![0; 5],
            ..images.clone()
        },
        &images,
        small(),
        "5 pixels of 30 images",
    );
    refuse(
        &images,
        &Images {
            labels: vec![10; 30],
            ..images.clone()
        },
        small(),
        "labels from 0 to 9",
    );
    refuse(&images, &Images::synthetic(0, 1), small(), "not empty");

    let cleaning = HyperCleaning::new(&images, &images, &small()).unwrap();
    let (x, z) = cleaning.start(&flex());
    let wrong = matrix(3, vec![0.0; 30], &flex());
    assert!(
        cleaning
            .test_error(&wrong)
            .unwrap_err()
            .to_string()
            .contains("[145, 10]")
    );
    assert!(cleaning.test_error(&z).is_ok());
    assert!(
        cleaning
            .f1(&x, &[true; 3])
            .unwrap_err()
            .to_string()
            .contains("of length 20")
    );
    assert!(
        cleaning
            .f1(&zoo::vector(&[0.0], &flex()), cleaning.kept())
            .is_err()
    );
}

/// A label is replaced at the probability that was asked for, by each class alike: one in ten stays right. Kept labels
/// are right. The seed decides all of it.
#[test]
fn labels_are_corrupted_as_asked_for() {
    let images = Images::synthetic(20_010, 1);
    let test = Images::synthetic(1, 1);
    let new = |corruption, seed| {
        let protocol = Protocol::boat()
            .sizes(20_000, 10)
            .corruption(corruption)
            .seed(seed);
        HyperCleaning::new(&images, &test, &protocol).unwrap()
    };
    let share = |mask: &[bool]| mask.iter().filter(|&&yes| yes).count() as f64 / 20_000.0;
    for corruption in [0.0, 0.3, 0.5, 1.0] {
        let cleaning = new(corruption, 4);
        // Five standard deviations are at most .018.
        assert_abs_diff_eq!(share(cleaning.kept()), 1.0 - corruption, epsilon = 0.018);
        assert_abs_diff_eq!(
            share(cleaning.right()),
            1.0 - 0.9 * corruption,
            epsilon = 0.018
        );
        assert!(
            cleaning
                .kept()
                .iter()
                .zip(cleaning.right())
                .all(|(kept, right)| *right || !kept)
        );
    }
    assert_eq!(new(0.0, 1).right(), &[true; 20_000]);
    assert_eq!(new(0.5, 4).kept(), new(0.5, 4).kept());
    assert_ne!(new(0.5, 4).kept(), new(0.5, 5).kept());
}

/// Standardized pixels do not know the contrast of the images; raw ones do.
#[test]
fn benchopt_standardizes_pixels() {
    let dark = Images::synthetic(40, 1);
    let dark = Images {
        pixels: dark.pixels.iter().map(|p| p / 2).collect(),
        ..dark
    };
    let bright = Images {
        pixels: dark.pixels.iter().map(|p| 2 * p).collect(),
        ..dark.clone()
    };
    let loss = |images: &Images, protocol: Protocol| {
        let cleaning = HyperCleaning::new(images, images, &protocol.sizes(30, 10)).unwrap();
        let options = (&flex(), DType::F64);
        let (x, z) = cleaning.start(options);
        let random = |i: usize| (i as f64).sin();
        let z = matrix(
            z.dims()[0],
            (0..z.dims()[0] * 10).map(random).collect(),
            &flex(),
        );
        let mut problem = cleaning.problem(options);
        let batch = problem.draw();
        problem.loss(&x, &z, &batch).into_scalar::<f64>()
    };
    let [a, b] = [&dark, &bright].map(|images| loss(images, Protocol::benchopt()));
    assert_relative_eq!(a, b, max_relative = 1e-6);
    let [a, b] = [&dark, &bright].map(|images| loss(images, Protocol::boat()));
    assert!((a / b - 1.0).abs() > 0.1, "{a} {b}");
}

/// F1 of known guesses: of four labels, with one of two guessed right.
#[test]
fn f1_is_that_of_the_definition() {
    let images = Images::synthetic(14, 1);
    let protocol = Protocol::boat().sizes(4, 10);
    let cleaning = HyperCleaning::new(&images, &images, &protocol).unwrap();
    let f1 = |x: &[f64], mask: [bool; 4]| cleaning.f1(&zoo::vector(x, &flex()), &mask).unwrap();
    assert_abs_diff_eq!(
        f1(&[1.0, 0.0, -1.0, -1.0], [true, false, true, true]),
        2.0 / 5.0
    );
    assert_abs_diff_eq!(f1(&[1.0, -1.0, 1.0, 1.0], [true, false, true, true]), 1.0);
    assert_abs_diff_eq!(f1(&[-1.0; 4], [true; 4]), 0.0);
    assert_abs_diff_eq!(f1(&[-1.0; 4], [false; 4]), 0.0);
}

/// Learned weights find the wrong labels of a small set.
#[test]
fn wrong_labels_are_found() {
    let (images, test) = (Images::synthetic(1500, 1), Images::synthetic(1, 2));
    let cleaning = HyperCleaning::new(&images, &test, &Protocol::boat().sizes(1000, 500)).unwrap();
    let device = flex();
    let (x, z) = cleaning.start(&device);
    let method = ScaleBio::new(Update::adam(0.05), Update::adam(0.01));
    let solution = method.solve(cleaning.problem(&device), x, z, 150).unwrap();
    let f1 = cleaning.f1(&solution.upper, cleaning.right()).unwrap();
    // To guess that all labels are right has an F1 of .71.
    assert!(f1 > 0.8, "{f1}");
}
