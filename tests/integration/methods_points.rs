//! Where bilevel methods end: at the solution in closed form, or at the biased point that their documentation gives.

use burn::tensor::Tensor;
use scalebio::methods::{Bda, Bome, F2sa, Method, NoU, Sama, Soba};
use scalebio::{Bilevel, ScaleBio, Update};

use crate::zoo::{self, Vector, flex, largest_difference, softmax_of, three_sources, values};

type Loss = fn(&Vector, &Vector) -> Tensor<1>;
type Boxed<F, G> = Box<dyn Method<F, G, Vector, Vector>>;

fn sgd(rate: f64) -> Update {
    Update::sgd(rate)
}

/// `x` and `w` after `steps` steps from zeros.
fn end<F, G>(
    method: Boxed<F, G>,
    problem: Bilevel<F, G>,
    sizes: [usize; 2],
    steps: usize,
) -> [Vec<f64>; 2]
where
    F: scalebio::UpperObjective<Vector, Vector> + 'static,
    G: scalebio::LowerObjective<Vector, Vector> + 'static,
{
    let [x, w] = sizes.map(|size| zoo::vector(&vec![0.0; size], &flex()));
    let mut run = method.start_boxed(problem, x, w).unwrap();
    for step in run.by_ref().take(steps) {
        step.unwrap();
    }
    [values(run.upper().val()), values(run.lower().val())]
}

/// The three sources: all methods but the one without `u` find the weights `(.2, .3, .5)` (there, `grad_w F` is zero at
/// the solution, so that a penalty has no bias).
#[test]
fn methods_find_the_source_weights_of_the_closed_form() {
    fn method<F, G>(name: &str) -> (Boxed<F, G>, usize, f64)
    where
        F: scalebio::UpperObjective<Vector, Vector> + 'static,
        G: scalebio::LowerObjective<Vector, Vector> + 'static,
    {
        match name {
            "penalty" => {
                let method = ScaleBio::new(sgd(0.05), sgd(0.05));
                (Box::new(method.penalty(10.0)), 2000, 1e-9)
            }
            "f2sa" => (Box::new(F2sa::new(sgd(0.05), sgd(0.1))), 2000, 1e-9),
            "bome" => (Box::new(Bome::new(sgd(0.05), sgd(0.1))), 4000, 1e-9),
            "sama" => (Box::new(Sama::new(sgd(0.05), sgd(0.5))), 2000, 1e-9),
            "sama of Adam" => {
                let upper = Update::adam(0.01).epsilon(1e-2).power(0.5);
                let method = Sama::new(upper, Update::adamw(0.05).power(0.5));
                (Box::new(method), 4000, 1e-4)
            }
            "t1_t2" => {
                let method = Sama::t1_t2(sgd(0.01), Update::adam(0.1).power(0.6));
                (Box::new(method), 4000, 1e-5)
            }
            "bda" => (Box::new(Bda::new(sgd(0.05), sgd(0.5))), 2000, 1e-6),
            _ => (Box::new(Soba::new(sgd(0.05), sgd(0.5))), 1000, 1e-8),
        }
    }
    for name in [
        "penalty",
        "f2sa",
        "bome",
        "sama",
        "sama of Adam",
        "t1_t2",
        "bda",
        "soba",
    ] {
        let (method, steps, tolerance) = method(name);
        let [x, w] = end(method, three_sources::problem(), [3, 2], steps);
        let p = softmax_of(&x);
        let error = largest_difference(&p, &three_sources::OPTIMUM);
        assert!(error < tolerance, "{name}: {p:?}, {error:e}");
        let error = largest_difference(&w, &three_sources::TARGET);
        assert!(error < 10.0 * tolerance, "{name}: {w:?}, {error:e}");
    }
}

/// `F = 1/2 |w - t|^2 + c/2 |x|^2`, `G = 1/2 h |w - x|^2 + d/2 |x|^2`, with `t = (1, -2)`, `c = .5`, `h = 2`, `d = .3`.
fn shrunk() -> Bilevel<Loss, Loss> {
    Bilevel {
        upper: |x, w| {
            let t = zoo::tensor(&[1.0, -2.0], &w.val().device());
            ((w.val() - t).square() * 0.5 + x.val().square() * 0.25).sum()
        },
        lower: |x, w| ((w.val() - x.val()).square() + x.val().square() * 0.15).sum(),
    }
}

/// The solution is `x = t / (1 + c)`; what does not depend on `w` in `G` cannot matter. What each method finds instead:
///
/// * a penalty `alpha`: `x = k t / (c + k)` with `k = alpha h / (1 + alpha h)`;
/// * BOME with `T` inner steps of rate `r`: `x = k t / (c + k)` with `k = 1 - (1 - r h)^T`;
/// * SAMA with the identity for `1/h`: `x = h t / (h + c)`;
/// * without `u`: `x = k t / (c + alpha d + k)`, with the `k` of the penalty.
#[test]
fn methods_end_at_their_documented_points() {
    let (alpha, c, h, d) = (4.0, 0.5, 2.0, 0.3);
    let (exact, share) = (1.0 / (1.0 + c), 1.0 / (1.0 + alpha));
    let k = alpha * h / (1.0 + alpha * h);
    let inner = 1.0 - (1.0_f64 - 0.1 * h).powi(10);
    let third = |rate: f64| sgd(rate).power(1.0 / 3.0);
    let growing = F2sa::new(third(0.1), third(0.05)).auxiliary(sgd(0.1));
    let constant = F2sa::new(sgd(0.1), sgd(0.05)).penalty(alpha);
    let bda = || Bda::new(sgd(0.1), sgd(0.2));
    let methods: Vec<(Boxed<Loss, Loss>, f64, f64)> = vec![
        (Box::new(Soba::new(sgd(0.1), sgd(0.2))), exact, 1e-8),
        (Box::new(growing.growth(3.0, 2.0 / 3.0)), exact, 4e-3),
        (Box::new(bda().share(0.5, 1.0)), exact, 2e-3),
        (Box::new(constant.growth(0.0, 0.0)), k / (c + k), 1e-9),
        (Box::new(bda().share(share, 0.0)), k / (c + k), 1e-9),
        (
            Box::new(Bome::new(sgd(0.05), sgd(0.1))),
            inner / (c + inner),
            1e-3,
        ),
        (Box::new(Sama::new(sgd(0.1), sgd(0.2))), h / (h + c), 1e-8),
        (
            Box::new(NoU::new(sgd(0.1), sgd(0.2)).share(share)),
            k / (c + alpha * d + k),
            1e-9,
        ),
    ];
    for (method, factor, tolerance) in methods {
        let name = method.name();
        let [x, _] = end(method, shrunk(), [2, 2], 1000);
        let error = largest_difference(&x, &[factor, -2.0 * factor]);
        assert!(
            error < tolerance,
            "{name}: {x:?}, not {factor} t: {error:e}"
        );
    }
}

/// Where `G` has many minimizers, BDA lets `F` choose among them: `G = 1/2 (w_1 + w_2 - x)^2` and
/// `F = 1/2 |w - (1, 2)|^2` have the solution `x = 3`, `w = (1, 2)`. A `w` on `G` alone stays at `w_1 = w_2`.
#[test]
fn bda_lets_the_upper_objective_choose_among_lower_minimizers() {
    let problem = || -> Bilevel<Loss, Loss> {
        Bilevel {
            upper: |_, w| {
                let t = zoo::tensor(&[1.0, 2.0], &w.val().device());
                ((w.val() - t).square() * 0.5).sum()
            },
            lower: |x, w| (w.val().sum() - x.val()).square() * 0.5,
        }
    };
    let [x, w] = end(
        Box::new(Bda::new(sgd(0.1), sgd(0.2))),
        problem(),
        [1, 2],
        4000,
    );
    let error = largest_difference(&[x[0], w[0], w[1]], &[3.0, 1.0, 2.0]);
    assert!(error < 1e-3, "{x:?} {w:?}");
    let [_, w] = end(
        Box::new(Sama::new(sgd(0.1), sgd(0.2))),
        problem(),
        [1, 2],
        4000,
    );
    assert!((w[0] - w[1]).abs() < 1e-12, "{w:?}");
}

/// One parameter under Adam without epsilon: its update as a function of the last gradient.
#[derive(Clone, Copy, Default)]
struct Adam {
    t: i32,
    m: f64,
    s: f64,
}

const BETAS: [f64; 2] = [0.8, 0.95];

impl Adam {
    fn step(&mut self, g: f64) -> f64 {
        self.t += 1;
        self.m = BETAS[0] * self.m + (1.0 - BETAS[0]) * g;
        self.s = BETAS[1] * self.s + (1.0 - BETAS[1]) * g * g;
        let unbias = BETAS.map(|b| 1.0 - b.powi(self.t));
        (self.m / unbias[0]) / (self.s / unbias[1]).sqrt()
    }

    /// The derivative of the update in `g`, by differences.
    fn slope(self, g: f64) -> f64 {
        let e = 1e-5 * g.abs();
        let at = |g: f64| { self }.step(g);
        (at(g + e) - at(g - e)) / (2.0 * e)
    }
}

/// SAMA's preconditioner is the derivative of Adam's update, measured here by differences of an Adam of the test's own:
/// with `H_xw = -h`, `x <- x - rate (c x + h D (w - t))`. T1-T2 has `D = 1`, with the same `w`.
#[test]
fn sama_preconditions_with_the_slope_of_adams_update() {
    let t = [1.0, -2.0];
    for adamw in [false, true] {
        for preconditioned in [false, true] {
            let lower = if adamw {
                Update::adamw(0.1)
            } else {
                Update::adam(0.1)
            };
            let lower = lower.betas(0.8, 0.95).epsilon(1e-12);
            let method = if preconditioned {
                Sama::new(sgd(0.05), lower)
            } else {
                Sama::t1_t2(sgd(0.05), lower)
            };
            let start = [0.7, 0.3];
            let (x, w) = (
                zoo::vector(&start, &flex()),
                zoo::vector(&[0.1, 0.4], &flex()),
            );
            let mut run = method.start(shrunk(), x, w).unwrap();
            let mut expected = (start, [0.1, 0.4], [Adam::default(); 2]);
            for k in 0..6 {
                run.next().unwrap().unwrap();
                let (x, w, adam) = &mut expected;
                for i in 0..2 {
                    let g = 2.0 * (w[i] - x[i]);
                    let slope = match (preconditioned, k) {
                        (false, _) => 1.0,
                        (true, 0) => 0.0, // the first update is the sign of g
                        (true, _) => adam[i].slope(g),
                    };
                    let of_x = 0.5 * x[i] + 2.0 * slope * (w[i] - t[i]);
                    w[i] -= 0.1 * adam[i].step(g);
                    x[i] -= 0.05 * of_x;
                }
                let error = largest_difference(&values(run.upper().val()), x);
                assert!(error < 1e-6, "{adamw} {preconditioned} {k}: {error:e}");
                let error = largest_difference(&values(run.lower().val()), w);
                assert!(error < 1e-6, "{adamw} {preconditioned} {k}: {error:e}");
            }
        }
    }
}
