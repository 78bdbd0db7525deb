//! The blocked product of two matrices, `C = A·B`, `[m,k] · [k,n]`, of any strides and storage types, in f32.
//!
//! A job is a block of C. It copies its part of A and B, a step of k at a time, to scratch where the register tile
//! ([`crate::simd::product`]) can read them, widened and with B in panels of two registers: so 16-bit weights, transposed
//! weights and gradients are the same code, and no widened copy of a whole matrix exists. Rows of f32 in A are read where they stand. What follows the product (bias,
//! activation, rounding) is done to the block of C while it is in the cache.
//!
//! Blocks and steps of k are a function of the shapes, and a sum runs over k in order: the same bits for any number of threads.

use super::matrix::Matrix;
use super::sweep::{load, pieces};
use crate::Par;
use crate::par::Jobs;
use crate::simd::{Aligned, Along, Lanes, Rows, Task, dispatch, product};
use crate::view::Element;
use std::cell::RefCell;
use std::ops::Range;

/// Rows, columns of a block of C at most.
const BLOCK: [usize; 2] = [256, 256];
/// Rows and columns of a block at least, where the number of jobs is the reason to divide.
const SMALLEST: [usize; 2] = [64, 64];
/// Blocks that are enough for any machine at hand.
const JOBS: usize = 16;
/// Steps of k at most: a panel of B then takes 32 KB.
const STEPS: usize = 256;
/// Registers in a row of the tile.
const C: usize = 2;
/// With so many rows or fewer a product is bound by reading B, which is then read once and where it stands.
const FEW: usize = 4;

/// What is done to a finished block of C.
pub(super) trait Finish: Sync {
    /// `values` holds the rows of the block, `stride` apart.
    fn finish<S: Lanes>(&self, s: S, block: &Block, values: &[f32], stride: usize);
}

/// A block of C: its number along both directions, and its rows and columns.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) at: [usize; 2],
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

/// How C is divided.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) rows: Vec<Range<usize>>,
    pub(super) columns: Vec<Range<usize>>,
}

impl Grid {
    pub(super) fn new([m, n]: [usize; 2]) -> Self {
        let mut size = [m, n];
        for d in 0..2 {
            size[d] = even(size[d], BLOCK[d]);
        }
        while m.div_ceil(size[0]) * n.div_ceil(size[1]) < JOBS {
            let d = usize::from(size[1] > size[0]);
            if size[d] / 2 < SMALLEST[d] {
                break;
            }
            size[d] = even(size[d], size[d] / 2);
        }
        Grid { rows: pieces(m, size[0]), columns: pieces(n, size[1]) }
    }

    fn block(&self, job: usize) -> Block {
        let at = [job % self.rows.len(), job / self.rows.len()];
        Block { at, rows: self.rows[at[0]].clone(), columns: self.columns[at[1]].clone() }
    }
}

/// The size of equal parts of `whole`, none above `most`, in multiples of a panel.
fn even(whole: usize, most: usize) -> usize {
    whole.div_ceil(whole.div_ceil(most).max(1)).next_multiple_of(32).max(1)
}

/// Computes every block of `a · b` and hands it to `finish`.
pub(super) fn multiply<A: Element, B: Element>(a: &Matrix<'_, A>, b: &Matrix<'_, B>, grid: &Grid, finish: &impl Finish, par: Par) {
    let [m, k] = a.shape();
    let n = b.shape()[1];
    let flops = 2.0 * m as f64 * k as f64 * n as f64;
    par.run(grid.rows.len() * grid.columns.len(), flops, |jobs| {
        SCRATCH.with_borrow_mut(|scratch| dispatch(par.level_in_use(), Worker { a, b, grid, finish, jobs, scratch }));
    });
}

thread_local! {
    /// Kept from call to call: fresh pages would cost a small product a tenth of its time.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { a: Aligned::new(), b: Aligned::new(), c: Aligned::new() }) };
}

struct Worker<'a, A, B, F> {
    a: &'a Matrix<'a, A>,
    b: &'a Matrix<'a, B>,
    grid: &'a Grid,
    finish: &'a F,
    jobs: &'a Jobs,
    scratch: &'a mut Scratch,
}

struct Scratch {
    a: Aligned<f32>,
    b: Aligned<f32>,
    c: Aligned<f32>,
}

impl<A: Element, B: Element, F: Finish> Task for Worker<'_, A, B, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Worker { a, b, grid, finish, jobs, scratch } = self;
        let work = Blocks { a, b, finish };
        while let Some(job) = jobs.take() {
            work.block::<S, R>(s, &grid.block(job), scratch);
        }
    }
}

/// What is the same for all blocks.
struct Blocks<'a, A, B, F> {
    a: &'a Matrix<'a, A>,
    b: &'a Matrix<'a, B>,
    finish: &'a F,
}

impl<A: Element, B: Element, F: Finish> Blocks<'_, A, B, F> {
    #[inline(always)]
    fn block<S: Lanes, const R: usize>(&self, s: S, block: &Block, scratch: &mut Scratch) {
        let panel = C * S::N;
        let (m, n) = (block.rows.len().next_multiple_of(R), block.columns.len().next_multiple_of(panel));
        let k = self.a.shape()[1];
        let c = scratch.c.take(m * n);
        c.fill(0.0);
        if self.are_few() {
            s.vectorize(FewRows { work: self, block, c, n });
            return self.finish.finish(s, block, c, n);
        }
        let size = k.div_ceil(k.div_ceil(STEPS).max(1)).max(1);
        for start in (0..k).step_by(size) {
            let steps = start..k.min(start + size);
            let a = left::<S, A>(s, self.a, [block.rows.clone(), steps.clone()], m, &mut scratch.a);
            let b = scratch.b.take(n * steps.len());
            for (first, panel_of_b) in (0..n).step_by(panel).zip(b.chunks_exact_mut(panel * steps.len())) {
                let start = block.columns.start + first;
                let columns = start..block.columns.end.min(start + panel);
                pack(s, self.b, [steps.clone(), columns], panel_of_b, panel);
            }
            s.vectorize(AddStep::<R> { a, b, c, n, steps: steps.len() });
        }
        self.finish.finish(s, block, c, n);
    }
}

impl<A: Element, B: Element, F> Blocks<'_, A, B, F> {
    /// Whether few rows meet columns whose elements are neighbours.
    fn are_few(&self) -> bool {
        self.a.shape()[0] <= FEW && self.a.strides()[1] == 1 && self.b.strides()[0] == 1
    }
}

/// `c = a·b`, one dot product at a time.
struct FewRows<'a, 'w, A, B, F> {
    work: &'a Blocks<'w, A, B, F>,
    block: &'a Block,
    c: &'a mut [f32],
    n: usize,
}

impl<A: Element, B: Element, F> Task for FewRows<'_, '_, A, B, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let k = self.work.a.shape()[1];
        let mut a: [&[A]; FEW] = [&[]; FEW];
        for (a, row) in a.iter_mut().zip(self.block.rows.clone()) {
            *a = &self.work.a.tail(row, 0)[..k];
        }
        for first in self.block.columns.clone().step_by(4) {
            let mut b: [&[B]; 4] = [&[]; 4];
            for (c, b) in b.iter_mut().enumerate() {
                // Beyond the last column: the last one again, into columns that nobody reads.
                let column = (first + c).min(self.block.columns.end - 1);
                *b = &self.work.b.tail(0, column)[..k];
            }
            for (r, a) in a.iter().enumerate().take(self.block.rows.len()) {
                let mut sums = [s.zero(); 4];
                for at in (0..k).step_by(S::N) {
                    let x = load(s, a, at, 0.0);
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = s.mul_add(x, load(s, b, at, 0.0), *sum);
                    }
                }
                s.sum_four(sums, &mut self.c[r * self.n + first - self.block.columns.start..]);
            }
        }
    }
}

/// `c += a·b` for packed a and b.
struct AddStep<'a, const R: usize> {
    a: Rows<'a>,
    b: &'a [f32],
    c: &'a mut [f32],
    n: usize,
    steps: usize,
}

impl<const TILE: usize> Task for AddStep<'_, TILE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let panel = C * S::N;
        for (i, b) in self.b.chunks_exact(panel * self.steps).enumerate() {
            let b = Rows::new(b, panel);
            for (tile, rows) in self.c.chunks_exact_mut(TILE * self.n).enumerate() {
                let mut acc = [[s.zero(); C]; TILE];
                for (r, row) in acc.iter_mut().enumerate() {
                    for (c, x) in row.iter_mut().enumerate() {
                        *x = s.load(&rows[r * self.n + i * panel + c * S::N..]);
                    }
                }
                let acc = product::<S, _, TILE, C>(s, acc, Along(self.a.from(tile * TILE)), b, self.steps);
                for (r, row) in acc.iter().enumerate() {
                    for (c, x) in row.iter().enumerate() {
                        s.store(&mut rows[r * self.n + i * panel + c * S::N..], *x);
                    }
                }
            }
        }
    }
}

/// A part of A where it stands, if that is `count` rows of f32, else a copy.
#[inline(always)]
fn left<'a, S: Lanes, T: Element>(
    s: S,
    from: &'a Matrix<'_, T>,
    [rows, steps]: [Range<usize>; 2],
    count: usize,
    scratch: &'a mut Aligned<f32>,
) -> Rows<'a> {
    if let ([step, 1], true) = (from.strides(), rows.len() == count)
        && step > 0
        && let Some(values) = T::as_f32(from.tail(rows.start, steps.start))
    {
        return Rows::new(values, step as usize);
    }
    // Rows at odd multiples of a cache line, so that they do not meet in the same sets.
    let stride = steps.len().next_multiple_of(32) + 16;
    let into = scratch.take(count * stride);
    pack(s, from, [rows, steps], into, stride);
    Rows::new(into, stride)
}

/// Copies a part of a matrix to rows `stride` apart, widened.
#[inline(always)]
fn pack<S: Lanes, T: Element>(s: S, from: &Matrix<'_, T>, [rows, columns]: [Range<usize>; 2], into: &mut [f32], stride: usize) {
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    match from.strides() {
        [_, 1] => {
            for (row, to) in rows.zip(into.chunks_mut(stride)) {
                widen(s, &from.tail(row, columns.start)[..columns.len()], to);
            }
        }
        [1, _] => turn(s, from, [rows, columns], into, stride),
        _ => {
            for (row, to) in rows.zip(into.chunks_mut(stride)) {
                for (column, to) in columns.clone().zip(to) {
                    *to = from.at(row, column).to_f32();
                }
            }
        }
    }
}

#[inline(always)]
fn widen<S: Lanes, T: Element>(s: S, from: &[T], into: &mut [f32]) {
    let whole = from.len() / S::N * S::N;
    for at in (0..whole).step_by(S::N) {
        s.store(&mut into[at..], T::load(s, &from[at..]));
    }
    for at in whole..from.len() {
        into[at] = from[at].to_f32();
    }
}

/// [`pack`] where columns are contiguous: squares of one register are transposed, the rim goes element by element.
#[inline(always)]
fn turn<S: Lanes, T: Element>(s: S, from: &Matrix<'_, T>, [rows, columns]: [Range<usize>; 2], into: &mut [f32], stride: usize) {
    let mut square = [0.0f32; 256];
    let (high, wide) = (rows.len() / S::N * S::N, columns.len() / S::N * S::N);
    for c in (0..wide).step_by(S::N) {
        for r in (0..high).step_by(S::N) {
            for i in 0..S::N {
                s.store(&mut square[i * S::N..], T::load(s, from.tail(rows.start + r, columns.start + c + i)));
            }
            s.transpose(&square, S::N, &mut into[r * stride + c..], stride, 1.0);
        }
    }
    for r in 0..rows.len() {
        for c in if r < high { wide } else { 0 }..columns.len() {
            into[r * stride + c] = from.at(rows.start + r, columns.start + c).to_f32();
        }
    }
}
