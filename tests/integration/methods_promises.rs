//! What bilevel methods promise beside where they end: memory, draws, gradients, layers, clipping, settings, errors.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use burn::module::{Module, ParamGroup};
use burn::tensor::Tensor;
use scalebio::methods::{Bda, Bome, F2sa, Method, NoU, Sama, Soba};
use scalebio::{
    ActiveLayers, Bilevel, Error, LayerSampler, Lisa, LowerObjective, Update, UpperObjective,
};

use crate::layers;
use crate::zoo::{self, Drawn, Vector, bits, coupled, flex, values};

fn sgd(rate: f64) -> Update {
    Update::sgd(rate)
}

type Boxed<F, G, W> = Box<dyn Method<F, G, Vector, W>>;

/// Every method of the field, with rates at which it is stable.
fn methods<F, G, W>() -> Vec<Boxed<F, G, W>>
where
    F: UpperObjective<Vector, W> + 'static,
    G: LowerObjective<Vector, W> + 'static,
    W: Module + 'static,
{
    vec![
        Box::new(F2sa::new(sgd(0.01), sgd(0.05)).inner_steps(3)),
        Box::new(Bome::new(sgd(0.01), sgd(0.05)).inner(3, 0.05)),
        Box::new(Sama::new(sgd(0.01), sgd(0.05))),
        Box::new(NoU::new(sgd(0.001), sgd(0.05))),
        Box::new(Bda::new(sgd(0.01), sgd(0.05))),
        Box::new(Soba::new(sgd(0.01), sgd(0.05))),
    ]
}

/// A lower variable whose copies can be counted.
#[derive(Module, Debug)]
struct Counted {
    w: Vector,
    #[module(skip)]
    copies: Arc<()>,
}

/// How many models a run holds, between steps and where a loss is computed: one that needs no `u` holds one, and with
/// no difference or inner loop never a second.
#[test]
fn a_method_without_u_holds_one_model() {
    let promised = [
        ("f2sa", 2, 2),
        ("bome", 1, 2),
        ("sama", 1, 2),
        ("no_u", 1, 1),
        ("bda", 2, 2),
        ("soba", 2, 3),
    ];
    let peak = Rc::new(Cell::new(0));
    let seen = |w: &Counted, peak: &Cell<usize>| {
        peak.set(peak.get().max(Arc::strong_count(&w.copies) - 1)); // the test's own handle
    };
    let (upper_peak, lower_peak) = (peak.clone(), peak.clone());
    let upper = Rc::new(move |x: &Vector, w: &Counted| {
        seen(w, &upper_peak);
        coupled::upper_loss(x, &w.w)
    });
    let lower = Rc::new(move |x: &Vector, w: &Counted| {
        seen(w, &lower_peak);
        coupled::lower_loss(x, &w.w)
    });
    for (i, (name, between, at_most)) in promised.into_iter().enumerate() {
        let (upper, lower) = (upper.clone(), lower.clone());
        let problem = Bilevel {
            upper: move |x: &Vector, w: &Counted| upper(x, w),
            lower: move |x: &Vector, w: &Counted| lower(x, w),
        };
        let method: Boxed<_, _, Counted> = methods().swap_remove(i);
        assert_eq!(method.name(), name);
        let copies = Arc::new(());
        let w = Counted {
            w: zoo::vector(&coupled::W, &flex()),
            copies: copies.clone(),
        };
        let x = zoo::vector(&coupled::X, &flex());
        let mut run = method.start_boxed(problem, x, w).unwrap();
        peak.set(0);
        for _ in 0..3 {
            run.next().unwrap().unwrap();
            assert_eq!(Arc::strong_count(&copies) - 1, between, "{name}");
        }
        assert_eq!(peak.get(), at_most, "{name}");
    }
}

/// Gradients a step as documented, and a step that says so; the penalty and `u` where there are any.
#[test]
fn steps_report_gradients_penalty_and_u() {
    let promised = [
        (12, true, true),
        (5, true, true),
        (4, false, false),
        (2, true, false),
        (3, true, true),
        (4, false, false),
    ];
    for (method, (calls, penalty, u)) in methods().into_iter().zip(promised) {
        let name = method.name();
        let (x, w) = (
            zoo::vector(&coupled::X, &flex()),
            zoo::vector(&coupled::W, &flex()),
        );
        let problem = coupled::problem();
        let mut run = method.start_boxed(problem, x, w).unwrap();
        for k in 0..3 {
            let step = run.next().unwrap().unwrap();
            // SOBA's v is zero at first: its products need no gradient.
            let calls = if name == "soba" && k == 0 { 2 } else { calls };
            assert_eq!((step.index(), step.gradient_calls()), (k, calls), "{name}");
            assert_eq!(step.penalty().is_finite(), penalty, "{name}");
            assert_eq!(step.auxiliary_loss().is_finite(), u, "{name}");
            let rates = step.learning_rates();
            assert!(rates.upper > 0.0 && rates.lower > 0.0, "{name}");
            assert!(step.gradient_norms().upper > 0.0, "{name}");
        }
    }
}

/// The penalty of F2SA is a sum of what it grows by, that of BDA belongs to its share.
#[test]
fn penalties_grow_as_documented() {
    let penalties = |method: Boxed<_, _, Vector>| -> Vec<f64> {
        let (x, w) = (
            zoo::vector(&coupled::X, &flex()),
            zoo::vector(&coupled::W, &flex()),
        );
        let run = method.start_boxed(coupled::problem(), x, w).unwrap();
        run.take(3).map(|step| step.unwrap().penalty()).collect()
    };
    let f2sa = F2sa::new(sgd(0.01), sgd(0.01))
        .penalty(2.0)
        .growth(0.5, 1.0);
    let given = penalties(Box::new(f2sa));
    assert!(zoo::largest_difference(&given, &[2.0, 2.5, 2.75]) < 1e-12);
    let bda = Bda::new(sgd(0.01), sgd(0.01)).share(0.5, 1.0);
    let given = penalties(Box::new(bda));
    assert!(zoo::largest_difference(&given, &[1.0, 3.0, 5.0]) < 1e-12);
}

/// F2SA draws anew in each inner iteration and once more for `x`, and `u` and `w` share each lower draw.
#[test]
fn f2sa_draws_anew_for_each_inner_iteration_and_shares_lower_draws() {
    let used = Rc::new(RefCell::new((Vec::new(), Vec::new())));
    let counter = || {
        let mut drawn = 0;
        move || {
            drawn += 1;
            Ok(vec![f64::from(drawn)])
        }
    };
    let (by_upper, by_lower) = (used.clone(), used.clone());
    let problem = Bilevel {
        upper: Drawn::new(counter(), move |x: &Vector, w: &Vector, draw: &f64| {
            by_upper.borrow_mut().0.push(*draw);
            coupled::upper_loss(x, w)
        }),
        lower: Drawn::new(counter(), move |x: &Vector, w: &Vector, draw: &f64| {
            by_lower.borrow_mut().1.push(*draw);
            coupled::lower_loss(x, w)
        }),
    };
    let (x, w) = (
        zoo::vector(&coupled::X, &flex()),
        zoo::vector(&coupled::W, &flex()),
    );
    let method = F2sa::new(sgd(0.01), sgd(0.01)).inner_steps(2);
    let mut run = method.start(problem, x, w).unwrap();
    run.next().unwrap().unwrap();
    let (upper, lower) = &*used.borrow();
    assert_eq!(bits(upper), bits(&[1.0, 2.0, 3.0]));
    assert_eq!(bits(lower), bits(&[1.0, 1.0, 2.0, 2.0, 3.0, 3.0]));
}

/// At the start `u = w`: BDA's gap is exactly zero there, and not rounding noise that Adam would make a full step of.
#[test]
fn the_first_gap_of_bda_is_exactly_zero() {
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| w.val().square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val().sin() * x.val().exp() + w.val().square()).sum(),
    };
    let (x, w) = (
        zoo::vector(&coupled::X, &flex()),
        zoo::vector(&coupled::W, &flex()),
    );
    let mut run = Bda::new(Update::adam(0.1), sgd(0.1))
        .start(problem, x, w)
        .unwrap();
    run.next().unwrap().unwrap();
    assert_eq!(bits(&values(run.upper().val())), bits(&coupled::X));
    run.next().unwrap().unwrap();
    assert_ne!(bits(&values(run.upper().val())), bits(&coupled::X));
}

/// A model of two layers.
#[derive(Module, Debug)]
struct Layers {
    body: Vector,
    head: Vector,
}

struct HeadThenBody;

impl LayerSampler for HeadThenBody {
    fn sample(&mut self, step: usize) -> Option<ActiveLayers> {
        let active = |path: &str| Some(ActiveLayers::same(ParamGroup::from_path(path)));
        match step {
            0 => active("head"),
            2 => active("body"),
            _ => None,
        }
    }
}

type LayersLoss = fn(&Vector, &Layers) -> Tensor<1>;

/// `F = 1/2 |head - 3|^2 + 1/2 |body + 2|^2`, `G = 1/2 |head - x|^2 + 1/2 |body + x|^2 + body head`.
fn layered() -> (Bilevel<LayersLoss, LayersLoss>, Vector, Layers) {
    let problem = Bilevel {
        upper: (|_, w| ((w.head.val() - 3.0).square() + (w.body.val() + 2.0).square()) * 0.5)
            as LayersLoss,
        lower: (|x, w| {
            let fit = (w.head.val() - x.val()).square() + (w.body.val() + x.val()).square();
            fit * 0.5 + w.body.val() * w.head.val()
        }) as LayersLoss,
    };
    let layers = Layers {
        body: zoo::vector(&[0.3], &flex()),
        head: zoo::vector(&[-0.4], &flex()),
    };
    (problem, zoo::vector(&[0.5], &flex()), layers)
}

/// The methods for language models train the layers they are told to, from the difference of SAMA too.
#[test]
fn sama_and_no_u_train_only_the_active_layers() {
    let adam = || Update::adamw(0.01);
    let sama: Boxed<_, _, Layers> = Box::new(Sama::new(sgd(0.1), adam()).layers(HeadThenBody));
    let no_u: Boxed<_, _, Layers> = Box::new(NoU::new(sgd(0.1), adam()).layers(HeadThenBody));
    for method in [sama, no_u] {
        let name = method.name();
        let (problem, x, w) = layered();
        let mut run = method.start_boxed(problem, x, w).unwrap();
        for k in 0..4 {
            let before = [&run.lower().head, &run.lower().body].map(|p| bits(&values(p.val())));
            let x = bits(&values(run.upper().val()));
            run.next().unwrap().unwrap();
            let after = [&run.lower().head, &run.lower().body].map(|p| bits(&values(p.val())));
            let moved = [before[0] != after[0], before[1] != after[1]];
            assert_eq!(moved, [k < 2, k >= 2], "{name} at {k}");
            // SAMA knows nothing of a layer before Adam has moved it once.
            let waits = name == "sama" && [0, 2].contains(&k);
            assert_eq!(
                x != bits(&values(run.upper().val())),
                !waits,
                "{name} at {k}"
            );
        }
    }
}

/// The gradient of `w` that moves it has at most the given norm; reported is the whole one. `x` is not clipped.
#[test]
fn sama_and_no_u_clip_the_gradient_of_w_by_its_global_norm() {
    let sama = |clip| -> Boxed<_, _, Layers> { Box::new(Sama::new(sgd(1.0), sgd(1.0)).clip(clip)) };
    let no_u = |clip| -> Boxed<_, _, Layers> {
        Box::new(NoU::new(sgd(1.0), sgd(1.0)).share(0.5).clip(clip))
    };
    // At x = .5, body = .3, head = -.4: grad G = (head: -.6, body: .4), grad F = (-3.4, 2.3), grad_x G = 1.7.
    let sama_x = 0.5 - (-3.4 - 2.3); // H_xw = (-1, 1)
    let cases = [
        (
            sama as fn(f64) -> Boxed<LayersLoss, LayersLoss, Layers>,
            [-0.6, 0.4],
            sama_x,
        ),
        (no_u, [-2.0, 1.35], 0.5 - 1.7),
    ];
    for (method, [head, body], x_after) in cases {
        let norm = f64::hypot(head, body);
        for clip in [0.1, 100.0] {
            let scale = f64::min(1.0, clip / norm);
            let (problem, x, w) = layered();
            let mut run = method(clip).start_boxed(problem, x, w).unwrap();
            let step = run.next().unwrap().unwrap();
            assert!((step.gradient_norms().lower - norm).abs() < 1e-12);
            let given = [&run.lower().head, &run.lower().body].map(|p| values(p.val())[0]);
            let expected = [-0.4 - scale * head, 0.3 - scale * body];
            assert!(
                zoo::largest_difference(&given, &expected) < 1e-12,
                "{given:?}"
            );
            let x = values(run.upper().val())[0];
            assert!((x - x_after).abs() < 1e-8, "{x}");
        }
    }
}

/// Settings that cannot work are errors at the start, which say what was given and what is possible.
#[test]
fn impossible_settings_are_errors() {
    type Words = [&'static str; 2];
    fn all<F, G>() -> Vec<(Boxed<F, G, Vector>, Words)>
    where
        F: UpperObjective<Vector, Vector> + 'static,
        G: LowerObjective<Vector, Vector> + 'static,
    {
        let (f2sa, bda) = (
            || F2sa::new(sgd(0.1), sgd(0.1)),
            || Bda::new(sgd(0.1), sgd(0.1)),
        );
        let bome = || Bome::new(sgd(0.1), sgd(0.1));
        let (sama, no_u) = (
            || Sama::new(sgd(0.1), sgd(0.1)),
            || NoU::new(sgd(0.1), sgd(0.1)),
        );
        let mut all: Vec<(Boxed<F, G, Vector>, _)> = vec![
            (
                Box::new(f2sa().inner_steps(0)),
                ["inner steps is 0", "at least 1"],
            ),
            (
                Box::new(f2sa().auxiliary(sgd(0.0))),
                ["auxiliary", "greater than 0"],
            ),
            (
                Box::new(f2sa().growth(-0.1, 0.5)),
                ["-0.1 / (k + 1)^0.5", "at least 0"],
            ),
            (
                Box::new(f2sa().growth(0.1, f64::NAN)),
                ["0.1 / (k + 1)^NaN", "at least 0"],
            ),
            (Box::new(bome().inner(0, 0.1)), ["0 of rate", "at least 1"]),
            (
                Box::new(bome().inner(5, -0.1)),
                ["5 of rate", "greater than 0"],
            ),
            (
                Box::new(bda().auxiliary(sgd(-1.0))),
                ["auxiliary", "greater than 0"],
            ),
            (
                Box::new(bda().share(0.5, -1.0)),
                ["0.5 / (k + 1)^-1", "at least 0"],
            ),
            (
                Box::new(sama().layers(Lisa::over(&layers::model(), "blocks").unwrap().active(0))),
                ["0 blocks", "from 1 to 12"],
            ),
            (
                Box::new(no_u().layers(Lisa::over(&layers::model(), "blocks").unwrap().active(0))),
                ["0 blocks", "from 1 to 12"],
            ),
            (
                Box::new(Sama::new(sgd(0.0), sgd(0.1))),
                ["upper variable", "greater than 0"],
            ),
            (
                Box::new(NoU::new(sgd(0.1), sgd(f64::NAN))),
                ["lower variable", "NaN"],
            ),
        ];
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            all.push((Box::new(f2sa().penalty(bad)), ["penalty", "greater than 0"]));
            all.push((Box::new(bome().eta(bad)), ["eta", "greater than 0"]));
            all.push((Box::new(sama().clip(bad)), ["clip", "greater than 0"]));
            all.push((Box::new(no_u().clip(bad)), ["clip", "greater than 0"]));
        }
        for bad in [0.0, 1.0, -0.5, f64::NAN] {
            all.push((Box::new(no_u().share(bad)), ["share", "less than 1"]));
            all.push((Box::new(bda().share(bad, 0.5)), ["share", "less than 1"]));
        }
        all
    }
    for (method, words) in all() {
        let name = method.name();
        let (x, w) = (
            zoo::vector(&coupled::X, &flex()),
            zoo::vector(&coupled::W, &flex()),
        );
        let Err(error) = method.start_boxed(coupled::problem(), x, w) else {
            panic!("{name} starts where {words:?} should be said");
        };
        let text = error.to_string();
        assert!(matches!(error, Error::Setting { .. }), "{name}: {text}");
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{name}: {text}"
        );
    }
}

/// Rates that are far too large end in an error, and the variables that it leaves behind are numbers.
#[test]
fn a_run_that_diverges_ends_in_an_error_with_finite_variables() {
    fn all<F, G>() -> Vec<Boxed<F, G, Vector>>
    where
        F: UpperObjective<Vector, Vector> + 'static,
        G: LowerObjective<Vector, Vector> + 'static,
    {
        let rate = || sgd(1e6);
        vec![
            Box::new(F2sa::new(rate(), rate())),
            Box::new(Bome::new(rate(), rate())),
            Box::new(Sama::new(rate(), rate())),
            Box::new(NoU::new(rate(), rate())),
            Box::new(Bda::new(rate(), rate())),
        ]
    }
    for method in all() {
        let name = method.name();
        let (x, w) = (
            zoo::vector(&coupled::X, &flex()),
            zoo::vector(&coupled::W, &flex()),
        );
        let mut run = method.start_boxed(coupled::problem(), x, w).unwrap();
        let error = run.by_ref().take(200).find_map(Result::err);
        assert!(matches!(error, Some(Error::NonFinite { .. })), "{name}");
        assert!(run.next().is_none(), "{name}");
        let left = [values(run.upper().val()), values(run.lower().val())].concat();
        assert!(
            left.iter().all(|value| value.is_finite()),
            "{name}: {left:?}"
        );
    }
}
