//! Backward pass: weights are recomputed tile by tile from the log-sum-exp, nothing of size N×M is kept.
//!
//! `P = exp(S - lse)`, `D_i = dO_i·O_i`, `dV = PᵀdO`, `dS = P∘(dO Vᵀ - D)`, `dQ = scale·dS K`, `dK = scale·dSᵀQ`; under
//! dropout `dV = (Z∘P)ᵀdO` and `dP = Z∘(dO Vᵀ)`; under a soft-cap dS is multiplied by `1 - tanh²` on its way to q and k.
//!
//! A job is one chunk of keys of one kv head: it owns its rows of dK and dV and walks over all queries. Its share of dQ is
//! added when its turn comes: every block of queries takes the chunks in ascending order, so the bits do not depend on
//! the number of threads and no partial dQ is stored. Jobs are handed out in ascending order of chunks, so the one waited
//! for is always running. Of a chunk with scattered lifetimes the keys that are alive at a block of queries are kept packed
//! ([`super::live`]); sums stand in the order of rows.
//!
//! Hidden pairs are multiplied as zeros, and zero times infinity is not a number. So rows of q, dO and k that are not finite
//! are zeros where they are multiplied by P or dS. Who sees such a row still finds out: a query that is not finite has `lse`
//! taken as NaN, so that P and dS are NaN for the keys that it sees and 0 for others; a key or value that is not finite has
//! made `lse` or `D` of every query that sees it NaN in the forward pass.

use super::chunks::Chunks;
use super::dbias;
use super::live::{Live, Passing};
use super::pack::{self, Packed, Spare, Use};
use super::plan::{BLOCK, Facts, KeyList, Keys, Plan};
use super::score::{Biased, Extras, Masked, MaskedBiased, Meeting, Plain, Rich, Tile, Variant};
use super::softmax::{add_strip, bounds};
use crate::par::Jobs;
use crate::sight::Scope;
use crate::simd::{Across, Aligned, Along, LINE, Lanes, Rows, Strips, Task, dispatch, product};
use crate::view::{DisjointRows, SharedRows, StridedMut, ViewMut};
use crate::{Dims, Gradients, Par, Problem, Saved};
use std::cell::RefCell;
use std::f64::consts::LOG2_E;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Queries in a block.
pub(super) const QUERIES: usize = 64;
/// Values from one key to the next in a table of weights or slopes, `[key][QUERIES]`: an odd number of cache lines, so that a column of
/// one register fills the cache's sets evenly.
const TABLE: usize = QUERIES + LINE;
/// Width up to which the first-level cache holds a strip of a block of queries wherever its rows stand.
const WIDE: usize = 64;

/// Whether keys meet so many queries that it pays to copy them to where they are read fastest.
fn often(dims: &Dims) -> bool {
    dims.queries * dims.group() >= 2 * QUERIES
}

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
            narrow.round(&values, par);
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
    let chunks = Chunks::new(problem, QUERIES);
    let bias_shape = [dims.batch, dims.kv_heads, dims.keys, 1];
    let mut key_bias = rest.dkey_bias.map(|bias| StridedMut::contiguous(bias, bias_shape, "dkey_bias").expect("dkey_bias was checked"));
    let shared = Shared {
        problem,
        saved,
        delta,
        queries,
        horizons: horizons(problem, queries),
        chunks: &chunks,
        turns: (0..dims.batch * dims.heads * queries.len()).map(|_| AtomicUsize::new(0)).collect(),
        dq: dq.map(|dq| DisjointRows::new(dq, queries)),
        dk: rest.dk.map(|dk| dk.share(&chunks.rows)),
        dv: rest.dv.map(|dv| dv.share(&chunks.rows)),
        dkey_bias: key_bias.as_mut().map(|bias| DisjointRows::new(bias, &chunks.rows)),
    };
    shared.clear_queries();
    par.run(chunks.jobs.len(), 2.5 * super::flops(problem), |jobs| {
        SCRATCH.with_borrow_mut(|scratch| dispatch(par.level_in_use(), Worker { shared: &shared, jobs, scratch }));
    });
}

/// The lowest position from each block of queries to the end of its sequence, `[B, G, blocks]`: a span of its own gives
/// every kv head other positions.
fn horizons(problem: &Problem<'_>, queries: &[Range<usize>]) -> Vec<i32> {
    let Dims { batch, kv_heads, .. } = problem.dims;
    let mut horizons = vec![i32::MAX; batch * kv_heads * queries.len()];
    for (head, horizons) in horizons.chunks_mut(queries.len().max(1)).enumerate() {
        let mut later = (usize::MAX, i32::MAX);
        for (horizon, rows) in horizons.iter_mut().zip(queries).rev() {
            let sequence = problem.sight.sequence_of_query(head / kv_heads, rows.start);
            let (low, _) = problem.sight.scope(&problem.dims, sequence, head % kv_heads).position_range(rows.clone());
            *horizon = if later.0 == sequence { low.min(later.1) } else { low };
            later = (sequence, *horizon);
        }
    }
    horizons
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
    jobs: &'a Jobs<'a>,
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
                    pack::transpose_panel(s, staged, self.dims.dv, into, None);
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
    horizons: Vec<i32>,
    chunks: &'a Chunks,
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
    live: Live,
    /// For the keys of a chunk that stay together, and for live ones.
    spares: [Spare; 2],
    strips: [Aligned<f32>; 2],
    panels: PanelScratch,
    sums: Sums,
}

/// A block of queries in working form.
#[derive(Default)]
pub(super) struct PanelScratch {
    /// Rows of q and dO.
    q: Aligned<f32>,
    d_o: Aligned<f32>,
    /// The same in strips.
    strips: [Aligned<f32>; 2],
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
    jobs: &'a Jobs<'a>,
    scratch: &'a mut Scratch,
}

impl Task for Worker<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        while let Some(job) = self.jobs.take() {
            Chunk::new(self.shared, self.shared.chunks.jobs[job]).run(s, self.scratch);
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
    /// Kv head and chunk.
    at: [usize; 2],
    pieces: Range<usize>,
    /// Rows of the pieces.
    range: Range<usize>,
    /// Valid ones among them.
    keys: Range<usize>,
}

impl<'a> Chunk<'a> {
    fn new(shared: &'a Shared<'a>, at: [usize; 2]) -> Self {
        let (problem, chunks) = (shared.problem, shared.chunks);
        let (b, g) = (at[0] / problem.dims.kv_heads, at[0] % problem.dims.kv_heads);
        let pieces = chunks.pieces(at);
        let range = chunks.rows[pieces.start].start..chunks.rows[pieces.end - 1].end;
        let scope = problem.sight.scope(&problem.dims, problem.sight.sequence_of_key(b, range.start), g);
        let keys = range.start.max(scope.keys.start)..range.end.min(scope.keys.end);
        Chunk { shared, problem, scope, b, g, at, pieces, range, keys }
    }

    #[inline(always)]
    fn run<S: Lanes>(&self, s: S, scratch: &mut Scratch) {
        let dims = &self.problem.dims;
        let widths = [dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N)];
        let rows = self.range.len() + 1;
        scratch.sums.dk.take(rows * widths[0]).fill(0.0);
        scratch.sums.dv.take(rows * widths[1]).fill(0.0);
        scratch.sums.dkey_bias.take(rows).fill(0.0);
        if !self.keys.is_empty() {
            s.vectorize(WalkQueries { chunk: self, scratch });
        }
        self.write::<S>(s, &mut scratch.sums, widths);
    }

    /// Gives keys what is weighed in dQ: K, where it is finite.
    #[inline(always)]
    fn weigh<'k, S: Lanes>(&self, s: S, keys: Packed<'k>, (spare, strips): (&'k mut Spare, &'k mut Aligned<f32>)) -> Packed<'k> {
        let width = self.problem.dims.dk;
        let guarded = keys.guard(s, (keys.k, width), spare);
        if often(&self.problem.dims) { guarded.in_strips(s, (keys.facts.count, width), strips) } else { guarded }
    }

    /// The valid keys, in the order in which their lifetimes start.
    fn list_keys(&self, plan: &mut Plan) {
        plan.passing.clear();
        plan.passing.extend(self.keys.clone());
        if self.scope.has_positions() {
            plan.passing.sort_by_key(|&row| self.scope.seen_by(row).0);
        }
    }

    /// Writes the chunk's rows of dK, dV and d key bias; rows beyond the valid ones are zero.
    #[inline(always)]
    fn write<S: Lanes>(&self, s: S, sums: &mut Sums, [dk_width, dv_width]: [usize; 2]) {
        let (dims, count) = (&self.problem.dims, self.range.len());
        let (dk, dv, dkey_bias) = (sums.dk.take(count * dk_width), sums.dv.get(count * dv_width), sums.dkey_bias.get(count));
        let scale = s.splat(self.problem.scale());
        for x in dk.chunks_mut(S::N) {
            let scaled = s.mul(s.load(x), scale);
            s.store(x, scaled);
        }
        let dk: &[f32] = dk;
        for piece in self.pieces.clone() {
            let first = self.shared.chunks.rows[piece].start - self.range.start;
            if let Some(out) = &self.shared.dk {
                out.write_lanes(s, [self.b, self.g, piece], |i| &dk[(first + i) * dk_width..][..dims.dk]);
            }
            if let Some(out) = &self.shared.dv {
                out.write_lanes(s, [self.b, self.g, piece], |i| &dv[(first + i) * dv_width..][..dims.dv]);
            }
            if let Some(out) = &self.shared.dkey_bias {
                let mut out = out.claim(self.b, self.g, piece);
                for i in 0..out.rows() {
                    out.row(i)[0] = dkey_bias[first + i];
                }
            }
        }
    }

    /// Which turn this chunk has at a block of queries at positions `low ..= high`; `None` if it sees nothing of it.
    fn turn(&self, (low, high): (i32, i32)) -> Option<usize> {
        let [sinks, window] = self.scope.candidates(low, high).map(|rows| self.shared.chunks.holding(self.at[0], rows));
        let own = self.at[1];
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
    scratch: &'a mut Scratch,
}

impl Task for WalkQueries<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let WalkQueries { chunk, scratch } = self;
        let Scratch { plan, facts, k, v, live, spares: [spare, spare_live], strips: [strips, strips_live], panels, sums } = scratch;
        let (problem, shared, scope) = (chunk.problem, chunk.shared, &chunk.scope);
        chunk.list_keys(plan);
        live.begin();
        let passing = Passing { problem, scope, at: [chunk.b, chunk.g], rows: &plan.passing };
        let list = Keys::Run(chunk.keys.clone());
        // No closure: it would be compiled for the baseline, and each of its operations a call.
        let together = if scope.is_scattered() {
            None
        } else {
            let keys = KeyList { plan, list: &list, seen_all: false };
            let keys = pack_chunk::<S, R>(s, passing, keys, facts, [k, v]);
            Some(chunk.weigh(s, keys, (spare, strips)))
        };
        let group = problem.dims.group();
        for (piece, rows) in shared.queries.iter().enumerate() {
            let block = |h| QueryBlock::new(problem, scope, [chunk.b, h], rows.clone());
            let Some((low, high)) = block(chunk.g * group).map(|block| block.positions) else { continue };
            let Some(turn) = chunk.turn((low, high)) else { continue };
            let horizon = shared.horizons[chunk.at[0] * shared.queries.len() + piece];
            let keys = match together {
                Some(keys) => keys,
                None => {
                    live.advance::<S, R>(s, passing, (horizon, high));
                    chunk.weigh(s, live.keys::<S>(&problem.dims), (spare_live, strips_live))
                }
            };
            for block in (chunk.g * group..(chunk.g + 1) * group).filter_map(block) {
                let extras = Extras::new(problem, block.h);
                let met = !keys.facts.visible(0..keys.facts.tiles(), block.positions).is_empty();
                if met {
                    panels.fill(s, problem, shared.saved, shared.delta, &block, &extras);
                    sums.add::<S, R>(s, (shared, chunk.range.clone()), (&block, &extras), keys, panels);
                }
                sums.add_queries(s, shared, &block, (piece, turn), met);
            }
        }
    }
}

/// The keys of a chunk that stay together for all queries.
#[inline(always)]
fn pack_chunk<'a, S: Lanes, const R: usize>(
    s: S,
    Passing { problem, scope, at, .. }: Passing<'a>,
    keys: KeyList<'_>,
    facts: &'a mut Facts,
    [k, v]: [&'a mut Aligned<f32>; 2],
) -> Packed<'a> {
    facts.collect(problem, scope, at[1], keys, R);
    let (rows, dims) = (facts.tiles() * R, &problem.dims);
    let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
    let [use_k, use_v] = if often(dims) { [Use::Often; 2] } else { [Use::Lanes, Use::Once] };
    let k = pack::key_rows(s, &problem.k, at, keys, (rows, use_k), k.take(rows * dk));
    let v = pack::key_rows(s, &problem.v, at, keys, (rows, use_v), v.take(rows * dv));
    Packed::new::<S>(facts, [k, v])
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
    /// Stages and transposes q and dO of a block. Rows that are not finite stay so in the panels only, and poison their `lse`.
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
            pack::transpose_panel(s, &q[q_part.clone()], dims.dk, &mut qt[q_part], Some(extras.factor));
            pack::transpose_panel(s, &d_o[o_part.clone()], dims.dv, &mut d_ot[o_part], None);
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
        if !pack::is_finite(s, q) || !pack::is_finite(s, d_o) {
            poison(s, ([q, d_o], [dk, dv]), below);
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

/// Clears the rows of queries that are not finite, or whose upstream gradient is not, and makes their offsets NaN. Who sees
/// nothing keeps -inf.
#[cold]
#[inline(always)]
fn poison<S: Lanes>(s: S, (rows, widths): ([&mut [f32]; 2], [usize; 2]), below: &mut [f32]) {
    let [q, d_o] = rows;
    for ((q, d_o), below) in q.chunks_mut(widths[0]).zip(d_o.chunks_mut(widths[1])).zip(below) {
        if !pack::is_finite(s, q) || !pack::is_finite(s, d_o) {
            q.fill(0.0);
            d_o.fill(0.0);
            *below = if *below == f32::NEG_INFINITY { *below } else { f32::NAN };
        }
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

/// The gradients that a chunk gathers: a row per key of the chunk, and one behind them for the padding of tiles.
#[derive(Default)]
struct Sums {
    dk: Aligned<f32>,
    dv: Aligned<f32>,
    dkey_bias: Aligned<f32>,
    /// `Z∘P`, `[key][TABLE]`.
    weights: Aligned<f32>,
    /// `dS`, on its way to q and k.
    slopes: Aligned<f32>,
    /// This chunk's share of dQ, `[QUERIES][width]`.
    dq: Aligned<f32>,
    dense: Aligned<f32>,
    square: Aligned<f32>,
}

/// Where the sums of a packed key stand.
#[derive(Clone, Copy)]
struct Homes<'a> {
    rows: &'a [usize],
    /// First row of the chunk, and rows in it.
    chunk: (usize, usize),
}

impl Homes<'_> {
    #[inline(always)]
    fn of(&self, key: usize) -> usize {
        if key < self.rows.len() { self.rows[key] - self.chunk.0 } else { self.chunk.1 }
    }

    /// Of the keys of a tile, in sums of rows of this width, from this column on.
    #[inline(always)]
    fn of_tile<const R: usize>(&self, tile: usize, (width, column): (usize, usize)) -> [usize; R] {
        let mut places = [0; R];
        for (r, place) in places.iter_mut().enumerate() {
            *place = self.of(tile * R + r) * width + column;
        }
        places
    }
}

impl Sums {
    /// Adds what one block of queries contributes to dK, dV and d key bias, and leaves its dQ in `dq`.
    #[inline(always)]
    fn add<S: Lanes, const R: usize>(
        &mut self,
        s: S,
        (shared, chunk): (&Shared<'_>, Range<usize>),
        (block, extras): (&QueryBlock<'_>, &Extras),
        keys: Packed<'_>,
        panels: &mut PanelScratch,
    ) {
        let (problem, facts) = (shared.problem, keys.facts);
        let panel = 2 * S::N;
        let size = facts.tiles() * R * TABLE;
        let count = block.rows.len().div_ceil(panel);
        let homes = Homes { rows: &facts.rows, chunk: (chunk.start, chunk.len()) };
        let (weights, slopes) = (self.weights.take(size), self.slopes.take(size));
        let dense = self.dense.take(if extras.dense { (facts.tiles() * R).next_multiple_of(S::N) * panel } else { 0 });
        let square = self.square.take(S::N * S::N);
        let dkey_bias = self.dkey_bias.take(chunk.len() + 1);
        let mut visible = [const { 0..0 }; QUERIES / 16];
        for (i, visible) in visible.iter_mut().enumerate().take(count) {
            let start = block.rows.start + i * panel;
            let queries = start..block.rows.end.min(start + panel);
            if extras.dense {
                pack::fill_dense(s, problem, [block.b, block.h], (queries, &facts.rows), (square, dense));
            }
            let base = MeetingBase { dims: &problem.dims, facts, dense, extras, origin: block.scope.keys.start };
            let (meeting, upstream) = panels.meeting::<S>(keys.k, base, i);
            *visible = facts.visible(0..facts.tiles(), bounds(meeting.positions));
            let mut tiles = Tiles {
                weights: &mut weights[i * panel..],
                slopes: &mut slopes[i * panel..],
                dkey_bias: shared.dkey_bias.is_some().then_some((&mut *dkey_bias, homes)),
                v: keys.v,
            };
            tiles.fill::<S, R>(s, &meeting, &upstream, visible.clone());
        }
        let visible = &visible[..count];
        let widths = [problem.dims.dk.next_multiple_of(S::N), problem.dims.dv.next_multiple_of(S::N)];
        if shared.dv.is_some() {
            let rows = strips_of(s, &panels.d_o, (widths[1], facts.count), &mut panels.strips[1]);
            let acc = self.dv.take((chunk.len() + 1) * widths[1]);
            add_keys::<S, R>(s, (acc, widths[1], homes), weights, rows, visible);
        }
        if shared.dk.is_some() {
            let rows = strips_of(s, &panels.q, (widths[0], facts.count), &mut panels.strips[0]);
            let acc = self.dk.take((chunk.len() + 1) * widths[0]);
            add_keys::<S, R>(s, (acc, widths[0], homes), slopes, rows, visible);
        }
        if shared.dq.is_some() {
            share_of_queries::<S, R>(s, (self.dq.take(QUERIES * widths[0]), widths[0]), (slopes, keys), panels, visible);
        }
    }

    /// Waits for this chunk's turn and adds its share to a block of dQ, if it has one.
    #[inline(always)]
    fn add_queries<S: Lanes>(&mut self, s: S, shared: &Shared<'_>, block: &QueryBlock<'_>, (piece, turn): (usize, usize), met: bool) {
        let Some(dq) = &shared.dq else { return };
        let dims = &shared.problem.dims;
        let turns = &shared.turns[(block.b * dims.heads + block.h) * shared.queries.len() + piece];
        while turns.load(Ordering::Acquire) != turn {
            std::hint::spin_loop();
            std::thread::yield_now();
        }
        if met {
            let scale = shared.problem.scale();
            let width = dims.dk.next_multiple_of(S::N);
            let shares = self.dq.get(QUERIES * width);
            let mut rows = dq.claim(block.b, block.h, piece);
            for i in 0..block.rows.len() {
                let share = &shares[i * width..][..width];
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

/// The share of some keys in dQ of a block.
#[inline(always)]
fn share_of_queries<S: Lanes, const R: usize>(
    s: S,
    (dq, width): (&mut [f32], usize),
    (slopes, Packed { facts, weighed, .. }): (&[f32], Packed<'_>),
    panels: &PanelScratch,
    visible: &[Range<usize>],
) {
    let panel = 2 * S::N;
    dq.fill(0.0);
    let mut seen = [const { 0..0 }; QUERIES / 4];
    let seen = &mut seen[..visible.len() * panel / R];
    for (group, (seen, positions)) in seen.iter_mut().zip(panels.positions.get(QUERIES).chunks(R)).enumerate() {
        *seen = facts.visible(visible[group * R / panel].clone(), bounds(positions));
    }
    for first in (0..facts.count).step_by(BLOCK) {
        for (strip, column) in (0..width).step_by(panel).enumerate() {
            let rows = weighed.strip(strip);
            for (group, seen) in seen.iter().enumerate() {
                let keys = first.max(seen.start * R)..facts.count.min(first + BLOCK).min(seen.end * R);
                if keys.is_empty() {
                    continue;
                }
                let slopes = Across(Rows::new(&slopes[keys.start * TABLE + group * R..], TABLE));
                let dq = (&mut dq[group * R * width..(group + 1) * R * width], width);
                add_strip::<S, R>(s, dq, column, slopes, rows.from(keys.start), keys.len());
            }
        }
    }
}

/// The strips of the rows of a block of queries, end to end where they are wide and met by many keys.
#[inline(always)]
fn strips_of<'a, S: Lanes>(s: S, rows: &'a Aligned<f32>, (width, keys): (usize, usize), room: &'a mut Aligned<f32>) -> Strips<'a> {
    let rows = Strips::side_by_side(Rows::new(rows.get(QUERIES * width), width), S::N);
    if width > WIDE && keys >= BLOCK { pack::strips(s, rows, (QUERIES, width), room) } else { rows }
}

/// `acc[key][·] += Σ_q weight[key][q] · rows[q][·]` over the panels that see a tile of keys.
#[inline(always)]
fn add_keys<S: Lanes, const R: usize>(
    s: S,
    (acc, width, homes): (&mut [f32], usize, Homes<'_>),
    weights: &[f32],
    rows: Strips<'_>,
    visible: &[Range<usize>],
) {
    let panel = 2 * S::N;
    let tiles = weights.len() / (R * TABLE);
    for (strip, column) in (0..width).step_by(panel).enumerate() {
        let rows = rows.strip(strip);
        let mut next = homes.of_tile::<R>(0, (width, column));
        for tile in 0..tiles {
            let own = next;
            next = homes.of_tile::<R>(tile + 1, (width, column));
            ask(s, acc, next);
            let weights = &weights[tile * R * TABLE..(tile + 1) * R * TABLE];
            if column + panel <= width {
                add_tile::<S, R, 2>(s, (acc, own), weights, rows, (tile, visible))
            } else {
                add_tile::<S, R, 1>(s, (acc, own), weights, rows, (tile, visible))
            }
        }
    }
}

/// Asks for sums that will be added to next: those of a tile stand in as many places as it has rows.
#[inline(always)]
fn ask<S: Lanes, const R: usize>(s: S, acc: &[f32], places: [usize; R]) {
    for place in places {
        for at in (0..2 * S::N).step_by(LINE) {
            s.prefetch(acc.as_ptr().wrapping_add(place + at));
        }
    }
}

/// A strip of the sums of one tile of keys, which stand in these places.
#[inline(always)]
fn add_tile<S: Lanes, const R: usize, const C: usize>(
    s: S,
    (acc, places): (&mut [f32], [usize; R]),
    weights: &[f32],
    rows: Rows<'_>,
    (tile, visible): (usize, &[Range<usize>]),
) {
    let mut panels = next_panels(visible, tile, 0);
    if panels.is_empty() {
        return;
    }
    let mut sum = [[s.zero(); C]; R];
    for (row, place) in sum.iter_mut().zip(places) {
        let from = &acc[place..place + C * S::N];
        for (c, x) in row.iter_mut().enumerate() {
            *x = s.load(&from[c * S::N..]);
        }
    }
    while !panels.is_empty() {
        let queries = panels.start * 2 * S::N..panels.end * 2 * S::N;
        let weights = Along(Rows::new(&weights[queries.start..], TABLE));
        sum = product::<S, _, R, C>(s, sum, weights, rows.from(queries.start), queries.len());
        panels = next_panels(visible, tile, panels.end);
    }
    for (row, place) in sum.into_iter().zip(places) {
        let into = &mut acc[place..place + C * S::N];
        for (c, x) in row.into_iter().enumerate() {
            s.store(&mut into[c * S::N..], x);
        }
    }
}

/// The next panels from `first` on, one behind the other, that see a tile.
#[inline(always)]
fn next_panels(visible: &[Range<usize>], tile: usize, first: usize) -> Range<usize> {
    let mut start = first;
    while start < visible.len() && !visible[start].contains(&tile) {
        start += 1;
    }
    let mut end = start;
    while end < visible.len() && visible[end].contains(&tile) {
        end += 1;
    }
    start..end
}

/// Weights and slopes of one panel against a chunk.
struct Tiles<'a> {
    weights: &'a mut [f32],
    slopes: &'a mut [f32],
    dkey_bias: Option<(&'a mut [f32], Homes<'a>)>,
    v: Rows<'a>,
}

impl Tiles<'_> {
    #[inline(always)]
    fn fill<S: Lanes, const R: usize>(&mut self, s: S, meeting: &Meeting<'_>, upstream: &Upstream<'_>, tiles: Range<usize>) {
        let positions = bounds(meeting.positions);
        let mut left = tiles;
        while !left.is_empty() {
            let (run, full) = meeting.facts.run(left.clone(), positions);
            left.start = run.end;
            match (full, meeting.extras.biased, meeting.extras.rich) {
                (_, _, true) => self.fill_run::<S, R, Rich>(s, meeting, upstream, run),
                (true, false, _) => self.fill_run::<S, R, Plain>(s, meeting, upstream, run),
                (false, false, _) => self.fill_run::<S, R, Masked>(s, meeting, upstream, run),
                (true, true, _) => self.fill_run::<S, R, Biased>(s, meeting, upstream, run),
                (false, true, _) => self.fill_run::<S, R, MaskedBiased>(s, meeting, upstream, run),
            }
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
        for tile in tiles {
            let weights = &mut self.weights[tile * R * TABLE..];
            let (plain, cap) = slopes_of_tile::<S, R, V>(s, meeting, upstream, (self.v, tile), Some(weights));
            let slopes = &mut self.slopes[tile * R * TABLE..];
            for (r, row) in plain.iter().enumerate() {
                if let Some((bias, homes)) = &mut self.dkey_bias {
                    bias[homes.of(tile * R + r)] += s.sum(s.add(row[0], row[1]));
                }
                for (c, x) in row.iter().enumerate() {
                    let slope = match &cap {
                        Some(cap) => meeting.keep::<S, V>(s, tile * R + r, c, s.mul(*x, cap[r][c])),
                        None => *x,
                    };
                    s.store(&mut slopes[r * TABLE + c * S::N..], slope);
                }
            }
        }
    }
}

/// Plain `dS` of a tile and the slope of the soft-cap; `Z∘P` goes to `weights`, a row of a table per key.
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
                s.store(&mut weights[r * TABLE + c * S::N..], weight);
            }
        }
    }
    let rows = Along(v.from(tile * R));
    let d_ot = Rows::new(upstream.d_ot, 2 * S::N);
    let mut d = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], rows, d_ot, upstream.dv);
    for (r, row) in d.iter_mut().enumerate() {
        for (c, x) in row.iter_mut().enumerate() {
            let dp = s.add(meeting.drop::<S, V>(s, tile * R + r, c, *x), minus_delta[c]);
            *x = meeting.keep::<S, V>(s, tile * R + r, c, s.mul(dp, p[r][c]));
        }
    }
    (d, cap)
}
