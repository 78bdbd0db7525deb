//! AdamW: parameters after one step, in one pass over them.
//!
//! `m' = β₁ m + (1 - β₁) g`, `v' = β₂ v + (1 - β₂) g²`, `x' = x - rate · decay · x - rate · (m' / (1 - β₁ᵗ)) / (√(v' / (1 - β₂ᵗ)) + ε)` at step t,
//! counted from 1. All in f32. Loshchilov, Hutter 2019, arXiv 1711.05101.

use super::matrix::{Matrix, MatrixMut};
use super::sweep::{Each, each};
use crate::simd::Lanes;
use crate::{Error, Par};

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f32,
    /// β₁, β₂.
    pub betas: [f32; 2],
    /// ε.
    pub epsilon: f32,
    /// Decay, which the rate scales.
    pub decay: f32,
    /// t, counted from 1.
    pub time: u32,
}

impl AdamW {
    /// Parameters and both moments behind the step, from `[x, g, m, v]`; all are of one shape.
    ///
    /// # Errors
    /// If shapes differ, or the elements of a row are not neighbours.
    pub fn step(&self, [x, g, m, v]: [&Matrix<'_, f32>; 4], [x1, m1, v1]: [&mut MatrixMut<'_, f32>; 3], par: Par) -> Result<(), Error> {
        let [first, second] = self.betas.map(|beta| 1.0 - f64::from(beta).powf(f64::from(self.time)));
        let update = Update {
            kept: 1.0 - self.rate * self.decay,
            pace: (f64::from(self.rate) / first) as f32,
            second: (1.0 / second) as f32,
            betas: self.betas,
            epsilon: self.epsilon,
        };
        each(update, [("x", x), ("g", g), ("m", m), ("v", v)], [("x'", x1), ("m'", m1), ("v'", v1)], par)
    }
}

/// The step with what is the same for all parameters done.
#[derive(Clone, Copy)]
struct Update {
    /// `1 - rate · decay`.
    kept: f32,
    /// `rate / (1 - β₁ᵗ)`.
    pace: f32,
    /// `1 / (1 - β₂ᵗ)`.
    second: f32,
    betas: [f32; 2],
    epsilon: f32,
}

impl Each<4, 3> for Update {
    #[inline(always)]
    fn apply<S: Lanes>(self, s: S, [x, g, m, v]: [S::F; 4]) -> [S::F; 3] {
        let [first, second] = self.betas;
        let m = s.mul_add(s.splat(first), m, s.mul(s.splat(1.0 - first), g));
        let v = s.mul_add(s.splat(second), v, s.mul(s.splat(1.0 - second), s.mul(g, g)));
        let slope = s.add(s.sqrt(s.mul(v, s.splat(self.second))), s.splat(self.epsilon));
        let away = s.div(s.mul(s.splat(self.pace), m), slope);
        [s.sub(s.mul(s.splat(self.kept), x), away), m, v]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    const SHAPE: [usize; 2] = [5, 37];

    /// Steps of the definition in f64.
    fn defined(steps: &[Vec<f32>], how: &AdamW, x: &mut [f64]) {
        let [first, second] = how.betas.map(f64::from);
        let (mut m, mut v) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for (at, g) in steps.iter().enumerate() {
            let t = (at + 1) as i32;
            for i in 0..x.len() {
                let g = f64::from(g[i]);
                m[i] = first * m[i] + (1.0 - first) * g;
                v[i] = second * v[i] + (1.0 - second) * g * g;
                let away = m[i] / (1.0 - first.powi(t)) / ((v[i] / (1.0 - second.powi(t))).sqrt() + f64::from(how.epsilon));
                x[i] -= f64::from(how.rate) * (f64::from(how.decay) * x[i] + away);
            }
        }
    }

    #[test]
    fn ten_steps_are_those_of_the_definition() {
        let count = SHAPE[0] * SHAPE[1];
        let wave = |seed: f64| (0..count).map(|i| ((i as f64 * 0.731 + seed) * 1.7).sin() as f32).collect::<Vec<f32>>();
        let steps: Vec<Vec<f32>> = (0..10).map(|step| wave(f64::from(step))).collect();
        let how = AdamW { rate: 1e-2, betas: [0.9, 0.99], epsilon: 1e-8, decay: 0.1, time: 0 };
        let mut wanted: Vec<f64> = wave(100.0).iter().map(|&x| f64::from(x)).collect();
        defined(&steps, &how, &mut wanted);
        for level in [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter(|level| level.is_available()) {
            let (mut x, mut m, mut v) = (wave(100.0), vec![0.0; count], vec![0.0; count]);
            for (at, g) in steps.iter().enumerate() {
                let (mut x1, mut m1, mut v1) = (vec![f32::NAN; count], vec![f32::NAN; count], vec![f32::NAN; count]);
                let matrix = |values| Matrix::new(values, SHAPE, "from").unwrap();
                let from = [&matrix(&x), &matrix(g), &matrix(&m), &matrix(&v)];
                let mut into = [&mut x1, &mut m1, &mut v1].map(|values| MatrixMut::new(values, SHAPE, "into").unwrap());
                let [a, b, c] = &mut into;
                AdamW { time: at as u32 + 1, ..how }.step(from, [a, b, c], Par::default().level(level)).unwrap();
                (x, m, v) = (x1, m1, v1);
            }
            let worst = x.iter().zip(&wanted).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-6, "{level}: {worst:e}");
        }
    }
}
