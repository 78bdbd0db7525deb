//! `x_j ← exp(x_j - max x) / Σ exp(x_j - max x)` in place, in loops that a compiler turns into vector code.

use std::f32::consts::{LN_2, LOG2_E};

const LANES: usize = 16;

/// 1.5 · 2²³: added to a small number, it leaves the nearest integer in the lowest bits.
const TO_INTEGER: f32 = 12_582_912.0;

/// `2^f` for `|f| <= 1/2`: Taylor, `ln(2)^i / i!`; the next term is below 2e-8.
const POWERS: [f32; 7] = [1.0, LN_2, 0.240_226_5, 0.055_504_11, 0.009_618_129, 0.001_333_356, 0.000_154_035_3];

/// The softmax of a row.
pub fn softmax(row: &mut [f32]) {
    let largest = folded(row, f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp2((*x - largest) * LOG2_E);
    }
    let factor = 1.0 / folded(row, 0.0, |a, b| a + b);
    for x in row {
        *x *= factor;
    }
}

/// A fold in many lanes at once.
#[inline(always)]
fn folded(row: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, x);
        }
    }
    lanes.iter().chain(rest).fold(start, |a, &b| fold(a, b))
}

/// `2^x` for `x <= 0`; everything below the smallest normal number becomes that number.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let x = x.max(-126.0);
    let shifted = x + TO_INTEGER;
    let fraction = x - (shifted - TO_INTEGER);
    let power = POWERS.iter().rev().fold(0.0f32, |sum, &factor| sum.mul_add(fraction, factor));
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_right_to_a_few_bits() {
        for i in 0..=126_000 {
            let x = -i as f32 / 1000.0;
            let expected = f64::from(x).exp2();
            let relative = (f64::from(exp2(x)) / expected - 1.0).abs();
            assert!(relative < 3e-7, "2^{x} is off by {relative:.1e}");
        }
        assert!(exp2(-1e9) < 1e-37);
    }

    #[test]
    fn weights_sum_to_one_and_keep_their_order() {
        for n in [1, 2, 15, 16, 17, 100] {
            let mut row: Vec<f32> = (0..n).map(|i| i as f32 * 0.7 - 30.0).collect();
            softmax(&mut row);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{n}");
            assert!(row.is_sorted(), "{n}");
            let ratio = row[n - 1] / row[n.saturating_sub(2)];
            assert!(n == 1 || (ratio - 0.7f32.exp()).abs() < 1e-5, "{n}: {ratio}");
        }
    }
}
