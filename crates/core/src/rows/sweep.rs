//! How row operations walk: over blocks of rows that are a function of the shape alone, so that whatever is summed block by
//! block has the same bits for any number of threads; and along a row in steps of a register.

use super::matrix::{Matrix, MatrixMut};
use crate::par::Jobs;
use crate::simd::{Aligned, Form, Lanes, Pairs, Task, dispatch};
use crate::view::{Claim, DisjointRows, Element};
use crate::{Error, Par};
use std::ops::Range;

/// Elements of a block: some tens of kilobytes, which stay in the cache between two passes over a row.
const BLOCK: usize = 16_384;
/// What an element costs, in the operations that [`Par::run`] counts.
const COST: f64 = 16.0;

/// Work on blocks of rows.
pub(crate) trait Sweep: Sync {
    /// Whether results are bf16, which some processors round at once.
    const ROUNDS: bool = false;

    /// Does the block of this number. The scratch is the thread's own and holds whatever was left in it.
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, scratch: &mut Aligned<f32>);
}

/// Blocks of a matrix of this shape.
pub(crate) fn blocks([rows, columns]: [usize; 2]) -> Vec<Range<usize>> {
    pieces(rows, (BLOCK / columns.max(1)).max(1))
}

/// `0..end` in ranges of `size`, the last one shorter.
pub(crate) fn pieces(end: usize, size: usize) -> Vec<Range<usize>> {
    (0..end).step_by(size).map(|start| start..end.min(start + size)).collect()
}

/// Does every block, on as many threads as `elements` are worth.
pub(crate) fn sweep<W: Sweep>(work: &W, blocks: &[Range<usize>], elements: usize, par: Par) {
    par.run_in_shares(blocks.len(), elements as f64 * COST, |jobs| in_lanes(Worker { work, blocks, jobs }, par));
}

fn in_lanes<W: Sweep>(worker: Worker<'_, W>, par: Par) {
    let level = par.level_in_use();
    if W::ROUNDS && par.multiplies_pairs() { Pairs::dispatch(level, worker) } else { dispatch(level, worker) }
}

struct Worker<'a, W> {
    work: &'a W,
    blocks: &'a [Range<usize>],
    jobs: &'a Jobs<'a>,
}

impl<W: Sweep> Task for Worker<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let mut scratch = Aligned::new();
        while let Some(block) = self.jobs.take() {
            self.work.block(s, block, self.blocks[block].clone(), &mut scratch);
        }
    }
}

/// The lanes of a row from `at` on; lanes past its end are `fill`.
#[inline(always)]
pub(crate) fn load<S: Lanes, T: Element>(s: S, row: &[T], at: usize, fill: f32) -> S::F {
    if at + S::N <= row.len() { T::load(s, &row[at..]) } else { T::load_part(s, &row[at..], fill) }
}

/// Writes the lanes to a row from `at` on, as far as it goes.
#[inline(always)]
pub(crate) fn store<S: Lanes, T: Element>(s: S, row: &mut [T], at: usize, x: S::F) {
    if at + S::N <= row.len() { T::store(s, &mut row[at..], x) } else { T::store_part(s, &mut row[at..], x) }
}

/// Shows every register of a row, the last one filled up, with a number below 4 that counts them: for four sums in flight.
#[inline(always)]
pub(super) fn registers<S: Lanes, T: Element>(s: S, row: &[T], fill: f32, mut show: impl FnMut(usize, S::F)) {
    let mut groups = row.chunks_exact(4 * S::N);
    for group in &mut groups {
        for c in 0..4 {
            show(c, T::load(s, &group[c * S::N..]));
        }
    }
    // Of a number of rounds that the compiler knows, so that what the numbers count stays in registers.
    let rest = groups.remainder();
    for c in 0..4 {
        if c * S::N < rest.len() {
            show(c, load(s, rest, c * S::N, fill));
        }
    }
}

/// The same of rows beside each other. For one row alone the compiler would keep its sums in memory, and a norm takes half as long again.
#[inline(always)]
pub(super) fn registers_of<S: Lanes, T: Element, const I: usize>(
    s: S,
    rows: [&[T]; I],
    fill: [f32; I],
    mut show: impl FnMut(usize, [S::F; I]),
) {
    let length = rows[0].len();
    let rows = rows.map(|row| &row[..length]);
    let whole = length / (4 * S::N) * (4 * S::N);
    for at in (0..whole).step_by(4 * S::N) {
        let groups = rows.map(|row| &row[at..at + 4 * S::N]);
        for c in 0..4 {
            let mut x = [s.zero(); I];
            for (x, group) in x.iter_mut().zip(groups) {
                *x = T::load(s, &group[c * S::N..]);
            }
            show(c, x);
        }
    }
    for c in 0..4 {
        let at = whole + c * S::N;
        if at < length {
            let mut x = [s.zero(); I];
            for ((x, row), fill) in x.iter_mut().zip(rows).zip(fill) {
                *x = load(s, row, at, fill);
            }
            show(c, x);
        }
    }
}

/// What becomes of elements at the same place of `I` matrices, written to `O` matrices.
pub(super) trait Each<const I: usize, const O: usize>: Copy + Sync {
    fn apply<S: Lanes>(self, s: S, x: [S::F; I]) -> [S::F; O];
}

/// Applies an operation to every element of matrices of one shape.
pub(super) fn each<T: Element, E: Each<I, O>, const I: usize, const O: usize>(
    operation: E,
    from: [(&'static str, &Matrix<'_, T>); I],
    into: [(&'static str, &mut MatrixMut<'_, T>); O],
    par: Par,
) -> Result<(), Error> {
    let shape = from[0].1.shape();
    for (tensor, matrix) in &from {
        matrix.check(shape, tensor)?;
    }
    for (tensor, matrix) in &into {
        matrix.check(shape, tensor)?;
    }
    let blocks = blocks(shape);
    let work = EachElement { operation, from: from.map(|(_, matrix)| matrix), into: into.map(|(_, matrix)| matrix.share(&blocks)) };
    sweep(&work, &blocks, shape[0] * shape[1], par);
    Ok(())
}

struct EachElement<'a, T, E, const I: usize, const O: usize> {
    operation: E,
    from: [&'a Matrix<'a, T>; I],
    into: [DisjointRows<'a, T>; O],
}

impl<T: Element, E: Each<I, O>, const I: usize, const O: usize> Sweep for EachElement<'_, T, E, I, O> {
    const ROUNDS: bool = T::PAIRS;

    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut claims = self.into.each_ref().map(|rows| rows.claim(0, 0, block));
        let mut from: [&[T]; I] = [&[]; I];
        let mut together = true;
        for (slice, matrix) in from.iter_mut().zip(self.from) {
            *slice = matrix.together(rows.clone()).unwrap_or(&[]);
            together &= !slice.is_empty();
        }
        for claim in &mut claims {
            together &= claim.together().is_some();
        }
        if together {
            return along::<S, T, E, I, O>(s, self.operation, from, &mut claims, Part::All);
        }
        for i in 0..rows.len() {
            for (slice, matrix) in from.iter_mut().zip(self.from) {
                *slice = matrix.row(rows.start + i);
            }
            along::<S, T, E, I, O>(s, self.operation, from, &mut claims, Part::Row(i));
        }
    }
}

/// What of a claim is written.
#[derive(Clone, Copy)]
enum Part {
    All,
    Row(usize),
}

#[inline(always)]
fn along<S: Lanes, T: Element, E: Each<I, O>, const I: usize, const O: usize>(
    s: S,
    operation: E,
    from: [&[T]; I],
    claims: &mut [Claim<'_, T>; O],
    part: Part,
) {
    let mut into = claims.each_mut().map(|claim| match part {
        Part::All => claim.together().expect("asked before"),
        Part::Row(i) => claim.row(i),
    });
    // One length, known to be one: a single comparison per step then stands for all loads and stores.
    let length = from[0].len();
    let (from, mut into) = (from.map(|from| &from[..length]), into.each_mut().map(|into| &mut into[..length]));
    let both = length / (2 * S::N) * (2 * S::N);
    for at in (0..both).step_by(2 * S::N) {
        let mut x = [[s.zero(); I]; 2];
        for (i, from) in from.iter().enumerate() {
            [x[0][i], x[1][i]] = T::load_two(s, &from[at..]);
        }
        let y = [operation.apply(s, x[0]), operation.apply(s, x[1])];
        for (o, into) in into.iter_mut().enumerate() {
            T::store_two_normal(s, &mut into[at..], [y[0][o], y[1][o]]);
        }
    }
    for at in (both..length).step_by(S::N) {
        let mut x = [s.zero(); I];
        for (x, from) in x.iter_mut().zip(from) {
            *x = load(s, from, at, 0.0);
        }
        for (y, into) in operation.apply(s, x).into_iter().zip(&mut into) {
            store(s, into, at, y);
        }
    }
}
