//! The charts of a run.

use super::super::plot::{Axis, Chart, Kind, SERIES, Scene, Series};
use super::reading::{Baseline, FinetuneLine, Finetuning, Reweighting, Step};

/// Points of a chart, all curves together, beyond which steps are averaged: a page stays small.
const POINTS: usize = 8000;
/// Points of a curve at most: more than pixels are of no use.
const CURVE: usize = 500;
/// Points of the loss of a source at most, since losses of few samples jump.
const NOISY: usize = 40;

const NATS: &str = "mean loss of a sample, in nats";

/// A chart and what stands below it.
pub struct Figure {
    /// Name of its files, without an ending.
    pub id: &'static str,
    pub scene: Scene,
    pub caption: String,
}

/// A name, and a number of a step.
type Curve<'a> = (&'a str, fn(&Step) -> f64);

/// The sources as a chart shows them: those of the largest weights first, in colors, the others behind them.
struct Sources<'a> {
    names: &'a [String],
    order: Vec<usize>,
}

impl<'a> Sources<'a> {
    fn of(run: &'a Reweighting) -> Self {
        let weight = |i: usize| {
            let name = &run.names[i];
            let source = run.weights.sources.iter().find(|s| s.name == *name);
            source.map_or(0.0, |source| source.weight)
        };
        let mut order: Vec<_> = (0..run.names.len()).collect();
        order.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)));
        Self {
            names: &run.names,
            order,
        }
    }

    fn series(&self, run: &Reweighting, of: fn(&Step) -> &[f64], every: usize) -> Vec<Series> {
        let curve = |(rank, &source): (usize, &usize)| {
            let kind = match rank < SERIES.len() {
                true => Kind::Curve,
                false => Kind::Background,
            };
            let points = run.steps.iter();
            let points = points.map(|s| (s.numbers.step, of(s)[source]));
            Series::new(&self.names[source], means(points, every), kind)
        };
        self.order.iter().enumerate().map(curve).collect()
    }

    /// What is not said beside the curves.
    fn others(&self) -> String {
        match self.order.len().saturating_sub(SERIES.len()) {
            0 => String::new(),
            others => format!(
                " In colors the {} sources of the largest weights; the other {others} in grey.",
                SERIES.len()
            ),
        }
    }
}

/// All charts of a run that learns weights.
pub fn reweighting(run: &Reweighting) -> Vec<Figure> {
    let sources = Sources::of(run);
    let steps = run.steps.len();
    let losses = |id, title, of, caption: &str| {
        let every = steps.div_ceil(NOISY).max(1);
        Figure {
            id,
            scene: chart(title, Axis::linear(NATS), sources.series(run, of, every)),
            caption: format!("{caption}{}{}", sources.others(), averaged(every)),
        }
    };
    let curves = |curves: &[Curve]| -> Vec<Series> {
        let every = every(steps, curves.len());
        let points = |of: fn(&Step) -> f64| run.steps.iter().map(move |s| (s.numbers.step, of(s)));
        let series = curves.iter();
        series
            .map(|(name, of)| Series::new(*name, means(points(*of), every), Kind::Curve))
            .collect()
    };
    let figure = |id, title, axis, series: Vec<Series>, caption: &str| Figure {
        id,
        caption: format!("{caption}{}", averaged(every(steps, series.len()))),
        scene: chart(title, axis, series),
    };
    let every_weight = every(steps, run.names.len());
    let mut weights = sources.series(run, |s| &s.weights, every_weight);
    let uniform = 1.0 / run.names.len().max(1) as f64;
    weights.push(level("uniform", uniform, run));
    let mut gap = curves(&[("L2(w) - L2(u)", |s| s.numbers.gap)]);
    gap.push(level("0", 0.0, run));
    let same = run.steps.iter().all(|s| {
        s.numbers
            .lr_lower
            .total_cmp(&s.numbers.lr_auxiliary)
            .is_eq()
    });
    let rates = match same {
        true => curves(&[("w and u", |s| s.numbers.lr_lower)]),
        false => curves(&[
            ("w", |s| s.numbers.lr_lower),
            ("u", |s| s.numbers.lr_auxiliary),
        ]),
    };
    vec![
        Figure {
            id: "weights",
            scene: chart(
                "Source weights",
                Axis::from_zero("weight; all add up to 1"),
                weights,
            ),
            caption: format!(
                "The weights at which the losses of a step were computed.{}{}",
                sources.others(),
                averaged(every_weight)
            ),
        },
        figure(
            "losses",
            "Validation and training loss",
            Axis::linear(NATS),
            curves(&[
                ("L1(w), validation", |s| s.numbers.l1_w),
                ("L2(w), training", |s| s.numbers.l2_w),
                ("L2(u), training", |s| s.numbers.l2_u),
            ]),
            "The training losses are weighted by source, so they also move with the weights.",
        ),
        losses(
            "source-losses-w",
            "Training loss of the model w by source",
            |s| &s.losses_w,
            "Estimates from the samples of the step; 0 where it has none of a source.",
        ),
        losses(
            "source-losses-u",
            "Training loss of the auxiliary copy u by source",
            |s| &s.losses_u,
            "u minimizes the weighted training loss alone; w also the validation loss.",
        ),
        figure(
            "gap",
            "Value gap",
            Axis::from_zero("nats"),
            gap,
            "How far w is from minimizing the weighted training loss, as u sees it. The penalty presses it towards 0; a little \
             below 0 is no mistake, since u is not at its minimum either.",
        ),
        figure(
            "hypergradient",
            "Hypergradient norm",
            Axis::logarithmic("norm of the gradient in the logits, before clipping"),
            curves(&[("hypergradient", |s| s.numbers.hypergradient_norm)]),
            "The first step has none, since u = w.",
        ),
        figure(
            "gradients",
            "Gradient norms",
            Axis::logarithmic("norm, before clipping"),
            curves(&[
                ("w: L1 / alpha + L2", |s| s.numbers.gradient_norm_w),
                ("u: L2", |s| s.numbers.gradient_norm_u),
            ]),
            "",
        ),
        figure(
            "rate-weights",
            "Learning rate of the source weights",
            Axis::from_zero("Adam moves a logit by about this a step at most"),
            curves(&[("logits", |s| s.numbers.lr_upper)]),
            "",
        ),
        figure(
            "rate-model",
            "Learning rates of the model",
            Axis::from_zero("learning rate"),
            rates,
            "",
        ),
    ]
}

/// All charts of a fine-tuning.
pub fn finetuning(run: &Finetuning) -> Vec<Figure> {
    let every = every(run.steps.len(), 1);
    let curve = |name: &str, of: fn(&FinetuneLine) -> f64| {
        let points = run.steps.iter().map(|line| (line.step, of(line)));
        Series::new(name, means(points, every), Kind::Curve)
    };
    let mut losses = vec![curve("training", |line| line.loss)];
    let measured = run.steps.iter();
    let measured =
        measured.filter_map(|line| Some(((line.step + 1) as f64, line.validation_loss?)));
    losses.push(Series::new("validation", measured.collect(), Kind::Curve));
    let figure = |id, title, axis, series: Vec<Series>| Figure {
        id,
        scene: chart(title, axis, series),
        caption: averaged(every),
    };
    let norm = "norm, before clipping";
    vec![
        figure("losses", "Loss", Axis::linear(NATS), losses),
        figure(
            "gradients",
            "Gradient norm",
            Axis::logarithmic(norm),
            vec![curve("gradient", |line| line.gradient_norm)],
        ),
        figure(
            "rate-model",
            "Learning rate",
            Axis::from_zero("learning rate"),
            vec![curve("model", |line| line.learning_rate)],
        ),
    ]
}

/// The losses of the trainings of a method.
pub fn baseline(run: &Baseline) -> Vec<Figure> {
    let mut stages: Vec<&str> = run.steps.iter().map(|line| line.stage.as_str()).collect();
    stages.dedup();
    if stages.is_empty() {
        return Vec::new();
    }
    let every = every(run.steps.len() / stages.len(), stages.len());
    let curve = |&stage: &&str| {
        let lines = run.steps.iter().filter(|line| line.stage == stage);
        let points = lines.map(|line| (line.step, line.loss));
        Series::new(stage, means(points, every), Kind::Curve)
    };
    vec![Figure {
        id: "losses",
        scene: chart(
            "Training losses",
            Axis::linear(NATS),
            stages.iter().map(curve).collect(),
        ),
        caption: format!("A curve a stage of the method.{}", averaged(every)),
    }]
}

fn chart(title: &str, y: Axis, series: Vec<Series>) -> Scene {
    let x = Axis::linear("step");
    Chart { title, x, y }.scene(&series)
}

/// A line at one height.
fn level(name: &str, height: f64, run: &Reweighting) -> Series {
    let ends = [run.steps.first(), run.steps.last()];
    let points = ends.into_iter().flatten();
    let points = points.map(|s| (s.numbers.step as f64, height));
    Series::new(name, points.collect(), Kind::Reference)
}

/// Steps that are averaged to a point.
fn every(steps: usize, curves: usize) -> usize {
    let points = (POINTS / curves.max(1)).clamp(50, CURVE);
    steps.div_ceil(points).max(1)
}

fn averaged(every: usize) -> String {
    match every {
        1 => String::new(),
        every => format!(" A point is the mean of {every} steps."),
    }
}

/// Means of consecutive steps, without values that are not finite, at the mean of their steps.
fn means(points: impl Iterator<Item = (usize, f64)>, every: usize) -> Vec<(f64, f64)> {
    let points: Vec<_> = points.filter(|(_, y)| y.is_finite()).collect();
    let mean = |chunk: &[(usize, f64)]| {
        let (x, y) = chunk
            .iter()
            .fold((0.0, 0.0), |(x, y), p| (x + p.0 as f64, y + p.1));
        (x / chunk.len() as f64, y / chunk.len() as f64)
    };
    points.chunks(every).map(mean).collect()
}
