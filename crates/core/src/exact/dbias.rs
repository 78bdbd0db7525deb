//! The gradient of a dense bias, `d bias_ij = Σ dS_ij` over the axes that the bias repeats.
//!
//! A sweep of its own, only when asked: a job owns a block of rows of the gradient and recomputes dS for every batch row
//! and head that the rows serve, in order, so that nothing is shared and the bits do not depend on threads.

use super::backward::{MeetingBase, PanelScratch, QUERIES, QueryBlock, slopes_of_tile};
use super::pack::{self, Use};
use super::plan::{BLOCK, Facts, KeyList, Keys, Plan};
use super::score::{Extras, Rich};
use crate::par::Jobs;
use crate::simd::{Aligned, Lanes, Task, dispatch};
use crate::view::{Claim, DisjointRows, StridedMut};
use crate::{Par, Problem, Saved};
use std::ops::Range;

/// Fills `dbias`, of the bias's own shape.
pub(super) fn run(problem: &Problem<'_>, saved: &Saved<'_>, delta: &[f32], dbias: &mut [f32], par: Par) {
    let dims = &problem.dims;
    let Some([batch, heads]) = problem.bias_repeats() else { return };
    let pieces = problem.sight.query_pieces(dims, QUERIES);
    let mut out = StridedMut::contiguous(dbias, [batch, heads, dims.queries, dims.keys], "dbias").expect("dbias was checked");
    let rows = DisjointRows::new(&mut out, &pieces);
    par.run(batch * heads * pieces.len(), super::flops(problem), |jobs| {
        dispatch(par.level_in_use(), Worker { problem, saved, delta, pieces: &pieces, rows: &rows, shape: [batch, heads], jobs });
    });
}

struct Worker<'a> {
    problem: &'a Problem<'a>,
    saved: &'a Saved<'a>,
    delta: &'a [f32],
    pieces: &'a [Range<usize>],
    rows: &'a DisjointRows<'a, f32>,
    /// Batch rows and heads of the bias.
    shape: [usize; 2],
    jobs: &'a Jobs<'a>,
}

#[derive(Default)]
struct Scratch {
    facts: Facts,
    panels: PanelScratch,
    k: Aligned<f32>,
    v: Aligned<f32>,
    dense: Aligned<f32>,
    square: Aligned<f32>,
}

impl Task for Worker<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let dims = &self.problem.dims;
        let [batch, heads] = self.shape;
        let mut scratch = Scratch::default();
        while let Some(job) = self.jobs.take() {
            let (head, piece) = (job % (batch * heads), job / (batch * heads));
            let mut rows = self.rows.claim(head / heads, head % heads, piece);
            for i in 0..rows.rows() {
                rows.row(i).fill(0.0);
            }
            for b in (0..dims.batch).filter(|b| batch == 1 || *b == head / heads) {
                for h in (0..dims.heads).filter(|h| heads == 1 || *h == head % heads) {
                    self.add_head::<S, R>(s, [b, h], piece, (&mut rows, &mut scratch));
                }
            }
        }
    }
}

impl Worker<'_> {
    #[inline(always)]
    fn add_head<S: Lanes, const R: usize>(
        &self,
        s: S,
        [b, h]: [usize; 2],
        piece: usize,
        (rows, scratch): (&mut Claim<'_, f32>, &mut Scratch),
    ) {
        let problem = self.problem;
        let dims = &problem.dims;
        let g = h / dims.group();
        let piece = self.pieces[piece].clone();
        let scope = problem.sight.scope(dims, problem.sight.sequence_of_query(b, piece.start), g);
        let Some(block) = QueryBlock::new(problem, &scope, [b, h], piece) else { return };
        let extras = Extras::new(problem, h);
        scratch.panels.fill(s, problem, self.saved, self.delta, &block, &extras);
        let plan = Plan::default();
        for start in scope.keys.clone().step_by(BLOCK) {
            let list = Keys::Run(start..scope.keys.end.min(start + BLOCK));
            let keys = KeyList { plan: &plan, list: &list, seen_all: false };
            scratch.facts.collect(problem, &scope, g, keys, R);
            s.vectorize(AddBlock { problem, block: &block, extras: &extras, keys, at: [b, g], origin: scope.keys.start, rows, scratch });
        }
    }
}

/// One block of keys against one block of queries of one head.
struct AddBlock<'a, 'b, 'c> {
    problem: &'a Problem<'a>,
    block: &'a QueryBlock<'a>,
    extras: &'a Extras,
    keys: KeyList<'a>,
    at: [usize; 2],
    origin: usize,
    rows: &'b mut Claim<'c, f32>,
    scratch: &'b mut Scratch,
}

impl Task for AddBlock<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let AddBlock { problem, block, extras, keys, at, origin, rows, scratch } = self;
        let dims = &problem.dims;
        let Scratch { facts, panels, k, v, dense, square } = scratch;
        let count = facts.tiles() * R;
        let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
        let k = pack::key_rows(s, &problem.k, at, keys, (count, Use::Often), k.take(count * dk));
        let v = pack::key_rows(s, &problem.v, at, keys, (count, Use::Often), v.take(count * dv));
        let panel = 2 * S::N;
        let dense = dense.take(BLOCK.next_multiple_of(S::N) * panel);
        let square = square.take(S::N * S::N);
        let mut lanes = [0.0f32; 16];
        for i in 0..block.rows.len().div_ceil(panel) {
            let start = block.rows.start + i * panel;
            let queries = start..block.rows.end.min(start + panel);
            pack::fill_dense(s, problem, [block.b, block.h], (queries.clone(), &facts.rows), (&mut *square, &mut *dense));
            let base = MeetingBase { dims, facts, dense: &*dense, extras, origin };
            let (meeting, upstream) = panels.meeting::<S>(k, base, i);
            for tile in 0..facts.tiles() {
                let (slopes, _) = slopes_of_tile::<S, R, Rich>(s, &meeting, &upstream, (v, tile), None);
                for (r, row) in slopes.iter().enumerate().take(facts.count - tile * R) {
                    for (c, x) in row.iter().enumerate() {
                        s.store(&mut lanes, *x);
                        let first = i * panel + c * S::N;
                        for (lane, x) in lanes[..S::N].iter().enumerate().take(block.rows.len().saturating_sub(first)) {
                            rows.row(first + lane)[facts.rows[tile * R + r]] += x;
                        }
                    }
                }
            }
        }
    }
}
