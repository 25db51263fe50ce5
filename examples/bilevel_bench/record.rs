//! What a run leaves behind.

/// Where a method stands at an iteration, the mean over its seeds.
#[derive(Clone, Copy)]
pub struct Point {
    pub iteration: usize,
    /// Gradients so far.
    pub gradients: usize,
    /// Time in the method's steps so far; measuring is not in it.
    pub seconds: f64,
    /// |grad h(x)|^2.
    pub value: f64,
}

/// The runs of one method on one problem.
pub struct Trace {
    pub method: String,
    /// Its hyper-parameters.
    pub settings: String,
    /// One list for each seed.
    pub seeds: Vec<Vec<Point>>,
    /// Their mean, as far as all of them got.
    pub points: Vec<Point>,
    /// Why a run ended before its budget.
    pub ended: Option<String>,
}

/// All methods on one problem.
pub struct Comparison {
    pub problem: &'static str,
    pub about: &'static str,
    pub budget: usize,
    pub traces: Vec<Trace>,
}

impl Comparison {
    pub fn title(&self) -> String {
        let seeds = self.traces.iter().map(|trace| trace.seeds.len()).max();
        format!(
            "{}: {} gradients a run, {} seed(s)",
            self.problem,
            self.budget,
            seeds.unwrap_or(0)
        )
    }
}

impl Trace {
    pub fn new(
        method: String,
        settings: String,
        seeds: Vec<Vec<Point>>,
        ended: Option<String>,
    ) -> Self {
        let length = seeds.iter().map(Vec::len).min().unwrap_or(0);
        let mean = |i: usize, of: fn(&Point) -> f64| {
            seeds.iter().map(|points| of(&points[i])).sum::<f64>() / seeds.len() as f64
        };
        let points = (0..length).map(|i| Point {
            seconds: mean(i, |p| p.seconds),
            value: mean(i, |p| p.value),
            ..seeds[0][i]
        });
        Self {
            method,
            settings,
            points: points.collect(),
            seeds,
            ended,
        }
    }
}

/// A row for each logged iteration.
pub fn results_csv(comparisons: &[Comparison]) -> String {
    let mut text =
        "problem,method,seed,iteration,gradients,seconds,squared_hypergradient\n".to_owned();
    for Comparison {
        problem, traces, ..
    } in comparisons
    {
        for trace in traces {
            for (seed, points) in trace.seeds.iter().enumerate() {
                for p in points {
                    text += &format!(
                        "{problem},{},{seed},{},{},{:.6},{:e}\n",
                        trace.method, p.iteration, p.gradients, p.seconds, p.value
                    );
                }
            }
        }
    }
    text
}

/// The hyper-parameters of each method.
pub fn methods_csv(comparisons: &[Comparison]) -> String {
    let mut text = "problem,method,settings\n".to_owned();
    for comparison in comparisons {
        for trace in &comparison.traces {
            let settings = trace.settings.replace('"', "\"\"");
            text += &format!("{},{},\"{settings}\"\n", comparison.problem, trace.method);
        }
    }
    text
}
