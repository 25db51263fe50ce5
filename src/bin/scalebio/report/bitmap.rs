//! A drawing as a PNG, twice as fine as its SVG.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use epaint_default_fonts::UBUNTU_LIGHT;
use tiny_skia::{
    Color, LineCap, LineJoin, Paint, PathBuilder, Pixmap, PremultipliedColorU8, Stroke, StrokeDash,
    Transform,
};

use super::super::plot::{Anchor, Ink, Mark, Scene};
use super::reading::Result;

const SCALE: f32 = 2.0;

/// Letters are Latin, Greek and Cyrillic, as far as the font goes; others become boxes.
pub fn png(scene: &Scene) -> Result<Vec<u8>> {
    let (width, height) = (scene.width * SCALE, scene.height * SCALE);
    let pixels = Pixmap::new(width as u32, height as u32);
    let mut pixels = pixels.ok_or("a drawing without an area")?;
    pixels.fill(Color::WHITE);
    let font = FontRef::try_from_slice(UBUNTU_LIGHT)?;
    for mark in &scene.marks {
        draw(&mut pixels, &font, mark);
    }
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    // On white nothing is left transparent, so that the colors are what they are.
    let colors = pixels.pixels().iter();
    let rgb: Vec<u8> = colors
        .flat_map(|p| [p.red(), p.green(), p.blue()])
        .collect();
    Ok(lodepng::encode24(&rgb, width, height)?)
}

fn draw(pixels: &mut Pixmap, font: &FontRef, mark: &Mark) {
    match mark {
        Mark::Line {
            points,
            ink,
            width,
            dashed,
            ..
        } => {
            let mut path = PathBuilder::new();
            for (index, &(x, y)) in points.iter().enumerate() {
                match index {
                    0 => path.move_to(x, y),
                    _ => path.line_to(x, y),
                }
            }
            let stroke = Stroke {
                width: *width,
                line_cap: LineCap::Butt,
                line_join: LineJoin::Round,
                dash: dashed
                    .then(|| StrokeDash::new(vec![6.0, 4.0], 0.0))
                    .flatten(),
                ..Stroke::default()
            };
            if let Some(path) = path.finish() {
                let scale = Transform::from_scale(SCALE, SCALE);
                pixels.stroke_path(&path, &paint(*ink), &stroke, scale, None);
            }
        }
        Mark::Dot {
            at, radius, ink, ..
        } => {
            if let Some(circle) = PathBuilder::from_circle(at.0, at.1, *radius) {
                let (rule, scale) = (Default::default(), Transform::from_scale(SCALE, SCALE));
                pixels.fill_path(&circle, &paint(*ink), rule, scale, None);
            }
        }
        Mark::Text {
            at,
            text,
            size,
            anchor,
            ink,
            bold,
        } => write(pixels, font, (*at, text, *size), *anchor, *ink, *bold),
    }
}

fn paint(ink: Ink) -> Paint<'static> {
    let mut paint = Paint::default();
    let (r, g, b) = ink.rgb;
    paint.set_color_rgba8(r, g, b, 255);
    paint.anti_alias = true;
    paint
}

fn write(
    pixels: &mut Pixmap,
    font: &FontRef,
    (at, text, size): ((f32, f32), &str, f32),
    anchor: Anchor,
    ink: Ink,
    bold: bool,
) {
    // A size in CSS is that of the em, here that from the lowest to the highest point of a line.
    let em = font.units_per_em().unwrap_or(1000.0);
    let scale = PxScale::from(size * SCALE * font.height_unscaled() / em);
    let font = font.as_scaled(scale);
    let (mut pen, mut last, mut glyphs) = (0.0, None, Vec::new());
    for letter in text.chars() {
        let id = font.glyph_id(letter);
        pen += last.map_or(0.0, |last| font.kern(last, id));
        glyphs.push((id, pen));
        pen += font.h_advance(id);
        last = Some(id);
    }
    let left = at.0 * SCALE
        - match anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => pen / 2.0,
            Anchor::End => pen,
        };
    let base = (at.1 + 0.35 * size) * SCALE;
    let offsets: &[f32] = if bold { &[0.0, 0.6, 1.2] } else { &[0.0, 0.4] };
    for (id, pen) in glyphs {
        for offset in offsets {
            let place = ab_glyph::point(left + pen + offset, base);
            let glyph = id.with_scale_and_position(scale, place);
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                outline.draw(|x, y, cover| {
                    let (x, y) = (
                        bounds.min.x as i32 + x as i32,
                        bounds.min.y as i32 + y as i32,
                    );
                    blend(pixels, (x, y), ink, cover);
                });
            }
        }
    }
}

/// Draws over an opaque pixel, if there is one.
fn blend(pixels: &mut Pixmap, (x, y): (i32, i32), ink: Ink, cover: f32) {
    let (width, height) = (pixels.width() as i32, pixels.height() as i32);
    if !(0..width).contains(&x) || !(0..height).contains(&y) {
        return;
    }
    let pixel = &mut pixels.pixels_mut()[(y * width + x) as usize];
    let cover = cover.clamp(0.0, 1.0);
    let mix = |below: u8, ink: u8| {
        (f32::from(below) * (1.0 - cover) + f32::from(ink) * cover).round() as u8
    };
    let (r, g, b) = ink.rgb;
    let (r, g, b) = (
        mix(pixel.red(), r),
        mix(pixel.green(), g),
        mix(pixel.blue(), b),
    );
    if let Some(color) = PremultipliedColorU8::from_rgba(r, g, b, 255) {
        *pixel = color;
    }
}
