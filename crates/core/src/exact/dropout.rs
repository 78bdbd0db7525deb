//! Dropout without a state: one 32-bit hash of (seed, step, sequence, head, query, key) decides, so the backward pass
//! and any order of tiles see the same mask. The mixer is lowbias32 (C. Wellons, public domain).

use crate::Dropout;
use crate::simd::Lanes;

const KEY: u32 = 0x9e37_79b1;
const MIX: [u32; 2] = [0x7feb_352d, 0x846c_a68b];

fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(MIX[0]);
    let x = (x ^ (x >> 15)).wrapping_mul(MIX[1]);
    x ^ (x >> 16)
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// What is the same for one call: the mixed seed, the threshold below which a weight falls, the factor of the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask {
    seed: u32,
    threshold: u32,
    factor: f32,
}

impl Mask {
    pub(super) fn new(dropout: Dropout) -> Self {
        let ([seed, seed_high], [step, step_high]) = (halves(dropout.seed), halves(dropout.step));
        let threshold = (f64::from(dropout.probability) * 4_294_967_296.0).round().min(4_294_967_295.0);
        Mask {
            seed: mix(seed ^ mix(seed_high ^ mix(step ^ mix(step_high ^ 0x9e37_79b9)))),
            threshold: threshold as u32,
            factor: 1.0 / (1.0 - dropout.probability),
        }
    }

    /// The hash of a query, to be combined with keys.
    pub(super) fn row(&self, sequence: usize, h: usize, i: usize) -> i32 {
        mix(self.seed ^ mix(sequence as u32 ^ mix(h as u32 ^ mix(i as u32)))) as i32
    }

    /// `Z` of one pair: 0, or `1/(1 - p)`.
    pub(super) fn weight(&self, row: i32, j: usize) -> f32 {
        let bits = mix(row as u32 ^ (j as u32).wrapping_mul(KEY));
        if bits < self.threshold { 0.0 } else { self.factor }
    }

    /// `Z` of as many queries as there are lanes and one key.
    #[inline(always)]
    pub(super) fn weights<S: Lanes>(&self, s: S, rows: S::I, j: usize) -> S::F {
        let x = s.xor_i(rows, s.splat_i((j as u32).wrapping_mul(KEY) as i32));
        let x = s.mul_i(s.xor_i(x, s.shift_right_16(x)), s.splat_i(MIX[0] as i32));
        let x = s.mul_i(s.xor_i(x, s.shift_right_15(x)), s.splat_i(MIX[1] as i32));
        let bits = s.xor_i(x, s.shift_right_16(x));
        let dropped = s.below_unsigned(bits, s.splat_i(self.threshold as i32));
        s.select(dropped, s.zero(), s.splat(self.factor))
    }
}
