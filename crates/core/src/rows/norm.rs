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
use super::sweep::{Sweep, blocks, load, pieces, registers, registers_of, store, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{DisjointRows, Element, StridedMut};
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
        let mean = if self.centred { total(s, row) / row.len() as f32 } else { 0.0 };
        let middle = s.splat(mean);
        let mut squares = [s.zero(); 4];
        registers(s, row, mean, |c, x| {
            let x = s.sub(x, middle);
            squares[c] = s.mul_add(x, x, squares[c]);
        });
        [mean, self.inverse(mean, all(s, squares), (row.len(), S::N))]
    }

    /// r from the squares of a row in registers of so many lanes, the lanes past its end filled with the mean in the storage type.
    #[inline(always)]
    fn inverse(&self, mean: f32, squares: f32, (width, lanes): (usize, usize)) -> f32 {
        let spare = width.next_multiple_of(lanes) - width;
        let off = T::from_f32(mean).to_f32() - mean;
        1.0 / ((squares - spare as f32 * off * off) / width as f32 + self.epsilon).sqrt()
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
    const ROUNDS: bool = T::PAIRS;

    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let (mut y, width) = (self.y.sheet(0, 0, block), self.x.shape()[1]);
        let Some((residual, sum)) = &self.added else {
            for (i, row) in rows.enumerate() {
                self.norm.row(s, self.x.row(row), y.part(i, 0..width));
            }
            return;
        };
        let mut sum = sum.sheet(0, 0, block);
        for (i, row) in rows.enumerate() {
            let (x, residual, sum) = (self.x.row(row), residual.row(row), sum.part(i, 0..width));
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
    const ROUNDS: bool = T::PAIRS;

    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let (mut dx, mut sums, width) = (self.dx.sheet(0, 0, block), self.sums.claim(0, 0, block), self.x.shape()[1]);
        let pairs = if width % S::N == 0 { rows.len() / 2 } else { 0 };
        for i in (0..pairs).map(|pair| 2 * pair) {
            let mut parts = dx.parts(i..i + 2, 0..width);
            let dx = [(); 2].map(|()| parts.next().expect("two rows were asked for"));
            self.two_rows(s, rows.start + i, dx, sums.row(0));
        }
        for i in 2 * pairs..rows.len() {
            self.row(s, rows.start + i, dx.part(i, 0..width), sums.row(0));
        }
    }
}

/// A row of x, dy, and dsum, which is empty where there is none.
type Row<'a, T> = [&'a [T]; 3];

impl<T: Element> Backward<'_, T> {
    #[inline(always)]
    fn row<S: Lanes>(&self, s: S, row: usize, dx: &mut [T], sums: &mut [f32]) {
        let (row, weight) = (self.from(row), self.norm.weight);
        let slope = Slope::new(s, self.norm, row);
        let (dweight, dbias) = sums.split_at_mut(weight.len());
        slope.go(s, (row, weight), ([dweight, &mut dbias[..weight.len()]], &mut dx[..weight.len()]));
    }

    /// The same of a row and the next one, of whole registers: sums over rows are read and written once.
    #[inline(always)]
    fn two_rows<S: Lanes>(&self, s: S, first: usize, dx: [&mut [T]; 2], sums: &mut [f32]) {
        let (rows, weight) = ([self.from(first), self.from(first + 1)], self.norm.weight);
        let slopes = [Slope::new(s, self.norm, rows[0]), Slope::new(s, self.norm, rows[1])];
        let (dweight, dbias) = sums.split_at_mut(weight.len());
        go_together(s, &slopes, (rows, weight), ([dweight, &mut dbias[..weight.len()]], dx));
    }

    #[inline(always)]
    fn from(&self, row: usize) -> Row<'_, T> {
        let width = self.norm.weight.len();
        let dsum = self.dsum.map_or(&[][..], |dsum| &dsum.row(row)[..width]);
        [&self.x.row(row)[..width], &self.dy.row(row)[..width], dsum]
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
    /// Of a row: sums that need nothing, sums around the mean, and nothing that waits for the deviation.
    #[inline(always)]
    fn new<S: Lanes<F = F>, T: Element>(s: S, norm: &Norm<'_, T>, [x, dy, _]: Row<'_, T>) -> Self {
        let from = [x, dy, norm.weight];
        let width = from[0].len() as f32;
        let [mut mean, mut plain] = [0.0; 2];
        if norm.centred {
            let [mut totals, mut plains] = [[s.zero(); 4]; 2];
            registers_of(s, from, [0.0; 3], |c, [x, dy, weight]| {
                totals[c] = s.add(totals[c], x);
                plains[c] = s.mul_add(dy, weight, plains[c]);
            });
            [mean, plain] = [all(s, totals) / width, all(s, plains) / width];
        }
        let (middle, [mut squares, mut alongs]) = (s.splat(mean), [[s.zero(); 4]; 2]);
        registers_of(s, from, [mean, 0.0, 0.0], |c, [x, dy, weight]| {
            let x = s.sub(x, middle);
            squares[c] = s.mul_add(x, x, squares[c]);
            alongs[c] = s.mul_add(s.mul(dy, weight), x, alongs[c]);
        });
        let inverse = norm.inverse(mean, all(s, squares), (from[0].len(), S::N));
        let along = all(s, alongs) * inverse / width;
        Slope { unit: [middle, s.splat(inverse)], means: [s.splat(plain), s.splat(along)] }
    }

    /// dx of some lanes, and the sums over rows of `dy x̂` and `dy` with this row's added.
    #[inline(always)]
    fn lanes<S: Lanes<F = F>>(&self, s: S, [x, dy, weight, dsum]: [F; 4], [dweight, dbias]: [F; 2]) -> (F, [F; 2]) {
        let unit = s.mul(s.sub(x, self.unit[0]), self.unit[1]);
        let g = s.sub(s.mul(dy, weight), self.means[0]);
        let dx = s.mul_add(s.mul_sub(unit, self.means[1], g), self.unit[1], dsum);
        (dx, [s.mul_add(dy, unit, dweight), s.add(dy, dbias)])
    }

    /// A row.
    #[inline(always)]
    fn go<S: Lanes<F = F>, T: Element>(
        &self,
        s: S,
        ([x, dy, dsum], weight): (Row<'_, T>, &[T]),
        ([dweight, dbias], dx): ([&mut [f32]; 2], &mut [T]),
    ) {
        let from = x.chunks_exact(S::N).zip(dy.chunks_exact(S::N)).zip(weight.chunks_exact(S::N));
        let sums = dweight.chunks_exact_mut(S::N).zip(dbias.chunks_exact_mut(S::N));
        for (i, ((((x, dy), weight), (dw, db)), dx)) in from.zip(sums).zip(dx.chunks_exact_mut(S::N)).enumerate() {
            let more = if dsum.is_empty() { s.zero() } else { T::load(s, &dsum[i * S::N..]) };
            let from = [T::load(s, x), T::load(s, dy), T::load(s, weight), more];
            let (value, sums) = self.lanes(s, from, [s.load(dw), s.load(db)]);
            s.store(dw, sums[0]);
            s.store(db, sums[1]);
            T::store(s, dx, value);
        }
        let at = x.len() / S::N * S::N;
        if at < x.len() {
            let more = if dsum.is_empty() { s.zero() } else { load(s, dsum, at, 0.0) };
            let from = [load(s, x, at, 0.0), load(s, dy, at, 0.0), load(s, weight, at, 0.0), more];
            let (value, sums) = self.lanes(s, from, [load(s, dweight, at, 0.0), load(s, dbias, at, 0.0)]);
            store(s, dweight, at, sums[0]);
            store(s, dbias, at, sums[1]);
            store(s, dx, at, value);
        }
    }
}

/// Two rows of whole registers at once.
#[inline(always)]
fn go_together<S: Lanes, T: Element>(
    s: S,
    slopes: &[Slope<S::F>; 2],
    (rows, weight): ([Row<'_, T>; 2], &[T]),
    ([dweight, dbias], [one, two]): ([&mut [f32]; 2], [&mut [T]; 2]),
) {
    let [[x, dy, dsum], [next_x, next_dy, next_dsum]] = rows;
    let from = x.chunks_exact(S::N).zip(dy.chunks_exact(S::N)).zip(next_x.chunks_exact(S::N).zip(next_dy.chunks_exact(S::N)));
    let sums = dweight.chunks_exact_mut(S::N).zip(dbias.chunks_exact_mut(S::N)).zip(weight.chunks_exact(S::N));
    let into = one.chunks_exact_mut(S::N).zip(two.chunks_exact_mut(S::N));
    for (i, ((((x, dy), (next_x, next_dy)), ((dw, db), w)), (one, two))) in from.zip(sums).zip(into).enumerate() {
        let mut more = [s.zero(); 2];
        if !dsum.is_empty() {
            more = [T::load(s, &dsum[i * S::N..]), T::load(s, &next_dsum[i * S::N..])];
        }
        let w = T::load(s, w);
        let (value, sums) = slopes[0].lanes(s, [T::load(s, x), T::load(s, dy), w, more[0]], [s.load(dw), s.load(db)]);
        T::store(s, one, value);
        let (value, sums) = slopes[1].lanes(s, [T::load(s, next_x), T::load(s, next_dy), w, more[1]], sums);
        T::store(s, two, value);
        s.store(dw, sums[0]);
        s.store(db, sums[1]);
    }
}
