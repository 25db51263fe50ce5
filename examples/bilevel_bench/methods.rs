//! The methods by name, each with its hyper-parameters.

use std::fmt::Debug;

use scalebio::methods::{
    Bda, Bome, Estimator, F2sa, Method, NoU, Penalized, Polyak, Sama, Soba, ZerothOrder,
};
use scalebio::problems::Vector;
use scalebio::{LowerObjective, ScaleBio, Update, UpperObjective};

/// What the hyper-parameters of a method depend on.
#[derive(Clone, Copy)]
pub struct Scale {
    /// Learning rate of `x`.
    pub upper: f64,
    /// Learning rate of `w` on `G` alone; methods that descend `alpha G` divide it by `alpha`.
    pub lower: f64,
    /// Number of entries of `w`.
    pub entries: usize,
    /// Bounds from below of `F` and `G` on the way.
    pub lowest: [f64; 2],
    /// Whether draws are noisy: a finite sum in fixed batches.
    pub noisy: bool,
}

/// A method with its hyper-parameters in words.
pub struct Entry<F, G> {
    pub name: &'static str,
    pub settings: String,
    pub method: Box<dyn Method<F, G, Vector, Vector>>,
}

fn entry<F, G, M>(name: &'static str, method: M) -> Entry<F, G>
where
    F: UpperObjective<Vector, Vector> + 'static,
    G: LowerObjective<Vector, Vector> + 'static,
    M: Method<F, G, Vector, Vector> + Debug + 'static,
{
    Entry {
        name,
        settings: format!("{method:?}").replace(", misplaced: None", ""),
        method: Box::new(method),
    }
}

/// All methods that fit the problem.
pub fn all<F, G>(scale: &Scale, seed: u64) -> Vec<Entry<F, G>>
where
    F: UpperObjective<Vector, Vector> + 'static,
    G: LowerObjective<Vector, Vector> + 'static,
{
    let x = Update::sgd(scale.upper);
    let w = Update::sgd(scale.lower);
    let divided = |alpha: f64| Update::sgd(scale.lower / alpha);
    let penalty = |alpha| ScaleBio::new(x.clone(), divided(alpha)).penalty(alpha);
    let [lowest_f, lowest_g] = scale.lowest;
    let polyak = Polyak::new().lowest(lowest_f, lowest_g);
    let mut entries = vec![
        entry("penalty", penalty(10.0)),
        entry("penalty-100", penalty(100.0)),
        entry("f2sa", f2sa(scale)),
        entry("bome", Bome::new(Update::sgd(scale.upper / 3.0), w.clone())),
        entry("sama", Sama::new(x.clone(), w.clone())),
        entry("no-u", NoU::new(Update::sgd(scale.upper / 10.0), w.clone())),
        entry("bda", Bda::new(x.clone(), w.clone()).auxiliary(w.clone())),
        entry("soba", Soba::new(x.clone(), w.clone())),
        entry(
            "penalty-polyak",
            Penalized::new(10.0, x.clone(), divided(10.0)).polyak(polyak),
        ),
        entry("zeroth-order", {
            let rate = scale.lower / (10.0 * scale.entries as f64);
            ZerothOrder::new(10.0, Update::sgd(scale.upper / 10.0), rate).seed(seed)
        }),
    ];
    if scale.noisy {
        let by = |estimator| Penalized::new(100.0, x.clone(), divided(100.0)).estimator(estimator);
        let soba = |estimator| Soba::new(x.clone(), w.clone()).estimator(estimator);
        let storm = Estimator::Storm { decay: 0.1 };
        entries.extend([
            entry("penalty-100-saga", by(Estimator::Saga)),
            entry("penalty-100-storm", by(storm)),
            entry("soba-saga", soba(Estimator::Saga)),
            entry("soba-storm", soba(storm)),
        ]);
    }
    entries
}

/// The theorem's schedule for the noise there is: see docs/theory.md.
fn f2sa(scale: &Scale) -> F2sa {
    const LAST: f64 = 10.0;
    // Rates that fall may begin higher than those that stay.
    let (slow, fast, first, higher) = if scale.noisy {
        (5.0 / 7.0, 4.0 / 7.0, LAST, 6.0)
    } else {
        (1.0 / 3.0, 0.0, 1.0, 1.0)
    };
    let growth = slow - fast;
    let lower = (scale.lower * higher).min(0.5);
    F2sa::new(
        Update::sgd(scale.upper * higher).power(slow),
        Update::sgd(lower / LAST).power(slow),
    )
    .auxiliary(Update::sgd(lower).power(fast))
    .inner_steps(1)
    .penalty(first)
    .growth(LAST * growth, 1.0 - growth)
}
