//! Rotary positions: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
//!
//! Number i of a head turns together with number i + half, as in all checkpoints of transformers read here (not with its
//! neighbour, as in the paper).

use std::f64::consts::TAU;
#[cfg(feature = "flex")]
use std::sync::Arc;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde_json::{Map, Value};

use super::settings::{Settings, positive};
use crate::error::Result;
#[cfg(feature = "flex")]
use crate::kernels;

/// How fast each pair of numbers of a head turns.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    /// Radians a position, one a pair.
    pub frequencies: Vec<f32>,
    /// Width of a head, of which the first `2 * frequencies.len()` numbers turn.
    pub head: usize,
}

/// What an architecture's config.json means where it says nothing.
pub(super) struct RopeDefaults {
    /// The key of the base in transformers 4.
    pub theta: &'static str,
    /// The key of the part of a head that turns in transformers 4, and the part where it is not given; where that is 1,
    /// transformers computes no other.
    pub part: (&'static str, f64),
}

impl RopeDefaults {
    /// Those of Llama and its relatives, whose heads turn as a whole.
    pub const LLAMA: Self = Self {
        theta: "rope_theta",
        part: ("partial_rotary_factor", 1.0),
    };
}

impl Rope {
    /// Reads transformers 5's `rope_parameters`, or 4's `rope_scaling` and the keys around it.
    pub fn read(
        settings: &Settings,
        defaults: &RopeDefaults,
        head: usize,
        longest: usize,
    ) -> Result<Self> {
        let nothing = Map::new();
        let spelled = ["rope_scaling", "rope_parameters"].into_iter();
        let (key, rope) = match spelled
            .filter_map(|key| Some((key, settings.get(key)?)))
            .find(|(_, value)| value.as_object().is_none_or(|map| !map.is_empty()))
        {
            None => ("rope_parameters", &nothing),
            Some((key, Value::Object(rope))) => (key, rope),
            Some((key, _)) => return Err(settings.refuse(key, "an object", "correct it")),
        };
        let refuse = |allowed: &str| {
            settings.refuse(key, allowed, "no other rotary positions are supported")
        };
        let given = |name: &str| rope.get(name).filter(|value| !value.is_null());
        let number = |name: &str| {
            let needed = || refuse(&format!("an object whose `{name}` is a positive number"));
            given(name).and_then(positive).ok_or_else(needed)
        };
        let or_else = |name: &str, key: &str, default: f64| match given(name) {
            Some(_) => number(name),
            None => settings.positive(key, default),
        };

        let theta = or_else("rope_theta", defaults.theta, 10_000.0)?;
        let (part_key, usual) = defaults.part;
        let part = or_else("partial_rotary_factor", part_key, usual)?;
        if usual >= 1.0 && part < 1.0 {
            return Err(refuse("such that heads turn as a whole"));
        }
        let rotated = (head as f64 * part) as usize;
        if part > 1.0 || rotated == 0 || !rotated.is_multiple_of(2) {
            let allowed = format!(
                "such that an even number of each head's {head} numbers turn, not {rotated}"
            );
            return Err(refuse(&allowed));
        }
        let frequency = |pair: usize| theta.powf(-((2 * pair) as f64) / rotated as f64);
        let mut frequencies: Vec<f64> = (0..rotated / 2).map(frequency).collect();

        match given("rope_type").or(given("type")).map(Value::as_str) {
            None | Some(Some("default")) => {}
            Some(Some("linear")) => {
                let factor = number("factor")?;
                frequencies.iter_mut().for_each(|f| *f /= factor);
            }
            Some(Some("llama3")) => {
                let scaling = Llama3 {
                    factor: number("factor")?,
                    low: number("low_freq_factor")?,
                    high: number("high_freq_factor")?,
                    // As in transformers, the key outside the object counts first.
                    longest: match settings.get("original_max_position_embeddings") {
                        Some(_) => settings.positive("original_max_position_embeddings", 1.0)?,
                        None if given("original_max_position_embeddings").is_some() => {
                            number("original_max_position_embeddings")?
                        }
                        None => longest as f64,
                    },
                };
                if scaling.high <= scaling.low {
                    let allowed =
                        "an object whose `high_freq_factor` is above its `low_freq_factor`";
                    return Err(refuse(allowed));
                }
                frequencies.iter_mut().for_each(|f| *f = scaling.scale(*f));
            }
            Some(_) => {
                let allowed = "an object whose `rope_type` is default, linear or llama3";
                return Err(refuse(allowed));
            }
        }
        Ok(Self {
            frequencies: frequencies.into_iter().map(|f| f as f32).collect(),
            head,
        })
    }

    /// Of each position from `start` on, the cosines of its angles and then the sines.
    #[cfg(feature = "flex")]
    fn angles(&self, start: usize, length: usize) -> Arc<[f32]> {
        let positions = start..start + length;
        let of_position = |position: usize| {
            let angles = self.frequencies.iter();
            let angles = angles.map(move |f| f64::from(position as f32 * f));
            let sines = angles.clone().map(f64::sin);
            angles.map(f64::cos).chain(sines).map(|x| x as f32)
        };
        positions.flat_map(of_position).collect()
    }

    /// The turns of the positions from `start` on, for tensors of type `dtype`.
    pub fn at(&self, start: usize, length: usize, device: &Device, dtype: FloatDType) -> Turns {
        let (head, half) = (self.head, self.frequencies.len());
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in start..start + length {
            // The angle in float32, as transformers has it: for late positions its rounding is visible.
            let angle = |i: usize| f64::from(position as f32 * self.frequencies[i % half]);
            cos.extend((0..head).map(|i| {
                if i < 2 * half {
                    angle(i).cos() as f32
                } else {
                    1.0
                }
            }));
            sin.extend((0..head).map(|i| {
                if i < 2 * half {
                    angle(i).sin() as f32
                } else {
                    0.0
                }
            }));
        }
        let mut partner = vec![0.0_f32; head * head];
        for i in 0..half {
            partner[(i + half) * head + i] = -1.0;
            partner[i * head + i + half] = 1.0;
        }
        let table = |values: Vec<f32>| {
            let data = TensorData::new(values, [1, length, 1, head]);
            Tensor::<4>::from_data(data, device).cast(dtype)
        };
        let partner = TensorData::new(partner, [head, head]);
        Turns {
            #[cfg(feature = "flex")]
            angles: self.angles(start, length),
            cos: table(cos),
            sin: table(sin),
            partner: Tensor::<2>::from_data(partner, device).cast(dtype),
        }
    }
}

/// Llama 3.1's stretching of slow turns to a longer context.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    longest: f64,
}

impl Llama3 {
    fn scale(&self, frequency: f64) -> f64 {
        // Turns within the original length: many stay as they are, few are slowed down, between them is a ramp.
        let turns = self.longest * frequency / TAU;
        let kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        frequency * (kept + (1.0 - kept) / self.factor)
    }
}

/// The turns of the positions of a batch.
pub(super) struct Turns {
    #[cfg(feature = "flex")]
    angles: Arc<[f32]>,
    cos: Tensor<4>,
    sin: Tensor<4>,
    /// Puts at each place the number that it turns with, signed: a matmul is faster, forward and backward, than slices that
    /// are concatenated or a flip, and numbers that do not turn need no case of their own.
    partner: Tensor<2>,
}

impl Turns {
    /// Turns queries or keys, `[batch, length, heads, head]`.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        #[cfg(feature = "flex")]
        if let Some(y) = kernels::turn(&x, &self.angles) {
            return y;
        }
        let [batch, length, heads, head] = x.dims();
        let rows = x.clone().reshape([batch * length * heads, head]);
        let partners = rows.matmul(self.partner.clone());
        x * self.cos.clone() + partners.reshape([batch, length, heads, head]) * self.sin.clone()
    }
}
