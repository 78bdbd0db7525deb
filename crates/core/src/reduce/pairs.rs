//! Cosines of every row of one set with every row of another, folded as they come: nothing of size N×M is stored.
//!
//! Rows are normalised once, in f64. A panel of two registers of rows stands in the lanes, transposed; the others are broadcast from
//! where they lie, in ascending order, by the register tile of attention ([`crate::simd::product`]). What is kept of a row's cosines is
//! two numbers, a [`Fold`]: the largest and where it was, or a sum. A row's result depends on nothing but its own cosines.

use crate::Par;
use crate::par::Jobs;
use crate::rows::matrix::Matrix;
use crate::rows::sweep::{Sweep, blocks, sweep};
use crate::simd::{Aligned, Along, LINE, Lanes, Rows, Task, dispatch, product};
use crate::view::{DisjointRows, Element, StridedMut};
use std::ops::Range;

/// Rows in the lanes of one job.
const JOB: usize = 128;
/// Rows of zeros behind the last one, for tiles that reach beyond it.
const SPARE: usize = 32;

/// What is kept of the cosines of one row.
pub(super) trait Fold: Sync {
    /// Before the first.
    fn start<S: Lanes>(&self, s: S) -> [S::F; 2];
    /// With the cosines of the `row`-th row of the other set.
    fn add<S: Lanes>(&self, s: S, state: [S::F; 2], cosine: S::F, row: usize) -> [S::F; 2];
}

/// `1/|x|` of every row, 0 for a zero vector: one whose norm is 0 in f32.
pub(super) fn inverse_norms<T: Element>(x: &Matrix<'_, T>, par: Par) -> Vec<f64> {
    let blocks = blocks(x.shape());
    let mut inverse = vec![0.0f64; x.shape()[0]];
    let mut out = StridedMut::contiguous(&mut inverse, [1, 1, x.shape()[0], 1], "norms").expect("one number per row");
    sweep(&Norms { x, inverse: DisjointRows::new(&mut out, &blocks) }, &blocks, x.shape()[0] * x.shape()[1], par);
    inverse
}

struct Norms<'a, T> {
    x: &'a Matrix<'a, T>,
    inverse: DisjointRows<'a, f64>,
}

impl<T: Element> Sweep for Norms<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, _: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut inverse = self.inverse.claim(0, 0, block);
        for (i, row) in rows.enumerate() {
            let mut sums = [0.0f64; 8];
            for part in self.x.row(row).chunks(8) {
                for (sum, x) in sums.iter_mut().zip(part) {
                    *sum += f64::from(x.to_f32()) * f64::from(x.to_f32());
                }
            }
            let norm = sums.iter().sum::<f64>().sqrt();
            inverse.row(i)[0] = if norm as f32 == 0.0 { 0.0 } else { 1.0 / norm };
        }
    }
}

/// Unit vectors, or zeros, in an order of their own.
#[derive(Debug)]
pub(super) struct Units {
    values: Vec<f32>,
    width: usize,
    stride: usize,
    rows: usize,
}

impl Units {
    /// Of the rows of x that `order` names.
    pub(super) fn new<T: Element>(x: &Matrix<'_, T>, inverse: &[f64], order: &[usize], par: Par) -> Self {
        let (rows, width) = (order.len(), x.shape()[1]);
        let stride = width.next_multiple_of(LINE).max(LINE);
        let blocks = blocks([rows, stride]);
        let mut values = vec![0.0f32; (rows + SPARE) * stride];
        let mut out = StridedMut::contiguous(&mut values, [1, 1, rows, stride], "units").expect("the shape is its length");
        sweep(&Normalise { x, inverse, order, units: DisjointRows::new(&mut out, &blocks) }, &blocks, rows * stride, par);
        Units { values, width, stride, rows }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.stride..][..self.stride]
    }
}

struct Normalise<'a, T> {
    x: &'a Matrix<'a, T>,
    inverse: &'a [f64],
    order: &'a [usize],
    units: DisjointRows<'a, f32>,
}

impl<T: Element> Sweep for Normalise<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, _: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut units = self.units.claim(0, 0, block);
        for (i, &row) in self.order[rows].iter().enumerate() {
            let inverse = self.inverse[row];
            for (to, x) in units.row(i).iter_mut().zip(self.x.row(row)) {
                *to = (f64::from(x.to_f32()) * inverse) as f32;
            }
        }
    }
}

/// Rows `lanes` of the units meet rows `others`. Lanes of meetings ascend and do not overlap.
#[derive(Debug, Clone)]
pub(super) struct Meeting {
    pub(super) lanes: Range<usize>,
    pub(super) others: Range<usize>,
}

/// The state of every row of the units that stood in the lanes of a meeting; zeros for all others.
pub(super) fn meet(units: &Units, meetings: &[Meeting], fold: &impl Fold, par: Par) -> Vec<[f32; 2]> {
    let cut = |meeting: &Meeting| {
        let Meeting { lanes, others } = meeting.clone();
        let part = move |start| Meeting { lanes: start..lanes.end.min(start + JOB), others: others.clone() };
        (meeting.lanes.start..meeting.lanes.end).step_by(JOB).map(part).collect::<Vec<_>>()
    };
    let parts: Vec<Meeting> = meetings.iter().flat_map(cut).collect();
    let pieces: Vec<Range<usize>> = parts.iter().map(|part| part.lanes.clone()).collect();
    let pairs: f64 = parts.iter().map(|part| part.lanes.len() as f64 * part.others.len() as f64).sum();
    let mut states = vec![[0.0f32; 2]; units.rows];
    let mut out = StridedMut::contiguous(&mut states, [1, 1, units.rows, 1], "states").expect("one state per row");
    let states_of = DisjointRows::new(&mut out, &pieces);
    par.run(parts.len(), 2.0 * pairs * units.width as f64, |jobs| {
        dispatch(par.level_in_use(), Worker { units, parts: &parts, fold, states: &states_of, jobs });
    });
    drop(states_of);
    states
}

struct Worker<'a, F> {
    units: &'a Units,
    parts: &'a [Meeting],
    fold: &'a F,
    states: &'a DisjointRows<'a, [f32; 2]>,
    jobs: &'a Jobs<'a>,
}

impl<F: Fold> Task for Worker<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let (mut staged, mut panel) = (Aligned::new(), Aligned::new());
        let (staged, panel) = (staged.take(S::N * self.units.stride), panel.take(2 * S::N * self.units.stride));
        while let Some(job) = self.jobs.take() {
            let Meeting { lanes, others } = &self.parts[job];
            let mut states = self.states.claim(0, 0, job);
            for start in lanes.clone().step_by(2 * S::N) {
                let rows = start..lanes.end.min(start + 2 * S::N);
                self.units.transpose(s, rows.clone(), staged, panel);
                let [first, second] = self.units.fold::<S, F, R>(s, panel, others, self.fold);
                for (row, (first, second)) in rows.zip(first.into_iter().zip(second)) {
                    states.row(row - lanes.start)[0] = [first, second];
                }
            }
        }
    }
}

impl Units {
    /// Rows into two registers of lanes, `[stride][2·N]`, zeros behind the last row.
    #[inline(always)]
    fn transpose<S: Lanes>(&self, s: S, rows: Range<usize>, staged: &mut [f32], panel: &mut [f32]) {
        for c in 0..2 {
            for (i, to) in staged.chunks_exact_mut(self.stride).enumerate() {
                let row = rows.start + c * S::N + i;
                if row < rows.end { to.copy_from_slice(self.row(row)) } else { to.fill(0.0) }
            }
            for at in (0..self.stride).step_by(S::N) {
                s.transpose(&staged[at..], self.stride, &mut panel[at * 2 * S::N + c * S::N..], 2 * S::N, None);
            }
        }
    }

    /// The states of a panel that met the rows `others`.
    #[inline(always)]
    fn fold<S: Lanes, F: Fold, const R: usize>(&self, s: S, panel: &[f32], others: &Range<usize>, fold: &F) -> [[f32; 32]; 2] {
        let mut states = [fold.start(s); 2];
        for first in others.clone().step_by(R) {
            let rows = Rows::new(&self.values[first * self.stride..], self.stride);
            let tile = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], Along(rows), Rows::new(panel, 2 * S::N), self.width);
            for (r, cosines) in tile.iter().enumerate().take(others.end - first) {
                for (state, cosine) in states.iter_mut().zip(cosines) {
                    *state = fold.add(s, *state, *cosine, first - others.start + r);
                }
            }
        }
        let mut out = [[0.0f32; 32]; 2];
        for (c, state) in states.iter().enumerate() {
            for (out, number) in out.iter_mut().zip(state) {
                s.store(&mut out[c * S::N..], *number);
            }
        }
        out
    }
}
