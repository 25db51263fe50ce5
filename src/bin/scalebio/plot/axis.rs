//! What an axis spans, and its ticks.

/// An axis of a chart.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    pub label: &'a str,
    pub logarithmic: bool,
    /// A value that the axis shows whatever the data are, for instance 0.
    pub includes: Option<f64>,
}

impl<'a> Axis<'a> {
    pub fn linear(label: &'a str) -> Self {
        Self {
            label,
            logarithmic: false,
            includes: None,
        }
    }

    pub fn logarithmic(label: &'a str) -> Self {
        Self {
            logarithmic: true,
            ..Self::linear(label)
        }
    }

    /// Linear, and 0 is on it.
    pub fn from_zero(label: &'a str) -> Self {
        Self {
            includes: Some(0.0),
            ..Self::linear(label)
        }
    }

    /// Whether the axis has a place for the value.
    pub fn shows(&self, value: f64) -> bool {
        value.is_finite() && (!self.logarithmic || value > 0.0)
    }
}

/// What an axis spans, in decades if it is logarithmic.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub low: f64,
    pub high: f64,
    logarithmic: bool,
}

impl Range {
    /// Of values that the axis shows.
    pub fn of(axis: Axis, values: impl Iterator<Item = f64>) -> Self {
        let logarithmic = axis.logarithmic;
        let values = values.chain(axis.includes).filter(|&v| axis.shows(v));
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            let v = if logarithmic { v.log10() } else { v };
            (low.min(v), high.max(v))
        });
        // A span below the precision of its numbers has no ticks that differ.
        let least = 1e-9 * low.abs().max(high.abs());
        let (low, high) = if !low.is_finite() {
            (0.0, 1.0)
        } else if high - low > least {
            (low, high)
        } else {
            let around = if logarithmic {
                0.5
            } else {
                (0.1 * low.abs()).max(1e-3)
            };
            (low - around, high + around)
        };
        Self {
            low,
            high,
            logarithmic,
        }
    }

    /// From 0 at the low end to 1 at the high one.
    pub fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic {
            value.log10()
        } else {
            value
        };
        (value - self.low) / (self.high - self.low)
    }

    /// Places and labels.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let fine = if self.logarithmic {
            self.decades()
        } else {
            Vec::new()
        };
        let labelled: Vec<(f64, String)> = if fine.len() > 1 {
            fine.into_iter().map(|v| (v, label(v, v))).collect()
        } else if self.logarithmic {
            steps(10f64.powf(self.low), 10f64.powf(self.high))
        } else {
            steps(self.low, self.high)
        };
        labelled
            .into_iter()
            .map(|(value, label)| (self.place(value), label))
            .filter(|(place, _)| (-1e-9..=1.0 + 1e-9).contains(place))
            .collect()
    }

    /// Powers of ten, at most seven; where there are few, also 2 and 5 times them.
    fn decades(&self) -> Vec<f64> {
        let span = self.high - self.low;
        let every = (span / 6.0).ceil().max(1.0) as i32;
        let factors: &[f64] = if span < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        (self.low.floor() as i32..=self.high.ceil() as i32)
            .filter(|decade| decade % every == 0)
            .flat_map(|decade| factors.iter().map(move |m| m * 10f64.powi(decade)))
            .filter(|v| (self.low - 1e-9..=self.high + 1e-9).contains(&v.log10()))
            .collect()
    }
}

/// At most seven round numbers between two, with labels.
fn steps(low: f64, high: f64) -> Vec<(f64, String)> {
    let span = high - low;
    let mut step = 10f64.powf((span / 6.0).log10().floor());
    step *= [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|m| span / (m * step) <= 6.0)
        .unwrap_or(10.0);
    let first = (low / step - 1e-9).ceil();
    let count = ((high / step + 1e-9).floor() - first).max(-1.0) + 1.0;
    (0..count as usize)
        .map(|i| (first + i as f64) * step)
        .map(|value| (value, label(value, step)))
        .collect()
}

/// The value with as many places as `step` has.
fn label(value: f64, step: f64) -> String {
    let size = value.abs();
    if size < 1e-6 * step {
        return "0".to_owned();
    }
    let place = (step * (1.0 + 1e-9)).log10().floor();
    // Above a ten-thousandth, which a logarithm may miss by a bit in either direction.
    if !(1.000_001e-4..1e6).contains(&size) {
        let digits = (size.log10() + 1e-9).floor() - place;
        return format!("{value:.*e}", digits.clamp(0.0, 9.0) as usize);
    }
    format!("{value:.*}", (-place).clamp(0.0, 9.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::{Axis, Range};

    fn labels(axis: Axis, values: [f64; 2]) -> Vec<String> {
        let ticks = Range::of(axis, values.into_iter()).ticks();
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers_with_the_places_they_need() {
        let linear = Axis::linear("");
        assert_eq!(
            labels(linear, [0.0, 0.5]),
            ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
        );
        assert_eq!(
            labels(linear, [-0.02, 0.03]),
            ["-0.02", "-0.01", "0", "0.01", "0.02", "0.03"]
        );
        assert_eq!(
            labels(linear, [0.0, 1e-5]),
            ["0", "2e-6", "4e-6", "6e-6", "8e-6", "1.0e-5"]
        );
        assert_eq!(
            labels(linear, [0.0, 119.0]),
            ["0", "20", "40", "60", "80", "100"]
        );
        let logarithmic = Axis::logarithmic("");
        assert_eq!(
            labels(logarithmic, [1e-5, 1.0]),
            ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]
        );
        assert_eq!(labels(logarithmic, [2.5, 45.0]), ["5", "10", "20"]);
        assert_eq!(
            labels(logarithmic, [3.1, 3.4]),
            ["3.10", "3.15", "3.20", "3.25", "3.30", "3.35", "3.40"]
        );
    }

    #[test]
    fn a_single_value_or_none_still_has_an_axis() {
        for values in [[3.0, 3.0], [f64::NAN, f64::NAN], [0.0, 0.0]] {
            for axis in [Axis::linear(""), Axis::logarithmic(""), Axis::from_zero("")] {
                let range = Range::of(axis, values.into_iter());
                assert!(
                    range.low < range.high && !range.ticks().is_empty(),
                    "{values:?} {axis:?}"
                );
            }
        }
    }
}
