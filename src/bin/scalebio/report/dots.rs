//! Values of several things beside each other, a row each.

use super::super::plot::{AXIS, Anchor, Axis, GRID, Mark, Range, SERIES, Scene, TEXT, shortened};

pub struct Row {
    pub name: String,
    /// Marked by a line.
    pub mean: f64,
    /// A dot each, with a name.
    pub values: Vec<(String, f64)>,
}

const WIDTH: f32 = 720.0;
const LEFT: f32 = 150.0;
const RIGHT: f32 = 40.0;
const TOP: f32 = 36.0;
const ROW: f32 = 28.0;
const BOTTOM: f32 = 44.0;

pub fn scene(title: &str, label: &str, rows: &[Row]) -> Scene {
    let bottom = TOP + ROW * rows.len() as f32;
    let mut scene = Scene {
        title: title.to_owned(),
        width: WIDTH,
        height: bottom + BOTTOM,
        marks: Vec::new(),
    };
    let values = rows.iter().flat_map(|row| &row.values);
    let range = Range::of(Axis::linear(label), values.map(|value| value.1));
    let across = |value| LEFT + range.place(value) as f32 * (WIDTH - LEFT - RIGHT);
    for (place, label) in range.ticks() {
        let at = LEFT + place as f32 * (WIDTH - LEFT - RIGHT);
        scene.line(vec![(at, TOP), (at, bottom)], GRID, 1.0);
        scene.text((at, bottom + 12.0), &label, 12.0, Anchor::Middle, AXIS);
    }
    for (index, row) in rows.iter().enumerate() {
        let height = TOP + ROW * (index as f32 + 0.5);
        scene.line(vec![(LEFT, height), (WIDTH - RIGHT, height)], GRID, 1.0);
        let name = shortened(&row.name, 20);
        scene.text((LEFT - 14.0, height), &name, 12.0, Anchor::End, TEXT);
        let mean = across(row.mean);
        scene.line(vec![(mean, height - 9.0), (mean, height + 9.0)], TEXT, 2.0);
        for (name, value) in &row.values {
            scene.marks.push(Mark::Dot {
                at: (across(*value), height),
                radius: 4.0,
                ink: SERIES[0],
                name: Some(format!("{}, {name}: {value:.4}", row.name)),
            });
        }
    }
    scene.marks.push(Mark::Text {
        at: (12.0, 18.0),
        text: title.to_owned(),
        size: 15.0,
        anchor: Anchor::Start,
        ink: TEXT,
        bold: true,
    });
    let below = (WIDTH - RIGHT, bottom + 31.0);
    scene.text(below, label, 12.0, Anchor::End, AXIS);
    scene
}
