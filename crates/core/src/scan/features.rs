//! Feature maps φ, applied to rows in working form, and their slopes.

use crate::simd::Lanes;

/// A map from a query or key to features that stand in for the exponential.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Map {
    /// `elu(x) + 1`: `x + 1` above 0, else `e^x`.
    #[default]
    Elu1,
    /// `max(x, 0)`.
    Relu,
    /// `x`.
    Identity,
    /// `max(x, 0)²`.
    SquaredRelu,
    /// Softmax over the features.
    Softmax,
}

impl Map {
    /// Maps a row of `width` values; zeros behind them stay.
    #[inline(always)]
    pub(super) fn apply<S: Lanes>(self, s: S, row: &mut [f32], width: usize) {
        let zero = s.zero();
        match self {
            Map::Identity => return,
            Map::Softmax => soften(s, row, width),
            Map::Elu1 => {
                for x in row.chunks_exact_mut(S::N) {
                    let value = s.load(x);
                    s.store(x, s.select(s.greater(value, zero), s.add(value, s.splat(1.0)), s.exp(value)));
                }
            }
            Map::Relu => {
                for x in row.chunks_exact_mut(S::N) {
                    let value = s.load(x);
                    s.store(x, s.max(zero, value));
                }
            }
            Map::SquaredRelu => {
                for x in row.chunks_exact_mut(S::N) {
                    let value = s.max(zero, s.load(x));
                    s.store(x, s.mul(value, value));
                }
            }
        }
        row[width..].fill(0.0);
    }

    /// Turns the gradient of features into that of the row `x` they were made of.
    #[inline(always)]
    pub(super) fn pull<S: Lanes>(self, s: S, x: &[f32], features: &[f32], gradient: &mut [f32]) {
        let zero = s.zero();
        match self {
            Map::Identity => {}
            Map::Elu1 => {
                for (f, d) in features.chunks_exact(S::N).zip(gradient.chunks_exact_mut(S::N)) {
                    s.store(d, s.mul(s.load(d), s.min(s.splat(1.0), s.load(f))));
                }
            }
            Map::Relu => {
                for (x, d) in x.chunks_exact(S::N).zip(gradient.chunks_exact_mut(S::N)) {
                    s.store(d, s.keep(s.greater(s.load(x), zero), s.load(d)));
                }
            }
            Map::SquaredRelu => {
                for (x, d) in x.chunks_exact(S::N).zip(gradient.chunks_exact_mut(S::N)) {
                    let twice = s.mul(s.splat(2.0), s.max(zero, s.load(x)));
                    s.store(d, s.mul(s.load(d), twice));
                }
            }
            Map::Softmax => {
                let mut sum = zero;
                for (f, d) in features.chunks_exact(S::N).zip(gradient.chunks_exact(S::N)) {
                    sum = s.mul_add(s.load(f), s.load(d), sum);
                }
                let mean = s.splat(s.sum(sum));
                for (f, d) in features.chunks_exact(S::N).zip(gradient.chunks_exact_mut(S::N)) {
                    s.store(d, s.mul(s.load(f), s.sub(s.load(d), mean)));
                }
            }
        }
    }
}

#[inline(always)]
fn soften<S: Lanes>(s: S, row: &mut [f32], width: usize) {
    row[width..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(f32::NEG_INFINITY);
    for x in row.chunks_exact(S::N) {
        largest = s.max(s.load(x), largest);
    }
    let (largest, mut sum) = (s.splat(s.largest(largest)), s.zero());
    for x in row.chunks_exact_mut(S::N) {
        let e = s.exp(s.sub(s.load(x), largest));
        sum = s.add(sum, e);
        s.store(x, e);
    }
    let factor = s.splat(1.0 / s.sum(sum));
    for x in row.chunks_exact_mut(S::N) {
        s.store(x, s.mul(s.load(x), factor));
    }
}
