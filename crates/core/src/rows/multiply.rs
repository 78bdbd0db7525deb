//! The blocked product of two matrices, `C = A·B`, `[m,k] · [k,n]`, of any strides and storage types, in f32.
//!
//! A job is a block of C, or, where C is small and k is long, a block over a part of k. It copies its part of A and B, a step of
//! k at a time, to scratch where the register tile ([`crate::simd::product`]) can read them ([`super::operand`]), widened and with B in
//! panels of two registers: so 16-bit weights, transposed weights and gradients are the same code, and no widened copy of a whole
//! matrix exists. Rows of f32 in A are read where they stand, and a transposed A is copied as it lies and read across. Two factors of
//! bf16 are multiplied in pairs where the processor does that faster. What follows the product (bias, activation, rounding) is done to a
//! tile of C as it leaves the registers.
//!
//! Parts and steps of k are a function of the shapes, and sums run over k in order, part by part: the same bits for any number of
//! threads, which decides only how small blocks are.

use super::matrix::Matrix;
use super::operand::{Operand, Paired, Side, runs};
use super::sweep::{load, pieces, store};
use crate::Par;
use crate::par::Jobs;
use crate::simd::{Aligned, Form, Lanes, Left, Rows, Task, dispatch, product};
use crate::view::{Claim, DisjointRows, Element, StridedMut};
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// Rows, columns of a block of C at most.
const TALL: [usize; 2] = [512, 256];
/// The same where A is transposed, and so copied for every block of columns: of those there are few then.
const WIDE: [usize; 2] = [256, 512];
/// Columns of a block at most.
pub(super) const WIDTH: usize = 512;
/// Rows and columns of a block at least, where the number of jobs is the reason to divide.
const SMALLEST: [usize; 2] = [64, 64];
/// Rows and columns of a block that is still worth its copies: C of less than [`JOBS`] of them is small.
const SMALL: [usize; 2] = [128, 128];
/// Jobs that are enough for any machine at hand.
const JOBS: usize = 16;
/// Jobs of a thread, so that none waits long for the others.
const SHARE: usize = 3;
/// Steps of k at most: a panel of B then takes 96 KB, which the second cache has room for.
const STEPS: usize = 768;
/// Steps of k that a part has at least.
const PART: usize = 384;
/// Registers in a row of the tile.
pub(super) const TILE: usize = 2;
/// With so many rows or fewer a product is bound by reading B, which is then read once and where it stands.
const FEW: usize = 4;

/// What is done to finished values of C.
pub(super) trait Finish: Sync {
    /// What is held while the values of a block are finished.
    type Open<'a>
    where
        Self: 'a;

    /// Before the first values of a block.
    fn open(&self, block: &Block) -> Self::Open<'_>;

    /// Rows and columns of the block whose sums begin now and are finished soon; rows perhaps beyond its end.
    fn ahead<S: Lanes>(&self, _s: S, _open: &Self::Open<'_>, _tile: [Range<usize>; 2]) {}

    /// `values` holds rows and columns `tile`, counted from the start of the block, `stride` apart.
    fn finish<S: Lanes>(&self, s: S, open: &mut Self::Open<'_>, tile: [Range<usize>; 2], values: Rows<'_>);
}

/// A block of C: its number along both directions, and its rows and columns; and the job that it is for.
#[derive(Debug)]
pub(super) struct Block {
    job: usize,
    pub(super) at: [usize; 2],
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

/// How C is divided, and k between jobs.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) rows: Vec<Range<usize>>,
    pub(super) columns: Vec<Range<usize>>,
    /// Steps of k that a job takes.
    parts: Vec<Range<usize>>,
    /// Values of the largest block, its rim included.
    largest: usize,
}

impl Grid {
    /// For `a · b`. The number of threads decides how small blocks are, which no sum depends on.
    pub(super) fn new<A: Copy, B: Copy>(a: &Matrix<'_, A>, b: &Matrix<'_, B>, par: Par) -> Self {
        let ([m, k], n) = (a.shape(), b.shape()[1]);
        let count = |size: [usize; 2]| (m.div_ceil(size[0]) * n.div_ceil(size[1])).max(1);
        let is_small = m > FEW && count(SMALL) < JOBS;
        let most = if is_small || a.strides()[1] == 1 { TALL } else { WIDE };
        let mut size = [even(m, most[0]), even(n, most[1])];
        let parts = if is_small { (JOBS / count(size)).min(k / PART).max(1) } else { 1 };
        let enough = JOBS.min(SHARE * par.threads_in_use());
        while parts == 1 && count(size) < enough {
            let d = usize::from(size[1] > size[0]);
            if size[d] / 2 < SMALLEST[d] {
                break;
            }
            size[d] = even(size[d], size[d] / 2);
        }
        let parts = runs(0..k, k.div_ceil(parts).next_multiple_of(2).max(2)).collect();
        Grid { rows: pieces(m, size[0]), columns: pieces(n, size[1]), parts, largest: size[0] * size[1] }
    }

    fn blocks(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    fn flops(&self, k: usize) -> f64 {
        let size = |ranges: &[Range<usize>]| ranges.last().map_or(0, |last| last.end);
        2.0 * size(&self.rows) as f64 * size(&self.columns) as f64 * k as f64
    }

    /// The block of a job, and its part of k.
    fn block(&self, job: usize) -> (Block, Range<usize>) {
        let (number, part) = (job % self.blocks(), job / self.blocks());
        let at = [number % self.rows.len(), number / self.rows.len()];
        let block = Block { job, at, rows: self.rows[at[0]].clone(), columns: self.columns[at[1]].clone() };
        (block, self.parts[part].clone())
    }
}

/// The size of equal parts of `whole`, none above `most`, in multiples of a panel.
fn even(whole: usize, most: usize) -> usize {
    whole.div_ceil(whole.div_ceil(most).max(1)).next_multiple_of(32).max(1)
}

/// Computes every block of `a · b` and hands its values to `finish`.
pub(super) fn multiply<A: Element, B: Element>(a: &Matrix<'_, A>, b: &Matrix<'_, B>, grid: &Grid, finish: &impl Finish, par: Par) {
    if a.shape()[0] <= FEW && a.strides()[1] == 1 && b.strides()[0] == 1 {
        return FewBlocks { a, b, grid, finish }.run(par);
    }
    // The constants first: nothing is compiled for types that never come here.
    if A::PAIRS
        && B::PAIRS
        && let (true, Some(a), Some(b)) = (par.multiplies_pairs(), a.as_bf16(), b.as_bf16())
    {
        return multiply_in_parts(&Paired::new(a.transposed()), &Paired::new(b), (grid, a.shape()[1]), finish, par);
    }
    multiply_in_parts(a, b, (grid, a.shape()[1]), finish, par);
}

/// The same for operands of one form.
fn multiply_in_parts<A: Operand, B: Operand<Form = A::Form>>(a: &A, b: &B, (grid, k): (&Grid, usize), finish: &impl Finish, par: Par) {
    if grid.parts.len() == 1 {
        return Blocks { a, b, grid, finish }.run(k, par);
    }
    let jobs = grid.parts.len() * grid.blocks();
    let mut memory = PARTS.take();
    let sums = memory.take(jobs * grid.largest);
    let ones = pieces(jobs, 1);
    let mut rows = StridedMut::contiguous(sums, [1, 1, jobs, grid.largest], "sums").expect("so many were taken");
    let keep = Keep(DisjointRows::new(&mut rows, &ones));
    Blocks { a, b, grid, finish: &keep }.run(k, par);
    drop(keep);
    par.run(grid.blocks(), (jobs * grid.largest) as f64, |jobs| {
        dispatch(par.level_in_use(), Total { grid, sums, finish, jobs });
    });
    PARTS.set(memory);
}

thread_local! {
    /// Kept from call to call: fresh pages would cost a small product a tenth of its time.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { a: Aligned::new(), b: Aligned::new(), c: Aligned::new() }) };
    /// Sums over parts of k, out of their place while a call of this thread fills them.
    static PARTS: Cell<Aligned<f32>> = const { Cell::new(Aligned::new()) };
}

struct Scratch {
    a: Aligned<f32>,
    b: Aligned<f32>,
    c: Aligned<f32>,
}

/// Keeps the sums of parts.
struct Keep<'a>(DisjointRows<'a, f32>);

impl Finish for Keep<'_> {
    type Open<'a>
        = (Claim<'a, f32>, usize)
    where
        Self: 'a;

    fn open(&self, block: &Block) -> Self::Open<'_> {
        (self.0.claim(0, 0, block.job), block.columns.len())
    }

    #[inline(always)]
    fn finish<S: Lanes>(&self, _: S, (sums, stride): &mut (Claim<'_, f32>, usize), [rows, columns]: [Range<usize>; 2], values: Rows<'_>) {
        let sums = sums.row(0);
        for (i, row) in rows.enumerate() {
            let values = &values.from(i).data[..columns.len()];
            sums[row * *stride + columns.start..][..columns.len()].copy_from_slice(values);
        }
    }
}

/// Adds what was kept, in the order of parts, and finishes it.
struct Total<'a, F> {
    grid: &'a Grid,
    sums: &'a [f32],
    finish: &'a F,
    jobs: &'a Jobs<'a>,
}

impl<F: Finish> Task for Total<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Total { grid, sums, finish, jobs } = self;
        let mut total = [0.0f32; WIDTH];
        while let Some(number) = jobs.take() {
            let (block, _) = grid.block(number);
            let (mut open, width) = (finish.open(&block), block.columns.len());
            for row in 0..block.rows.len() {
                let total = &mut total[..width];
                total.fill(0.0);
                for part in sums.chunks_exact(grid.largest).skip(number).step_by(grid.blocks()) {
                    let part = &part[row * width..][..width];
                    for at in (0..width).step_by(S::N) {
                        store(s, total, at, s.add(load(s, total, at, 0.0), load(s, part, at, 0.0)));
                    }
                }
                finish.finish(s, &mut open, [row..row + 1, 0..width], Rows::new(total, width));
            }
        }
    }
}

/// A product on its way.
struct Blocks<'a, A, B, F> {
    a: &'a A,
    b: &'a B,
    grid: &'a Grid,
    finish: &'a F,
}

impl<A: Operand, B: Operand<Form = A::Form>, F: Finish> Blocks<'_, A, B, F> {
    fn run(&self, k: usize, par: Par) {
        par.run(self.grid.parts.len() * self.grid.blocks(), self.grid.flops(k), |jobs| {
            SCRATCH.with_borrow_mut(|scratch| A::Form::dispatch(par.level_in_use(), Worker { work: self, jobs, scratch }));
        });
    }

    #[inline(always)]
    fn block<S: Lanes, const R: usize>(&self, s: S, (block, part): (&Block, Range<usize>), scratch: &mut Scratch) {
        let (panel, m) = (TILE * S::N, block.rows.len().next_multiple_of(R));
        let part = part.start / A::Form::PER_LANE..A::Form::rows(part.end);
        let size = part.len().div_ceil(part.len().div_ceil(STEPS).max(1)).max(1);
        // All of C is kept only where there are further steps to add; else one strip.
        let strips = if size < part.len() { block.columns.len().div_ceil(panel) } else { 1 };
        let (c, mut open) = (scratch.c.take(strips * m * panel), self.finish.open(block));
        for steps in runs(part.clone(), size) {
            let a = self.a.broadcast(s, [block.rows.clone(), steps.clone()], m, &mut scratch.a);
            let b = scratch.b.take(block.columns.len().next_multiple_of(panel).max(panel) * steps.len());
            self.b.panels(s, [steps.clone(), block.columns.clone()], b, panel);
            // A tile meets all panels of B before the next one does: it stays in the nearest cache, and what it becomes is written along rows.
            for rows in (0..m).step_by(R).map(|first| first..first + R) {
                for (i, columns) in runs(block.columns.clone(), panel).enumerate() {
                    let b = &b[i * panel * steps.len()..];
                    let strip = Strip { a, b: Rows::new(b, panel), first: steps.start == part.start, steps: steps.len() };
                    let columns = columns.start - block.columns.start..columns.end - block.columns.start;
                    let above = if strips > 1 { i * m } else { 0 };
                    let c = &mut c[(above + rows.start) * panel..][..rows.len() * panel];
                    if steps.end == part.end {
                        self.finish.ahead(s, &open, [rows.clone(), columns.clone()]);
                    }
                    strip.add::<S, A::Form>(s, rows.clone(), c);
                    if steps.end == part.end {
                        let rows = rows.start..block.rows.len().min(rows.end);
                        self.finish.finish(s, &mut open, [rows, columns], Rows::new(c, panel));
                    }
                }
            }
        }
    }
}

/// A step of k for the columns of a panel.
struct Strip<'a> {
    a: Side<'a>,
    b: Rows<'a>,
    first: bool,
    steps: usize,
}

impl Strip<'_> {
    /// Adds it to rows of C, a panel wide.
    #[inline(always)]
    fn add<S: Lanes, M: Form>(&self, s: S, rows: Range<usize>, c: &mut [f32]) {
        let Strip { b, first, steps, .. } = *self;
        let c = &mut c[..rows.len() * b.stride];
        match self.a {
            Side::Along(a) => s.vectorize(AddStep { a: M::left(a.below(rows.start)), b, c, first, steps }),
            Side::Across(a) => s.vectorize(AddStep { a: M::left(a.below(rows.start)), b, c, first, steps }),
        }
    }
}

struct Worker<'a, W> {
    work: &'a W,
    jobs: &'a Jobs<'a>,
    scratch: &'a mut Scratch,
}

impl<A: Operand, B: Operand<Form = A::Form>, F: Finish> Task for Worker<'_, Blocks<'_, A, B, F>> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        while let Some(job) = self.jobs.take() {
            let (block, part) = self.work.grid.block(job);
            self.work.block::<S, R>(s, (&block, part), self.scratch);
        }
    }
}

/// A product of few rows by columns whose elements are neighbours.
struct FewBlocks<'a, A, B, F> {
    a: &'a Matrix<'a, A>,
    b: &'a Matrix<'a, B>,
    grid: &'a Grid,
    finish: &'a F,
}

impl<A: Element, B: Element, F: Finish> FewBlocks<'_, A, B, F> {
    fn run(&self, par: Par) {
        par.run(self.grid.blocks(), self.grid.flops(self.a.shape()[1]), |jobs| {
            SCRATCH.with_borrow_mut(|scratch| dispatch(par.level_in_use(), Worker { work: self, jobs, scratch }));
        });
    }
}

impl<A: Element, B: Element, F: Finish> Task for Worker<'_, FewBlocks<'_, A, B, F>> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        while let Some(job) = self.jobs.take() {
            let (block, _) = self.work.grid.block(job);
            let n = block.columns.len().next_multiple_of(TILE * S::N);
            let c = self.scratch.c.take(block.rows.len() * n);
            s.vectorize(FewRows { work: self.work, block: &block, c, n });
            let finish = self.work.finish;
            finish.finish(s, &mut finish.open(&block), [0..block.rows.len(), 0..block.columns.len()], Rows::new(c, n));
        }
    }
}

/// `c = a·b`, one dot product at a time.
struct FewRows<'a, 'w, A, B, F> {
    work: &'a FewBlocks<'w, A, B, F>,
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

/// `c = a·b`, or `c += a·b` after the first step, for a tile of a and a panel of b.
struct AddStep<'a, A> {
    a: A,
    b: Rows<'a>,
    /// Rows of a panel.
    c: &'a mut [f32],
    first: bool,
    steps: usize,
}

impl<A: Left> Task for AddStep<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let panel = TILE * S::N;
        let values = &mut self.c[..R * panel];
        let mut acc = [[s.zero(); TILE]; R];
        if !self.first {
            for (r, sums) in acc.iter_mut().enumerate() {
                for (c, x) in sums.iter_mut().enumerate() {
                    *x = s.load(&values[r * panel + c * S::N..]);
                }
            }
        }
        let acc = product::<S, _, R, TILE>(s, acc, self.a, self.b, self.steps);
        for (r, sums) in acc.iter().enumerate() {
            for (c, x) in sums.iter().enumerate() {
                s.store(&mut values[r * panel + c * S::N..], *x);
            }
        }
    }
}
