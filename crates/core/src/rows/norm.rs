//! Layer norm and RMS norm over rows `[rows, width]`, alone or with the addition before them fused in:
//! `y = w (x - μ) r + b`, `r = 1 / √(mean (x - μ)² + ε)`; RMS norm has μ = 0 and no b.
//!
//! Sources: Ba et al. 2016, arXiv 1607.06450; Zhang, Sennrich 2019, arXiv 1910.07467.
//!
//! [`forward_added`] normalises `sum = x + residual` and gives the sum to the next block. Saved for the way back: the
//! normalised input (x, or the sum) and nothing else; μ and r of a row are computed again while the row is in the cache.
//! With `x̂ = (x - μ) r`, `g = w dy`: `dx = r (g - mean g - x̂ mean(g x̂)) + dsum`, which is the gradient of x and of the residual
//! alike (RMS norm without `mean g`); `dw = Σ dy x̂`, `db = Σ dy`, summed over fixed blocks of rows, then over blocks in order.

use super::matrix::{Matrix, MatrixMut, check_length};
use super::sweep::{Sweep, blocks, load, next_row, pieces, registers, store, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{Claim, DisjointRows, Element, StridedMut};
use crate::{Error, Par};
use std::ops::Range;

/// The most blocks whose partial sums of dw and db are kept.
const PARTS: usize = 64;

/// Which norm, its weight `[width]` and bias `[width]`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a, T> {
    centred: bool,
    weight: &'a [T],
    bias: Option<&'a [T]>,
    epsilon: f32,
}

impl<'a, T: Element> Norm<'a, T> {
    /// Layer norm.
    pub fn layer(weight: &'a [T], bias: Option<&'a [T]>, epsilon: f32) -> Self {
        Norm { centred: true, weight, bias, epsilon }
    }

    /// RMS norm.
    pub fn rms(weight: &'a [T], epsilon: f32) -> Self {
        Norm { centred: false, weight, bias: None, epsilon }
    }

    fn check(&self, width: usize) -> Result<(), Error> {
        check_length(self.weight.len(), width, "weight")?;
        if let Some(bias) = self.bias {
            check_length(bias.len(), width, "bias")?;
        }
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::value("epsilon", format!("{} is not a finite number of at least 0", self.epsilon)));
        }
        Ok(())
    }

    /// μ and r of a row.
    #[inline(always)]
    fn moments<S: Lanes>(&self, s: S, row: &[T]) -> [f32; 2] {
        let width = row.len() as f32;
        let mean = if self.centred { total(s, row) / width } else { 0.0 };
        let middle = s.splat(mean);
        let mut sums = [s.zero(); 4];
        registers(s, row, mean, |c, x| {
            let x = s.sub(x, middle);
            sums[c] = s.mul_add(x, x, sums[c]);
        });
        // Lanes past the end were filled with the mean rounded to the storage type; take their squares out again.
        let spare = row.len().next_multiple_of(S::N) - row.len();
        let off = T::from_f32(mean).to_f32() - mean;
        let square = all(s, sums) - spare as f32 * off * off;
        [mean, 1.0 / (square / width + self.epsilon).sqrt()]
    }

    /// `x̂` of the lanes from `at` on.
    #[inline(always)]
    fn unit<S: Lanes>(s: S, row: &[T], at: usize, [mean, inverse]: [f32; 2]) -> S::F {
        s.mul(s.sub(load(s, row, at, 0.0), s.splat(mean)), s.splat(inverse))
    }

    #[inline(always)]
    fn row<S: Lanes>(&self, s: S, x: &[T], y: &mut [T]) {
        let moments = self.moments(s, x);
        let whole = x.len() / S::N * S::N;
        let (weight, y) = (&self.weight[..x.len()], &mut y[..x.len()]);
        scale_registers(s, (x, moments), [weight, self.bias.unwrap_or(&[])], y);
        if whole < x.len() {
            let bias = self.bias.map_or(s.zero(), |bias| load(s, bias, whole, 0.0));
            store(s, y, whole, s.mul_add(Self::unit(s, x, whole, moments), load(s, weight, whole, 0.0), bias));
        }
    }
}

/// `x̂ w + b` in whole registers of a row; an empty b is none.
#[inline(always)]
fn scale_registers<S: Lanes, T: Element>(s: S, (x, [mean, inverse]): (&[T], [f32; 2]), [weight, bias]: [&[T]; 2], y: &mut [T]) {
    let (mean, inverse) = (s.splat(mean), s.splat(inverse));
    let registers = x.chunks_exact(S::N).zip(weight.chunks_exact(S::N)).zip(y.chunks_exact_mut(S::N));
    if bias.is_empty() {
        for ((x, weight), y) in registers {
            let unit = s.mul(s.sub(T::load(s, x), mean), inverse);
            T::store(s, y, s.mul(unit, T::load(s, weight)));
        }
        return;
    }
    for (((x, weight), y), bias) in registers.zip(bias.chunks_exact(S::N)) {
        let unit = s.mul(s.sub(T::load(s, x), mean), inverse);
        T::store(s, y, s.mul_add(unit, T::load(s, weight), T::load(s, bias)));
    }
}

#[inline(always)]
fn total<S: Lanes, T: Element>(s: S, row: &[T]) -> f32 {
    let mut sums = [s.zero(); 4];
    registers(s, row, 0.0, |c, x| sums[c] = s.add(sums[c], x));
    all(s, sums)
}

/// The sum of four registers.
#[inline(always)]
fn all<S: Lanes>(s: S, x: [S::F; 4]) -> f32 {
    s.sum(s.add(s.add(x[0], x[1]), s.add(x[2], x[3])))
}

/// `y = norm(x)`.
///
/// # Errors
/// If shapes differ, the elements of a row are not neighbours, or ε is negative.
pub fn forward<T: Element>(norm: &Norm<'_, T>, x: &Matrix<'_, T>, y: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    let shape = x.shape();
    norm.check(shape[1])?;
    x.check(shape, "x")?;
    y.check(shape, "y")?;
    let blocks = blocks(shape);
    let work = Forward { norm, x, added: None, y: y.share(&blocks) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    Ok(())
}

/// `sum = x + residual` and `y = norm(sum)`. In 16 bits the sum is rounded first, so that backward sees what was normalised.
///
/// # Errors
/// As [`forward`].
pub fn forward_added<T: Element>(
    norm: &Norm<'_, T>,
    [x, residual]: [&Matrix<'_, T>; 2],
    [sum, y]: [&mut MatrixMut<'_, T>; 2],
    par: Par,
) -> Result<(), Error> {
    let shape = x.shape();
    norm.check(shape[1])?;
    x.check(shape, "x")?;
    residual.check(shape, "residual")?;
    sum.check(shape, "sum")?;
    y.check(shape, "y")?;
    let blocks = blocks(shape);
    let work = Forward { norm, x, added: Some((residual, sum.share(&blocks))), y: y.share(&blocks) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    Ok(())
}

struct Forward<'a, T> {
    norm: &'a Norm<'a, T>,
    x: &'a Matrix<'a, T>,
    added: Option<(&'a Matrix<'a, T>, DisjointRows<'a, T>)>,
    y: DisjointRows<'a, T>,
}

impl<T: Element> Sweep for Forward<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let (mut y, width) = (self.y.sheet(0, 0, block), self.x.shape()[1]);
        let Some((residual, sum)) = &self.added else {
            for (i, row) in rows.enumerate() {
                self.norm.row(s, next_row(s, self.x, row), y.part(i, 0..width));
            }
            return;
        };
        let mut sum = sum.sheet(0, 0, block);
        for (i, row) in rows.enumerate() {
            let (x, residual, sum) = (next_row(s, self.x, row), next_row(s, residual, row), sum.part(i, 0..width));
            for at in (0..x.len()).step_by(S::N) {
                store(s, sum, at, s.add(load(s, x, at, 0.0), load(s, residual, at, 0.0)));
            }
            self.norm.row(s, sum, y.part(i, 0..width));
        }
    }
}

/// What [`backward`] fills.
#[derive(Debug)]
pub struct Gradients<'a, 'd, T> {
    /// Of the normalised input, `[rows, width]`; of the residual, too, where one was added.
    pub dx: &'a mut MatrixMut<'d, T>,
    /// Of the weight, `[width]`.
    pub dweight: Option<&'a mut [T]>,
    /// Of the bias, `[width]`.
    pub dbias: Option<&'a mut [T]>,
}

/// Gradients from the normalised input (x, or the sum), `dy`, and the gradient `dsum` that the sum gets from elsewhere.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(
    norm: &Norm<'_, T>,
    x: &Matrix<'_, T>,
    (dy, dsum): (&Matrix<'_, T>, Option<&Matrix<'_, T>>),
    gradients: &mut Gradients<'_, '_, T>,
    par: Par,
) -> Result<(), Error> {
    let shape = x.shape();
    norm.check(shape[1])?;
    x.check(shape, "x")?;
    dy.check(shape, "dy")?;
    dsum.map_or(Ok(()), |dsum| dsum.check(shape, "dsum"))?;
    gradients.dx.check(shape, "dx")?;
    for (gradient, tensor) in [(&gradients.dweight, "dweight"), (&gradients.dbias, "dbias")] {
        gradient.as_ref().map_or(Ok(()), |gradient| check_length(gradient.len(), shape[1], tensor))?;
    }
    let smallest = blocks(shape).first().map_or(1, Range::len);
    let blocks = pieces(shape[0], smallest.max(shape[0].div_ceil(PARTS)));
    let ones = pieces(blocks.len(), 1);
    let mut sums = vec![0.0f32; blocks.len() * 2 * shape[1]];
    let mut parts = StridedMut::contiguous(&mut sums, [1, 1, blocks.len(), 2 * shape[1]], "sums")?;
    let work = Backward { norm, x, dy, dsum, dx: gradients.dx.share(&blocks), sums: DisjointRows::new(&mut parts, &ones) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    drop(work);
    for (gradient, first) in [(&mut gradients.dweight, 0), (&mut gradients.dbias, shape[1])] {
        if let Some(gradient) = gradient {
            sum_parts(&sums, 2 * shape[1], first, gradient);
        }
    }
    Ok(())
}

/// Sums columns `first..` of the parts, in their order.
pub(super) fn sum_parts<T: Element>(parts: &[f32], width: usize, first: usize, into: &mut [T]) {
    let mut sums = vec![0.0f32; into.len()];
    for part in parts.chunks_exact(width.max(1)) {
        for (sum, x) in sums.iter_mut().zip(&part[first..]) {
            *sum += x;
        }
    }
    for (to, sum) in into.iter_mut().zip(sums) {
        *to = T::from_f32(sum);
    }
}

struct Backward<'a, T> {
    norm: &'a Norm<'a, T>,
    x: &'a Matrix<'a, T>,
    dy: &'a Matrix<'a, T>,
    dsum: Option<&'a Matrix<'a, T>>,
    dx: DisjointRows<'a, T>,
    /// dw and db of each block.
    sums: DisjointRows<'a, f32>,
}

impl<T: Element> Sweep for Backward<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let (mut dx, mut sums) = (self.dx.sheet(0, 0, block), self.sums.claim(0, 0, block));
        for (i, row) in rows.enumerate() {
            self.row(s, row, dx.part(i, 0..self.x.shape()[1]), &mut sums);
        }
    }
}

impl<T: Element> Backward<'_, T> {
    #[inline(always)]
    fn row<S: Lanes>(&self, s: S, row: usize, dx: &mut [T], sums: &mut Claim<'_, f32>) {
        let x = next_row(s, self.x, row);
        let (dy, weight, dx) = (&next_row(s, self.dy, row)[..x.len()], &self.norm.weight[..x.len()], &mut dx[..x.len()]);
        let (width, moments) = (x.len() as f32, self.norm.moments(s, x));
        let slope = Slope { unit: [s.splat(moments[0]), s.splat(moments[1])], means: [s.zero(); 2] };
        let (dweight, dbias) = sums.row(0).split_at_mut(x.len());
        let [plain, along] = slope.sums(s, [x, dy, weight], [dweight, &mut dbias[..x.len()]]);
        let plain = if self.norm.centred { s.sum(plain) / width } else { 0.0 };
        let slope = Slope { means: [s.splat(plain), s.splat(s.sum(along) / width)], ..slope };
        match &self.dsum {
            Some(dsum) => slope.added(s, [x, dy, weight, &next_row(s, dsum, row)[..x.len()]], dx),
            None => slope.alone(s, [x, dy, weight], dx),
        }
    }
}

/// What the gradient of a row is made with. Whole registers go by themselves, what is left at the end of a row behind them: a loop that may
/// meet the end keeps less in registers.
#[derive(Clone, Copy)]
struct Slope<F> {
    /// Mean and inverse deviation.
    unit: [F; 2],
    /// Means of `w dy` and `w dy x̂`.
    means: [F; 2],
}

impl<F: Copy> Slope<F> {
    #[inline(always)]
    fn unit<S: Lanes<F = F>>(&self, s: S, x: F) -> F {
        s.mul(s.sub(x, self.unit[0]), self.unit[1])
    }

    /// Sums of `w dy` and `w dy x̂` over the row; adds `dy x̂` and `dy` to the sums over rows.
    #[inline(always)]
    fn sums<S: Lanes<F = F>, T: Element>(&self, s: S, [x, dy, weight]: [&[T]; 3], [dweight, dbias]: [&mut [f32]; 2]) -> [F; 2] {
        let mut sums = [s.zero(); 2];
        let from = x.chunks_exact(S::N).zip(dy.chunks_exact(S::N)).zip(weight.chunks_exact(S::N));
        for (((x, dy), weight), (dw, db)) in from.zip(dweight.chunks_exact_mut(S::N).zip(dbias.chunks_exact_mut(S::N))) {
            let (unit, dy) = (self.unit(s, T::load(s, x)), T::load(s, dy));
            let g = s.mul(dy, T::load(s, weight));
            sums = [s.add(sums[0], g), s.mul_add(g, unit, sums[1])];
            s.store(dw, s.mul_add(dy, unit, s.load(dw)));
            s.store(db, s.add(dy, s.load(db)));
        }
        let at = x.len() / S::N * S::N;
        if at < x.len() {
            let (unit, dy) = (self.unit(s, load(s, x, at, 0.0)), load(s, dy, at, 0.0));
            let g = s.mul(dy, load(s, weight, at, 0.0));
            sums = [s.add(sums[0], g), s.mul_add(g, unit, sums[1])];
            store(s, dweight, at, s.mul_add(dy, unit, load(s, dweight, at, 0.0)));
            store(s, dbias, at, s.add(dy, load(s, dbias, at, 0.0)));
        }
        sums
    }

    /// dx of some lanes.
    #[inline(always)]
    fn dx<S: Lanes<F = F>>(&self, s: S, [x, dy, weight, dsum]: [F; 4]) -> F {
        let g = s.sub(s.mul(dy, weight), self.means[0]);
        s.mul_add(s.mul_sub(self.unit(s, x), self.means[1], g), self.unit[1], dsum)
    }

    #[inline(always)]
    fn alone<S: Lanes<F = F>, T: Element>(&self, s: S, [x, dy, weight]: [&[T]; 3], dx: &mut [T]) {
        let from = x.chunks_exact(S::N).zip(dy.chunks_exact(S::N)).zip(weight.chunks_exact(S::N));
        for (((x, dy), weight), dx) in from.zip(dx.chunks_exact_mut(S::N)) {
            T::store(s, dx, self.dx(s, [T::load(s, x), T::load(s, dy), T::load(s, weight), s.zero()]));
        }
        let at = x.len() / S::N * S::N;
        if at < x.len() {
            let from = [load(s, x, at, 0.0), load(s, dy, at, 0.0), load(s, weight, at, 0.0), s.zero()];
            store(s, dx, at, self.dx(s, from));
        }
    }

    #[inline(always)]
    fn added<S: Lanes<F = F>, T: Element>(&self, s: S, [x, dy, weight, dsum]: [&[T]; 4], dx: &mut [T]) {
        let from = x.chunks_exact(S::N).zip(dy.chunks_exact(S::N)).zip(weight.chunks_exact(S::N).zip(dsum.chunks_exact(S::N)));
        for (((x, dy), (weight, dsum)), dx) in from.zip(dx.chunks_exact_mut(S::N)) {
            T::store(s, dx, self.dx(s, [T::load(s, x), T::load(s, dy), T::load(s, weight), T::load(s, dsum)]));
        }
        let at = x.len() / S::N * S::N;
        if at < x.len() {
            let from = [load(s, x, at, 0.0), load(s, dy, at, 0.0), load(s, weight, at, 0.0), load(s, dsum, at, 0.0)];
            store(s, dx, at, self.dx(s, from));
        }
    }
}
