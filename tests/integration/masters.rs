//! Parameters in half precision are moved on float32 masters: no update is too small to count, and masters
//! are there for what trains only.

use burn::module::{Module, Param};
use burn::optim::{LionConfig, SgdConfig, momentum::MomentumConfig};
use burn::tensor::{DType, Tensor};
use proptest::prelude::*;
use scalebio::{Bilevel, Lisa, Moments, Run, ScaleBio, Update};

use crate::zoo::{Vector, bits, flex, values};

/// Slopes of the upper and the lower objective; with the penalty 2 their combinations are exact in bfloat16.
const UPPER: [f64; 3] = [0.5, -1.0, 0.25];
const LOWER: [f64; 3] = [1.5, -0.75, -0.5];

fn vector(numbers: &[f64], dtype: DType) -> Vector {
    Vector::from_tensor(Tensor::from_data(numbers, (&flex(), dtype)))
}

/// `w` and `u` after `steps` steps from `start` on objectives that are linear in `w`, so that gradients do not
/// depend on how `w` is rounded.
fn on_slopes(start: [f64; 3], dtype: DType, update: Update, steps: usize) -> [Tensor<1>; 2] {
    let slope = |numbers: [f64; 3], w: &Vector| {
        let numbers = Tensor::<1>::from_data(numbers, (&w.val().device(), w.val().dtype()));
        (w.val() * numbers).sum().cast(DType::F32)
    };
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| slope(UPPER, w),
        lower: |x: &Vector, w: &Vector| slope(LOWER, w) + x.val() * 0.0,
    };
    let solution = ScaleBio::new(Update::sgd(1.0), update)
        .penalty(2.0)
        .solve(
            problem,
            vector(&[0.0], DType::F32),
            vector(&start, dtype),
            steps,
        )
        .unwrap();
    [solution.lower.val(), solution.auxiliary.val()].map(Tensor::inner)
}

/// Updates of 1e-7 to 1e-5 and any start: the bfloat16 run is the float32 run, rounded.
fn equals_the_rounded_float32_run(start: [f64; 3], update: &Update, steps: usize) {
    // A start that both types can hold.
    let start = values(Tensor::from_data(start, (&flex(), DType::BF16)));
    let start = [start[0], start[1], start[2]];
    let narrow = on_slopes(start, DType::BF16, update.clone(), steps);
    let wide = on_slopes(start, DType::F32, update.clone(), steps);
    for (narrow, wide) in narrow.into_iter().zip(wide) {
        assert_eq!(narrow.dtype(), DType::BF16);
        let rounded = wide.cast(DType::BF16);
        assert_eq!(bits(&values(narrow)), bits(&values(rounded)), "{update:?}");
    }
}

#[test]
fn updates_far_below_half_precision_add_up() {
    // Half the distance of bfloat16 numbers just above 0.5 is 2e-3: without masters nothing would ever move.
    let start = [0.5, -0.5, 0.5078125];
    let updates = [
        (Update::sgd(1e-5), 400),
        (Update::adamw(1e-5), 400),
        (Update::new(LionConfig::new().build(), 1e-5), 400),
    ];
    for (update, steps) in updates {
        equals_the_rounded_float32_run(start, &update, steps);
        let [w, u] = on_slopes(start, DType::BF16, update.clone(), steps);
        for moved in [w, u] {
            assert!(values(moved) != start, "{update:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Also for Burn's optimizers with a state of their own.
    #[test]
    fn a_run_in_bfloat16_is_the_float32_run_rounded(
        start in prop::array::uniform3(-2.0..2.0_f64),
        exponent in -7.0..-5.0_f64,
        kind in 0..4_usize,
        steps in 1..60_usize,
    ) {
        let rate = 10.0_f64.powf(exponent);
        let update = match kind {
            0 => Update::sgd(rate),
            1 => Update::adamw(rate).weight_decay(0.01),
            2 => Update::adam(rate),
            _ => {
                let momentum = MomentumConfig::new();
                Update::new(SgdConfig::new().with_momentum(Some(momentum)).build(), rate)
            }
        };
        equals_the_rounded_float32_run(start, &update, steps);
    }
}

/// A head and four blocks.
#[derive(Module, Debug)]
struct Model {
    head: Vector,
    blocks: Vec<Vector>,
}

/// Numbers of the head, of a block, and of `x`.
const HEAD: usize = 5;
const BLOCK: usize = 3;

fn model(dtype: DType) -> Model {
    Model {
        head: vector(&[1.0; HEAD], dtype),
        blocks: vec![vector(&[0.5; BLOCK], dtype); 4]
            .into_iter()
            .map(|block| Vector::from_tensor(block.val().detach()))
            .collect(),
    }
}

type Loss = fn(&Vector, &Model) -> Tensor<1>;

fn run(dtype: DType, update: Update, moments: Moments) -> Run<Loss, Loss, Vector, Model> {
    fn pull(w: &Model, to: Tensor<1>) -> Tensor<1> {
        let all = w.blocks.iter().chain([&w.head]).map(Param::val).collect();
        (Tensor::cat(all, 0).cast(DType::F32) - to).square().sum()
    }
    let problem = Bilevel::<Loss, Loss> {
        upper: |_, w| pull(w, Tensor::from_data([2.0], (&flex(), DType::F32))),
        lower: |x, w| pull(w, x.val()),
    };
    let model = model(dtype);
    let lisa = Lisa::over(&model, "blocks").unwrap().active(2).period(1);
    ScaleBio::new(Update::sgd(0.01), update)
        .layers(lisa)
        .moments(moments)
        .start(problem, vector(&[0.0], DType::F32), model)
        .unwrap()
}

#[test]
fn masters_are_those_of_the_active_blocks_only() {
    // Numbers that train in w and u, and bytes of each: two moments, and a master in half precision.
    let active = 2 * (HEAD + 2 * BLOCK);
    let cases = [
        (DType::BF16, Update::adamw(1e-3), 3 * 4),
        (DType::F16, Update::adamw(1e-3), 3 * 4),
        (DType::F32, Update::adamw(1e-3), 2 * 4),
        (DType::BF16, Update::sgd(1e-3), 4),
        (DType::F32, Update::sgd(1e-3), 0),
        (DType::F64, Update::sgd(1e-3), 0),
    ];
    for (dtype, update, bytes) in cases {
        let mut run = run(dtype, update, Moments::Reset);
        assert_eq!(run.moment_bytes(), 0);
        for step in 0..20 {
            run.next().unwrap().unwrap();
            assert_eq!(run.moment_bytes(), active * bytes, "{dtype:?}, step {step}");
        }
        assert_eq!(run.lower().head.val().dtype(), dtype);
    }
}

#[test]
fn masters_are_kept_with_the_moments() {
    let mut run = run(DType::BF16, Update::adamw(1e-3), Moments::Keep);
    for step in run.by_ref().take(40) {
        step.unwrap();
    }
    assert_eq!(run.moment_bytes(), 2 * (HEAD + 4 * BLOCK) * 12);
}

/// A sum of many small micro-batch gradients beside a large one: in bfloat16 each small one would be lost.
#[test]
fn gradients_of_micro_batches_are_summed_in_float32() {
    struct Batches;

    impl scalebio::LowerObjective<Vector, Vector> for Batches {
        type Batch = f64;

        fn sample(&mut self) -> scalebio::Result<Vec<f64>> {
            Ok([&[1.0][..], &[1.0 / 512.0; 256]].concat())
        }

        fn loss(&self, x: &Vector, w: &Vector, batch: &f64) -> Tensor<1> {
            (w.val() * *batch).sum().cast(DType::F32) + x.val() * 0.0
        }
    }
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| w.val().sum().cast(DType::F32) * 0.0,
        lower: Batches,
    };
    let mut run = ScaleBio::new(Update::sgd(1.0), Update::sgd(1.0))
        .penalty(1.0)
        .start(
            problem,
            vector(&[0.0], DType::F32),
            vector(&[0.0], DType::BF16),
        )
        .unwrap();
    let step = run.next().unwrap().unwrap();
    approx::assert_abs_diff_eq!(step.gradient_norms().lower, 1.5, epsilon = 1e-6);
    assert_eq!(values(run.lower().val()), [-1.5]);
}
