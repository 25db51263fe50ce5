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

/// A run, and its sources in the order of a chart: those of the largest weights first, in colors, the others behind them.
struct Drawing<'a> {
    run: &'a Reweighting,
    order: Vec<usize>,
}

/// All charts of a run that learns weights.
pub fn reweighting(run: &Reweighting) -> Vec<Figure> {
    let drawing = Drawing::of(run);
    let mut figures = vec![drawing.weights(), drawing.losses()];
    figures.extend(drawing.source_losses());
    figures.extend([drawing.gap(), drawing.hypergradient(), drawing.gradients()]);
    figures.extend(drawing.rates());
    figures
}

impl<'a> Drawing<'a> {
    fn of(run: &'a Reweighting) -> Self {
        let weight = |i: usize| {
            let name = &run.names[i];
            let source = run.weights.sources.iter().find(|s| s.name == *name);
            source.map_or(0.0, |source| source.weight)
        };
        let mut order: Vec<_> = (0..run.names.len()).collect();
        order.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)));
        Self { run, order }
    }

    fn weights(&self) -> Figure {
        let every = every(self.run.steps.len(), self.order.len());
        let mut series = self.by_source(|s| &s.weights, every);
        let uniform = 1.0 / self.order.len().max(1) as f64;
        series.push(self.level("uniform", uniform));
        Figure {
            id: "weights",
            scene: chart(
                "Source weights",
                Axis::from_zero("weight; all add up to 1"),
                series,
            ),
            caption: format!(
                "The weights at which the losses of a step were computed.{}{}",
                self.others(),
                averaged(every)
            ),
        }
    }

    fn losses(&self) -> Figure {
        let series = self.curves(&[
            ("L1(w), validation", |s| s.numbers.l1_w),
            ("L2(w), training", |s| s.numbers.l2_w),
            ("L2(u), training", |s| s.numbers.l2_u),
        ]);
        let caption =
            "The training losses are weighted by source, so they also move with the weights.";
        let title = "Validation and training loss";
        self.figure("losses", title, Axis::linear(NATS), series, caption)
    }

    fn source_losses(&self) -> [Figure; 2] {
        let every = self.run.steps.len().div_ceil(NOISY).max(1);
        let figure = |id, title, of, caption: &str| Figure {
            id,
            scene: chart(title, Axis::linear(NATS), self.by_source(of, every)),
            caption: format!("{caption}{}{}", self.others(), averaged(every)),
        };
        [
            figure(
                "source-losses-w",
                "Training loss of the model w by source",
                |s: &Step| &s.losses_w[..],
                "Estimates from the samples of the step; 0 where it has none of a source.",
            ),
            figure(
                "source-losses-u",
                "Training loss of the auxiliary copy u by source",
                |s: &Step| &s.losses_u[..],
                "u minimizes the weighted training loss alone; w also the validation loss.",
            ),
        ]
    }

    fn gap(&self) -> Figure {
        let mut series = self.curves(&[("L2(w) - L2(u)", |s| s.numbers.gap)]);
        series.push(self.level("0", 0.0));
        let caption = "How far w is from minimizing the weighted training loss, as u sees it. The penalty presses it towards 0; a \
                       little below 0 is no mistake, since u is not at its minimum either.";
        self.figure("gap", "Value gap", Axis::from_zero("nats"), series, caption)
    }

    fn hypergradient(&self) -> Figure {
        let series = self.curves(&[("hypergradient", |s| s.numbers.hypergradient_norm)]);
        let axis = Axis::logarithmic("norm of the gradient in the logits, before clipping");
        let caption = "The first step has none, since u = w.";
        self.figure("hypergradient", "Hypergradient norm", axis, series, caption)
    }

    fn gradients(&self) -> Figure {
        let series = self.curves(&[
            ("w: L1 / alpha + L2", |s| s.numbers.gradient_norm_w),
            ("u: L2", |s| s.numbers.gradient_norm_u),
        ]);
        let axis = Axis::logarithmic("norm, before clipping");
        self.figure("gradients", "Gradient norms", axis, series, "")
    }

    fn rates(&self) -> [Figure; 2] {
        let same = |s: &Step| {
            s.numbers
                .lr_lower
                .total_cmp(&s.numbers.lr_auxiliary)
                .is_eq()
        };
        let lower: Curve = ("w", |s| s.numbers.lr_lower);
        let model = match self.run.steps.iter().all(same) {
            true => self.curves(&[("w and u", lower.1)]),
            false => self.curves(&[lower, ("u", |s| s.numbers.lr_auxiliary)]),
        };
        let weights = self.curves(&[("logits", |s| s.numbers.lr_upper)]);
        let axis = Axis::from_zero("Adam moves a logit by about this a step at most");
        let title = "Learning rate of the source weights";
        [
            self.figure("rate-weights", title, axis, weights, ""),
            self.figure(
                "rate-model",
                "Learning rates of the model",
                Axis::from_zero("learning rate"),
                model,
                "",
            ),
        ]
    }

    fn figure(
        &self,
        id: &'static str,
        title: &str,
        axis: Axis,
        series: Vec<Series>,
        caption: &str,
    ) -> Figure {
        let every = every(self.run.steps.len(), series.len());
        Figure {
            id,
            scene: chart(title, axis, series),
            caption: format!("{caption}{}", averaged(every)),
        }
    }

    fn curves(&self, curves: &[Curve]) -> Vec<Series> {
        let every = every(self.run.steps.len(), curves.len());
        let series = |&(name, of): &Curve| {
            let points = self.run.steps.iter().map(|s| (s.numbers.step, of(s)));
            Series::new(name, means(points, every), Kind::Curve)
        };
        curves.iter().map(series).collect()
    }

    fn by_source(&self, of: fn(&Step) -> &[f64], every: usize) -> Vec<Series> {
        let curve = |(rank, &source): (usize, &usize)| {
            let kind = match rank < SERIES.len() {
                true => Kind::Curve,
                false => Kind::Background,
            };
            let points = self.run.steps.iter();
            let points = points.map(|s| (s.numbers.step, of(s)[source]));
            Series::new(&self.run.names[source], means(points, every), kind)
        };
        self.order.iter().enumerate().map(curve).collect()
    }

    /// A line at one height.
    fn level(&self, name: &str, height: f64) -> Series {
        let ends = [self.run.steps.first(), self.run.steps.last()];
        let points = ends.into_iter().flatten();
        let points = points.map(|s| (s.numbers.step as f64, height));
        Series::new(name, points.collect(), Kind::Reference)
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
