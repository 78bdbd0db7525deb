//! Greedy farthest-first selection: the next centre is the row that is farthest, in Euclidean distance, from the centres so far;
//! the lower row on ties. Gonzalez 1985; for tokens Huang et al. 2022, arXiv 2203.14380. O(rows · centres · width), nothing of
//! size N×N.
//!
//! All sequences take their steps together, one pass over x per round, in blocks of rows. `Σ (x - c)²` is summed as it stands, since
//! `|x|² + |c|² - 2 x·c` would cancel where it matters; equal rows are at equal distances in all bits.

use crate::Par;
use crate::rows::matrix::Matrix;
use crate::rows::sweep::{Sweep, load, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{DisjointRows, Element, StridedMut};
use std::ops::Range;

/// Elements in a block.
const BLOCK: usize = 16_384;

/// The centres of one sequence: those that are given, then as many as make `count`.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) rows: Range<usize>,
    /// At least one, unless there are no rows.
    pub(super) given: Vec<usize>,
    pub(super) count: usize,
}

/// The centres of every sequence, in the order in which they were taken.
pub(super) fn centres<T: Element>(x: &Matrix<'_, T>, wanted: &[Wanted], par: Par) -> Vec<Vec<usize>> {
    let [rows, width] = x.shape();
    let size = (BLOCK / width.max(1)).max(4);
    let cut = |(s, wanted): (usize, &Wanted)| {
        let Range { start, end } = wanted.rows;
        (start..end).step_by(size).map(move |at| (s, at..end.min(at + size))).collect::<Vec<_>>()
    };
    let (owners, blocks): (Vec<usize>, Vec<Range<usize>>) = wanted.iter().enumerate().flat_map(cut).unzip();
    let mut nearest = vec![f32::INFINITY; rows];
    let mut best = vec![(f32::NEG_INFINITY, 0); blocks.len()];
    let mut taken: Vec<Vec<usize>> = vec![Vec::new(); wanted.len()];
    loop {
        let newest = next_centres(wanted, &owners, &best, &taken);
        if newest.iter().all(Option::is_none) {
            return taken;
        }
        taken.iter_mut().zip(&newest).for_each(|(taken, new)| taken.extend(new));
        let ones: Vec<Range<usize>> = (0..blocks.len()).map(|i| i..i + 1).collect();
        let mut nearest = StridedMut::contiguous(&mut nearest, [1, 1, rows, 1], "nearest").expect("one number per row");
        let mut best = StridedMut::contiguous(&mut best, [1, 1, blocks.len(), 1], "best").expect("one per block");
        let (nearest, best) = (DisjointRows::new(&mut nearest, &blocks), DisjointRows::new(&mut best, &ones));
        sweep(&Round { x, owners: &owners, newest: &newest, nearest, best }, &blocks, rows * width, par);
    }
}

/// The next centre of every sequence that wants one.
fn next_centres(wanted: &[Wanted], owners: &[usize], best: &[(f32, usize)], taken: &[Vec<usize>]) -> Vec<Option<usize>> {
    let mut farthest = vec![(f32::NEG_INFINITY, 0); wanted.len()];
    for (&owner, &(distance, row)) in owners.iter().zip(best) {
        if distance > farthest[owner].0 {
            farthest[owner] = (distance, row);
        }
    }
    let next = |((wanted, taken), (_, row)): ((&Wanted, &Vec<usize>), (f32, usize))| {
        wanted.given.get(taken.len()).copied().or((taken.len() < wanted.count).then_some(row))
    };
    wanted.iter().zip(taken).zip(farthest).map(next).collect()
}

/// The distances to one more centre of every sequence.
struct Round<'a, T> {
    x: &'a Matrix<'a, T>,
    owners: &'a [usize],
    newest: &'a [Option<usize>],
    /// `[T]`, the squared distance to the nearest centre; -1 for a centre.
    nearest: DisjointRows<'a, f32>,
    /// The largest of them in each block, and its row.
    best: DisjointRows<'a, (f32, usize)>,
}

impl<T: Element> Sweep for Round<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let Some(centre) = self.newest[self.owners[block]] else { return };
        let mut nearest = self.nearest.claim(0, 0, block);
        let nearest = nearest.together().expect("one number per row");
        let mut best = (f32::NEG_INFINITY, 0);
        for (four, nearest) in rows.clone().step_by(4).zip(nearest.chunks_mut(4)) {
            let distances = self.four(s, centre, four, rows.end);
            for (i, (nearest, distance)) in nearest.iter_mut().zip(distances).enumerate() {
                *nearest = if four + i == centre { -1.0 } else { nearest.min(distance) };
                if *nearest > best.0 {
                    best = (*nearest, four + i);
                }
            }
        }
        self.best.claim(0, 0, block).row(0)[0] = best;
    }
}

impl<T: Element> Round<'_, T> {
    /// Squared distances from a centre to four rows; beyond `end` the last one again.
    #[inline(always)]
    fn four<S: Lanes>(&self, s: S, centre: usize, first: usize, end: usize) -> [f32; 4] {
        let mut rows: [&[T]; 4] = [&[]; 4];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.x.row((first + i).min(end - 1));
        }
        let centre = self.x.row(centre);
        let mut sums = [s.zero(); 4];
        for at in (0..centre.len()).step_by(S::N) {
            let c = load(s, centre, at, 0.0);
            for (sum, row) in sums.iter_mut().zip(rows) {
                let d = s.sub(load(s, row, at, 0.0), c);
                *sum = s.mul_add(d, d, *sum);
            }
        }
        let mut out = [0.0; 4];
        s.sum_four(sums, &mut out);
        out
    }
}
