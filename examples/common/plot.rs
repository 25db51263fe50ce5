//! Line charts as SVG, drawn with plotters' SVG backend. (Its chart layer would turn on a feature of a crate that Burn
//! shares, and Burn would be built again for it.)

use std::convert::Infallible;

use plotters_backend::text_anchor::{HPos, Pos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    FontFamily, FontTransform,
};
use plotters_svg::SVGBackend;

type Drawn = Result<(), DrawingErrorKind<std::io::Error>>;

/// One curve. Points that the axes cannot show (not finite, or not positive on a logarithmic axis) are left out.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// A line to compare with: thin and grey.
    pub reference: bool,
}

pub struct Chart<'a> {
    pub title: &'a str,
    pub x: Axis<'a>,
    pub y: Axis<'a>,
}

#[derive(Clone, Copy)]
pub struct Axis<'a> {
    pub label: &'a str,
    pub logarithmic: bool,
}

const SIZE: (i32, i32) = (760, 420);
const LEFT: i32 = 74;
const RIGHT: i32 = 200;
const TOP: i32 = 34;
const BOTTOM: i32 = 50;
/// Decades below the start that are shown at most: what lies lower is rounding.
const DECADES: f64 = 24.0;

/// Colors that differ in lightness too.
const COLORS: [(u8, u8, u8); 12] = [
    (31, 119, 180),
    (214, 39, 40),
    (44, 160, 44),
    (255, 127, 14),
    (148, 103, 189),
    (0, 0, 0),
    (23, 190, 207),
    (227, 119, 194),
    (140, 86, 75),
    (188, 189, 34),
    (10, 60, 120),
    (120, 200, 150),
];
const INK: (u8, u8, u8) = (60, 60, 60);
const GRID: (u8, u8, u8) = (225, 225, 225);

impl Chart<'_> {
    /// The chart as an SVG document of its own.
    pub fn svg(&self, series: &[Series]) -> Result<String, Box<dyn std::error::Error>> {
        let shown: Vec<Vec<(f64, f64)>> = series.iter().map(|s| self.shown(s)).collect();
        let all = || shown.iter().flatten();
        let x = Range::of(self.x, all().map(|p| p.0));
        let mut y = Range::of(self.y, all().map(|p| p.1));
        if self.y.logarithmic {
            y.low = y.low.max(y.high - DECADES);
        }
        let mut text = String::new();
        {
            let size = (SIZE.0 as u32, SIZE.1 as u32);
            let mut canvas = SVGBackend::with_string(&mut text, size);
            canvas.draw_rect((0, 0), SIZE, &stroke((255, 255, 255), 1), true)?;
            self.frame(&mut canvas, &x, &y)?;
            let mut color = COLORS.iter().cycle();
            for (row, (series, points)) in series.iter().zip(&shown).enumerate() {
                let style = if series.reference {
                    stroke((150, 150, 150), 1)
                } else {
                    stroke(*color.next().unwrap_or(&INK), 2)
                };
                let pixels = points
                    .iter()
                    .filter(|p| y.place(p.1) >= -0.01)
                    .map(|p| (across(x.place(p.0)), down(y.place(p.1))));
                canvas.draw_path(pixels, &style)?;
                let (left, height) = (SIZE.0 - RIGHT + 14, TOP + 8 + 17 * row as i32);
                canvas.draw_line((left, height), (left + 18, height), &style)?;
                let label = Text::new(12.0, HPos::Left, VPos::Center);
                canvas.draw_text(&series.name, &label, (left + 24, height))?;
            }
            canvas.present()?;
        }
        Ok(text)
    }

    fn shown(&self, series: &Series) -> Vec<(f64, f64)> {
        let can = |axis: Axis, value: f64| value.is_finite() && (!axis.logarithmic || value > 0.0);
        let points = series.points.iter().copied();
        points
            .filter(|&(x, y)| can(self.x, x) && can(self.y, y))
            .collect()
    }

    fn frame(&self, canvas: &mut SVGBackend, x: &Range, y: &Range) -> Drawn {
        let (right, bottom) = (SIZE.0 - RIGHT, SIZE.1 - BOTTOM);
        let grid = stroke(GRID, 1);
        for (place, label) in x.ticks() {
            let at = across(place);
            canvas.draw_line((at, TOP), (at, bottom), &grid)?;
            let style = Text::new(12.0, HPos::Center, VPos::Top);
            canvas.draw_text(&label, &style, (at, bottom + 6))?;
        }
        for (place, label) in y.ticks() {
            let at = down(place);
            canvas.draw_line((LEFT, at), (right, at), &grid)?;
            let style = Text::new(12.0, HPos::Right, VPos::Center);
            canvas.draw_text(&label, &style, (LEFT - 6, at))?;
        }
        canvas.draw_rect((LEFT, TOP), (right, bottom), &stroke(INK, 1), false)?;
        let middle = (LEFT + right) / 2;
        let title = Text::new(15.0, HPos::Center, VPos::Center);
        canvas.draw_text(self.title, &title, (middle, TOP / 2))?;
        let label = Text::new(13.0, HPos::Center, VPos::Center);
        canvas.draw_text(self.x.label, &label, (middle, SIZE.1 - 14))?;
        let upright = Text {
            turned: true,
            ..label
        };
        canvas.draw_text(self.y.label, &upright, (16, (TOP + bottom) / 2))
    }
}

/// What an axis spans, in decades if it is logarithmic.
struct Range {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Range {
    fn of(axis: Axis, values: impl Iterator<Item = f64>) -> Self {
        let logarithmic = axis.logarithmic;
        let scale = |v: f64| if logarithmic { v.log10() } else { v };
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(scale(v)), high.max(scale(v)))
        });
        let (low, high) = if low < high {
            (low, high)
        } else if low.is_finite() {
            (low - 0.5, low + 0.5)
        } else {
            (0.0, 1.0)
        };
        Self {
            low,
            high,
            logarithmic,
        }
    }

    /// From 0 at the low end to 1 at the high one.
    fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic {
            value.log10()
        } else {
            value
        };
        (value - self.low) / (self.high - self.low)
    }

    /// Places and labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        let span = self.high - self.low;
        let mut step = 10f64.powf((span / 6.0).log10().floor());
        step *= [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .find(|m| span / (m * step) <= 6.0)
            .unwrap_or(10.0);
        if self.logarithmic {
            step = step.max(1.0);
        }
        let first = (self.low / step - 1e-9).ceil();
        let last = (self.high / step + 1e-9).floor();
        let count = (last - first).max(-1.0) as usize;
        let at = |i: usize| (first + i as f64) * step;
        let label = |v: f64| {
            if self.logarithmic && v.abs() >= 4.0 {
                format!("1e{v:.0}")
            } else if self.logarithmic {
                format!("{}", 10f64.powi(v as i32))
            } else {
                format!("{}", (v * 1e9).round() / 1e9)
            }
        };
        (0..=count)
            .map(at)
            .filter(|&v| v <= self.high + 1e-9)
            .map(|v| ((v - self.low) / span, label(v)))
            .collect()
    }
}

fn across(place: f64) -> i32 {
    LEFT + (place * f64::from(SIZE.0 - RIGHT - LEFT)).round() as i32
}

fn down(place: f64) -> i32 {
    SIZE.1 - BOTTOM - (place * f64::from(SIZE.1 - BOTTOM - TOP)).round() as i32
}

struct Stroke {
    color: (u8, u8, u8),
    width: u32,
}

fn stroke(color: (u8, u8, u8), width: u32) -> Stroke {
    Stroke { color, width }
}

impl BackendStyle for Stroke {
    fn color(&self) -> BackendColor {
        BackendColor {
            alpha: 1.0,
            rgb: self.color,
        }
    }

    fn stroke_width(&self) -> u32 {
        self.width
    }
}

#[derive(Clone, Copy)]
struct Text {
    size: f64,
    across: HPos,
    down: VPos,
    turned: bool,
}

impl Text {
    fn new(size: f64, across: HPos, down: VPos) -> Self {
        Self {
            size,
            across,
            down,
            turned: false,
        }
    }
}

impl BackendTextStyle for Text {
    type FontError = Infallible;

    fn color(&self) -> BackendColor {
        stroke(INK, 1).color()
    }

    fn size(&self) -> f64 {
        self.size * 1.24 // the backend divides by it
    }

    fn transform(&self) -> FontTransform {
        if self.turned {
            FontTransform::Rotate270
        } else {
            FontTransform::None
        }
    }

    fn anchor(&self) -> Pos {
        Pos::new(self.across, self.down)
    }

    fn family(&self) -> FontFamily<'_> {
        FontFamily::SansSerif
    }

    /// Not asked for: the reader of an SVG lays text out.
    fn layout_box(&self, _: &str) -> Result<((i32, i32), (i32, i32)), Infallible> {
        Ok(((0, 0), (0, 0)))
    }

    /// Not asked for either.
    fn draw<E, D: FnMut(i32, i32, BackendColor) -> Result<(), E>>(
        &self,
        _: &str,
        _: BackendCoord,
        _: D,
    ) -> Result<Result<(), E>, Infallible> {
        Ok(Ok(()))
    }
}
