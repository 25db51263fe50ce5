//! Settings: penalties and rates are those that were asked for, and what cannot work is an error that
//! says what was given and what is possible.

use burn::tensor::Tensor;
use scalebio::{Bilevel, Error, Lisa, Penalty, Result, ScaleBio, Schedule, Update};

use crate::zoo::{self, Drawn, Vector, bits, coupled, flex, largest_difference, state};

#[test]
fn stages_multiply_the_penalty_and_divide_all_rates_and_the_last_one_lasts() {
    let (x, w) = (
        zoo::vector(&coupled::X, &flex()),
        zoo::vector(&coupled::W, &flex()),
    );
    let method = ScaleBio::new(Update::sgd(0.02).linear(40), Update::sgd(0.01).cosine(30))
        .auxiliary(Update::sgd(0.03).exponential(0.9))
        .penalty(Penalty::geometric(1.0, 2.0, 3, 4));
    let mut run = method.start(coupled::problem(), x, w).unwrap();
    let mut reach = 0.0;
    for k in 0..20 {
        let scale = [1.0, 2.0, 4.0, 4.0, 4.0][k / 4];
        let step = run.next().unwrap().unwrap();
        assert_eq!(step.index(), k);
        let t = k as f64;
        let rates = step.learning_rates();
        let given = [step.penalty(), rates.upper, rates.lower, rates.auxiliary];
        let expected = [
            scale,
            0.02 * (1.0 - t / 40.0) / scale,
            0.01 * 0.5 * (1.0 + (std::f64::consts::PI * t / 30.0).cos()) / scale,
            0.03 * 0.9_f64.powf(t) / scale,
        ];
        assert!(largest_difference(&given, &expected) < 1e-15, "step {k}");
        reach += rates.upper;
        assert!((run.reach() - reach).abs() < 1e-15);
    }
    assert_eq!(run.steps(), 20);
}

#[test]
fn every_schedule_gives_the_documented_rates() {
    let table: [(Update, &[(usize, f64)]); 6] = [
        (Update::sgd(2.0), &[(0, 2.0), (7, 2.0), (1_000_000, 2.0)]),
        (
            Update::sgd(2.0).cosine(10),
            &[(0, 2.0), (5, 1.0), (10, 0.0), (15, 0.0), (20, 0.0)],
        ),
        (
            Update::sgd(2.0).cosine_with_warmup(12, 2),
            &[(0, 1.0), (1, 2.0), (2, 2.0), (7, 1.0), (12, 0.0), (22, 0.0)],
        ),
        (
            Update::sgd(2.0).linear(8),
            &[(0, 2.0), (2, 1.5), (4, 1.0), (8, 0.0), (9, 0.0)],
        ),
        (
            Update::sgd(2.0).exponential(0.5),
            &[(0, 2.0), (1, 1.0), (10, 2.0 / 1024.0)],
        ),
        (Update::sgd(2.0).exponential(1.0), &[(0, 2.0), (999, 2.0)]),
    ];
    for (update, rates) in table {
        for &(step, rate) in rates {
            let given = update.rate_at(step);
            assert!(
                (given - rate).abs() < 1e-12,
                "{update:?} at {step}: {given}"
            );
        }
        let all: Vec<f64> = (2..40).map(|step| update.rate_at(step)).collect();
        assert!(all.windows(2).all(|pair| pair[0] >= pair[1]), "{update:?}");
    }
    // The error of a decay that cannot work gives this number.
    assert!((Update::sgd(1.0).exponential(0.999).rate_at(693) - 0.5).abs() < 1e-3);
}

type Model = Vec<Vector>;

/// Both objectives linear: `L2 = 3 a_0 + 4 b_0` in two unequal shares, `L1 = 100 x_0 + 60 a_1 + 50 x_0 b_0`
/// with `x_0 = 0`.
fn linear_problem() -> Bilevel<
    impl Fn(&Vector, &Model) -> Tensor<1>,
    impl scalebio::LowerObjective<Vector, Model, Batch = [f64; 2]>,
> {
    struct Lower;
    impl scalebio::LowerObjective<Vector, Model> for Lower {
        type Batch = [f64; 2];

        fn sample(&mut self) -> scalebio::Result<Vec<[f64; 2]>> {
            Ok(vec![[50.0, -6.0], [-47.0, 10.0]])
        }

        fn loss(&self, _: &Vector, w: &Model, [a, b]: &[f64; 2]) -> Tensor<1> {
            w[0].val().narrow(0, 0, 1) * *a + w[1].val() * *b
        }
    }
    Bilevel {
        upper: |x: &Vector, w: &Model| x.val() * 100.0 + w[0].val().narrow(0, 1, 1) * 60.0,
        lower: Lower,
    }
}

#[test]
fn clipping_is_by_the_global_norm_of_u_and_of_w_after_micro_batches_are_summed() {
    let (alpha, rate) = (4.0, 0.1);
    let run_with = |clip: f64| {
        let w: Model = vec![
            zoo::vector(&[0.0, 0.0], &flex()),
            zoo::vector(&[0.0], &flex()),
        ];
        let mut run = ScaleBio::new(Update::sgd(rate), Update::sgd(rate))
            .penalty(alpha)
            .clip(clip)
            .start(linear_problem(), zoo::vector(&[0.0], &flex()), w)
            .unwrap();
        let step = run.next().unwrap().unwrap();
        let of = |model: &Model| -> Vec<f64> {
            let values = model.iter().flat_map(|p| zoo::values(p.val()));
            values.map(|value| value / -rate).collect()
        };
        let x = zoo::values(run.upper().val());
        (of(run.lower()), of(run.auxiliary()), x, step)
    };
    // The gradients are (12, 60, 16) of w, norm 63.25, and (12, 0, 16) of u, norm 20.
    let norm = 4000_f64.sqrt();
    let (w, u, x, step) = run_with(2.0);
    let scale = 2.0 * alpha / norm;
    let expected = [12.0 * scale, 60.0 * scale, 16.0 * scale];
    assert!(largest_difference(&w, &expected) < 1e-12, "{w:?}");
    assert!(largest_difference(&u, &[4.8, 0.0, 6.4]) < 1e-12, "{u:?}");
    assert!(largest_difference(&x, &[-10.0]) < 1e-12, "{x:?}");
    let norms = step.gradient_norms();
    let given = [norms.upper, norms.lower, norms.auxiliary];
    assert!(largest_difference(&given, &[100.0, norm, 20.0]) < 1e-12);
    // A limit of 40 cuts w alone; one of 80, neither.
    let (w, u, ..) = run_with(10.0);
    let scale = 10.0 * alpha / norm;
    let expected = [12.0 * scale, 60.0 * scale, 16.0 * scale];
    assert!(largest_difference(&w, &expected) < 1e-12, "{w:?}");
    assert!(largest_difference(&u, &[12.0, 0.0, 16.0]) < 1e-12, "{u:?}");
    let (w, ..) = run_with(20.0);
    assert!(largest_difference(&w, &[12.0, 60.0, 16.0]) < 1e-12, "{w:?}");
}

/// The error of starting the coupled problem.
fn error_of(method: ScaleBio) -> Error {
    let (x, w) = (
        zoo::vector(&coupled::X, &flex()),
        zoo::vector(&coupled::W, &flex()),
    );
    let run = method.start(coupled::problem(), x, w);
    run.expect_err("a setting that cannot work")
}

fn sgd() -> ScaleBio {
    ScaleBio::new(Update::sgd(0.1), Update::sgd(0.1))
}

/// Settings that cannot work, each with words of its error: what was given, and what is possible.
fn impossible() -> Vec<(ScaleBio, [&'static str; 2])> {
    let mut all = Vec::new();
    for (penalty, given) in [
        (0.0, "is 0,"),
        (-1.0, "-1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        all.push((sgd().penalty(penalty), [given, "greater than 0"]));
    }
    for (growth, given) in [(0.5, "0.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let stages = Penalty::geometric(1.0, growth, 2, 5);
        all.push((sgd().penalty(stages), [given, "at least 1"]));
    }
    let none = Penalty::geometric(1.0, 2.0, 0, 5);
    all.push((sgd().penalty(none), ["0 of 5 steps", "at least 1 stage"]));
    let empty = Penalty::geometric(1.0, 2.0, 3, 0);
    all.push((sgd().penalty(empty), ["3 of 0 steps", "at least 1 step"]));

    for clip in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        all.push((sgd().clip(clip), ["clip", "greater than 0"]));
    }

    let mut updates = vec![];
    for (rate, given) in [
        (0.0, "rate 0,"),
        (-0.1, "rate -0.1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        updates.push((Update::sgd(rate), [given, "greater than 0"]));
    }
    for betas in [(1.0, 0.999), (0.9, 1.0), (-0.1, 0.5), (f32::NAN, 0.5)] {
        let update = Update::adam(0.1).betas(betas.0, betas.1);
        updates.push((update, ["betas: (", "betas in [0, 1)"]));
    }
    for epsilon in [0.0, -1e-8, f32::NAN, f32::INFINITY] {
        let update = Update::adamw(0.1).epsilon(epsilon);
        updates.push((update, ["epsilon: ", "epsilon greater than 0"]));
    }
    for decay in [-0.1, f32::NAN, f32::INFINITY] {
        let update = Update::adamw(0.1).weight_decay(decay);
        updates.push((update, ["weight_decay: ", "weight decay at least 0"]));
    }
    updates.push((
        Update::sgd(0.1).epsilon(1e-3),
        ["`epsilon`", "Update::adam"],
    ));
    updates.push((
        Update::sgd(0.1).betas(0.5, 0.5),
        ["`betas`", "Update::adam"],
    ));
    let decayed = Update::sgd(0.1).weight_decay(0.1);
    updates.push((decayed, ["`weight_decay`", "Update::adam"]));
    let cosine = |steps, warmup| Update::sgd(0.1).cosine_with_warmup(steps, warmup);
    updates.push((cosine(0, 0), ["0 steps", "at least 1 step"]));
    updates.push((cosine(5, 5), ["5 steps with 5 of", "fewer of warm-up"]));
    updates.push((cosine(5, 9), ["5 steps with 9 of", "fewer of warm-up"]));
    updates.push((Update::sgd(0.1).linear(0), ["0 steps", "at least 1 step"]));
    for (decay, given) in [
        (1.5, "1.5"),
        (0.0, "is 0,"),
        (-0.5, "-0.5"),
        (f64::NAN, "NaN"),
    ] {
        let update = Update::sgd(0.1).exponential(decay);
        updates.push((update, [given, "at most 1"]));
    }
    for (update, words) in updates {
        let good = || Update::sgd(0.1);
        all.push((ScaleBio::new(update.clone(), good()), words));
        all.push((
            ScaleBio::new(good(), update.clone()).auxiliary(good()),
            words,
        ));
        all.push((sgd().auxiliary(update), words));
    }

    let blocks: Vec<Vector> = (0..4).map(|_| zoo::vector(&[0.0], &flex())).collect();
    let lisa = || Lisa::over(&blocks, "").unwrap();
    all.push((sgd().layers(lisa().active(0)), ["0 blocks", "from 1 to 4"]));
    all.push((sgd().layers(lisa().active(5)), ["5 blocks", "from 1 to 4"]));
    all.push((
        sgd().layers(lisa().period(0)),
        ["0 steps", "at least 1 step"],
    ));
    all
}

#[test]
fn what_cannot_work_is_an_error_with_what_was_given_and_what_is_allowed() {
    for (method, words) in impossible() {
        let error = error_of(method);
        assert!(matches!(error, Error::Setting { .. }), "{error:?}");
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
}

#[test]
fn an_error_of_an_update_says_whose_it_is() {
    let bad = || Update::sgd(-1.0);
    let good = || Update::sgd(1.0);
    let name = |method| error_of(method).to_string();
    assert!(name(ScaleBio::new(bad(), good())).contains("upper variable"));
    assert!(name(ScaleBio::new(good(), bad())).contains("lower variable"));
    let auxiliary = ScaleBio::new(good(), good()).auxiliary(bad());
    assert!(name(auxiliary).contains("auxiliary variable"));
}

#[test]
fn the_rates_of_a_schedule_that_cannot_work_do_not_panic() {
    // They can be asked for before `start` refuses them.
    for schedule in [
        Schedule::Cosine {
            steps: 0,
            warmup: 0,
        },
        Schedule::Cosine {
            steps: 3,
            warmup: 5,
        },
        Schedule::Linear { steps: 0 },
    ] {
        let update = Update::sgd(1.0).schedule(schedule);
        assert!(
            (0..9).all(|step| !update.rate_at(step).is_nan()),
            "{schedule:?}"
        );
    }
    for (stages, steps) in [(0, 0), (0, 5), (3, 0)] {
        assert!(Penalty::geometric(1.0, 2.0, stages, steps).at(7) >= 1.0);
    }
}

#[test]
fn variables_without_gradients_are_an_error_that_names_the_variable() {
    let plain = || zoo::vector(&coupled::X, &flex().inner());
    let tracked = || zoo::vector(&coupled::X, &flex());
    let frozen = || tracked().set_require_grad(false);
    for (x, w, name) in [
        (plain(), tracked(), "upper variable"),
        (tracked(), plain(), "lower variable"),
        (frozen(), tracked(), "upper variable"),
        (tracked(), frozen(), "lower variable"),
    ] {
        let error = sgd().start(coupled::problem(), x, w).err().unwrap();
        assert!(matches!(error, Error::NotTrainable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("autodiff"), "{text}");
    }
}

type Loss = Box<dyn Fn(&Vector, &Vector) -> Tensor<1>>;

/// The error of a first step with these losses, after which nothing has moved.
fn error_of_step(upper: Loss, lower: Loss) -> Error {
    let (x, w) = (
        zoo::vector(&coupled::X, &flex()),
        zoo::vector(&coupled::W, &flex()),
    );
    let mut run = sgd().start(Bilevel { upper, lower }, x, w).unwrap();
    let before = state(&run);
    let error = run.next().unwrap().unwrap_err();
    assert!(run.next().is_none());
    assert_eq!(bits(&state(&run).concat()), bits(&before.concat()));
    error
}

#[test]
fn a_loss_must_be_one_number_that_can_be_differentiated() {
    let good = || -> Loss { Box::new(coupled::lower_loss) };
    let two = || -> Loss { Box::new(|_: &Vector, w: &Vector| w.val() * 2.0) };
    for error in [error_of_step(two(), good()), error_of_step(good(), two())] {
        assert!(matches!(error, Error::NotScalar { elements: 2 }), "{error}");
        assert!(error.to_string().contains("2 elements"), "{error}");
    }
    let constants: [fn() -> Loss; 4] = [
        || Box::new(|_, _| zoo::tensor(&[1.0], &flex())),
        || Box::new(|_, w: &Vector| w.val().inner().sum()),
        // Burn lets a detached parameter require a gradient, as a leaf of its own.
        || Box::new(|_, w: &Vector| w.val().detach().sum()),
        || Box::new(|x: &Vector, w: &Vector| (x.val().detach() * w.val().detach()).sum()),
    ];
    for constant in constants {
        for error in [
            error_of_step(constant(), good()),
            error_of_step(good(), constant()),
        ] {
            assert!(matches!(error, Error::NotDifferentiable), "{error}");
        }
    }
}

#[test]
fn an_empty_draw_is_an_error_that_names_the_objective() {
    let draw = |batches: usize| move || -> Result<Vec<()>> { Ok(vec![(); batches]) };
    let upper = |x: &Vector, w: &Vector, (): &()| coupled::upper_loss(x, w);
    let lower = |x: &Vector, w: &Vector, (): &()| coupled::lower_loss(x, w);
    for (batches, name) in [([0, 1], "upper objective"), ([1, 0], "lower objective")] {
        let problem = Bilevel {
            upper: Drawn::new(draw(batches[0]), upper),
            lower: Drawn::new(draw(batches[1]), lower),
        };
        let (x, w) = (
            zoo::vector(&coupled::X, &flex()),
            zoo::vector(&coupled::W, &flex()),
        );
        let mut run = sgd().start(problem, x, w).unwrap();
        let error = run.next().unwrap().unwrap_err();
        assert!(matches!(error, Error::EmptyDraw { step: 0, objective } if objective == name));
        assert!(run.next().is_none());
    }
}
