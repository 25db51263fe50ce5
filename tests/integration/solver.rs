//! The step: equal to a computation by hand, fed as promised, with the penalties, rates and clipping
//! that were asked for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use burn::module::{Param, list_param_ids};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{LionConfig, SgdConfig};
use burn::tensor::{DType, Device, Tensor};
use scalebio::{Bilevel, Lisa, ScaleBio, Step, Update};

use crate::zoo::coupled::{A, H, T, W, X};
use crate::zoo::{self, Drawn, Vector, bits, coupled, devices, flex, largest_difference, state};

/// `(x, w, u)` of the coupled problem in plain numbers.
#[derive(Clone, Copy)]
struct Hand {
    x: [f64; 2],
    w: [f64; 2],
    u: [f64; 2],
}

impl Hand {
    const START: Self = Self { x: X, w: W, u: W };

    /// Gradients in `x`, `w` and `u`, all at the old point.
    fn gradients(&self, alpha: f64) -> [[f64; 2]; 3] {
        let Self { x, w, u } = *self;
        let of_w = |i: usize, w: f64| H[i] * (w - A[i] * x[i]) + 0.2 * w * x[i];
        let of_x = |i: usize, w: f64| -A[i] * H[i] * (w - A[i] * x[i]) + 0.1 * w * w;
        let both = |gradient: &dyn Fn(usize) -> f64| [gradient(0), gradient(1)];
        [
            both(&|i| 0.3 * w[i] + 0.2 * x[i] + alpha * (of_x(i, w[i]) - of_x(i, u[i]))),
            both(&|i| (w[i] - T[i]) + 0.3 * x[i] + alpha * of_w(i, w[i])),
            both(&|i| alpha * of_w(i, u[i])),
        ]
    }

    fn variables(&mut self) -> [&mut [f64; 2]; 3] {
        [&mut self.x, &mut self.w, &mut self.u]
    }

    fn difference(&self, state: &[Vec<f64>; 3]) -> f64 {
        let [x, w, u] = state;
        [(x, self.x), (w, self.w), (u, self.u)]
            .iter()
            .map(|(given, hand)| largest_difference(given, hand))
            .fold(0.0, f64::max)
    }
}

/// Rates of `x`, `w`, `u`.
const RATES: [f64; 3] = [0.05, 0.02, 0.03];

fn with_rates(update: impl Fn(f64) -> Update) -> ScaleBio {
    let [x, w, u] = RATES.map(update);
    ScaleBio::new(x, w).auxiliary(u)
}

fn start_at(device: &Device) -> (Vector, Vector) {
    (zoo::vector(&X, device), zoo::vector(&W, device))
}

#[test]
fn three_sgd_steps_equal_a_computation_by_hand() {
    let alpha = 3.0;
    for device in devices() {
        let (x, w) = start_at(&device);
        let method = with_rates(Update::sgd).penalty(alpha);
        let mut run = method.start(coupled::problem(), x, w).unwrap();
        let mut hand = Hand::START;
        for _ in 0..3 {
            let gradients = hand.gradients(alpha);
            let step = run.next().unwrap().unwrap();
            let norm = |g: [f64; 2]| g[0].hypot(g[1]);
            let norms = step.gradient_norms();
            let given = [norms.upper, norms.lower, norms.auxiliary];
            assert!(largest_difference(&given, &gradients.map(norm)) < 1e-13);
            for ((variable, g), rate) in hand.variables().into_iter().zip(gradients).zip(RATES) {
                (0..2).for_each(|i| variable[i] -= rate * g[i]);
            }
            assert!(hand.difference(&state(&run)) < 1e-13);
        }
    }
}

#[test]
fn three_adam_steps_equal_a_computation_by_hand() {
    let alpha = 3.0;
    // Burn holds betas in single precision.
    let (beta_1, beta_2) = (f64::from(0.9_f32), f64::from(0.999_f32));
    for update in [Update::adam, Update::adamw] {
        let (x, w) = start_at(&flex());
        let method = with_rates(update).penalty(alpha);
        let mut run = method.start(coupled::problem(), x, w).unwrap();
        let mut hand = Hand::START;
        let (mut first, mut second) = ([[0.0; 2]; 3], [[0.0; 2]; 3]);
        for t in 1..=3 {
            let gradients = hand.gradients(alpha);
            for (k, variable) in hand.variables().into_iter().enumerate() {
                for i in 0..2 {
                    let g = gradients[k][i];
                    first[k][i] = beta_1 * first[k][i] + (1.0 - beta_1) * g;
                    second[k][i] = beta_2 * second[k][i] + (1.0 - beta_2) * g * g;
                    let mean = first[k][i] / (1.0 - beta_1.powi(t));
                    let square = second[k][i] / (1.0 - beta_2.powi(t));
                    variable[i] -= RATES[k] * mean / (square.sqrt() + 1e-8);
                }
            }
            run.next().unwrap().unwrap();
            let difference = hand.difference(&state(&run));
            assert!(difference < 1e-6, "{difference}");
        }
    }
}

#[test]
fn w_and_u_get_the_same_draw_and_the_upper_objective_one_of_its_own() {
    let (x, w) = start_at(&flex());
    let lower_id = w.id;
    let lower_calls = Rc::new(RefCell::new(Vec::new()));
    let upper_calls = Rc::new(RefCell::new(Vec::new()));
    let (lower_log, upper_log) = (Rc::clone(&lower_calls), Rc::clone(&upper_calls));
    // A draw is three (two) micro-batches with numbers that never come again.
    let (mut lower_draws, mut upper_draws) = (0, 0);
    let problem = Bilevel {
        upper: Drawn::new(
            move || {
                upper_draws += 1;
                Ok((0..2).map(|i| 1000 + 10 * upper_draws + i).collect())
            },
            move |x: &Vector, w: &Vector, batch: &usize| {
                upper_log.borrow_mut().push((*batch, w.id == lower_id));
                coupled::upper_loss(x, w)
            },
        ),
        lower: Drawn::new(
            move || {
                lower_draws += 1;
                Ok((0..3).map(|i| 10 * lower_draws + i).collect())
            },
            move |x: &Vector, w: &Vector, batch: &usize| {
                lower_log.borrow_mut().push((*batch, w.id == lower_id));
                coupled::lower_loss(x, w)
            },
        ),
    };
    let mut run = with_rates(Update::sgd).start(problem, x, w).unwrap();
    for step in 1..=4_usize {
        run.next().unwrap().unwrap();
        let mut calls = lower_calls.take();
        calls.sort_unstable();
        let each = |i| [(10 * step + i, false), (10 * step + i, true)];
        assert_eq!(calls, [each(0), each(1), each(2)].concat());
        let mut calls = upper_calls.take();
        calls.sort_unstable();
        let each = |i| (1000 + 10 * step + i, true);
        assert_eq!(calls, [each(0), each(1)]);
    }
}

#[test]
fn micro_batch_losses_are_summed() {
    // Shares of one loss: their sum is the loss, however it is cut.
    let run_of = |shares: [Vec<f64>; 2]| {
        let [upper, lower] = shares;
        let problem = Bilevel {
            upper: Drawn::new(
                move || Ok(upper.clone()),
                |x: &Vector, w: &Vector, share: &f64| coupled::upper_loss(x, w) * *share,
            ),
            lower: Drawn::new(
                move || Ok(lower.clone()),
                |x: &Vector, w: &Vector, share: &f64| coupled::lower_loss(x, w) * *share,
            ),
        };
        let (x, w) = start_at(&flex());
        let method = with_rates(Update::sgd).penalty(3.0);
        let mut run = method.start(problem, x, w).unwrap();
        let losses: Vec<f64> = (0..3)
            .map(|_| run.next().unwrap().unwrap())
            .flat_map(|step| [step.upper_loss(), step.lower_loss(), step.auxiliary_loss()])
            .collect();
        [state(&run).concat(), losses].concat()
    };
    let whole = run_of([vec![1.0], vec![1.0]]);
    let cut = run_of([vec![0.5, 0.75, -0.25], vec![0.1, 0.2, 0.3, 0.4]]);
    assert!(largest_difference(&whole, &cut) < 1e-13);
}

/// A lower loss that is slightly different at each call, as rounding on several threads may make it.
fn noisy_problem(
    depends_on_x: bool,
) -> Bilevel<impl Fn(&Vector, &Vector) -> Tensor<1>, impl Fn(&Vector, &Vector) -> Tensor<1>> {
    let calls = Cell::new(0);
    Bilevel {
        upper: move |x: &Vector, w: &Vector| {
            let own = (w.val() - 1.0).square().sum();
            if depends_on_x {
                own + x.val().square().sum()
            } else {
                own
            }
        },
        lower: move |x: &Vector, w: &Vector| {
            calls.set(calls.get() + 1);
            coupled::lower_loss(x, w) * (1.0 + 1e-6 * f64::from(calls.get()))
        },
    }
}

fn single_precision() -> (Vector, Vector) {
    let vector =
        |values: [f64; 2]| Vector::from_tensor(Tensor::from_data(values, (&flex(), DType::F32)));
    (vector(X), vector(W))
}

#[test]
fn the_first_step_has_no_gap_and_leaves_x_alone_if_the_upper_objective_does() {
    let (x, w) = single_precision();
    let method = with_rates(Update::adamw).penalty(100.0);
    let mut run = method.start(noisy_problem(false), x, w).unwrap();
    let [start, ..] = state(&run);
    let step = run.next().unwrap().unwrap();
    assert_eq!(step.value_gap().to_bits(), 0.0_f64.to_bits());
    assert_eq!(step.gradient_norms().upper.to_bits(), 0.0_f64.to_bits());
    assert_eq!(bits(&state(&run)[0]), bits(&start));
    // From the second step on the gap counts.
    let step = run.next().unwrap().unwrap();
    assert!(step.value_gap().abs() > 0.0 && step.gradient_norms().upper > 0.0);
    assert_ne!(bits(&state(&run)[0]), bits(&start));
}

#[test]
fn the_first_step_of_x_follows_the_upper_objective_alone() {
    let x_after_a_step = |update: fn(f64) -> Update, alpha: f64| {
        let (x, w) = single_precision();
        let method = with_rates(update).penalty(alpha);
        let mut run = method.start(noisy_problem(true), x, w).unwrap();
        let step = run.next().unwrap().unwrap();
        assert_eq!(step.value_gap().to_bits(), 0.0_f64.to_bits());
        state(&run)[0].clone()
    };
    for update in [Update::sgd, Update::adam, Update::adamw] {
        let x = x_after_a_step(update, 1e-6);
        assert_eq!(bits(&x), bits(&x_after_a_step(update, 1e4)));
        assert!(largest_difference(&x, &X) > 1e-3);
    }
}

type Model = Vec<Vector>;

/// `L1 = 1/2 |w - 1|^2`, `L2 = 1/2 |w - x_0|^2`, over all parameters.
fn pulled() -> Bilevel<impl Fn(&Vector, &Model) -> Tensor<1>, impl Fn(&Vector, &Model) -> Tensor<1>>
{
    let all = |w: &Model| Tensor::cat(w.iter().map(Param::val).collect(), 0);
    Bilevel {
        upper: move |_: &Vector, w: &Model| (all(w) - 1.0).square().sum() * 0.5,
        lower: move |x: &Vector, w: &Model| (all(w) - x.val()).square().sum() * 0.5,
    }
}

fn five_blocks() -> Model {
    let block = |i: i32| zoo::vector(&[f64::from(i), 0.5], &flex());
    (3..8).map(block).collect()
}

#[test]
fn u_and_w_never_share_parameter_ids() {
    let w = five_blocks();
    let ids = list_param_ids(&w);
    let lisa = Lisa::over(&w, "").unwrap().period(3);
    let mut run = ScaleBio::new(Update::adam(0.1), Update::adam(0.1))
        .layers(lisa)
        .start(pulled(), zoo::vector(&[0.0], &flex()), w)
        .unwrap();
    let of_u = list_param_ids(run.auxiliary());
    for _ in 0..30 {
        assert_eq!(list_param_ids(run.lower()), ids);
        assert_eq!(list_param_ids(run.auxiliary()), of_u);
        assert!(of_u.iter().all(|id| !ids.contains(id)));
        run.next().unwrap().unwrap();
    }
}

#[test]
fn parameters_that_the_user_froze_stay_bit_identical() {
    for lisa in [None, Some(3), Some(5)] {
        let mut w = five_blocks();
        w[1] = w[1].clone().set_require_grad(false);
        let frozen = bits(&zoo::values(w[1].val()));
        let mut method = ScaleBio::new(Update::sgd(0.1), Update::adamw(0.1).weight_decay(0.1));
        if let Some(active) = lisa {
            method = method.layers(Lisa::over(&w, "").unwrap().active(active).period(1));
        }
        let x = zoo::vector(&[0.0], &flex());
        let mut run = method.start(pulled(), x, w).unwrap();
        let moving = zoo::values(run.lower()[0].val());
        for _ in 0..20 {
            run.next().unwrap().unwrap();
            for model in [run.lower(), run.auxiliary()] {
                assert_eq!(bits(&zoo::values(model[1].val())), frozen);
                assert!(!model[1].val().is_require_grad());
            }
        }
        for model in [run.lower(), run.auxiliary()] {
            assert!(largest_difference(&zoo::values(model[0].val()), &moving) > 0.1);
        }
    }
}

#[test]
fn every_variable_keeps_its_float_type() {
    let all = [DType::F32, DType::F64];
    for (of_x, of_w) in all.into_iter().flat_map(|x| all.map(|w| (x, w))) {
        for device in devices() {
            let problem = Bilevel {
                upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
                lower: |x: &Vector, w: &Vector| {
                    (w.val() - x.val().cast(w.val().dtype())).square().sum()
                },
            };
            let vector =
                |dtype| Vector::from_tensor(Tensor::from_data([0.5, -0.5], (&device, dtype)));
            let solution = ScaleBio::new(Update::adam(0.1), Update::adamw(0.1).weight_decay(0.01))
                .auxiliary(Update::sgd(0.01))
                .clip(1.0)
                .solve(problem, vector(of_x), vector(of_w), 3)
                .unwrap();
            assert_eq!(solution.upper.val().dtype(), of_x);
            assert_eq!(solution.lower.val().dtype(), of_w);
            assert_eq!(solution.auxiliary.val().dtype(), of_w);
        }
    }
}

/// State and last step after `steps` steps of the coupled problem.
fn after(device: &Device, method: ScaleBio, c: f64, steps: usize) -> (Vec<f64>, Step) {
    let (x, w) = start_at(device);
    let mut run = method.start(coupled::scaled(c), x, w).unwrap();
    let last = run.by_ref().take(steps).map(Result::unwrap).last().unwrap();
    (state(&run).concat(), last)
}

#[test]
fn flex_and_ndarray_agree() {
    for update in [Update::sgd, Update::adam, Update::adamw] {
        let method = || with_rates(|rate| update(rate * 0.5).cosine(80)).clip(0.8);
        let [flex, ndarray] = devices().map(|device| after(&device, method(), 1.0, 60).0);
        let difference = largest_difference(&flex, &ndarray);
        assert!(difference < 1e-12, "{difference}");
    }
}

#[test]
fn scaling_the_upper_loss_and_the_penalty_is_undone_by_the_rates_of_sgd() {
    let device = flex();
    let scaled = |c: f64| {
        let method = with_rates(|rate| Update::sgd(rate / c)).penalty(3.0 * c);
        after(&device, method, c, 50).0
    };
    for c in [0.3, 7.0, 1000.0] {
        let difference = largest_difference(&scaled(1.0), &scaled(c));
        assert!(difference < 1e-12, "{c}: {difference}");
    }
}

#[test]
fn two_runs_with_the_same_settings_are_bit_identical_and_reading_steps_changes_nothing() {
    for device in devices() {
        let method = || with_rates(Update::adam).penalty(3.0).clip(5.0);
        let (plain, last) = after(&device, method(), 1.0, 40);
        let (x, w) = start_at(&device);
        let mut run = method().start(coupled::problem(), x, w).unwrap();
        for k in 0..40 {
            let step = run.next().unwrap().unwrap();
            let copy = step.clone();
            assert_eq!(copy, step);
            assert_eq!(format!("{step}"), format!("{copy}"));
            let (_, _, _) = (state(&run), run.moment_bytes(), run.reach());
            assert_eq!((step.index(), run.steps()), (k, k + 1));
            assert!(k < 39 || step == last);
        }
        assert_eq!(bits(&state(&run).concat()), bits(&plain));
    }
}

#[test]
fn x_and_w_may_start_as_clones_of_one_another() {
    let method = || with_rates(Update::sgd).penalty(3.0);
    let w = zoo::vector(&W, &flex());
    let clones = method().start(coupled::problem(), w.clone(), w).unwrap();
    let (x, w) = (zoo::vector(&W, &flex()), zoo::vector(&W, &flex()));
    let apart = method().start(coupled::problem(), x, w).unwrap();
    let after = |mut run: scalebio::Run<_, _, _, _>| {
        run.by_ref().take(3).for_each(|step| drop(step.unwrap()));
        state(&run).concat()
    };
    assert_eq!(bits(&after(clones)), bits(&after(apart)));
}

#[test]
fn copies_of_the_variables_stay_as_they_were_and_disturb_nothing() {
    let (x, w) = start_at(&flex());
    let mut copies = vec![[x.clone(), w.clone(), w.clone()]];
    let mut then = vec![[X.to_vec(), W.to_vec(), W.to_vec()]];
    let method = || with_rates(Update::adam).penalty(3.0);
    let mut run = method().start(coupled::problem(), x, w).unwrap();
    for _ in 0..5 {
        run.next().unwrap().unwrap();
        copies.push([run.upper(), run.lower(), run.auxiliary()].map(Clone::clone));
        then.push(state(&run));
    }
    for (copies, then) in copies.into_iter().zip(then) {
        assert_eq!(copies.map(|copy| zoo::values(copy.val())), then);
    }
    let (undisturbed, _) = after(&flex(), method(), 1.0, 5);
    assert_eq!(bits(&state(&run).concat()), bits(&undisturbed));
}

#[test]
fn solve_is_the_loop_of_the_steps() {
    let (x, w) = start_at(&flex());
    let method = || with_rates(Update::adamw).penalty(3.0);
    let solution = method().solve(coupled::problem(), x, w, 25).unwrap();
    assert_eq!(solution.steps, 25);
    let solved = [&solution.upper, &solution.lower, &solution.auxiliary];
    let solved: Vec<f64> = solved.iter().flat_map(|p| zoo::values(p.val())).collect();
    let (looped, _) = after(&flex(), method(), 1.0, 25);
    assert_eq!(bits(&solved), bits(&looped));
}

#[test]
fn a_step_prints_as_one_line_with_its_numbers() {
    let (_, step) = after(&flex(), with_rates(Update::sgd), 1.0, 7);
    let line = step.to_string();
    assert_eq!(line.lines().count(), 1);
    assert!(line.starts_with("step 6:"), "{line}");
    for loss in [step.upper_loss(), step.lower_loss(), step.auxiliary_loss()] {
        assert!(line.contains(&format!("{loss:.6}")), "{line}");
    }
}

#[test]
fn burn_optimizers_work_as_updates() {
    // Momentum 0.5 without dampening: v <- v / 2 + g.
    let momentum = || {
        let momentum = MomentumConfig::new().with_momentum(0.5).with_dampening(0.0);
        SgdConfig::new().with_momentum(Some(momentum)).build()
    };
    let alpha = 3.0;
    let (x, w) = start_at(&flex());
    let method = with_rates(|rate| Update::new(momentum(), rate)).penalty(alpha);
    let mut run = method.start(coupled::problem(), x, w).unwrap();
    let mut hand = Hand::START;
    let mut velocity = [[0.0; 2]; 3];
    for _ in 0..3 {
        let gradients = hand.gradients(alpha);
        for (k, variable) in hand.variables().into_iter().enumerate() {
            for i in 0..2 {
                velocity[k][i] = 0.5 * velocity[k][i] + gradients[k][i];
                variable[i] -= RATES[k] * velocity[k][i];
            }
        }
        run.next().unwrap().unwrap();
        assert!(hand.difference(&state(&run)) < 1e-12);
    }

    // Lion's first step is the rate in the direction of the sign.
    let (x, w) = start_at(&flex());
    let method = with_rates(|rate| Update::new(LionConfig::new().build(), rate)).penalty(alpha);
    let mut run = method.start(coupled::problem(), x, w).unwrap();
    run.next().unwrap().unwrap();
    let mut hand = Hand::START;
    let gradients = hand.gradients(alpha);
    for ((variable, g), rate) in hand.variables().into_iter().zip(gradients).zip(RATES) {
        (0..2).for_each(|i| variable[i] -= rate * g[i].signum());
    }
    assert!(hand.difference(&state(&run)) < 1e-12);
}
