//! Problems with closed forms, in float64 on the CPU devices.

use std::marker::PhantomData;

use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor};
use scalebio::{Bilevel, LowerObjective, Result, Run, UpperObjective};

pub type Vector = Param<Tensor<1>>;

/// Says something about a test that passes: the test runner keeps what is printed to itself.
#[allow(clippy::explicit_write)] // eprintln! is kept back too
pub fn say(message: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{message}").unwrap();
}

/// The CPU devices, with gradients.
#[allow(deprecated)] // Burn deprecates ndarray in favor of flex; this crate still supports it.
pub fn devices() -> [Device; 2] {
    [Device::flex().autodiff(), Device::ndarray().autodiff()]
}

pub fn flex() -> Device {
    Device::flex().autodiff()
}

pub fn tensor(values: &[f64], device: &Device) -> Tensor<1> {
    Tensor::from_data(values, (device, DType::F64))
}

pub fn vector(values: &[f64], device: &Device) -> Vector {
    Vector::from_tensor(tensor(values, device))
}

pub fn values(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

pub fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

/// The bits of numbers: equal only if bit-identical, NaN included.
pub fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Where a run of vectors stands: `x`, `w` and `u`.
pub fn state<F, G>(run: &Run<F, G, Vector, Vector>) -> [Vec<f64>; 3]
where
    F: UpperObjective<Vector, Vector>,
    G: LowerObjective<Vector, Vector>,
{
    [run.upper(), run.lower(), run.auxiliary()].map(|variable| values(variable.val()))
}

/// An objective over vectors, with a draw and a loss of the test's own.
pub struct Drawn<B, S, L> {
    draw: S,
    loss: L,
    batch: PhantomData<B>,
}

impl<B, S, L> Drawn<B, S, L>
where
    S: FnMut() -> Result<Vec<B>>,
    L: Fn(&Vector, &Vector, &B) -> Tensor<1>,
{
    pub fn new(draw: S, loss: L) -> Self {
        Self {
            draw,
            loss,
            batch: PhantomData,
        }
    }
}

impl<B, S, L> UpperObjective<Vector, Vector> for Drawn<B, S, L>
where
    S: FnMut() -> Result<Vec<B>>,
    L: Fn(&Vector, &Vector, &B) -> Tensor<1>,
{
    type Batch = B;

    fn sample(&mut self) -> Result<Vec<B>> {
        (self.draw)()
    }

    fn loss(&self, x: &Vector, w: &Vector, batch: &B) -> Tensor<1> {
        (self.loss)(x, w, batch)
    }
}

impl<B, S, L> LowerObjective<Vector, Vector> for Drawn<B, S, L>
where
    S: FnMut() -> Result<Vec<B>>,
    L: Fn(&Vector, &Vector, &B) -> Tensor<1>,
{
    type Batch = B;

    fn sample(&mut self) -> Result<Vec<B>> {
        (self.draw)()
    }

    fn loss(&self, x: &Vector, w: &Vector, batch: &B) -> Tensor<1> {
        (self.loss)(x, w, batch)
    }
}

pub fn softmax_of(logits: &[f64]) -> Vec<f64> {
    let exp: Vec<f64> = logits.iter().map(|logit| logit.exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// The three-source toy of algorithm.md, section 5: `l_i = 1/2 |w - c_i|^2`, `L1 = 1/2 |w - t|^2` with
/// `c` below, `p* = (.2, .3, .5)` and `t = p* C = (1.2, 2.0)`.
pub mod three_sources {
    use super::*;

    pub const CENTERS: [[f64; 2]; 3] = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]];
    pub const OPTIMUM: [f64; 3] = [0.2, 0.3, 0.5];
    pub const TARGET: [f64; 2] = [1.2, 2.0];

    pub fn upper_loss(w: &[Tensor<1>; 2]) -> Tensor<1> {
        let [a, b] = w.clone();
        ((a - TARGET[0]).square() + (b - TARGET[1]).square()) * 0.5
    }

    /// `sum_i p_i l_i(w)`, with `w` as two coordinates of shape `[1]`.
    pub fn lower_loss(logits: Tensor<1>, w: &[Tensor<1>; 2]) -> Tensor<1> {
        let p = softmax(logits, 0);
        let mut sum: Option<Tensor<1>> = None;
        for (i, center) in CENTERS.iter().enumerate() {
            let [a, b] = w.clone();
            let loss = ((a - center[0]).square() + (b - center[1]).square()) * 0.5;
            let term = p.clone().narrow(0, i, 1) * loss;
            sum = Some(match sum {
                Some(sum) => sum + term,
                None => term,
            });
        }
        sum.unwrap()
    }

    fn coordinates(w: &Vector) -> [Tensor<1>; 2] {
        [w.val().narrow(0, 0, 1), w.val().narrow(0, 1, 1)]
    }

    pub fn problem()
    -> Bilevel<impl Fn(&Vector, &Vector) -> Tensor<1>, impl Fn(&Vector, &Vector) -> Tensor<1>> {
        Bilevel {
            upper: |_: &Vector, w: &Vector| upper_loss(&coordinates(w)),
            lower: |x: &Vector, w: &Vector| lower_loss(x.val(), &coordinates(w)),
        }
    }
}

/// Two pairs of numbers, in which both objectives depend on `x` and `w`, are not separable in them, and
/// the lower one is not quadratic:
/// `L1 = sum 1/2 (w - t)^2 + .3 x w + .1 x^2`, `L2 = sum 1/2 h (w - a x)^2 + .1 w^2 x`.
pub mod coupled {
    use super::*;

    pub const T: [f64; 2] = [1.0, -2.0];
    pub const H: [f64; 2] = [1.5, 0.7];
    pub const A: [f64; 2] = [0.8, -1.2];
    pub const X: [f64; 2] = [0.4, -0.3];
    pub const W: [f64; 2] = [0.5, 0.9];

    /// A constant with the device and the float type of `tensor`.
    fn like(values: &[f64], tensor: &Tensor<1>) -> Tensor<1> {
        Tensor::from_data(values, (&tensor.device(), tensor.dtype()))
    }

    pub fn upper_loss(x: &Vector, w: &Vector) -> Tensor<1> {
        let (x, w) = (x.val(), w.val());
        let t = like(&T, &w);
        ((w.clone() - t).square() * 0.5 + x.clone() * w * 0.3 + x.square() * 0.1).sum()
    }

    pub fn lower_loss(x: &Vector, w: &Vector) -> Tensor<1> {
        let (x, w) = (x.val(), w.val());
        let (a, h) = (like(&A, &w), like(&H, &w));
        let fit = (w.clone() - a * x.clone()).square() * h * 0.5;
        (fit + w.square() * x * 0.1).sum()
    }

    /// `c L1` above `L2`.
    pub fn scaled(
        c: f64,
    ) -> Bilevel<impl Fn(&Vector, &Vector) -> Tensor<1>, impl Fn(&Vector, &Vector) -> Tensor<1>>
    {
        Bilevel {
            upper: move |x: &Vector, w: &Vector| upper_loss(x, w) * c,
            lower: lower_loss,
        }
    }

    pub fn problem()
    -> Bilevel<impl Fn(&Vector, &Vector) -> Tensor<1>, impl Fn(&Vector, &Vector) -> Tensor<1>> {
        scaled(1.0)
    }
}

/// Regression or location samples by source, and models with a loss a sample, all in float64.
pub mod samples {
    use burn::tensor::TensorData;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};
    use scalebio::Result;
    use scalebio::reweight::{Pick, SampleLosses, Samples};

    use super::*;

    pub struct Normal(Xoshiro256PlusPlus);

    impl Normal {
        pub fn new(seed: u64) -> Self {
            Self(Xoshiro256PlusPlus::seed_from_u64(seed))
        }

        pub fn uniform(&mut self) -> f64 {
            self.0.random()
        }

        pub fn draw(&mut self) -> f64 {
            let (a, b): (f64, f64) = (self.uniform(), self.uniform());
            (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
        }
    }

    /// Rows of equal length, by source.
    #[derive(Clone, Debug)]
    pub struct Rows {
        pub sources: Vec<Vec<Vec<f64>>>,
        pub device: Device,
    }

    impl Rows {
        fn tensor(&self, picks: &[Pick]) -> Tensor<2> {
            let rows = picks
                .iter()
                .map(|pick| &self.sources[pick.source][pick.index]);
            let flat: Vec<f64> = rows.flatten().copied().collect();
            let width = flat.len() / picks.len();
            let data = TensorData::new(flat, [picks.len(), width]);
            Tensor::from_data(data, (&self.device, DType::F64))
        }
    }

    /// Points `y`; the loss of a model `w` is `1/2 |w - y|^2`.
    #[derive(Clone, Debug)]
    pub struct Points(pub Rows);

    #[derive(Clone, Debug)]
    pub struct PointBatch(pub Tensor<2>);

    impl Samples for Points {
        type Batch = PointBatch;

        fn sizes(&self) -> Vec<usize> {
            self.0.sources.iter().map(Vec::len).collect()
        }

        fn batch(&self, picks: &[Pick]) -> Result<PointBatch> {
            Ok(PointBatch(self.0.tensor(picks)))
        }
    }

    impl SampleLosses<PointBatch> for Vector {
        fn sample_losses(&self, batch: &PointBatch) -> Tensor<1> {
            let distance = batch.0.clone() - self.val().unsqueeze::<2>();
            distance.square().sum_dim(1).squeeze_dim::<1>(1) * 0.5
        }
    }

    /// Rows `(x, y)`; the loss of a linear model `w` is `1/2 (x.w - y)^2`.
    #[derive(Clone, Debug)]
    pub struct Regression(pub Rows);

    #[derive(Clone, Debug)]
    pub struct RegressionBatch(Tensor<2>);

    impl Samples for Regression {
        type Batch = RegressionBatch;

        fn sizes(&self) -> Vec<usize> {
            self.0.sources.iter().map(Vec::len).collect()
        }

        fn batch(&self, picks: &[Pick]) -> Result<RegressionBatch> {
            Ok(RegressionBatch(self.0.tensor(picks)))
        }
    }

    impl SampleLosses<RegressionBatch> for Vector {
        fn sample_losses(&self, batch: &RegressionBatch) -> Tensor<1> {
            let [rows, width] = batch.0.dims();
            let x = batch.0.clone().narrow(1, 0, width - 1);
            let y = batch.0.clone().narrow(1, width - 1, 1).reshape([rows]);
            let fit = x.matmul(self.val().unsqueeze_dim::<2>(1)).reshape([rows]);
            (fit - y).square() * 0.5
        }
    }
}
