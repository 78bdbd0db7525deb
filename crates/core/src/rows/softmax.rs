//! Softmax over each row, and its logarithm, `[rows, columns]`:
//! `y_j = e^(x_j - m) / Σ e^(x - m)` with m the largest of the row; `log y_j = x_j - m - ln Σ e^(x - m)`.
//!
//! Backward needs the output only: `dx = y (dy - Σ y dy)`; for the logarithm z, `dx = dz - e^z Σ dz`.
//! Results in bf16 nearer to 0 than 2^-126 may be 0.
//! Logits of -inf have no weight. A row of nothing but -inf has no weights at all: zeros, and -inf in the logarithm; so no gradient.

use super::matrix::{Matrix, MatrixMut};
use super::sweep::{Sweep, blocks, load, store, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{DisjointRows, Element};
use crate::{Error, Par};
use std::ops::Range;

const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// `y = softmax(x)`, row by row.
///
/// # Errors
/// If the shapes differ, or the elements of a row of x are not neighbours.
pub fn forward<T: Element>(x: &Matrix<'_, T>, y: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    normalise::<T, false>(x, y, par)
}

/// `dx` from `y` and `dy`.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(y: &Matrix<'_, T>, dy: &Matrix<'_, T>, dx: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    pull_back::<T, false>([("y", y), ("dy", dy)], dx, par)
}

/// `z = ln softmax(x)`, row by row.
///
/// # Errors
/// As [`forward`].
pub fn log_forward<T: Element>(x: &Matrix<'_, T>, z: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    normalise::<T, true>(x, z, par)
}

/// `dx` from `z = ln softmax(x)` and `dz`.
///
/// # Errors
/// As [`forward`].
pub fn log_backward<T: Element>(z: &Matrix<'_, T>, dz: &Matrix<'_, T>, dx: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    pull_back::<T, true>([("z", z), ("dz", dz)], dx, par)
}

fn normalise<T: Element, const LOG: bool>(x: &Matrix<'_, T>, y: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    let shape = x.shape();
    x.check(shape, "x")?;
    y.check(shape, "y")?;
    let blocks = blocks(shape);
    let work = Normalise::<T, LOG> { x, y: y.share(&blocks) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    Ok(())
}

fn pull_back<T: Element, const LOG: bool>(
    from: [(&'static str, &Matrix<'_, T>); 2],
    dx: &mut MatrixMut<'_, T>,
    par: Par,
) -> Result<(), Error> {
    let shape = from[0].1.shape();
    for (tensor, matrix) in &from {
        matrix.check(shape, tensor)?;
    }
    dx.check(shape, "dx")?;
    let blocks = blocks(shape);
    let work = PullBack::<T, LOG> { y: from[0].1, dy: from[1].1, dx: dx.share(&blocks) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    Ok(())
}

/// The largest of a row; -inf where there is none, anything where one is not a number, whose weight is none either.
#[inline(always)]
pub(super) fn largest<S: Lanes, T: Element>(s: S, row: &[T]) -> f32 {
    if let Some(halves) = T::halves(row)
        && let Some(largest) = s.largest_bf16(halves)
    {
        return largest;
    }
    let mut most = [s.splat(f32::NEG_INFINITY); 4];
    let mut fours = row.chunks_exact(4 * S::N);
    for four in &mut fours {
        let (lower, upper) = four.split_at(2 * S::N);
        let ([a, b], [c, d]) = (T::load_two(s, lower), T::load_two(s, upper));
        most = [s.max(most[0], a), s.max(most[1], b), s.max(most[2], c), s.max(most[3], d)];
    }
    let mut most = s.max(s.max(most[0], most[1]), s.max(most[2], most[3]));
    let rest = fours.remainder();
    for at in (0..rest.len()).step_by(S::N) {
        most = s.max(most, load(s, rest, at, f32::NEG_INFINITY));
    }
    s.largest(most)
}

/// What is subtracted from the logits of a row: its largest, or 0 where that is -inf.
#[inline(always)]
pub(super) fn offset(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// `e^(x - m)` of the lanes from `at` on.
#[inline(always)]
pub(super) fn weight<S: Lanes, T: Element>(s: S, row: &[T], at: usize, m: S::F) -> S::F {
    s.exp2(s.mul(s.sub(load(s, row, at, f32::NEG_INFINITY), m), s.splat(LOG2_E)))
}

struct Normalise<'a, T, const LOG: bool> {
    x: &'a Matrix<'a, T>,
    y: DisjointRows<'a, T>,
}

impl<T: Element, const LOG: bool> Sweep for Normalise<'_, T, LOG> {
    const ROUNDS: bool = T::PAIRS;

    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, scratch: &mut Aligned<f32>) {
        let mut claim = self.y.claim(0, 0, block);
        let width = self.x.shape()[1].next_multiple_of(S::N);
        let (even, odd) = scratch.take(2 * width).split_at_mut(width);
        let weights = [even, odd];
        // Three rows are under way: one is searched for its largest, the one before it weighed, the one before that written. What is
        // found across the lanes of one is not waited for.
        let (mut searched, mut weighed) = (0.0, Row::default());
        for turn in 0..rows.len() + 2 {
            let (m, done) = (searched, weighed);
            let last = Self::last(done.sum);
            if turn < rows.len() {
                searched = offset(largest(s, self.x.row(rows.start + turn)));
            }
            if (1..=rows.len()).contains(&turn) {
                weighed = Row { m, sum: Self::weigh(s, self.x.row(rows.start + turn - 1), m, weights[turn % 2]) };
            }
            if turn >= 2 {
                let from = self.x.row(rows.start + turn - 2);
                Self::finish(s, from, weights[(turn - 1) % 2], (done.m, last), claim.row(turn - 2));
            }
        }
    }
}

/// What is known of a row before it is written.
#[derive(Clone, Copy, Default)]
struct Row {
    /// What is subtracted from its logits.
    m: f32,
    /// Of its weights.
    sum: f32,
}

impl<T: Element, const LOG: bool> Normalise<'_, T, LOG> {
    /// The sum of a row's weights, which are kept where they are asked for again.
    #[inline(always)]
    fn weigh<S: Lanes>(s: S, from: &[T], m: f32, weights: &mut [f32]) -> f32 {
        let m = s.splat(m);
        let mut sums = [s.zero(); 2];
        for (from, weights) in from.chunks_exact(2 * S::N).zip(weights.chunks_exact_mut(2 * S::N)) {
            for (k, x) in T::load_two(s, from).into_iter().enumerate() {
                let e = Self::weight(s, x, m);
                sums[k] = s.add(sums[k], e);
                if !LOG {
                    s.store(&mut weights[k * S::N..], e);
                }
            }
        }
        for (sum, at) in sums.iter_mut().zip(rest::<S>(from.len())) {
            let e = Self::weight(s, load(s, from, at, f32::NEG_INFINITY), m);
            *sum = s.add(*sum, e);
            s.store(&mut weights[at..], e);
        }
        s.sum(s.add(sums[0], sums[1]))
    }

    /// What a row is finished with: 1 over the sum of its weights, or its logarithm; 0 where the sum is 0, as all x are -inf.
    #[inline(always)]
    fn last(sum: f32) -> f32 {
        match (sum == 0.0, LOG) {
            (true, _) => 0.0,
            (false, false) => 1.0 / sum,
            // In f64, so that a large m does not swallow the digits of ln Σ before they are subtracted.
            (false, true) => f64::from(sum).ln() as f32,
        }
    }

    #[inline(always)]
    fn finish<S: Lanes>(s: S, from: &[T], weights: &[f32], (m, last): (f32, f32), into: &mut [T]) {
        let (m, last) = (s.splat(m), s.splat(last));
        let steps = from.chunks_exact(2 * S::N).zip(weights.chunks_exact(2 * S::N)).zip(into.chunks_exact_mut(2 * S::N));
        for ((from, e), into) in steps {
            let (x, e) = (T::load_two(s, from), [s.load(e), s.load(&e[S::N..])]);
            T::store_two_normal(s, into, [Self::result(s, x[0], e[0], m, last), Self::result(s, x[1], e[1], m, last)]);
        }
        for at in rest::<S>(from.len()) {
            let (x, e) = (load(s, from, at, 0.0), s.load(&weights[at..]));
            store(s, into, at, Self::result(s, x, e, m, last));
        }
    }

    #[inline(always)]
    fn result<S: Lanes>(s: S, x: S::F, weight: S::F, m: S::F, last: S::F) -> S::F {
        if LOG { s.sub(s.sub(x, m), last) } else { s.mul(weight, last) }
    }

    /// `e^(x - m)`, as exact as the result is: 1 of the largest, so that the logarithm of a sum near 1 keeps its digits.
    #[inline(always)]
    fn weight<S: Lanes>(s: S, x: S::F, m: S::F) -> S::F {
        let exponent = s.mul(s.sub(x, m), s.splat(LOG2_E));
        if T::PAIRS { s.rough_exp2(exponent) } else { s.exp2(exponent) }
    }
}

/// Where the registers of a row begin that are not taken two at a time.
#[inline(always)]
fn rest<S: Lanes>(length: usize) -> impl Iterator<Item = usize> {
    (length / (2 * S::N) * (2 * S::N)..length).step_by(S::N)
}

struct PullBack<'a, T, const LOG: bool> {
    y: &'a Matrix<'a, T>,
    dy: &'a Matrix<'a, T>,
    dx: DisjointRows<'a, T>,
}

impl<T: Element, const LOG: bool> Sweep for PullBack<'_, T, LOG> {
    const ROUNDS: bool = T::PAIRS;

    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut claim = self.dx.claim(0, 0, block);
        for (i, row) in rows.enumerate() {
            let y = self.y.row(row);
            // One length, known to be one: a single comparison per step then stands for all loads and stores.
            let (dy, dx) = (&self.dy.row(row)[..y.len()], &mut claim.row(i)[..y.len()]);
            let both = y.len() / (2 * S::N) * (2 * S::N);
            let mut sums = [s.zero(); 2];
            for at in (0..both).step_by(2 * S::N) {
                let (y, dy) = (T::load_two(s, &y[at..]), T::load_two(s, &dy[at..]));
                for k in 0..2 {
                    sums[k] = s.mul_add(Self::factor(s, y[k]), dy[k], sums[k]);
                }
            }
            for (sum, at) in sums.iter_mut().zip((both..y.len()).step_by(S::N)) {
                *sum = s.mul_add(Self::factor(s, load(s, y, at, 0.0)), load(s, dy, at, 0.0), *sum);
            }
            let sum = s.add(sums[0], sums[1]);
            let sum = s.splat(s.sum(sum));
            for at in (0..both).step_by(2 * S::N) {
                let (y, dy) = (T::load_two(s, &y[at..]), T::load_two(s, &dy[at..]));
                T::store_two_normal(s, &mut dx[at..], [Self::slope(s, y[0], dy[0], sum), Self::slope(s, y[1], dy[1], sum)]);
            }
            for at in (both..y.len()).step_by(S::N) {
                store(s, dx, at, Self::slope(s, load(s, y, at, 0.0), load(s, dy, at, 0.0), sum));
            }
        }
    }
}

impl<T, const LOG: bool> PullBack<'_, T, LOG> {
    /// What dy is weighed with in the sum of a row.
    #[inline(always)]
    fn factor<S: Lanes>(s: S, y: S::F) -> S::F {
        if LOG { s.splat(1.0) } else { y }
    }

    /// dx from y, dy and the sum.
    #[inline(always)]
    fn slope<S: Lanes>(s: S, y: S::F, dy: S::F, sum: S::F) -> S::F {
        if LOG { s.mul_sub(s.exp2(s.mul(y, s.splat(LOG2_E))), sum, dy) } else { s.mul(y, s.sub(dy, sum)) }
    }
}
