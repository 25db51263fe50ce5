//! Gradients in few dimensions.

use burn::module::Module;
use burn::optim::GradientsParams;

use super::gradients;

/// A random linear map from the gradients of a model to few numbers, which keeps inner products: `E <R a, R b> = <a, b>`, with a
/// standard deviation of at most `sqrt(2 / k) |a| |b|` for `k` numbers.
///
/// Each column of `R` holds a single 1 or -1, in a random row: so a gradient of `n` numbers takes `n` additions, and not the `n k`
/// of a dense matrix. Nothing of it is stored: row and sign are a hash of the seed, the parameter's place in a walk over the
/// model, and the number's place in the parameter.
///
/// # Reference
///
/// Weinberger et al., *Feature Hashing for Large Scale Multitask Learning*, ICML 2009, arXiv 0902.2206.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    seed: u64,
    dimension: usize,
}

impl Projection {
    /// The map that belongs to a seed, to `dimension` numbers, at least 1.
    pub fn new(seed: u64, dimension: usize) -> Self {
        Self {
            seed,
            dimension: dimension.max(1),
        }
    }

    /// Number of numbers of a projected gradient.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The only entry of a column that is not 0, its row and its value: of number `element`, row by row, of the parameter that a
    /// walk over the model meets as `parameter`, both from 0.
    pub fn entry(&self, parameter: u64, element: u64) -> (usize, f64) {
        entry(self.column(parameter), element, self.dimension)
    }

    /// The projection of the gradients of `module`. A parameter without one counts as zero.
    pub fn project<M: Module>(&self, module: &M, gradients: &GradientsParams) -> Vec<f64> {
        let mut projected = vec![0.0; self.dimension];
        gradients::for_each(module, gradients, |parameter, numbers| {
            let key = self.column(parameter);
            for (element, &number) in (0_u64..).zip(numbers) {
                let (row, sign) = entry(key, element, self.dimension);
                projected[row] += sign * f64::from(number);
            }
        });
        projected
    }

    /// What the hashes of a parameter start from.
    fn column(&self, parameter: u64) -> u64 {
        mixed(mixed(self.seed).wrapping_add(parameter))
    }
}

fn entry(key: u64, element: u64, dimension: usize) -> (usize, f64) {
    let hash = mixed(key.wrapping_add(element));
    // The upper bits choose the row, by a product instead of a remainder; the lowest is the sign.
    let row = ((u128::from(hash >> 1) * dimension as u128) >> 63) as usize;
    let sign = if hash & 1 == 0 { 1.0 } else { -1.0 };
    (row, sign)
}

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014): neighbours get unrelated numbers.
fn mixed(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
