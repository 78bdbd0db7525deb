//! Seeded random numbers: the same on every machine, a stream of its own for every row.

use std::f64::consts::TAU;

/// SplitMix64 (Steele, Lea & Flood 2014); normal numbers by Box and Muller.
pub struct Draw(u64);

impl Draw {
    /// The stream of a seed and the numbers that name a row.
    pub fn new(seed: u64, names: [usize; 3]) -> Self {
        names.iter().fold(Draw(seed), |mut draw, &name| Draw(draw.next() ^ name as u64))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// In `(0, 1]`.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Adds normal numbers of this spread.
    pub fn add_normals(&mut self, spread: f64, into: &mut [f32]) {
        for pair in into.chunks_mut(2) {
            let radius = spread * (-2.0 * self.uniform().ln()).sqrt();
            let (sin, cos) = (TAU * self.uniform()).sin_cos();
            for (value, part) in pair.iter_mut().zip([cos, sin]) {
                *value += (radius * part) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_mean_zero_and_the_wanted_spread() {
        let mut values = vec![0.0; 100_000];
        Draw::new(7, [0, 1, 2]).add_normals(2.0, &mut values);
        let mean = |f: fn(f64) -> f64| values.iter().map(|&x| f(f64::from(x))).sum::<f64>() / values.len() as f64;
        assert!(mean(|x| x).abs() < 0.03, "seed=7");
        assert!((mean(|x| x * x) - 4.0).abs() < 0.08, "seed=7");
    }

    #[test]
    fn every_row_has_its_own_stream() {
        let first = |seed, names| Draw::new(seed, names).next();
        assert_eq!(first(1, [0, 0, 0]), first(1, [0, 0, 0]));
        let others = [first(2, [0, 0, 0]), first(1, [1, 0, 0]), first(1, [0, 1, 0]), first(1, [0, 0, 1])];
        assert!(others.iter().all(|&other| other != first(1, [0, 0, 0])));
    }
}
