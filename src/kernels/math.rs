//! Functions of one float32 without branches, so that the compiler makes vector instructions of a loop over them, and sums
//! that it may vectorise.
//!
//! Accuracy, over all finite arguments (tests): `exp` within 2e-7 relative (0 below -87), `sigmoid` within 3e-7 relative,
//! `tanh` within 3e-7 relative, `normal_below` within 3e-6 relative for arguments above -6 and 6e-7 above -2.

/// `e^x`; 0 for x below -87, where the result would be no normal number, and at most `e^88`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few bits, so that the difference below is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;

    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * HIGH - n * LOW;
    // Cephes' expf.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let fraction = p * r * r + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { fraction * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent: Cephes' polynomial near 0, where the other form would cancel.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_5e-2;
    p = p * z + 0.133_314_43;
    p = p * z - 0.333_332_8;
    let near = p * z * x + x;
    if size < 0.625 { near } else { far.copysign(x) }
}

/// The probability that a standard normal number is below x: `(1 + erf(x / sqrt 2)) / 2`.
///
/// By the rational-exponential fit of `erfc` in Numerical Recipes (section 6.2), whose relative error is below 1.2e-7
/// everywhere, so that the tail keeps its relative accuracy.
#[inline(always)]
pub(super) fn normal_below(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = 0.170_872_77;
    p = p * t - 0.822_152_23;
    p = p * t + 1.488_515_9;
    p = p * t - 1.135_204;
    p = p * t + 0.278_868_07;
    p = p * t - 0.186_288_06;
    p = p * t + 0.096_784_18;
    p = p * t + 0.374_091_96;
    p = p * t + 1.000_023_7;
    p = p * t - 1.265_512_2;
    // z^2 by x: the rounding of z would count twice.
    let tail = 0.5 * t * exp(p - 0.5 * x * x);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The density of a standard normal number.
#[inline(always)]
pub(super) fn normal_density(x: f32) -> f32 {
    0.398_942_3 * exp(-0.5 * x * x)
}

/// Lanes of a sum: as many as the widest vector, whatever the machine has, so that all machines add in the same order.
const LANES: usize = 16;

/// The sum of `f(x)`.
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    lanes.iter().sum()
}

/// The sum of `f(a, b)` over two slices of the same length.
#[inline(always)]
pub(super) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f(*a, *b);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += f(*a, *b);
    }
    lanes.iter().sum()
}

/// The largest number, not less than `least`.
#[inline(always)]
pub(super) fn largest(x: &[f32], least: f32) -> f32 {
    let mut lanes = [least; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(least, |most, x| if *x > most { *x } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest relative error over a fine grid.
    fn error(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
        const STEPS: u32 = 400_000;
        let at = |i| from + (to - from) * (i as f32 / STEPS as f32);
        let errors = (0..=STEPS).map(at).map(|x| {
            let exact = exact(f64::from(x));
            (f64::from(f(x)) - exact).abs() / exact.abs().max(1e-37)
        });
        errors.fold(0.0, f64::max)
    }

    /// erfc by its continued fraction or its series, in double precision.
    fn erfc(x: f64) -> f64 {
        if x < 0.0 {
            return 2.0 - erfc(-x);
        }
        let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
        if x > 3.0 {
            let tail = (1..200)
                .rev()
                .fold(0.0, |t, k| f64::from(k) / 2.0 / (x + t));
            return scale / (x + tail);
        }
        let terms = (0..200).scan(x, |term, k| {
            let now = *term;
            *term *= 2.0 * x * x / (2.0 * f64::from(k) + 3.0);
            Some(now)
        });
        1.0 - 2.0 * scale * terms.sum::<f64>()
    }

    /// The accuracy that the module promises.
    #[test]
    fn functions_are_as_accurate_as_documented() {
        assert!(error(exp, f64::exp, -87.0, 88.0) < 2e-7);
        assert!(error(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -86.0, 86.0) < 3e-7);
        assert!(error(tanh, f64::tanh, -12.0, 12.0) < 3e-7);
        assert!(error(tanh, f64::tanh, 1e-6, 1e-2) < 3e-7);
        let below = |x: f64| 0.5 * erfc(-x / 2.0_f64.sqrt());
        assert!(error(normal_below, below, -6.0, 6.0) < 3e-6);
        assert!(error(normal_below, below, -2.0, 6.0) < 6e-7);
    }

    /// Infinities have their limits, and NaN is not hidden.
    #[test]
    fn special_values_stay_what_they_are() {
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-1e9).to_bits(), 0);
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert!(normal_below(f32::NAN).is_nan());
        assert_eq!(tanh(40.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(tanh(-40.0).to_bits(), (-1.0_f32).to_bits());
    }

    /// Sums and maxima over lengths that are no multiple of the lanes.
    #[test]
    fn sums_have_every_number_once() {
        for length in [0, 1, 15, 16, 17, 33, 100] {
            let x: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let expected = (0..length).sum::<i32>() as f32;
            assert!((sum(&x, |x| x) - expected).abs() < 0.5);
            assert!((sum2(&x, &x, |a, b| a + b) - 2.0 * expected).abs() < 0.5);
            assert!((largest(&x, -1.0) - (length as f32 - 1.0)).abs() < 0.5);
        }
    }
}
