//! One page with everything in it.

use crate::plot::{Axis, Chart, Kind, Series};
use crate::record::{Comparison, Point};

type X = (&'static str, fn(&Point) -> f64);

const AXES: [X; 3] = [
    ("iteration", |p| p.iteration as f64),
    ("gradients", |p| p.gradients as f64),
    ("seconds", |p| p.seconds),
];

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<link rel=\"icon\" href=\"data:,\">
<title>Bilevel methods compared</title>
<style>
body { font: 15px/1.45 sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: right; vertical-align: top }
th:first-child, td:first-child, td:last-child, th:last-child { text-align: left }
td:last-child { font-family: monospace; font-size: 11px; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto; margin: .5rem 0 }
</style>
</head>
<body>
<h1>Bilevel methods compared</h1>
<p>min<sub>x</sub> F(x, w*(x)) where w*(x) = argmin<sub>w</sub> G(x, w). The measure is the squared norm of the exact
hypergradient, |grad h(x)|<sup>2</sup> with h(x) = F(x, w*(x)); 0 at a solution. A gradient is that of one objective at one
point over a whole draw; seconds are those of the method's steps, without measuring. Methods stop at the same number
of gradients. Hyper-parameters are those of the last column, not tuned further: a comparison of them, not of all that a
method can do.</p>
";

/// The page: for each problem a curve chart per iteration, per gradient and per second, and a table.
pub fn html(comparisons: &[Comparison]) -> String {
    let mut page = HEAD.to_owned();
    for comparison in comparisons {
        let title = escaped(&comparison.title());
        page += &format!("<h2>{title}</h2>\n<p>{}</p>\n", escaped(comparison.about));
        for axis in AXES {
            page += &chart(comparison, axis);
        }
        page += &table(comparison);
    }
    page + "</body>\n</html>\n"
}

/// Curves per gradient.
pub fn figure(comparison: &Comparison) -> String {
    chart(comparison, AXES[1])
}

fn chart(comparison: &Comparison, (label, of): X) -> String {
    let title = format!(
        "{}, per {}",
        comparison.problem,
        label.trim_end_matches('s')
    );
    let chart = Chart {
        title: &title,
        x: Axis::linear(label),
        y: Axis::logarithmic("|grad h|^2"),
    };
    let series = comparison.traces.iter().map(|trace| {
        let points = trace.points.iter().map(|p| (of(p), p.value)).collect();
        Series::new(&trace.method, points, Kind::Curve)
    });
    chart.scene(&series.collect::<Vec<_>>()).svg()
}

fn table(comparison: &Comparison) -> String {
    let mut text =
        "<table>\n<tr><th>method</th><th>|grad h|<sup>2</sup> at the end</th><th>iterations</th>\
        <th>gradients</th><th>seconds</th><th>hyper-parameters</th></tr>\n"
            .to_owned();
    for trace in &comparison.traces {
        let Some(last) = trace.points.last() else {
            continue;
        };
        let ended = trace.ended.as_ref();
        let ended = ended.map_or(String::new(), |why| {
            format!("<br>ended early: {}", escaped(why))
        });
        text += &format!(
            "<tr><td>{}</td><td>{:.2e}{ended}</td><td>{}</td><td>{}</td><td>{:.2}</td><td>{}</td></tr>\n",
            escaped(&trace.method),
            last.value,
            last.iteration,
            last.gradients,
            last.seconds,
            escaped(&trace.settings)
        );
    }
    text + "</table>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
