//! Received attention `c_j = Σ_i A_ij` per query head: one more sweep of `Q·Kᵀ` with the known log-sum-exp.
//!
//! A job owns a chunk of keys of one query head and adds over all queries, so nothing is shared. Before dropout.

use super::forward::takes_pairs;
use super::pack::{self, Use};
use super::plan::{BLOCK, Facts, KeyList, Keys, Plan};
use super::score::{Extras, Masked, MaskedBiased, Meeting, Of, Plain, Rich, Variant};
use super::softmax::bounds;
use crate::par::Jobs;
use crate::simd::{Aligned, Form, Lanes, Pairs, Singles, Task};
use crate::view::{DisjointRows, StridedMut};
use crate::{Par, Problem};
use std::f64::consts::LOG2_E;
use std::marker::PhantomData;
use std::ops::Range;

/// Fills `into [B, H, M]` from `lse [B, H, N]`; sizes are checked. Products are those of the forward pass: an error of a score that
/// both make is none of a weight.
pub(super) fn run(problem: &Problem<'_>, lse: &[f32], into: &mut [f32], par: Par) {
    if takes_pairs(problem, par) { run_in::<Pairs>(problem, lse, into, par) } else { run_in::<Singles>(problem, lse, into, par) }
}

fn run_in<M: Form>(problem: &Problem<'_>, lse: &[f32], into: &mut [f32], par: Par) {
    let dims = &problem.dims;
    let pieces = problem.sight.key_pieces(dims, BLOCK);
    let mut out = StridedMut::contiguous(into, [dims.batch, dims.heads, dims.keys, 1], "received").expect("received was checked");
    let rows = DisjointRows::new(&mut out, &pieces);
    par.run(dims.batch * dims.heads * pieces.len(), super::flops(problem), |jobs| {
        M::dispatch(par.level_in_use(), Worker::<M> { problem, lse, pieces: &pieces, rows: &rows, jobs, form: PhantomData });
    });
}

struct Worker<'a, M> {
    problem: &'a Problem<'a>,
    lse: &'a [f32],
    pieces: &'a [Range<usize>],
    rows: &'a DisjointRows<'a, f32>,
    jobs: &'a Jobs<'a>,
    form: PhantomData<M>,
}

#[derive(Default)]
struct Scratch {
    facts: Facts,
    k: Aligned<f32>,
    staged: Aligned<f32>,
    wide: Aligned<f32>,
    qt: Aligned<f32>,
    positions: Aligned<i32>,
    hashes: Aligned<i32>,
    below: Aligned<f32>,
    dense: Aligned<f32>,
    square: Aligned<f32>,
    /// Sums of a block's keys, a register each.
    lanes: Aligned<f32>,
}

impl<M: Form> Task for Worker<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let dims = &self.problem.dims;
        let heads = dims.batch * dims.heads;
        let mut scratch = Scratch::default();
        while let Some(job) = self.jobs.take() {
            let (head, piece) = (job % heads, job / heads);
            let at = [head / dims.heads, head % dims.heads];
            let mut sums = vec![0.0; self.pieces[piece].len()];
            self.sweep::<S, R>(s, at, self.pieces[piece].clone(), (&mut scratch, &mut sums));
            let mut rows = self.rows.claim(at[0], at[1], piece);
            for (i, sum) in sums.iter().enumerate() {
                rows.row(i)[0] = *sum;
            }
        }
    }
}

impl<M: Form> Worker<'_, M> {
    #[inline(always)]
    fn sweep<S: Lanes, const R: usize>(&self, s: S, [b, h]: [usize; 2], piece: Range<usize>, (scratch, sums): (&mut Scratch, &mut [f32])) {
        let problem = self.problem;
        let dims = &problem.dims;
        let g = h / dims.group();
        let scope = problem.sight.scope(dims, problem.sight.sequence_of_key(b, piece.start), g);
        let keys = piece.start.max(scope.keys.start)..piece.end.min(scope.keys.end);
        if keys.is_empty() {
            return;
        }
        let plan = Plan::default();
        let list = Keys::Run(keys.clone());
        let keys = KeyList { plan: &plan, list: &list, seen_all: false };
        let Scratch { facts, k, staged, wide, qt, positions, hashes, below, dense, square, lanes } = scratch;
        facts.collect(problem, &scope, g, keys, R);
        let (count, width, panel) = (facts.tiles() * R, dims.dk.next_multiple_of(S::N), 2 * S::N);
        let k = pack::keys::<S, M>(s, (&problem.k, [b, g]), keys, (count, Use::Often), k.take(pack::room::<S>(count, dims.dk)));
        let extras = Extras::new(problem, h);
        let [staged, wide, qt] = [staged, wide, qt].map(|room| room.take(panel * width));
        let (positions, hashes, below) = (positions.take(panel), hashes.take(panel), below.take(panel));
        let dense = dense.take(if extras.dense { BLOCK.next_multiple_of(S::N) * panel } else { 0 });
        let square = square.take(S::N * S::N);
        let lanes = lanes.take(count * S::N);
        lanes.fill(0.0);
        for start in scope.queries.clone().step_by(panel) {
            let queries = start..scope.queries.end.min(start + panel);
            pack::describe_panel(&scope, (h, None), queries.clone(), positions, hashes);
            let visible = facts.visible(0..facts.tiles(), bounds(positions));
            if visible.is_empty() {
                continue;
            }
            pack::queries::<S, M>(s, (&problem.q, [b, h]), queries.clone(), (staged, wide, qt), extras.factor);
            if queries.len() <= S::N {
                pack::repeat_last(s, qt);
            }
            let lse = &self.lse[(b * dims.heads + h) * dims.queries..][queries.clone()];
            below.fill(f32::NEG_INFINITY);
            for (below, lse) in below.iter_mut().zip(lse).filter(|(_, lse)| **lse != f32::NEG_INFINITY) {
                *below = (f64::from(-lse) * LOG2_E) as f32;
            }
            if extras.dense {
                pack::fill_dense(s, problem, [b, h], (queries, &facts.rows), (&mut *square, &mut *dense));
            }
            let meeting = Meeting {
                k,
                qt: &*qt,
                dk: dims.dk,
                facts,
                positions: &*positions,
                hashes: &*hashes,
                dense: &*dense,
                extras: &extras,
                origin: scope.keys.start,
            };
            let mut left = visible;
            while !left.is_empty() {
                let (run, full) = facts.run(left.clone(), bounds(positions));
                left.start = run.end;
                match (full, extras.biased, extras.rich) {
                    (_, _, true) => add_panel::<S, R, Of<M, Rich>>(s, &meeting, below, run, lanes),
                    (true, false, _) => add_panel::<S, R, Of<M, Plain>>(s, &meeting, below, run, lanes),
                    (false, false, _) => add_panel::<S, R, Of<M, Masked>>(s, &meeting, below, run, lanes),
                    (_, true, _) => add_panel::<S, R, Of<M, MaskedBiased>>(s, &meeting, below, run, lanes),
                }
            }
        }
        let offset = keys.list.first() - piece.start;
        for (sum, lanes) in sums[offset..].iter_mut().zip(lanes.chunks(S::N)).take(facts.count) {
            *sum = s.sum(s.load(lanes));
        }
    }
}

#[inline(always)]
fn add_panel<S: Lanes, const R: usize, V: Variant>(s: S, meeting: &Meeting<'_>, below: &[f32], tiles: Range<usize>, lanes: &mut [f32]) {
    let below = [s.load(below), s.load(&below[S::N..])];
    for tile in tiles {
        let (x, _) = meeting.logits::<S, R, 2, V>(s, (tile, 0), below);
        // Every row of the tile; those of nobody are hidden.
        for (r, row) in x.iter().enumerate() {
            let key = tile * R + r;
            let (low, high) = (meeting.keep::<S, V>(s, key, 0, s.exp2(row[0])), meeting.keep::<S, V>(s, key, 1, s.exp2(row[1])));
            let sum = &mut lanes[key * S::N..(key + 1) * S::N];
            s.store(sum, s.add(s.load(sum), s.add(low, high)));
        }
    }
}
