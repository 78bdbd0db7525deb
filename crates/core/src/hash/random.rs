//! Random numbers without a state: a number is a function of a key and an index. The mixer is the finalizer of SplitMix64
//! (Steele, Lea & Flood 2014).

use std::f64::consts::TAU;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A sequence of independent numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream(u64);

impl Stream {
    /// The sequence that belongs to these words.
    pub(crate) fn new(words: &[u64]) -> Self {
        Stream(words.iter().fold(STEP, |key, &word| mix(mix(key.wrapping_add(word)).wrapping_add(STEP))))
    }

    fn bits(&self, index: u64) -> u64 {
        mix(self.0.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP)))
    }

    /// Below `end`, which is at least 1; by multiplication, so no number is favoured by more than `end / 2^64`.
    pub(crate) fn below(&self, index: u64, end: usize) -> usize {
        ((u128::from(self.bits(index)) * end as u128) >> 64) as usize
    }

    /// In `[0, 1)`.
    pub(crate) fn unit(&self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of mean 0 and variance 1 (Box & Muller 1958).
    pub(crate) fn normal(&self, index: u64) -> f64 {
        let [a, b] = [1.0 - self.unit(2 * index), self.unit(2 * index + 1)];
        (-2.0 * a.ln()).sqrt() * (TAU * b).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_as_they_should_be() {
        let stream = Stream::new(&[7, 0]);
        let count = 40_000;
        let mut bins = [0usize; 10];
        (0..count).for_each(|i| bins[stream.below(i, 10)] += 1);
        // Five standard deviations of a bin of a tenth.
        let spread = 5.0 * (count as f64 * 0.09).sqrt();
        assert!(bins.iter().all(|&n| (n as f64 - count as f64 / 10.0).abs() < spread), "{bins:?}");
        let (sum, squares) = (0..count).map(|i| stream.normal(i)).fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        let root = (count as f64).sqrt();
        assert!((sum / root).abs() < 5.0 && (squares / count as f64 - 1.0).abs() * root < 5.0 * 2f64.sqrt(), "{sum} {squares}");
        assert_ne!(Stream::new(&[7, 0]).bits(0), Stream::new(&[7, 1]).bits(0));
        assert_ne!(Stream::new(&[7]).bits(0), Stream::new(&[7, 0]).bits(0));
    }
}
