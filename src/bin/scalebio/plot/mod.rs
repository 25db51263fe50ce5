//! Line charts.

mod axis;
mod scene;

pub use axis::{Axis, Range};
pub use scene::{AXIS, Anchor, GRID, Ink, MUTED, Mark, SERIES, Scene, TEXT};

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the next color, with its name beside its end.
    Curve,
    /// To compare with: thin, grey and dashed, with its name.
    Reference,
    /// One of many, behind the others: thin, pale and without a name.
    Background,
}

/// One curve. Points that the axes cannot show (not finite, or not positive on a logarithmic axis) are left out.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub kind: Kind,
}

impl Series {
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>, kind: Kind) -> Self {
        let name = name.into();
        Self { name, points, kind }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Chart<'a> {
    pub title: &'a str,
    pub x: Axis<'a>,
    pub y: Axis<'a>,
}

const WIDTH: f32 = 720.0;
const HEIGHT: f32 = 380.0;
const LEFT: f32 = 62.0;
const RIGHT: f32 = 190.0;
const TOP: f32 = 58.0;
const BOTTOM: f32 = 46.0;
/// Decades below the start that are shown at most: what lies lower is rounding.
const DECADES: f64 = 24.0;
/// Height of a line of names.
const LINE: f32 = 16.0;
/// Letters that fit beside the chart.
const LETTERS: usize = 25;

impl Chart<'_> {
    pub fn scene(&self, series: &[Series]) -> Scene {
        let shown: Vec<Vec<(f64, f64)>> = series.iter().map(|s| self.shown(s)).collect();
        let all = || shown.iter().flatten();
        let x = Range::of(self.x, all().map(|p| p.0));
        let mut y = Range::of(self.y, all().map(|p| p.1));
        if self.y.logarithmic {
            y.low = y.low.max(y.high - DECADES);
        }
        let mut scene = Scene {
            title: self.title.to_owned(),
            width: WIDTH,
            height: HEIGHT,
            marks: Vec::new(),
        };
        self.frame(&mut scene, &x, &y);
        let mut curves = 0;
        let mut lines = Vec::new();
        let mut names = Vec::new();
        for (series, points) in series.iter().zip(&shown) {
            let (ink, width, dashed) = match series.kind {
                Kind::Curve => {
                    let (round, color) = (curves / SERIES.len(), curves % SERIES.len());
                    curves += 1;
                    (SERIES[color], 2.0, round % 2 == 1)
                }
                Kind::Reference => (AXIS, 1.2, true),
                Kind::Background => (MUTED, 1.0, false),
            };
            let points: Vec<_> = points
                .iter()
                .filter(|p| y.place(p.1) >= -0.01)
                .map(|p| (across(x.place(p.0)), down(y.place(p.1))))
                .collect();
            let Some(&end) = points.last() else {
                continue;
            };
            if series.kind != Kind::Background {
                names.push((end.1, series.name.as_str(), ink, width, dashed));
            }
            let line = mark(points, ink, width, dashed, &series.name);
            lines.push((series.kind, line));
        }
        // What is compared with lies behind, and the first curve, which matters most, before all others.
        lines.sort_by_key(|(kind, _)| *kind != Kind::Background);
        let (behind, before): (Vec<_>, Vec<_>) = lines
            .into_iter()
            .partition(|(kind, _)| *kind != Kind::Curve);
        let before = before.into_iter().rev();
        scene
            .marks
            .extend(behind.into_iter().chain(before).map(|(_, line)| line));
        label(&mut scene, names);
        scene
    }

    fn shown(&self, series: &Series) -> Vec<(f64, f64)> {
        let points = series.points.iter().copied();
        points
            .filter(|&(x, y)| self.x.shows(x) && self.y.shows(y))
            .collect()
    }

    fn frame(&self, scene: &mut Scene, x: &Range, y: &Range) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (place, label) in y.ticks() {
            let at = down(place);
            scene.line(vec![(LEFT, at), (right, at)], GRID, 1.0);
            scene.text((LEFT - 8.0, at), &label, 12.0, Anchor::End, AXIS);
        }
        for (place, label) in x.ticks() {
            let at = across(place);
            scene.line(vec![(at, bottom), (at, bottom + 5.0)], AXIS, 1.0);
            scene.text((at, bottom + 15.0), &label, 12.0, Anchor::Middle, AXIS);
        }
        scene.line(vec![(LEFT, bottom), (right, bottom)], AXIS, 1.0);
        scene.marks.push(Mark::Text {
            at: (12.0, 18.0),
            text: self.title.to_owned(),
            size: 15.0,
            anchor: Anchor::Start,
            ink: TEXT,
            bold: true,
        });
        scene.text((12.0, 39.0), self.y.label, 12.0, Anchor::Start, AXIS);
        let below = (right, HEIGHT - 12.0);
        scene.text(below, self.x.label, 12.0, Anchor::End, AXIS);
    }
}

fn mark(points: Vec<(f32, f32)>, ink: Ink, width: f32, dashed: bool, name: &str) -> Mark {
    let name = Some(name.to_owned());
    // A single point would be nothing: a line needs two.
    if let [at] = points[..] {
        return Mark::Dot {
            at,
            radius: width + 1.0,
            ink,
            name,
        };
    }
    Mark::Line {
        points,
        ink,
        width,
        dashed,
        name,
    }
}

/// Names beside the ends of their curves, moved apart where they would meet.
fn label(scene: &mut Scene, mut names: Vec<(f32, &str, Ink, f32, bool)>) {
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let last = HEIGHT - 8.0;
    let mut heights: Vec<f32> = names.iter().map(|name| name.0).collect();
    let mut free = TOP - LINE;
    for height in &mut heights {
        *height = height.max(free);
        free = *height + LINE;
    }
    let mut free = last;
    for height in heights.iter_mut().rev() {
        *height = height.min(free);
        free = *height - LINE;
    }
    let left = WIDTH - RIGHT + 10.0;
    for (height, (_, name, ink, width, dashed)) in heights.into_iter().zip(names) {
        scene.marks.push(Mark::Line {
            points: vec![(left, height), (left + 16.0, height)],
            ink,
            width,
            dashed,
            name: None,
        });
        let at = (left + 21.0, height);
        scene.text(at, &shortened(name, LETTERS), 12.0, Anchor::Start, TEXT);
    }
}

/// The start of a name that is too long.
pub fn shortened(name: &str, letters: usize) -> String {
    match name.char_indices().nth(letters) {
        None => name.to_owned(),
        Some(_) => name.chars().take(letters - 1).chain(['…']).collect(),
    }
}

fn across(place: f64) -> f32 {
    LEFT + place as f32 * (WIDTH - RIGHT - LEFT)
}

fn down(place: f64) -> f32 {
    HEIGHT - BOTTOM - place as f32 * (HEIGHT - BOTTOM - TOP)
}
