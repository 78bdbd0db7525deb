//! Numbers that look random and are a function of a key and a counter: nothing is remembered, so a run goes on where it stopped.
//!
//! The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).

/// A stream of draws.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream of a list of numbers: seed, epoch, step, whatever tells it from others.
    pub fn of(parts: &[u64]) -> Self {
        Stream { key: parts.iter().fold(0x243f_6a88_85a3_08d3, |key, &part| mix(key ^ mix(part.wrapping_add(0x9e37_79b9_7f4a_7c15)))) }
    }

    /// Its number `at`, any of 2^64.
    pub fn bits(self, at: u64) -> u64 {
        mix(self.key.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Its number `at` in `[0, 1)`.
    pub fn unit(self, at: u64) -> f64 {
        (self.bits(at) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Its number `at`, normal with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(self, at: u64) -> f64 {
        let (radius, angle) = (1.0 - self.unit(2 * at), self.unit(2 * at + 1));
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// Every bit of the result depends on every bit of x.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A permutation of `0..count` that takes no memory: four rounds of a Feistel network over the next even power of two, walked until the
/// result is below `count` (Black, Rogaway 2002).
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    stream: Stream,
    half: u32,
    count: u64,
}

impl Permutation {
    /// Of `count` numbers.
    pub fn new(count: u64, stream: Stream) -> Self {
        let bits = 64 - count.saturating_sub(1).leading_zeros();
        Permutation { stream, half: bits.div_ceil(2).max(1), count }
    }

    /// Where `at` goes; both are below the count.
    pub fn of(&self, at: u64) -> u64 {
        let mut x = self.rounds(at);
        while x >= self.count {
            x = self.rounds(x);
        }
        x
    }

    fn rounds(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (x >> self.half, x & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (self.stream.bits(right << 2 | round) & mask));
        }
        left << self.half | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_meets_every_number_once() {
        for count in [1, 2, 3, 5, 16, 17, 1000] {
            let permutation = Permutation::new(count, Stream::of(&[7, count]));
            let mut met: Vec<u64> = (0..count).map(|at| permutation.of(at)).collect();
            if count == 1000 {
                assert_ne!(met, (0..count).collect::<Vec<_>>());
            }
            met.sort_unstable();
            assert_eq!(met, (0..count).collect::<Vec<_>>(), "{count}");
        }
    }

    #[test]
    fn draws_have_the_moments_they_should() {
        let stream = Stream::of(&[1, 2, 3]);
        let many = 200_000u64;
        let mean = (0..many).map(|at| stream.normal(at)).sum::<f64>() / many as f64;
        let square = (0..many).map(|at| stream.normal(at).powi(2)).sum::<f64>() / many as f64;
        let unit = (0..many).map(|at| stream.unit(at)).sum::<f64>() / many as f64;
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.02 && (unit - 0.5).abs() < 0.005, "{mean} {square} {unit}");
        assert_ne!(Stream::of(&[1, 2]).bits(0), Stream::of(&[2, 1]).bits(0));
    }
}
