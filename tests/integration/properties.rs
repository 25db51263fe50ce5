//! Properties over random strongly convex pairs
//!
//! ```text
//! L2 = 1/2 (w - A x - b)^T H (w - A x - b),   L1 = 1/2 (w - t)^T Q (w - t) + mu/2 |x - s|^2
//! ```
//!
//! with `w*(x) = A x + b`, the hyper-objective `L1(x, A x + b)`, and the penalized one, whose minimum over
//! `w` is at `w = A x + b + r` with `(Q + alpha H) r = -Q e`, `e = A x + b - t`, where its value is
//! `1/2 e^T P e + mu/2 |x - s|^2` with `P = Q - Q (Q + alpha H)^-1 Q`.

use burn::tensor::{DType, Tensor, TensorData};
use proptest::prelude::*;
use scalebio::reweight::{self, Draws, SourceWeights};
use scalebio::{Bilevel, LowerObjective, Run, ScaleBio, Update, UpperObjective};

use crate::algebra::{
    Matrix, Row, apply, divided, identity, largest, norm, plus, product, solve, sum, transposed,
};
use crate::zoo::samples::{Points, Rows};
use crate::zoo::{self, Drawn, Vector, flex, largest_difference, state, values};

/// 32 cases, or as many as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|cases| cases.parse().ok()).unwrap_or(32),
        ..ProptestConfig::default()
    }
}

/// The eigenvalues of `H` and `Q` are at least this.
const SMALLEST: f64 = 0.8;

#[derive(Clone, Debug)]
struct Pair {
    h: Matrix,
    q: Matrix,
    a: Matrix,
    b: Row,
    t: Row,
    s: Row,
    mu: f64,
}

fn entries(size: usize) -> impl Strategy<Value = Row> {
    prop::collection::vec(-1.0..1.0, size)
}

fn matrix(rows: usize, columns: usize) -> impl Strategy<Value = Matrix> {
    prop::collection::vec(entries(columns), rows)
}

/// `SMALLEST + B B^T / size`.
fn definite(size: usize) -> impl Strategy<Value = Matrix> {
    matrix(size, size).prop_map(move |b| {
        let square = product(&b, &transposed(&b));
        let zero = sum(&square, -1.0, &square);
        let scaled = sum(&zero, 1.0 / size as f64, &square);
        sum(&scaled, SMALLEST, &identity(size))
    })
}

fn pairs() -> impl Strategy<Value = Pair> {
    (1..=6_usize, 1..=6_usize).prop_flat_map(|(n, m)| {
        let matrices = (definite(m), definite(m), matrix(m, n));
        let vectors = (entries(m), entries(m), entries(n));
        (matrices, vectors, 0.5..2.0_f64).prop_map(|((h, q, a), (b, t, s), mu)| Pair {
            h,
            q,
            a,
            b,
            t,
            s,
            mu,
        })
    })
}

/// `1/2 v^T M v`.
fn quadratic(m: &Tensor<2>, v: Tensor<1>) -> Tensor<1> {
    let mv = m.clone().matmul(v.clone().unsqueeze_dim::<2>(1));
    (mv.squeeze_dim::<1>(1) * v).sum() * 0.5
}

fn constant(matrix: &Matrix) -> Tensor<2> {
    let data = TensorData::new(matrix.concat(), [matrix.len(), matrix[0].len()]);
    Tensor::from_data(data, (&flex(), DType::F64))
}

impl Pair {
    fn n(&self) -> usize {
        self.s.len()
    }

    fn problem(
        &self,
    ) -> Bilevel<
        impl Fn(&Vector, &Vector) -> Tensor<1> + use<>,
        impl Fn(&Vector, &Vector) -> Tensor<1> + use<>,
    > {
        let vector = |values: &[f64]| zoo::tensor(values, &flex());
        let (q, t, s, mu) = (constant(&self.q), vector(&self.t), vector(&self.s), self.mu);
        let (h, a, b) = (constant(&self.h), constant(&self.a), vector(&self.b));
        Bilevel {
            upper: move |x: &Vector, w: &Vector| {
                let own = (x.val() - s.clone()).square().sum() * (0.5 * mu);
                quadratic(&q, w.val() - t.clone()) + own
            },
            lower: move |x: &Vector, w: &Vector| {
                let ax = a.clone().matmul(x.val().unsqueeze_dim::<2>(1));
                quadratic(&h, w.val() - ax.squeeze_dim::<1>(1) - b.clone())
            },
        }
    }

    /// `w*(x) = A x + b`.
    fn lower_solution(&self, x: &[f64]) -> Row {
        plus(&apply(&self.a, x), 1.0, &self.b)
    }

    /// `e = A x + b - t`.
    fn miss(&self, x: &[f64]) -> Row {
        plus(&self.lower_solution(x), -1.0, &self.t)
    }

    /// `Q + alpha H`.
    fn penalized_hessian(&self, alpha: f64) -> Matrix {
        sum(&self.q, alpha, &self.h)
    }

    /// The minimizer of `L1 + alpha L2` in `w`.
    fn penalized_lower_solution(&self, x: &[f64], alpha: f64) -> Row {
        let pull = apply(&self.q, &self.miss(x));
        let r = solve(&self.penalized_hessian(alpha), &pull);
        plus(&self.lower_solution(x), -1.0, &r)
    }

    /// `P`, or `Q` for an infinite penalty.
    fn hyper(&self, alpha: f64) -> Matrix {
        if alpha.is_infinite() {
            return self.q.clone();
        }
        let rest = divided(&self.penalized_hessian(alpha), &self.q);
        sum(&self.q, -1.0, &product(&self.q, &rest))
    }

    /// `A^T P e + mu (x - s)`.
    fn hypergradient(&self, x: &[f64], alpha: f64) -> Row {
        let pull = apply(&self.hyper(alpha), &self.miss(x));
        let own = plus(x, -1.0, &self.s);
        plus(&apply(&transposed(&self.a), &pull), self.mu, &own)
    }

    /// Where the hypergradient is 0: the solution of the penalized problem, or for an infinite penalty of
    /// the bilevel one.
    fn solution(&self, alpha: f64) -> Row {
        let at_zero = self.hypergradient(&vec![0.0; self.n()], alpha);
        let curvature = product(&product(&transposed(&self.a), &self.hyper(alpha)), &self.a);
        let curvature = sum(&curvature, self.mu, &identity(self.n()));
        solve(&curvature, &at_zero).iter().map(|x| -x).collect()
    }

    /// Rates of `x` and of `u` and `w` with which the single loop is stable.
    fn rates(&self, alpha: f64) -> (f64, f64) {
        let inner = 1.0 / (largest(&self.q) + alpha * largest(&self.h));
        let lag = 1.0 / (inner * alpha * SMALLEST);
        let squared = largest(&product(&transposed(&self.a), &self.a));
        let upper = 0.5 / (self.mu + lag * squared * largest(&self.q));
        (upper, inner)
    }

    fn start(
        &self,
        method: ScaleBio,
        x: &[f64],
        w: &[f64],
    ) -> Run<
        impl UpperObjective<Vector, Vector> + use<>,
        impl LowerObjective<Vector, Vector> + use<>,
        Vector,
        Vector,
    > {
        let (x, w) = (zoo::vector(x, &flex()), zoo::vector(w, &flex()));
        method.start(self.problem(), x, w).unwrap()
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    norm(&plus(a, -1.0, b))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_run_converges_to_the_penalized_solution(pair in pairs(), alpha in 5.0..20.0_f64) {
        let (upper, inner) = pair.rates(alpha);
        let method = ScaleBio::new(Update::sgd(upper), Update::sgd(inner)).penalty(alpha);
        let mut run = pair.start(method, &vec![0.0; pair.n()], &vec![0.0; pair.b.len()]);
        let x = pair.solution(alpha);
        let expected = [x.clone(), pair.penalized_lower_solution(&x, alpha), pair.lower_solution(&x)];
        let error = |run: &Run<_, _, Vector, Vector>| {
            let state = state(run);
            (0..3).map(|i| distance(&state[i], &expected[i])).fold(0.0, f64::max)
        };
        let mut blocks = 0;
        while error(&run) > 1e-11 && blocks < 200 {
            run.by_ref().take(100).for_each(|step| drop(step.unwrap()));
            blocks += 1;
        }
        prop_assert!(error(&run) <= 1e-10, "{} after {} steps", error(&run), run.steps());
        // It is a fixed point: the run stays there.
        run.by_ref().take(20).for_each(|step| drop(step.unwrap()));
        prop_assert!(error(&run) <= 1e-10);
        // And within C / alpha of the bilevel solution.
        let bilevel = pair.solution(f64::INFINITY);
        prop_assert!(distance(&state(&run)[0], &bilevel) <= bound(&pair) / alpha + 1e-10);
    }

    #[test]
    fn the_penalized_solution_is_within_c_over_alpha_and_ten_times_closer_at_ten_times_alpha(
        pair in pairs(),
    ) {
        let exact = pair.solution(f64::INFINITY);
        let far = |alpha: f64| distance(&pair.solution(alpha), &exact);
        for alpha in [0.1, 1.0, 10.0, 100.0, 1e3, 1e4] {
            prop_assert!(far(alpha) <= bound(&pair) / alpha);
        }
        // The first-order term may vanish by chance; then there is no rate to see.
        prop_assume!(far(1e3) > 1e-4 * bound(&pair) / 1e3);
        let ratio = far(1e4) / far(1e5);
        prop_assert!((ratio - 10.0).abs() < 0.1, "{ratio}");
    }

    #[test]
    fn the_upper_gradient_at_exact_inner_optima_is_the_closed_form(
        pair in pairs(),
        alpha in 1.0..1e3_f64,
        seed in entries(6),
    ) {
        let point = &seed[..pair.n()];
        let expected = pair.hypergradient(point, alpha);
        let problem = pair.problem();
        let x = zoo::vector(point, &flex());
        let w = zoo::vector(&pair.penalized_lower_solution(point, alpha), &flex());
        let u = zoo::vector(&pair.lower_solution(point), &flex());
        let of_x = |mut gradients: scalebio::Gradients| {
            values(gradients.of_upper.remove::<1>(x.id).unwrap())
        };
        let of_f = of_x(UpperObjective::gradients(&problem.upper, &x, &w, &()).unwrap());
        let of_w = of_x(LowerObjective::gradients(&problem.lower, &x, &w, &()).unwrap());
        let of_u = of_x(LowerObjective::gradients(&problem.lower, &x, &u, &()).unwrap());
        let gradient = plus(&of_f, alpha, &plus(&of_w, -1.0, &of_u));
        prop_assert!(largest_difference(&gradient, &expected) < 1e-10);

        // The solver's too, once u and w have arrived while x stands still.
        let (_, inner) = pair.rates(alpha);
        let method = ScaleBio::new(Update::sgd(1e-300), Update::sgd(inner)).penalty(alpha);
        let mut run = pair.start(method, point, &pair.lower_solution(point));
        let last = run.by_ref().take(400).last().unwrap().unwrap();
        prop_assert!((last.gradient_norms().upper - norm(&expected)).abs() < 1e-9);
    }

    #[test]
    fn the_value_gap_is_not_negative_where_u_is_optimal(
        pair in pairs(),
        alpha in 1.0..100.0_f64,
        (x, w) in (entries(6), entries(6)),
    ) {
        let (_, inner) = pair.rates(alpha);
        // u arrives while w has hardly left.
        let method = ScaleBio::new(Update::sgd(1e-300), Update::sgd(inner * 1e-3))
            .auxiliary(Update::sgd(1.0 / (alpha * largest(&pair.h))))
            .penalty(alpha);
        let mut run = pair.start(method, &x[..pair.n()], &w[..pair.b.len()]);
        run.by_ref().take(150).for_each(|step| drop(step.unwrap()));
        let optimum = pair.lower_solution(&x[..pair.n()]);
        prop_assert!(distance(&state(&run)[2], &optimum) < 1e-7);
        for step in run.by_ref().take(20) {
            let gap = step.unwrap().value_gap();
            prop_assert!(gap >= -1e-12, "{gap}");
        }
    }

    #[test]
    fn any_split_into_micro_batches_gives_the_same_step(
        samples in prop::collection::vec((entries(3), entries(3)), 1..12),
        cuts in prop::collection::vec(any::<bool>(), 12),
        adaptive in any::<bool>(),
    ) {
        let whole = vec![samples.clone()];
        let mut cut: Vec<Vec<(Row, Row)>> = vec![Vec::new()];
        for (sample, &next) in samples.iter().zip(&cuts) {
            if next && !cut[cut.len() - 1].is_empty() {
                cut.push(Vec::new());
            }
            cut.last_mut().unwrap().push(sample.clone());
        }
        let size = samples.len() as f64;
        let after = |batches: Vec<Vec<(Row, Row)>>| {
            // The mean over the whole draw of 1/2 (z.(w - x) - y_0)^2 and 1/2 |w - y|^2 + x.z.
            let tensor = |values: &[f64]| zoo::tensor(values, &flex());
            let upper = move |x: &Vector, w: &Vector, batch: &Vec<(Row, Row)>| {
                let losses = batch.iter().map(|(y, z)| {
                    let fit = (tensor(z) * (w.val() - x.val())).sum() - y[0];
                    fit.square() * 0.5
                });
                losses.reduce(|a, b| a + b).unwrap() / size
            };
            let lower = move |x: &Vector, w: &Vector, batch: &Vec<(Row, Row)>| {
                let losses = batch.iter().map(|(y, z)| {
                    let fit = (w.val() - tensor(y) - x.val() * tensor(z)).square();
                    fit.sum() * 0.5
                });
                losses.reduce(|a, b| a + b).unwrap() / size
            };
            let (of_upper, of_lower) = (batches.clone(), batches);
            let problem = Bilevel {
                upper: Drawn::new(move || Ok(of_upper.clone()), upper),
                lower: Drawn::new(move || Ok(of_lower.clone()), lower),
            };
            // An epsilon of the size of the gradients keeps Adam from magnifying rounding.
            let update = || if adaptive { Update::adamw(0.05).epsilon(0.1) } else { Update::sgd(0.05) };
            let (x, w) = (zoo::vector(&[0.3, -0.2, 0.1], &flex()), zoo::vector(&[0.0, 1.0, -1.0], &flex()));
            let mut run = ScaleBio::new(update(), update())
                .penalty(3.0)
                .clip(0.7)
                .start(problem, x, w)
                .unwrap();
            let mut all = Vec::new();
            for _ in 0..3 {
                let step = run.next().unwrap().unwrap();
                all.extend([step.upper_loss(), step.lower_loss(), step.auxiliary_loss()]);
                all.extend(state(&run).concat());
            }
            all
        };
        prop_assert!(largest_difference(&after(whole), &after(cut)) < 1e-12);
    }

    #[test]
    fn permuting_sources_permutes_the_weights_and_a_constant_on_the_logits_changes_nothing(
        sources in prop::collection::vec(prop::collection::vec(entries(2), 4), 2..=6),
        logits in entries(6),
        target in entries(2),
        order in Just(()).prop_perturb(|(), mut random| {
            let mut order: Vec<usize> = (0..6).collect();
            for i in (1..6).rev() {
                order.swap(i, (random.next_u32() as usize) % (i + 1));
            }
            order
        }),
        shift in -3.0..3.0_f64,
    ) {
        let order: Vec<usize> = order.into_iter().filter(|&i| i < sources.len()).collect();
        let trajectory = |sources: Vec<Vec<Row>>, logits: Row| -> Vec<Vec<f64>> {
            let device = flex().inner();
            let rows = |sources| Points(Rows { sources, device: device.clone() });
            // Every draw is all samples, so that the order of the sources changes nothing else.
            let size = 4 * sources.len();
            let problem = reweight::problem(
                Draws::new(rows(sources), size),
                Draws::new(rows(vec![vec![target.clone()]]), 1),
            )
            .unwrap();
            let names = (0..logits.len()).map(|i| i.to_string());
            let weights = SourceWeights::from_logits(names, zoo::tensor(&logits, &flex())).unwrap();
            let mut run = ScaleBio::new(Update::sgd(0.3), Update::sgd(0.05))
                .penalty(5.0)
                .start(problem, weights, zoo::vector(&[0.2, -0.4], &flex()))
                .unwrap();
            (0..40)
                .map(|_| {
                    run.next().unwrap().unwrap();
                    run.upper().weights()
                })
                .collect()
        };
        let logits = &logits[..sources.len()];
        let plain = trajectory(sources.clone(), logits.to_vec());
        let permuted = trajectory(
            order.iter().map(|&i| sources[i].clone()).collect(),
            order.iter().map(|&i| logits[i]).collect(),
        );
        let shifted = trajectory(sources.clone(), logits.iter().map(|l| l + shift).collect());
        for ((plain, permuted), shifted) in plain.iter().zip(&permuted).zip(&shifted) {
            let expected: Vec<f64> = order.iter().map(|&i| plain[i]).collect();
            prop_assert!(largest_difference(permuted, &expected) < 1e-10);
            prop_assert!(largest_difference(shifted, plain) < 1e-10);
        }
        // The weights did move: the promise is not an empty one.
        prop_assert!(largest_difference(&plain[0], &plain[39]) > 1e-9);
    }
}

/// `C` with `|x_alpha - x*| <= C / alpha`: at `x*` the penalized hypergradient is `-A^T (Q - P) e`, with
/// `|Q - P| <= |Q|^2 / (alpha |H^-1|^-1)`, and its curvature is at least `mu`.
fn bound(pair: &Pair) -> f64 {
    let exact = pair.solution(f64::INFINITY);
    let frobenius = norm(&pair.a.concat());
    frobenius * largest(&pair.q).powi(2) * norm(&pair.miss(&exact)) / (pair.mu * SMALLEST)
}
