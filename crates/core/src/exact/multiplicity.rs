//! What a weight in front of an exponential would change: for `A_ij = M_ij e^{s_ij} / Σ_j M_ij e^{s_ij}` the slopes
//! `dM_ij = P°_ij (dP_ij - D_i)` with `P° = exp(s - lse)`, at most 1e4, also of pairs with `M = 0`; summed per key over
//! intervals of query positions, and over the last of them per query.
//!
//! One sweep over all pairs that the problem shows, two products each. A job is a query head, so sums have an order.

use super::pack::{self, Use};
use super::plan::{BLOCK, Facts, KeyList, Keys, Plan};
use super::score::{Extras, MaskedBiased, Meeting, Rich, Variant};
use super::softmax::bounds;
use crate::par::Jobs;
use crate::simd::{Aligned, Along, Lanes, Rows, Task, dispatch, product};
use crate::{Par, Problem, Saved};
use std::f64::consts::LOG2_E;
use std::ops::Range;
use std::sync::Mutex;

/// Sums per key.
pub(crate) const INTERVALS: usize = 5;
/// Intervals of query positions of one key, first and last; empty where first > last.
pub(crate) type Intervals = [[i32; 2]; INTERVALS];
/// The binary logarithm of the largest `P°`.
const HIGHEST: f32 = 13.287_712;

/// The sums of one query head.
#[derive(Debug, Clone)]
pub(crate) struct Slopes {
    /// Per key.
    pub(crate) keys: Vec<[f64; INTERVALS]>,
    /// Per query, over the keys whose last interval holds it.
    pub(crate) queries: Vec<f64>,
}

/// The slopes of every query head, `[B·H]`. `delta [B, H, N]` is `D`; `intervals` are of `[B, G, M]`.
pub(crate) fn slopes(problem: &Problem<'_>, saved: &Saved<'_>, (delta, intervals): (&[f32], &[Intervals]), par: Par) -> Vec<Slopes> {
    let dims = &problem.dims;
    let heads = dims.batch * dims.heads;
    let empty = Slopes { keys: vec![[0.0; INTERVALS]; dims.keys], queries: vec![0.0; dims.queries] };
    let all: Vec<Mutex<Slopes>> = (0..heads).map(|_| Mutex::new(empty.clone())).collect();
    par.run(heads, 4.0 * super::flops(problem), |jobs| {
        dispatch(par.level_in_use(), Worker { problem, saved, delta, intervals, all: &all, jobs });
    });
    all.into_iter().map(|slopes| slopes.into_inner().expect("a job does not panic")).collect()
}

struct Worker<'a> {
    problem: &'a Problem<'a>,
    saved: &'a Saved<'a>,
    delta: &'a [f32],
    intervals: &'a [Intervals],
    all: &'a [Mutex<Slopes>],
    jobs: &'a Jobs<'a>,
}

#[derive(Default)]
struct Scratch {
    facts: Facts,
    k: Aligned<f32>,
    v: Aligned<f32>,
    staged: Aligned<f32>,
    qt: Aligned<f32>,
    d_ot: Aligned<f32>,
    positions: Aligned<i32>,
    dense: Aligned<f32>,
    square: Aligned<f32>,
}

impl Task for Worker<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let dims = &self.problem.dims;
        let pieces = self.problem.sight.key_pieces(dims, BLOCK);
        let mut scratch = Scratch::default();
        while let Some(job) = self.jobs.take() {
            let mut slopes = self.all[job].lock().expect("a job does not panic");
            for piece in &pieces {
                let piece = Piece { worker: &self, at: [job / dims.heads, job % dims.heads], keys: piece.clone() };
                piece.sweep::<S, R>(s, &mut scratch, &mut slopes);
            }
        }
    }
}

/// Some neighbouring keys of one query head.
struct Piece<'a> {
    worker: &'a Worker<'a>,
    at: [usize; 2],
    keys: Range<usize>,
}

/// One panel of queries as it meets a block of keys.
struct Panel<'a> {
    meeting: Meeting<'a>,
    v: Rows<'a>,
    d_ot: Rows<'a>,
    dv: usize,
    /// `-lse` and `-D` of each lane.
    offsets: [&'a [f32]; 2],
}

impl Piece<'_> {
    #[inline(always)]
    fn sweep<S: Lanes, const R: usize>(&self, s: S, scratch: &mut Scratch, slopes: &mut Slopes) {
        let Worker { problem, saved, delta, intervals, .. } = *self.worker;
        let dims = &problem.dims;
        let [b, h] = self.at;
        let g = h / dims.group();
        let scope = problem.sight.scope(dims, problem.sight.sequence_of_key(b, self.keys.start), g);
        let keys = self.keys.start.max(scope.keys.start)..self.keys.end.min(scope.keys.end);
        if keys.is_empty() {
            return;
        }
        let (plan, list) = (Plan::default(), Keys::Run(keys.clone()));
        let list = KeyList { plan: &plan, list: &list, seen_all: false };
        let Scratch { facts, k, v, staged, qt, d_ot, positions, dense, square } = scratch;
        facts.collect(problem, &scope, g, list, R);
        let (count, panel) = (facts.tiles() * R, 2 * S::N);
        let [dk, dv] = [dims.dk, dims.dv].map(|width| width.next_multiple_of(S::N));
        let k = pack::key_rows(s, &problem.k, [b, g], list, (count, Use::Often), k.take(count * dk));
        let v = pack::key_rows(s, &problem.v, [b, g], list, (count, Use::Often), v.take(count * dv));
        let extras = Extras::new(problem, h);
        let (staged, qt, d_ot) = (staged.take(panel * dk.max(dv)), qt.take(panel * dk), d_ot.take(panel * dv));
        let positions = positions.take(panel);
        let dense = dense.take(if extras.dense { BLOCK.next_multiple_of(S::N) * panel } else { 0 });
        let square = square.take(S::N * S::N);
        let mut offsets = [vec![0.0; panel], vec![0.0; panel]];
        let row = (b * dims.kv_heads + g) * dims.keys;
        let intervals = &intervals[row..row + dims.keys][keys.clone()];
        for start in scope.queries.clone().step_by(panel) {
            let queries = start..scope.queries.end.min(start + panel);
            pack::describe_panel(&scope, (h, None), queries.clone(), positions, &mut []);
            let visible = facts.visible(0..facts.tiles(), bounds(positions));
            if visible.is_empty() {
                continue;
            }
            pack::panel(s, (&problem.q, self.at), queries.clone(), (&mut *staged, &mut *qt), Some(extras.factor));
            pack::panel(s, (&saved.d_o, self.at), queries.clone(), (&mut *staged, &mut *d_ot), None);
            let first = (b * dims.heads + h) * dims.queries;
            fill_offsets(&mut offsets, [&saved.lse[first..], &delta[first..]], queries.clone());
            if extras.dense {
                pack::fill_dense(s, problem, self.at, (queries.clone(), &facts.rows), (&mut *square, &mut *dense));
            }
            let meeting = Meeting {
                k,
                qt: &*qt,
                dk: dims.dk,
                facts,
                positions: &*positions,
                hashes: &[],
                dense: &*dense,
                extras: &extras,
                origin: scope.keys.start,
            };
            let panel = Panel { meeting, v, d_ot: Rows::new(d_ot, panel), dv: dims.dv, offsets: [&offsets[0], &offsets[1]] };
            let into = (&mut slopes.keys[keys.clone()], &mut slopes.queries[queries]);
            if extras.rich {
                panel.add::<S, R, Rich>(s, visible, intervals, into);
            } else {
                panel.add::<S, R, MaskedBiased>(s, visible, intervals, into);
            }
        }
    }
}

/// `-lse` in units of log2 and `-D` of a panel; lanes that see nothing or are none weigh nothing.
fn fill_offsets([below, minus_delta]: &mut [Vec<f32>; 2], [lse, delta]: [&[f32]; 2], queries: Range<usize>) {
    below.fill(f32::NEG_INFINITY);
    minus_delta.fill(0.0);
    for (lane, row) in queries.enumerate().filter(|(_, row)| lse[*row] != f32::NEG_INFINITY) {
        below[lane] = (f64::from(-lse[row]) * LOG2_E) as f32;
        minus_delta[lane] = -delta[row];
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn add<S: Lanes, const R: usize, V: Variant>(
        &self,
        s: S,
        tiles: Range<usize>,
        intervals: &[Intervals],
        (keys, queries): (&mut [[f64; INTERVALS]], &mut [f64]),
    ) {
        let meeting = &self.meeting;
        let load = |values: &[f32]| [s.load(values), s.load(&values[S::N..])];
        let (below, minus_delta) = (load(self.offsets[0]), load(self.offsets[1]));
        let positions = [s.load_i(meeting.positions), s.load_i(&meeting.positions[S::N..])];
        let mut per_query = [s.zero(); 2];
        for tile in tiles {
            let (x, _) = meeting.logits::<S, R, 2, V>(s, (tile, 0), below);
            let dp = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], Along(self.v.from(tile * R)), self.d_ot, self.dv);
            for r in 0..R.min(meeting.facts.count - tile * R) {
                let key = tile * R + r;
                let mut sums = [s.zero(); INTERVALS];
                for c in 0..2 {
                    let weight = s.exp2(s.min(x[r][c], s.splat(HIGHEST)));
                    let slope = meeting.keep::<S, V>(s, key, c, s.mul(weight, s.add(dp[r][c], minus_delta[c])));
                    for (sum, [first, last]) in sums.iter_mut().zip(intervals[key]) {
                        *sum = s.add(*sum, s.keep(s.between(positions[c], first, last), slope));
                    }
                    let [first, last] = intervals[key][INTERVALS - 1];
                    per_query[c] = s.add(per_query[c], s.keep(s.between(positions[c], first, last), slope));
                }
                for (total, sum) in keys[key].iter_mut().zip(sums) {
                    *total += f64::from(s.sum(sum));
                }
            }
        }
        let mut lanes = [[0.0f32; 32]; 2];
        for (lanes, sum) in lanes.iter_mut().zip(per_query) {
            s.store(lanes, sum);
        }
        for (lane, query) in queries.iter_mut().enumerate() {
            *query += f64::from(lanes[lane / S::N][lane % S::N]);
        }
    }
}
