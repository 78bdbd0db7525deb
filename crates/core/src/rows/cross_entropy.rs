//! Cross-entropy of rows of logits `[rows, classes]` against labels, the mean over the rows that have one:
//! `loss_i = lse_i - (1 - ε) x_iy - ε mean_j x_ij` with `lse = ln Σ e^x` and label smoothing ε (Szegedy et al. 2015, arXiv 1512.00567).
//!
//! Saved: one lse per row, no probabilities. Backward computes them again:
//! `dx_ij = dloss / n · (e^(x_ij - lse_i) - (1 - ε) [j = y] - ε / classes)`, and 0 in rows without a label.
//! With no label at all the loss is 0 and so is its gradient.

use super::id::Id;
use super::matrix::{Matrix, MatrixMut, check_length};
use super::softmax::{largest, offset, weight};
use super::sweep::{Sweep, blocks, load, store, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{DisjointRows, Element, StridedMut};
use crate::{Error, Par};
use std::ops::Range;

/// The label of each row, and how it counts.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a, I> {
    labels: &'a [I],
    ignored: i64,
    smoothing: f32,
}

impl<'a, I: Id> Labels<'a, I> {
    /// One label per row; -100 means that the row has none.
    pub fn new(labels: &'a [I]) -> Self {
        Labels { labels, ignored: -100, smoothing: 0.0 }
    }

    /// The number that means "no label".
    #[must_use]
    pub fn ignoring(self, label: i64) -> Self {
        Labels { ignored: label, ..self }
    }

    /// Label smoothing ε from 0 to 1: so much of the target is spread over all classes.
    #[must_use]
    pub fn smoothing(self, epsilon: f32) -> Self {
        Labels { smoothing: epsilon, ..self }
    }

    /// The class of a row.
    #[inline(always)]
    fn class(&self, row: usize) -> Option<usize> {
        let label = self.labels[row].to_i64();
        (label != self.ignored).then_some(label as usize)
    }

    fn counted(&self) -> usize {
        (0..self.labels.len()).filter(|&row| self.class(row).is_some()).count()
    }

    fn check(&self, [rows, classes]: [usize; 2]) -> Result<(), Error> {
        check_length(self.labels.len(), rows, "labels")?;
        if !(0.0..=1.0).contains(&self.smoothing) {
            return Err(Error::value("smoothing", format!("{} is not between 0 and 1", self.smoothing)));
        }
        for (row, label) in self.labels.iter().enumerate().map(|(row, label)| (row, label.to_i64())) {
            if label != self.ignored && !(0..classes as i64).contains(&label) {
                let message = format!("row {row} has label {label}, there are {classes} classes and {} means none", self.ignored);
                return Err(Error::value("labels", message));
            }
        }
        Ok(())
    }
}

/// The loss; writes the `lse` of every row, which [`backward`] takes.
///
/// # Errors
/// If shapes differ, a label is not a class (its row is named), or smoothing is not between 0 and 1.
pub fn forward<T: Element, I: Id>(x: &Matrix<'_, T>, labels: &Labels<'_, I>, lse: &mut [f32], par: Par) -> Result<f32, Error> {
    let shape = x.shape();
    x.check(shape, "x")?;
    labels.check(shape)?;
    check_length(lse.len(), shape[0], "lse")?;
    let blocks = blocks(shape);
    let mut losses = vec![0.0f64; blocks.len()];
    let ones: Vec<Range<usize>> = (0..blocks.len()).map(|i| i..i + 1).collect();
    let mut lse = StridedMut::contiguous(lse, [1, 1, shape[0], 1], "lse")?;
    let mut sums = StridedMut::contiguous(&mut losses, [1, 1, blocks.len(), 1], "losses")?;
    let work = Forward { x, labels, lse: DisjointRows::new(&mut lse, &blocks), losses: DisjointRows::new(&mut sums, &ones) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    drop(work);
    Ok((losses.iter().sum::<f64>() / labels.counted().max(1) as f64) as f32)
}

/// The gradient of the logits; `dloss` is that of the loss, 1 at the end of a network.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element, I: Id>(
    x: &Matrix<'_, T>,
    labels: &Labels<'_, I>,
    (lse, dloss): (&[f32], f32),
    dx: &mut MatrixMut<'_, T>,
    par: Par,
) -> Result<(), Error> {
    let shape = x.shape();
    x.check(shape, "x")?;
    dx.check(shape, "dx")?;
    labels.check(shape)?;
    check_length(lse.len(), shape[0], "lse")?;
    let blocks = blocks(shape);
    let factor = dloss / labels.counted().max(1) as f32;
    let work = Backward { x, labels, lse, factor, dx: dx.share(&blocks) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    Ok(())
}

struct Forward<'a, T, I> {
    x: &'a Matrix<'a, T>,
    labels: &'a Labels<'a, I>,
    lse: DisjointRows<'a, f32>,
    losses: DisjointRows<'a, f64>,
}

impl<T: Element, I: Id> Sweep for Forward<'_, T, I> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let (mut lse, mut losses) = (self.lse.claim(0, 0, block), self.losses.claim(0, 0, block));
        let mut total = 0.0;
        for (i, row) in rows.enumerate() {
            let x = self.x.row(row);
            let m = offset(largest(s, x));
            let (mut weights, mut distance) = (s.zero(), s.zero());
            for at in (0..x.len()).step_by(S::N) {
                weights = s.add(weights, weight(s, x, at, s.splat(m)));
                distance = s.add(distance, s.sub(load(s, x, at, m), s.splat(m)));
            }
            let ln = f64::from(s.sum(weights)).ln();
            lse.row(i)[0] = (f64::from(m) + ln) as f32;
            if let Some(class) = self.labels.class(row) {
                // Differences from m, so that a large m costs no digits.
                let smoothing = f64::from(self.labels.smoothing);
                let own = f64::from(x[class].to_f32()) - f64::from(m);
                let spread = if smoothing > 0.0 { smoothing * f64::from(s.sum(distance)) / x.len() as f64 } else { 0.0 };
                total += ln - (1.0 - smoothing) * own - spread;
            }
        }
        losses.row(0)[0] = total;
    }
}

struct Backward<'a, T, I> {
    x: &'a Matrix<'a, T>,
    labels: &'a Labels<'a, I>,
    lse: &'a [f32],
    factor: f32,
    dx: DisjointRows<'a, T>,
}

impl<T: Element, I: Id> Sweep for Backward<'_, T, I> {
    const ROUNDS: bool = T::PAIRS;

    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut dx = self.dx.claim(0, 0, block);
        for (i, row) in rows.enumerate() {
            let (x, dx) = (self.x.row(row), dx.row(i));
            let Some(class) = self.labels.class(row) else {
                dx.fill(T::default());
                continue;
            };
            let lse = s.splat(self.lse[row]);
            let spread = s.splat(self.labels.smoothing / x.len() as f32);
            let factor = s.splat(self.factor);
            for at in (0..x.len()).step_by(S::N) {
                store(s, dx, at, s.mul(factor, s.sub(weight(s, x, at, lse), spread)));
            }
            let exponent = (f64::from(x[class].to_f32()) - f64::from(self.lse[row])).exp() as f32;
            let own = exponent - self.labels.smoothing / x.len() as f32 - (1.0 - self.labels.smoothing);
            dx[class] = T::from_f32(self.factor * own);
        }
    }
}
