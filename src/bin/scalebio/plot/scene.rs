//! A drawing of lines, dots and text, and its SVG. Coordinates are pixels from the upper left corner.

/// What a mark is drawn in. The class lets a page choose other colors, for instance on a dark ground.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ink {
    pub class: &'static str,
    /// On a light ground.
    pub rgb: (u8, u8, u8),
    /// On a dark one.
    pub dark: (u8, u8, u8),
}

impl Ink {
    /// Its colors on a light and on a dark ground, as CSS writes them.
    pub fn css(self) -> [String; 2] {
        [self.rgb, self.dark].map(|(r, g, b)| format!("#{r:02x}{g:02x}{b:02x}"))
    }
}

const fn ink(class: &'static str, rgb: (u8, u8, u8), dark: (u8, u8, u8)) -> Ink {
    Ink { class, rgb, dark }
}

/// Titles and names.
pub const TEXT: Ink = ink("text", (31, 35, 40), (230, 232, 235));
/// Axes and their numbers.
pub const AXIS: Ink = ink("axis", (87, 96, 106), (154, 163, 173));
pub const GRID: Ink = ink("grid", (228, 231, 235), (48, 54, 61));
/// Curves that others are seen against.
pub const MUTED: Ink = ink("muted", (193, 199, 205), (80, 88, 97));

/// Okabe and Ito's colors, which differ also to the color-blind, without yellow, which is hardly seen on white. On a dark
/// ground blue is lighter and black is white.
pub const SERIES: [Ink; 7] = [
    ink("s0", (0, 114, 178), (79, 163, 227)),
    ink("s1", (213, 94, 0), (239, 125, 51)),
    ink("s2", (0, 158, 115), (31, 184, 141)),
    ink("s3", (204, 121, 167), (217, 140, 184)),
    ink("s4", (230, 159, 0), (240, 180, 41)),
    ink("s5", (86, 180, 233), (134, 208, 247)),
    ink("s6", (31, 35, 40), (230, 232, 235)),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// Something to draw.
#[derive(Clone, Debug)]
pub enum Mark {
    Line {
        points: Vec<(f32, f32)>,
        ink: Ink,
        width: f32,
        dashed: bool,
        /// Shown where the pointer rests, and read aloud.
        name: Option<String>,
    },
    Dot {
        at: (f32, f32),
        radius: f32,
        ink: Ink,
        name: Option<String>,
    },
    /// The middle of the text's height is at `at`.
    Text {
        at: (f32, f32),
        text: String,
        size: f32,
        anchor: Anchor,
        ink: Ink,
        bold: bool,
    },
}

/// A drawing on white.
#[derive(Clone, Debug)]
pub struct Scene {
    pub title: String,
    pub width: f32,
    pub height: f32,
    pub marks: Vec<Mark>,
}

impl Scene {
    pub fn line(&mut self, points: Vec<(f32, f32)>, ink: Ink, width: f32) {
        let (dashed, name) = (false, None);
        self.marks.push(Mark::Line {
            points,
            ink,
            width,
            dashed,
            name,
        });
    }

    pub fn text(&mut self, at: (f32, f32), text: &str, size: f32, anchor: Anchor, ink: Ink) {
        self.marks.push(Mark::Text {
            at,
            text: text.to_owned(),
            size,
            anchor,
            ink,
            bold: false,
        });
    }

    /// The drawing as an SVG document of its own, which may also stand in a page.
    pub fn svg(&self) -> String {
        let (width, height, title) = (self.width, self.height, escaped(&self.title));
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\" \
             font-family=\"system-ui, sans-serif\">\n<title>{title}</title>\n\
             <rect class=\"ground\" width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        for mark in &self.marks {
            mark.write(&mut text);
        }
        text + "</svg>\n"
    }
}

impl Mark {
    fn write(&self, out: &mut String) {
        let element = match self {
            Self::Line {
                points,
                ink,
                width,
                dashed,
                name,
            } => {
                let points = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
                let points = points.collect::<Vec<_>>().join(" ");
                let dashes = match dashed {
                    true => " stroke-dasharray=\"6 4\"",
                    false => "",
                };
                let (class, [color, _], name) = (ink.class, ink.css(), titled(name));
                format!(
                    "<polyline class=\"{class}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" \
                     stroke-linejoin=\"round\"{dashes} points=\"{points}\">{name}</polyline>"
                )
            }
            Self::Dot {
                at: (x, y),
                radius,
                ink,
                name,
            } => {
                let (class, [color, _], name) = (ink.class, ink.css(), titled(name));
                format!(
                    "<circle class=\"{class}\" fill=\"{color}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\">{name}</circle>"
                )
            }
            Self::Text {
                at: (x, y),
                text,
                size,
                anchor,
                ink,
                bold,
            } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let weight = match bold {
                    true => " font-weight=\"600\"",
                    false => "",
                };
                let (class, [color, _], base) = (ink.class, ink.css(), y + 0.35 * size);
                let text = escaped(text);
                format!(
                    "<text class=\"{class}\" fill=\"{color}\" x=\"{x:.1}\" y=\"{base:.1}\" font-size=\"{size}\" \
                     text-anchor=\"{anchor}\"{weight}>{text}</text>"
                )
            }
        };
        out.push_str(&element);
        out.push('\n');
    }
}

fn titled(name: &Option<String>) -> String {
    let name = name.as_deref().map(escaped);
    name.map_or(String::new(), |name| format!("<title>{name}</title>"))
}

/// Text as it stands in XML: also without the control characters that XML cannot hold.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
