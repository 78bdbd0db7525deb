//! Backward pass: weights are recomputed tile by tile from the log-sum-exp, nothing of size N×M is kept.
//!
//! `P = exp(S - lse)`, `D_i = dO_i·O_i`, `dV = PᵀdO`, `dS = P∘(dO Vᵀ - D)`, `dQ = scale·dS K`, `dK = scale·dSᵀQ`; under
//! dropout `dV = (Z∘P)ᵀdO` and `dP = Z∘(dO Vᵀ)`; under a soft-cap dS is multiplied by `1 - tanh²` on its way to q and k.
//!
//! A job is one chunk of keys of one kv head: it owns its rows of dK and dV and walks over all queries. Its share of dQ is
//! added when its turn comes: every block of queries takes the chunks in ascending order, so the bits do not depend on
//! the number of threads and no partial dQ is stored. Jobs are handed out in ascending order of chunks, so the one waited
//! for is always running. Keys of a chunk with lifetimes are sorted by them, so that tiles die whole.

use super::dbias;
use super::pack::{self, Use};
use super::plan::{Class, Facts, KeyList, Keys, Plan};
use super::score::{Biased, Extras, Masked, MaskedBiased, Meeting, Plain, Rich, Tile, Variant};
use super::softmax::{add_product, bounds};
use crate::par::Jobs;
use crate::sight::Scope;
use crate::simd::{Across, Aligned, Along, Lanes, Rows, Task, dispatch, product};
use crate::view::{DisjointRows, SharedRows, StridedMut, ViewMut};
use crate::{Dims, Gradients, Par, Problem, Saved};
use std::cell::RefCell;
use std::f64::consts::LOG2_E;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys in a chunk.
const CHUNK: usize = 256;
/// Queries in a block.
pub(super) const QUERIES: usize = 64;

/// Runs the backward pass; shapes are checked. Shares of chunks cannot be added in 16 bits: a narrower dQ is gathered in
/// f32 first.
pub(super) fn run(problem: &Problem<'_>, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) {
    let Gradients { dq, dk, dv, dkey_bias, dbias } = gradients;
    let dims = problem.dims;
    let queries = problem.sight.query_pieces(&dims, QUERIES);
    let delta = row_products(problem, saved, &queries, par);
    if let Some(dbias) = dbias {
        dbias::run(problem, saved, &delta, dbias, par);
    }
    let rest = KeyGradients { dk: dk.as_mut(), dv: dv.as_mut(), dkey_bias: dkey_bias.as_deref_mut() };
    match dq {
        None => sweep(problem, (saved, &delta, &queries), None, rest, par),
        Some(ViewMut::F32(dq)) => sweep(problem, (saved, &delta, &queries), Some(dq), rest, par),
        Some(narrow) => {
            let mut values = vec![0.0; narrow.shape().iter().product()];
            let mut wide = StridedMut::contiguous(&mut values, narrow.shape(), "dq").expect("dq was sized");
            sweep(problem, (saved, &delta, &queries), Some(&mut wide), rest, par);
            narrow_rows(&values, narrow, &queries);
        }
    }
}

/// Rounds contiguous f32 rows to the storage type of `into`.
fn narrow_rows(values: &[f32], into: &mut ViewMut<'_>, pieces: &[Range<usize>]) {
    let [batch, heads, n, width] = into.shape();
    let rows = into.share(pieces);
    for head in 0..batch * heads {
        for (piece, range) in pieces.iter().enumerate() {
            rows.write(head / heads, head % heads, piece, |i| &values[(head * n + range.start + i) * width..][..width]);
        }
    }
}

/// The gradients that follow the keys.
struct KeyGradients<'a, 'b> {
    dk: Option<&'a mut ViewMut<'b>>,
    dv: Option<&'a mut ViewMut<'b>>,
    dkey_bias: Option<&'a mut [f32]>,
}

/// All chunks of keys against all blocks of queries.
fn sweep(
    problem: &Problem<'_>,
    (saved, delta, queries): (&Saved<'_>, &[f32], &[Range<usize>]),
    dq: Option<&mut StridedMut<'_, f32>>,
    rest: KeyGradients<'_, '_>,
    par: Par,
) {
    let dims = problem.dims;
    let keys = problem.sight.key_pieces(&dims, CHUNK);
    let bias_shape = [dims.batch, dims.kv_heads, dims.keys, 1];
    let mut key_bias = rest.dkey_bias.map(|bias| StridedMut::contiguous(bias, bias_shape, "dkey_bias").expect("dkey_bias was checked"));
    let shared = Shared {
        problem,
        saved,
        delta,
        queries,
        keys: &keys,
        turns: (0..dims.batch * dims.heads * queries.len()).map(|_| AtomicUsize::new(0)).collect(),
        dq: dq.map(|dq| DisjointRows::new(dq, queries)),
        dk: rest.dk.map(|dk| dk.share(&keys)),
        dv: rest.dv.map(|dv| dv.share(&keys)),
        dkey_bias: key_bias.as_mut().map(|bias| DisjointRows::new(bias, &keys)),
    };
    shared.clear_queries();
    let heads = dims.batch * dims.kv_heads;
    par.run(heads * keys.len(), 2.5 * super::flops(problem), |jobs| {
        SCRATCH.with_borrow_mut(|scratch| dispatch(par.level_in_use(), Worker { shared: &shared, jobs, scratch }));
    });
}

/// `D_i = dO_i·O_i`, `[B, H, N]`.
fn row_products(problem: &Problem<'_>, saved: &Saved<'_>, pieces: &[Range<usize>], par: Par) -> Vec<f32> {
    let dims = &problem.dims;
    let mut delta = vec![0.0; dims.batch * dims.heads * dims.queries];
    let mut out = StridedMut::contiguous(&mut delta, [dims.batch, dims.heads, dims.queries, 1], "delta").expect("sized");
    let rows = DisjointRows::new(&mut out, pieces);
    let heads = dims.batch * dims.heads;
    par.run(heads * pieces.len(), super::flops(problem), |jobs| {
        dispatch(par.level_in_use(), RowProducts { saved, dims, pieces, rows: &rows, jobs });
    });
    drop(rows);
    delta
}

struct RowProducts<'a> {
    saved: &'a Saved<'a>,
    dims: &'a Dims,
    pieces: &'a [Range<usize>],
    rows: &'a DisjointRows<'a, f32>,
    jobs: &'a Jobs,
}

impl Task for RowProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let heads = self.dims.batch * self.dims.heads;
        let (width, panel) = (self.dims.dv.next_multiple_of(S::N), 2 * S::N);
        let [mut staged, mut o, mut d_o] = [const { Aligned::<f32>::new() }; 3];
        let (staged, o, d_o) = (staged.take(panel * width), o.take(panel * width), d_o.take(panel * width));
        let mut sums = [0.0f32; 32];
        while let Some(job) = self.jobs.take() {
            let (head, piece) = (job % heads, job / heads);
            let (b, h) = (head / self.dims.heads, head % self.dims.heads);
            let mut out = self.rows.claim(b, h, piece);
            let rows = self.pieces[piece].clone();
            for start in rows.clone().step_by(panel) {
                let part = start..rows.end.min(start + panel);
                for (view, into) in [(&self.saved.o, &mut *o), (&self.saved.d_o, &mut *d_o)] {
                    pack::stage_rows(s, view, [b, h], part.clone(), staged);
                    pack::transpose_panel(s, staged, self.dims.dv, into, 1.0);
                }
                products_in_lanes(s, o, d_o, self.dims.dv, &mut sums);
                for (i, row) in part.enumerate() {
                    out.row(row - rows.start)[0] = sums[i];
                }
            }
        }
    }
}

/// Sums down two panels in the order in which a tile sums `dO·V`, so that a query with one key has `dP = D` in all bits.
#[inline(always)]
fn products_in_lanes<S: Lanes>(s: S, o: &[f32], d_o: &[f32], width: usize, sums: &mut [f32]) {
    for c in 0..2 {
        let mut sum = s.zero();
        for d in 0..width {
            let at = (d * 2 + c) * S::N;
            sum = s.mul_add(s.load(&o[at..]), s.load(&d_o[at..]), sum);
        }
        s.store(&mut sums[c * S::N..], sum);
    }
}

/// What all jobs of a call share.
struct Shared<'a> {
    problem: &'a Problem<'a>,
    saved: &'a Saved<'a>,
    delta: &'a [f32],
    queries: &'a [Range<usize>],
    keys: &'a [Range<usize>],
    /// How many chunks have added their share to a block of dQ, `[B, H, blocks]`.
    turns: Vec<AtomicUsize>,
    dq: Option<DisjointRows<'a, f32>>,
    dk: Option<SharedRows<'a>>,
    dv: Option<SharedRows<'a>>,
    dkey_bias: Option<DisjointRows<'a, f32>>,
}

impl Shared<'_> {
    fn clear_queries(&self) {
        let Some(dq) = &self.dq else { return };
        let dims = &self.problem.dims;
        for head in 0..dims.batch * dims.heads {
            for piece in 0..self.queries.len() {
                let mut rows = dq.claim(head / dims.heads, head % dims.heads, piece);
                (0..rows.rows()).for_each(|i| rows.row(i).fill(0.0));
            }
        }
    }
}

/// Working memory of a thread.
#[derive(Default)]
struct Scratch {
    plan: Plan,
    facts: Facts,
    k: Aligned<f32>,
    v: Aligned<f32>,
    dk: Aligned<f32>,
    dv: Aligned<f32>,
    dkey_bias: Aligned<f32>,
    panels: PanelScratch,
    weights: Aligned<f32>,
    slopes: Aligned<f32>,
    dq: Aligned<f32>,
    dense: Aligned<f32>,
    square: Aligned<f32>,
}

/// A block of queries in working form.
#[derive(Default)]
pub(super) struct PanelScratch {
    /// Rows of q and dO.
    q: Aligned<f32>,
    d_o: Aligned<f32>,
    /// The same, transposed into panels; q scaled.
    qt: Aligned<f32>,
    d_ot: Aligned<f32>,
    /// `-lse·log2 e` and `-D`.
    below: Aligned<f32>,
    minus_delta: Aligned<f32>,
    positions: Aligned<i32>,
    hashes: Aligned<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    jobs: &'a Jobs,
    scratch: &'a mut Scratch,
}

impl Task for Worker<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let dims = &self.shared.problem.dims;
        let heads = dims.batch * dims.kv_heads;
        while let Some(job) = self.jobs.take() {
            let (head, piece) = (job % heads, job / heads);
            let (b, g) = (head / dims.kv_heads, head % dims.kv_heads);
            let range = self.shared.keys[piece].clone();
            let sequence = self.shared.problem.sight.sequence_of_key(b, range.start);
            let scope = self.shared.problem.sight.scope(dims, sequence, g);
            let keys = range.start.max(scope.keys.start)..range.end.min(scope.keys.end);
            let chunk = Chunk { shared: self.shared, problem: self.shared.problem, scope, b, g, piece, range, keys };
            chunk.run::<S, R>(s, self.scratch);
        }
    }
}

/// One chunk of keys of one kv head.
struct Chunk<'a> {
    shared: &'a Shared<'a>,
    problem: &'a Problem<'a>,
    scope: Scope<'a>,
    b: usize,
    g: usize,
    piece: usize,
    /// Rows of the piece.
    range: Range<usize>,
    /// Valid ones among them.
    keys: Range<usize>,
}

impl Chunk<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, scratch: &mut Scratch) {
        let dims = &self.problem.dims;
        let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
        let rows = self.range.len().next_multiple_of(R);
        scratch.dk.take(rows * dk).fill(0.0);
        scratch.dv.take(rows * dv).fill(0.0);
        scratch.dkey_bias.take(rows).fill(0.0);
        if !self.keys.is_empty() {
            let mut plan = std::mem::take(&mut scratch.plan);
            self.sort_keys(&mut plan);
            let list = Keys::Gathered(0..self.keys.len());
            let run = Keys::Run(self.keys.clone());
            let list = if self.scope.is_scattered() { &list } else { &run };
            let keys = KeyList { plan: &plan, list, seen_all: false };
            scratch.facts.collect(self.problem, &self.scope, self.g, keys, R);
            s.vectorize(WalkQueries { chunk: self, keys, scratch });
            scratch.plan = plan;
        }
        self.write::<S>(s, scratch, [dk, dv]);
    }

    /// Keys by descending end of life, so that tiles die whole.
    fn sort_keys(&self, plan: &mut Plan) {
        plan.gathered.clear();
        plan.gathered.extend(self.keys.clone());
        if self.scope.is_scattered() {
            plan.gathered.sort_by_key(|&key| std::cmp::Reverse(self.scope.seen_by(key).1));
        }
    }

    /// Writes the chunk's rows of dK, dV and d key bias; rows beyond the valid ones are zero.
    #[inline(always)]
    fn write<S: Lanes>(&self, s: S, scratch: &mut Scratch, [dk_width, dv_width]: [usize; 2]) {
        let dims = &self.problem.dims;
        let zeros = vec![0.0; dk_width.max(dv_width)];
        let mut slots = vec![usize::MAX; self.range.len()];
        if !self.keys.is_empty() {
            for (slot, &row) in scratch.facts.rows.iter().enumerate() {
                slots[row - self.range.start] = slot;
            }
        }
        let rows = self.range.len();
        let (dk, dv) = (scratch.dk.take(rows * dk_width), scratch.dv.get(rows * dv_width));
        let scale = s.splat(self.problem.scale());
        for x in dk.chunks_mut(S::N) {
            let scaled = s.mul(s.load(x), scale);
            s.store(x, scaled);
        }
        let dk: &[f32] = dk;
        if let Some(out) = &self.shared.dk {
            out.write(self.b, self.g, self.piece, |i| if slots[i] == usize::MAX { &zeros } else { &dk[slots[i] * dk_width..][..dims.dk] });
        }
        if let Some(out) = &self.shared.dv {
            out.write(self.b, self.g, self.piece, |i| if slots[i] == usize::MAX { &zeros } else { &dv[slots[i] * dv_width..][..dims.dv] });
        }
        if let Some(out) = &self.shared.dkey_bias {
            let mut out = out.claim(self.b, self.g, self.piece);
            for (i, &slot) in slots.iter().enumerate() {
                out.row(i)[0] = if slot == usize::MAX { 0.0 } else { scratch.dkey_bias.get(rows)[slot] };
            }
        }
    }

    /// Which turn this chunk has at a block of queries at positions `low ..= high`; `None` if it sees nothing of it.
    fn turn(&self, (low, high): (i32, i32)) -> Option<usize> {
        let [sinks, window] = self.scope.candidates(low, high);
        let start = self.scope.keys.start - self.scope.keys.start % CHUNK;
        let base = if self.shared.problem.sight.offsets.is_some() { self.scope.keys.start } else { start };
        let chunks =
            |range: Range<usize>| if range.is_empty() { 0..0 } else { (range.start - base) / CHUNK..(range.end - 1 - base) / CHUNK + 1 };
        let (sinks, window) = (chunks(sinks), chunks(window));
        let own = (self.range.start - base) / CHUNK;
        if sinks.contains(&own) {
            return Some(own - sinks.start);
        }
        let window = window.start.max(sinks.end)..window.end;
        window.contains(&own).then(|| sinks.len() + own - window.start)
    }
}

/// All blocks of queries of a group of heads against one chunk of keys.
struct WalkQueries<'a, 'b> {
    chunk: &'a Chunk<'b>,
    keys: KeyList<'a>,
    scratch: &'a mut Scratch,
}

impl Task for WalkQueries<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let WalkQueries { chunk, keys, scratch } = self;
        let (problem, shared) = (chunk.problem, chunk.shared);
        let dims = &problem.dims;
        let rows = scratch.facts.tiles() * R;
        let widths = [dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N)];
        let at = [chunk.b, chunk.g];
        let Scratch { facts, k, v, dk, dv, dkey_bias, panels, weights, slopes, dq, dense, square, .. } = scratch;
        let k = pack::key_rows(s, &problem.k, at, keys, (rows, Use::Lanes), k.take(rows * widths[0]));
        let v = pack::key_rows(s, &problem.v, at, keys, (rows, Use::Lanes), v.take(rows * widths[1]));
        let panel = 2 * S::N;
        let panel_count = QUERIES / panel;
        let mut sums = Sums {
            k,
            v,
            facts,
            dk: dk.take(rows * widths[0]),
            dv: dv.take(rows * widths[1]),
            dkey_bias: dkey_bias.take(rows),
            weights: weights.take(panel_count * rows * panel),
            slopes: slopes.take(panel_count * rows * panel),
            dq: dq.take(QUERIES * widths[0]),
            dense: dense.take(if problem.bias().is_some() || problem.dense_mask().is_some() {
                rows.next_multiple_of(S::N) * panel
            } else {
                0
            }),
            square: square.take(S::N * S::N),
        };
        for h in chunk.g * dims.group()..(chunk.g + 1) * dims.group() {
            let extras = Extras::new(problem, h);
            for piece in 0..shared.queries.len() {
                let Some(block) = QueryBlock::new(problem, &chunk.scope, [chunk.b, h], shared.queries[piece].clone()) else { continue };
                let Some(turn) = chunk.turn(block.positions) else { continue };
                if !sums.facts.visible(block.positions).is_empty() {
                    panels.fill(s, problem, shared.saved, shared.delta, &block, &extras);
                    sums.add::<S, R>(s, shared, (&block, &extras), panels);
                }
                sums.add_queries(s, shared, &block, (piece, turn), widths[0]);
            }
        }
    }
}

/// A block of valid query rows of one head.
pub(super) struct QueryBlock<'a> {
    scope: &'a Scope<'a>,
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) rows: Range<usize>,
    pub(super) positions: (i32, i32),
}

impl<'a> QueryBlock<'a> {
    /// The valid rows of a piece; `None` if there are none or the piece belongs to another sequence.
    pub(super) fn new(problem: &Problem<'_>, scope: &'a Scope<'a>, [b, h]: [usize; 2], piece: Range<usize>) -> Option<Self> {
        let rows = piece.start..piece.end.min(scope.queries.end);
        let own = problem.sight.sequence_of_query(b, piece.start) == scope.sequence;
        let positions = (own && !rows.is_empty()).then(|| scope.position_range(rows.clone()))?;
        Some(QueryBlock { scope, b, h, rows, positions })
    }
}

impl PanelScratch {
    /// Stages and transposes q and dO of a block.
    #[inline(always)]
    pub(super) fn fill<S: Lanes>(
        &mut self,
        s: S,
        problem: &Problem<'_>,
        saved: &Saved<'_>,
        delta: &[f32],
        block: &QueryBlock<'_>,
        extras: &Extras,
    ) {
        let dims = &problem.dims;
        let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
        let panel = 2 * S::N;
        let (q, d_o) = (self.q.take(QUERIES * dk), self.d_o.take(QUERIES * dv));
        let at = [block.b, block.h];
        pack::stage_rows(s, &problem.q, at, block.rows.clone(), q);
        pack::stage_rows(s, &saved.d_o, at, block.rows.clone(), d_o);
        let (qt, d_ot) = (self.qt.take(QUERIES * dk), self.d_ot.take(QUERIES * dv));
        for i in 0..QUERIES / panel {
            let (q_part, o_part) = (i * panel * dk..(i + 1) * panel * dk, i * panel * dv..(i + 1) * panel * dv);
            pack::transpose_panel(s, &q[q_part.clone()], dims.dk, &mut qt[q_part], extras.query_factor(problem));
            pack::transpose_panel(s, &d_o[o_part.clone()], dims.dv, &mut d_ot[o_part], 1.0);
        }
        let positions = self.positions.take(QUERIES);
        pack::describe_panel(block.scope, (block.h, extras.dropout), block.rows.clone(), positions, self.hashes.take(QUERIES));
        let (below, minus_delta) = (self.below.take(QUERIES), self.minus_delta.take(QUERIES));
        below.fill(f32::NEG_INFINITY);
        minus_delta.fill(0.0);
        let first = (block.b * dims.heads + block.h) * dims.queries;
        for (i, row) in block.rows.clone().enumerate() {
            let lse = saved.lse[first + row];
            if lse != f32::NEG_INFINITY {
                below[i] = (f64::from(-lse) * LOG2_E) as f32;
                minus_delta[i] = -delta[first + row];
            }
        }
    }

    /// Panel `i` against a chunk of keys.
    pub(super) fn meeting<'a, S: Lanes>(&'a self, k: Rows<'a>, base: MeetingBase<'a>, i: usize) -> (Meeting<'a>, Upstream<'a>) {
        let panel = 2 * S::N;
        let lanes = i * panel..(i + 1) * panel;
        let (dk, dv) = (base.dims.dk.next_multiple_of(S::N), base.dims.dv.next_multiple_of(S::N));
        let meeting = Meeting {
            k,
            qt: &self.qt.get(QUERIES * dk)[lanes.start * dk..lanes.end * dk],
            dk: base.dims.dk,
            facts: base.facts,
            positions: &self.positions.get(QUERIES)[lanes.clone()],
            hashes: &self.hashes.get(QUERIES)[lanes.clone()],
            dense: base.dense,
            extras: base.extras,
            origin: base.origin,
        };
        let upstream = Upstream {
            d_ot: &self.d_ot.get(QUERIES * dv)[lanes.start * dv..lanes.end * dv],
            below: &self.below.get(QUERIES)[lanes.clone()],
            minus_delta: &self.minus_delta.get(QUERIES)[lanes],
            dv: base.dims.dv,
        };
        (meeting, upstream)
    }
}

/// What the panels of a block share when they meet a chunk.
#[derive(Clone, Copy)]
pub(super) struct MeetingBase<'a> {
    pub(super) dims: &'a Dims,
    pub(super) facts: &'a Facts,
    pub(super) dense: &'a [f32],
    pub(super) extras: &'a Extras,
    pub(super) origin: usize,
}

/// What flows back into a panel.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    d_ot: &'a [f32],
    below: &'a [f32],
    minus_delta: &'a [f32],
    dv: usize,
}

/// The gradients that a chunk gathers.
struct Sums<'a> {
    k: Rows<'a>,
    v: Rows<'a>,
    facts: &'a Facts,
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    dkey_bias: &'a mut [f32],
    /// `Z∘P` of each panel, `[panel][key][2·N]`.
    weights: &'a mut [f32],
    /// `dS` of each panel, on its way to q and k.
    slopes: &'a mut [f32],
    /// This chunk's share of dQ, `[QUERIES][width]`.
    dq: &'a mut [f32],
    dense: &'a mut [f32],
    square: &'a mut [f32],
}

impl Sums<'_> {
    /// Adds what one block of queries contributes to dK, dV and d key bias, and leaves its dQ in `dq`.
    #[inline(always)]
    fn add<S: Lanes, const R: usize>(
        &mut self,
        s: S,
        shared: &Shared<'_>,
        (block, extras): (&QueryBlock<'_>, &Extras),
        panels: &PanelScratch,
    ) {
        let problem = shared.problem;
        let panel = 2 * S::N;
        let size = self.facts.tiles() * R * panel;
        let count = block.rows.len().div_ceil(panel);
        let mut visible = [const { 0..0 }; QUERIES / 16];
        for (i, visible) in visible.iter_mut().enumerate().take(count) {
            let start = block.rows.start + i * panel;
            let queries = start..block.rows.end.min(start + panel);
            if extras.dense {
                let at = [block.b, block.h];
                pack::fill_dense(s, problem, at, (queries, &self.facts.rows), (&mut *self.square, &mut *self.dense));
            }
            let base = MeetingBase { dims: &problem.dims, facts: self.facts, dense: &*self.dense, extras, origin: block.scope.keys.start };
            let (meeting, upstream) = panels.meeting::<S>(self.k, base, i);
            *visible = self.facts.visible(bounds(meeting.positions));
            let mut tiles = Tiles {
                weights: &mut self.weights[i * size..(i + 1) * size],
                slopes: &mut self.slopes[i * size..(i + 1) * size],
                dkey_bias: shared.dkey_bias.is_some().then_some(&mut *self.dkey_bias),
                v: self.v,
            };
            tiles.fill::<S, R>(s, &meeting, &upstream, visible.clone());
        }
        let visible = &visible[..count];
        let widths = [problem.dims.dk.next_multiple_of(S::N), problem.dims.dv.next_multiple_of(S::N)];
        if shared.dv.is_some() {
            let rows = Rows { data: panels.d_o.get(QUERIES * widths[1]), stride: widths[1] };
            add_keys::<S, R>(s, (self.dv, widths[1]), (&*self.weights, size), rows, visible);
        }
        if shared.dk.is_some() {
            let rows = Rows { data: panels.q.get(QUERIES * widths[0]), stride: widths[0] };
            add_keys::<S, R>(s, (self.dk, widths[0]), (&*self.slopes, size), rows, visible);
        }
        if shared.dq.is_some() {
            self.share_of_queries::<S, R>(s, panels, visible, widths[0]);
        }
    }

    #[inline(always)]
    fn share_of_queries<S: Lanes, const R: usize>(&mut self, s: S, panels: &PanelScratch, visible: &[Range<usize>], width: usize) {
        let panel = 2 * S::N;
        let size = self.facts.tiles() * R * panel;
        self.dq.fill(0.0);
        for (i, tiles) in visible.iter().enumerate() {
            for group in 0..panel / R {
                let first = i * panel + group * R;
                let positions = bounds(&panels.positions.get(QUERIES)[first..first + R]);
                let (mut start, mut end) = (tiles.start, tiles.end);
                while start < end && self.facts.class(start, positions) == Class::Hidden {
                    start += 1;
                }
                while start < end && self.facts.class(end - 1, positions) == Class::Hidden {
                    end -= 1;
                }
                if start == end {
                    continue;
                }
                let keys = start * R..end * R;
                let slopes = Across(Rows::new(&self.slopes[i * size + keys.start * panel + group * R..], panel));
                let k = self.k.from(keys.start);
                let steps = keys.len().min(self.facts.count - keys.start);
                add_product::<S, R>(s, (&mut self.dq[first * width..(first + R) * width], width), slopes, k, steps);
            }
        }
    }

    /// Waits for this chunk's turn and adds its share to a block of dQ.
    #[inline(always)]
    fn add_queries<S: Lanes>(&mut self, s: S, shared: &Shared<'_>, block: &QueryBlock<'_>, (piece, turn): (usize, usize), width: usize) {
        let Some(dq) = &shared.dq else { return };
        let dims = &shared.problem.dims;
        let turns = &shared.turns[(block.b * dims.heads + block.h) * shared.queries.len() + piece];
        while turns.load(Ordering::Acquire) != turn {
            std::hint::spin_loop();
            std::thread::yield_now();
        }
        if !self.facts.visible(block.positions).is_empty() {
            let scale = shared.problem.scale();
            let mut rows = dq.claim(block.b, block.h, piece);
            for i in 0..block.rows.len() {
                let share = &self.dq[i * width..][..width];
                let row = rows.row(i);
                let whole = row.len() / S::N * S::N;
                for at in (0..whole).step_by(S::N) {
                    let sum = s.mul_add(s.load(&share[at..]), s.splat(scale), s.load(&row[at..]));
                    s.store(&mut row[at..], sum);
                }
                for at in whole..row.len() {
                    row[at] += share[at] * scale;
                }
            }
        }
        turns.store(turn + 1, Ordering::Release);
    }
}

/// `acc[key][·] += Σ_q weight[key][q] · rows[q][·]` over the panels that see a tile of keys.
#[inline(always)]
fn add_keys<S: Lanes, const R: usize>(
    s: S,
    (acc, width): (&mut [f32], usize),
    (weights, size): (&[f32], usize),
    rows: Rows<'_>,
    visible: &[Range<usize>],
) {
    let panel = 2 * S::N;
    let mut column = 0;
    while column < width {
        let wide = column + panel <= width;
        let mut tile = 0;
        while (tile + 1) * R * width <= acc.len() {
            let out = &mut acc[tile * R * width + column..];
            if wide {
                add_tile::<S, R, 2>(s, (out, width), (weights, size), rows, (tile, column, visible))
            } else {
                add_tile::<S, R, 1>(s, (out, width), (weights, size), rows, (tile, column, visible))
            }
            tile += 1;
        }
        column += if wide { panel } else { S::N };
    }
}

#[inline(always)]
fn add_tile<S: Lanes, const R: usize, const C: usize>(
    s: S,
    (acc, width): (&mut [f32], usize),
    (weights, size): (&[f32], usize),
    rows: Rows<'_>,
    (tile, column, visible): (usize, usize, &[Range<usize>]),
) {
    let panel = 2 * S::N;
    let mut sum = [[s.zero(); C]; R];
    let mut any = false;
    for (i, tiles) in visible.iter().enumerate() {
        if tile < tiles.start || tile >= tiles.end {
            continue;
        }
        if !any {
            for (r, row) in sum.iter_mut().enumerate() {
                for (c, x) in row.iter_mut().enumerate() {
                    *x = s.load(&acc[r * width + c * S::N..]);
                }
            }
            any = true;
        }
        let weights = Along(Rows::new(&weights[i * size + tile * R * panel..], panel));
        let rows = Rows::new(&rows.data[i * panel * rows.stride + column..], rows.stride);
        sum = product::<S, _, R, C>(s, sum, weights, rows, panel);
    }
    if any {
        for (r, row) in sum.into_iter().enumerate() {
            for (c, x) in row.into_iter().enumerate() {
                s.store(&mut acc[r * width + c * S::N..], x);
            }
        }
    }
}

/// Weights and slopes of one panel against a chunk.
struct Tiles<'a> {
    weights: &'a mut [f32],
    slopes: &'a mut [f32],
    dkey_bias: Option<&'a mut [f32]>,
    v: Rows<'a>,
}

impl Tiles<'_> {
    #[inline(always)]
    fn fill<S: Lanes, const R: usize>(&mut self, s: S, meeting: &Meeting<'_>, upstream: &Upstream<'_>, tiles: Range<usize>) {
        let positions = bounds(meeting.positions);
        let mut start = tiles.start;
        while start < tiles.end {
            let kind = meeting.facts.class(start, positions) == Class::Full;
            let mut end = start + 1;
            while end < tiles.end && (meeting.facts.class(end, positions) == Class::Full) == kind {
                end += 1;
            }
            match (kind, meeting.extras.biased, meeting.extras.rich) {
                (_, _, true) => self.fill_run::<S, R, Rich>(s, meeting, upstream, start..end),
                (true, false, _) => self.fill_run::<S, R, Plain>(s, meeting, upstream, start..end),
                (false, false, _) => self.fill_run::<S, R, Masked>(s, meeting, upstream, start..end),
                (true, true, _) => self.fill_run::<S, R, Biased>(s, meeting, upstream, start..end),
                (false, true, _) => self.fill_run::<S, R, MaskedBiased>(s, meeting, upstream, start..end),
            }
            start = end;
        }
    }

    #[inline(always)]
    fn fill_run<S: Lanes, const R: usize, V: Variant>(
        &mut self,
        s: S,
        meeting: &Meeting<'_>,
        upstream: &Upstream<'_>,
        tiles: Range<usize>,
    ) {
        let panel = 2 * S::N;
        for tile in tiles {
            let weights = &mut self.weights[tile * R * panel..(tile + 1) * R * panel];
            let (plain, cap) = slopes_of_tile::<S, R, V>(s, meeting, upstream, (self.v, tile), Some(weights));
            let slopes = &mut self.slopes[tile * R * panel..(tile + 1) * R * panel];
            for (r, row) in plain.iter().enumerate() {
                if let Some(bias) = &mut self.dkey_bias {
                    bias[tile * R + r] += s.sum(s.add(row[0], row[1]));
                }
                for (c, x) in row.iter().enumerate() {
                    let slope = match &cap {
                        Some(cap) => s.mul(*x, cap[r][c]),
                        None => *x,
                    };
                    s.store(&mut slopes[(r * 2 + c) * S::N..], slope);
                }
            }
        }
    }
}

/// Plain `dS` of a tile and the slope of the soft-cap; `Z∘P` goes to `weights`.
#[inline(always)]
pub(super) fn slopes_of_tile<S: Lanes, const R: usize, V: Variant>(
    s: S,
    meeting: &Meeting<'_>,
    upstream: &Upstream<'_>,
    (v, tile): (Rows<'_>, usize),
    weights: Option<&mut [f32]>,
) -> (Tile<S, R, 2>, Option<Tile<S, R, 2>>) {
    let below = [s.load(upstream.below), s.load(&upstream.below[S::N..])];
    let minus_delta = [s.load(upstream.minus_delta), s.load(&upstream.minus_delta[S::N..])];
    let (mut p, cap) = meeting.logits::<S, R, 2, V>(s, (tile, 0), below);
    for (r, row) in p.iter_mut().enumerate() {
        for (c, x) in row.iter_mut().enumerate() {
            *x = meeting.keep::<S, V>(s, tile * R + r, c, s.exp2(*x));
        }
    }
    if let Some(weights) = weights {
        for (r, row) in p.iter().enumerate() {
            for (c, x) in row.iter().enumerate() {
                let weight = meeting.drop::<S, V>(s, tile * R + r, c, *x);
                s.store(&mut weights[(r * 2 + c) * S::N..], weight);
            }
        }
    }
    let rows = Along(v.from(tile * R));
    let d_ot = Rows::new(upstream.d_ot, 2 * S::N);
    let mut d = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], rows, d_ot, upstream.dv);
    for (r, row) in d.iter_mut().enumerate() {
        for (c, x) in row.iter_mut().enumerate() {
            let dp = s.add(meeting.drop::<S, V>(s, tile * R + r, c, *x), minus_delta[c]);
            *x = s.mul(dp, p[r][c]);
        }
    }
    (d, cap)
}
