//! Forward pass: online softmax over tiles with queries in the lanes.
//!
//! `Sᵀ = K·Qᵀ` in tiles of `R` keys by two registers of queries, `P = 2^(S - m)` straight into a buffer `[key][query]`,
//! `O += P·V` in tiles of `R` queries by two registers of values. K and V are read from their natural rows; only Q is
//! transposed, once per block of queries.
//!
//! The maximum `m` is not tracked in the hot loop: a tile whose weights sum to more than [`REBASE_ABOVE`] takes a cold
//! path that moves `m` and rescales what was gathered so far. A query that has seen nothing yet has `m = -inf`, which
//! takes that path by itself. Values up to about 2^60 are safe: weights grow up to 2^60 before a rescale.
//!
//! Dao et al. 2022 (tiling), Milakov & Gimelshein 2018 (online softmax); lanes over queries and the lazy maximum are ours.

use super::careful;
use super::pack::{self, Use};
use super::plan::{BLOCK, Class, Facts, KeyList, Plan};
use super::score::{Biased, Extras, Masked, MaskedBiased, Meeting, Plain, Rich, Variant};
use crate::par::Jobs;
use crate::problem::Output;
use crate::sight::Scope;
use crate::simd::{Across, Aligned, Lanes, Rows, Task, dispatch, product};
use crate::view::{DisjointRows, SharedRows, StridedMut};
use crate::{Par, Problem};
use std::cell::RefCell;
use std::f64::consts::LN_2;
use std::ops::Range;

/// Queries in a block.
const QUERIES: usize = 256;
/// 2^60.
const REBASE_ABOVE: f32 = 1_152_921_504_606_846_976.0;

/// Runs the tiled forward pass; shapes are checked.
pub(super) fn run(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) {
    let dims = problem.dims;
    let pieces = problem.sight.query_pieces(&dims, block_size(problem));
    let mut unwanted = Vec::new();
    let lse_values = out.lse.as_deref_mut().unwrap_or_else(|| {
        unwanted.resize(dims.batch * dims.heads * dims.queries, 0.0);
        &mut unwanted
    });
    let mut lse = StridedMut::contiguous(lse_values, [dims.batch, dims.heads, dims.queries, 1], "lse").expect("lse was checked");
    let shared = Shared { problem, pieces: &pieces, o: out.o.share(&pieces), lse: DisjointRows::new(&mut lse, &pieces) };
    let heads = dims.batch * dims.heads;
    par.run(heads * pieces.len(), super::flops(problem), |jobs| {
        SCRATCH.with_borrow_mut(|scratch| dispatch(par.level_in_use(), Worker { shared: &shared, jobs, scratch }));
    });
}

/// Rows per job: smaller where few heads would leave threads idle; a function of the problem alone, so that bits do
/// not depend on the number of threads.
fn block_size(problem: &Problem<'_>) -> usize {
    let heads = problem.dims.batch * problem.dims.heads;
    let rows = heads * problem.dims.queries;
    (rows / 16).next_multiple_of(64).clamp(64, QUERIES)
}

/// What all jobs of a call share.
struct Shared<'a> {
    problem: &'a Problem<'a>,
    pieces: &'a [Range<usize>],
    o: SharedRows<'a>,
    lse: DisjointRows<'a, f32>,
}

/// Working memory of a thread.
#[derive(Default)]
struct Scratch {
    plan: Plan,
    facts: Facts,
    staged: Aligned<f32>,
    qt: Aligned<f32>,
    positions: Aligned<i32>,
    hashes: Aligned<i32>,
    k: Aligned<f32>,
    v: Aligned<f32>,
    p: Aligned<f32>,
    dense: Aligned<f32>,
    square: Aligned<f32>,
    acc: Aligned<f32>,
    maximum: Aligned<f32>,
    sum: Aligned<f32>,
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
        let heads = self.shared.problem.dims.batch * self.shared.problem.dims.heads;
        while let Some(job) = self.jobs.take() {
            let piece = self.shared.pieces.len() - 1 - job / heads;
            Block::new(self.shared, job % heads, piece).attend::<S, R>(s, self.scratch);
        }
    }
}

/// One block of queries of one head.
struct Block<'a> {
    shared: &'a Shared<'a>,
    problem: &'a Problem<'a>,
    scope: Scope<'a>,
    extras: Extras,
    b: usize,
    h: usize,
    g: usize,
    piece: usize,
    /// Valid rows.
    rows: Range<usize>,
}

impl<'a> Block<'a> {
    fn new(shared: &'a Shared<'a>, head: usize, piece: usize) -> Self {
        let problem = shared.problem;
        let dims = &problem.dims;
        let (b, h) = (head / dims.heads, head % dims.heads);
        let g = h / dims.group();
        let all = shared.pieces[piece].clone();
        let scope = problem.sight.scope(dims, problem.sight.sequence_of_query(b, all.start), g);
        let rows = all.start..all.end.min(scope.queries.end).max(all.start);
        Block { shared, problem, scope, extras: Extras::new(problem, h), b, h, g, piece, rows }
    }

    #[inline(always)]
    fn attend<S: Lanes, const R: usize>(&self, s: S, scratch: &mut Scratch) {
        let dims = &self.problem.dims;
        let width = dims.dv.next_multiple_of(S::N);
        let padded = self.shared.pieces[self.piece].len().next_multiple_of(2 * S::N);
        scratch.acc.take(padded * width).fill(0.0);
        scratch.maximum.take(padded).fill(f32::NEG_INFINITY);
        scratch.sum.take(padded).fill(0.0);
        if !self.rows.is_empty() && !self.scope.keys.is_empty() {
            self.pack_queries(s, scratch);
            let (low, high) = self.scope.position_range(self.rows.clone());
            let mut plan = std::mem::take(&mut scratch.plan);
            plan.make(&self.scope, low, high);
            for index in 0..plan.blocks.len() {
                s.vectorize(MeetBlock { block: self, plan: &plan, index, range: (low, high), scratch });
            }
            scratch.plan = plan;
        }
        self.finish(s, scratch, width);
    }

    #[inline(always)]
    fn panels<S: Lanes>(&self) -> impl Iterator<Item = Range<usize>> + use<'_, 'a, S> {
        let end = self.rows.end;
        self.rows.clone().step_by(2 * S::N).map(move |start| start..end.min(start + 2 * S::N))
    }

    #[inline(always)]
    fn pack_queries<S: Lanes>(&self, s: S, scratch: &mut Scratch) {
        let dk = self.problem.dims.dk;
        let (panel, size) = (2 * S::N, dk.next_multiple_of(S::N) * 2 * S::N);
        let count = self.rows.len().div_ceil(panel);
        let qt = scratch.qt.take(count * size);
        let positions = scratch.positions.take(count * panel);
        let hashes = scratch.hashes.take(count * panel);
        let staged = scratch.staged.take(size);
        let factor = self.extras.query_factor(self.problem);
        for (i, rows) in self.panels::<S>().enumerate() {
            let lanes = i * panel..(i + 1) * panel;
            let head = (self.h, self.extras.dropout);
            pack::describe_panel(&self.scope, head, rows.clone(), &mut positions[lanes.clone()], &mut hashes[lanes]);
            pack::stage_rows(s, &self.problem.q, [self.b, self.h], rows, staged);
            pack::transpose_panel(s, staged, dk, &mut qt[i * size..(i + 1) * size], factor);
        }
    }

    /// Divides by the sums and writes `o` and `lse`.
    #[inline(always)]
    fn finish<S: Lanes>(&self, s: S, scratch: &mut Scratch, width: usize) {
        let count = self.shared.pieces[self.piece].len();
        let acc = scratch.acc.take(count * width);
        let (maximum, sum) = (scratch.maximum.take(count), scratch.sum.take(count));
        let mut lse = self.shared.lse.claim(self.b, self.h, self.piece);
        for (i, row) in acc.chunks_mut(width).enumerate() {
            let seen = i < self.rows.len() && sum[i] != 0.0;
            if !seen {
                row.fill(0.0);
            }
            let inverse = s.splat(if seen { 1.0 / sum[i] } else { 0.0 });
            let mut total = s.zero();
            for x in row.chunks_mut(S::N) {
                let scaled = s.mul(s.load(x), inverse);
                total = s.add(total, s.mul(scaled, s.zero()));
                s.store(x, scaled);
            }
            lse.row(i)[0] = if seen { ((f64::from(maximum[i]) + f64::from(sum[i]).log2()) * LN_2) as f32 } else { f32::NEG_INFINITY };
            if s.sum(total) != 0.0 {
                let at = [self.b, self.h, self.rows.start + i];
                lse.row(i)[0] = careful::row(self.problem, &self.scope, at, &mut row[..self.problem.dims.dv]);
            }
        }
        let dv = self.problem.dims.dv;
        self.shared.o.write(self.b, self.h, self.piece, |i| &acc[i * width..][..dv]);
    }
}

/// One block of keys against all panels of a block of queries.
struct MeetBlock<'a, 'b> {
    block: &'a Block<'b>,
    plan: &'a Plan,
    index: usize,
    range: (i32, i32),
    scratch: &'a mut Scratch,
}

impl Task for MeetBlock<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let MeetBlock { block, plan, index, range, scratch } = self;
        let (problem, scope) = (block.problem, &block.scope);
        let dims = &problem.dims;
        let list = &plan.blocks[index];
        let seen_all = match list {
            super::plan::Keys::Run(run) => scope.sees_all(run.clone(), range.0, range.1),
            super::plan::Keys::Gathered(_) => false,
        };
        let keys = KeyList { plan, list, seen_all };
        scratch.facts.collect(problem, scope, block.g, keys, R);
        let facts = &scratch.facts;
        let rows = facts.tiles() * R;
        let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
        let at = [block.b, block.g];
        let k = pack::key_rows(s, &problem.k, at, keys, (rows, Use::Broadcast), scratch.k.take(rows * dk));
        let v = pack::key_rows(s, &problem.v, at, keys, (facts.count, Use::Lanes), scratch.v.take(rows * dv));
        let panel = 2 * S::N;
        let size = dk * panel;
        let p = scratch.p.take(BLOCK * panel);
        let dense = scratch.dense.take(if block.extras.dense { BLOCK.next_multiple_of(S::N) * panel } else { 0 });
        let square = scratch.square.take(S::N * S::N);
        let panels = block.rows.len().div_ceil(panel);
        let (qt, all_positions, hashes) =
            (scratch.qt.get(panels * size), scratch.positions.get(panels * panel), scratch.hashes.get(panels * panel));
        let (acc, maximum, sum) =
            (scratch.acc.take(panels * panel * dv), scratch.maximum.take(panels * panel), scratch.sum.take(panels * panel));
        for (i, queries) in block.panels::<S>().enumerate() {
            let lanes = i * panel..(i + 1) * panel;
            let positions = &all_positions[lanes.clone()];
            let visible = facts.visible(bounds(positions));
            if visible.is_empty() {
                continue;
            }
            if block.extras.dense {
                pack::fill_dense(s, problem, [block.b, block.h], (queries, &facts.rows), (square, dense));
            }
            let meeting = Meeting {
                k,
                qt: &qt[i * size..(i + 1) * size],
                dk: dims.dk,
                facts,
                positions,
                hashes: &hashes[lanes.clone()],
                dense,
                extras: &block.extras,
                origin: scope.keys.start,
            };
            let mut softmax = Softmax {
                p: &mut *p,
                maximum: &mut maximum[lanes.clone()],
                sum: &mut sum[lanes.clone()],
                acc: &mut acc[lanes.start * dv..lanes.end * dv],
                width: dv,
                first: visible.start,
            };
            softmax.weigh::<S, R>(s, &meeting, visible.clone());
            softmax.gather::<S, R>(s, &meeting, v, visible);
        }
    }
}

/// Smallest and largest of some positions.
#[inline(always)]
pub(super) fn bounds(positions: &[i32]) -> (i32, i32) {
    positions.iter().fold((i32::MAX, i32::MIN), |(low, high), &p| (low.min(p), high.max(p)))
}

/// The running softmax of one panel of queries.
struct Softmax<'a> {
    /// Weights `[key][2·N]` of the block at hand.
    p: &'a mut [f32],
    /// Running maximum in units of log2.
    maximum: &'a mut [f32],
    /// Running sum of weights relative to the maximum.
    sum: &'a mut [f32],
    /// Unnormalised output `[2·N][width]`.
    acc: &'a mut [f32],
    width: usize,
    /// First tile whose weights of this block are in `p`.
    first: usize,
}

impl Softmax<'_> {
    /// Fills `p` for the visible tiles and updates maximum and sum.
    #[inline(always)]
    fn weigh<S: Lanes, const R: usize>(&mut self, s: S, meeting: &Meeting<'_>, tiles: Range<usize>) {
        let positions = bounds(meeting.positions);
        let mut start = tiles.start;
        while start < tiles.end {
            let full = |tile: usize| meeting.facts.class(tile, positions) == Class::Full;
            let kind = full(start);
            let end = (start..tiles.end).find(|&tile| full(tile) != kind).unwrap_or(tiles.end);
            match (kind, meeting.extras.biased, meeting.extras.rich) {
                (_, _, true) => self.weigh_run::<S, R, Rich>(s, meeting, start..end),
                (true, false, _) => self.weigh_run::<S, R, Plain>(s, meeting, start..end),
                (false, false, _) => self.weigh_run::<S, R, Masked>(s, meeting, start..end),
                (true, true, _) => self.weigh_run::<S, R, Biased>(s, meeting, start..end),
                (false, true, _) => self.weigh_run::<S, R, MaskedBiased>(s, meeting, start..end),
            }
            start = end;
        }
    }

    #[inline(always)]
    fn weigh_run<S: Lanes, const R: usize, V: Variant>(&mut self, s: S, meeting: &Meeting<'_>, tiles: Range<usize>) {
        let limit = s.splat(REBASE_ABOVE);
        let mut below = self.below_maximum(s);
        let mut sum = [s.load(self.sum), s.load(&self.sum[S::N..])];
        for tile in tiles {
            let (x, _) = meeting.logits::<S, R, V>(s, tile, below);
            let mut added = [s.zero(); 2];
            let p = &mut self.p[tile * R * 2 * S::N..][..R * 2 * S::N];
            for r in 0..R {
                for c in 0..2 {
                    let e = meeting.keep::<S, V>(s, tile * R + r, c, s.exp2(x[r][c]));
                    added[c] = if r == 0 { e } else { s.add(added[c], e) };
                    let weight = meeting.drop::<S, V>(s, tile * R + r, c, e);
                    s.store(&mut p[(r * 2 + c) * S::N..], weight);
                }
            }
            if s.any_not_at_most(added[0], limit) || s.any_not_at_most(added[1], limit) {
                self.store_sum(s, sum);
                s.vectorize(Rebase::<V> { softmax: self, meeting, tile, variant: std::marker::PhantomData });
                below = self.below_maximum(s);
                sum = [s.load(self.sum), s.load(&self.sum[S::N..])];
            } else {
                sum = [s.add(sum[0], added[0]), s.add(sum[1], added[1])];
            }
        }
        self.store_sum(s, sum);
    }

    #[inline(always)]
    fn below_maximum<S: Lanes>(&self, s: S) -> [S::F; 2] {
        [s.sub(s.zero(), s.load(self.maximum)), s.sub(s.zero(), s.load(&self.maximum[S::N..]))]
    }

    #[inline(always)]
    fn store_sum<S: Lanes>(&mut self, s: S, sum: [S::F; 2]) {
        for (c, sum) in sum.into_iter().enumerate() {
            s.store(&mut self.sum[c * S::N..], sum);
        }
    }

    /// Adds `P·V` of the visible tiles to the output, trimmed for every `R` queries to the tiles that they see.
    #[inline(always)]
    fn gather<S: Lanes, const R: usize>(&mut self, s: S, meeting: &Meeting<'_>, v: Rows<'_>, tiles: Range<usize>) {
        let facts = meeting.facts;
        for group in 0..2 * S::N / R {
            let positions = bounds(&meeting.positions[group * R..(group + 1) * R]);
            let (mut start, mut end) = (tiles.start, tiles.end);
            while start < end && facts.class(start, positions) == Class::Hidden {
                start += 1;
            }
            while start < end && facts.class(end - 1, positions) == Class::Hidden {
                end -= 1;
            }
            let keys = start * R..facts.count.min(end * R);
            if keys.is_empty() {
                continue;
            }
            let p = Across(Rows::new(&self.p[keys.start * 2 * S::N + group * R..], 2 * S::N));
            let acc = &mut self.acc[group * R * self.width..(group + 1) * R * self.width];
            add_product::<S, R>(s, (acc, self.width), p, v.from(keys.start), keys.len());
        }
    }
}

/// `acc[r][·] += Σ_t a[r][t] · b[t][·]` for `R` rows of `width` values.
#[inline(always)]
pub(super) fn add_product<S: Lanes, const R: usize>(s: S, (acc, width): (&mut [f32], usize), a: Across<'_>, b: Rows<'_>, steps: usize) {
    let mut column = 0;
    while column + 2 * S::N <= width {
        add_columns::<S, R, 2>(s, (&mut acc[column..], width), a, Rows::new(&b.data[column..], b.stride), steps);
        column += 2 * S::N;
    }
    if column < width {
        add_columns::<S, R, 1>(s, (&mut acc[column..], width), a, Rows::new(&b.data[column..], b.stride), steps);
    }
}

#[inline(always)]
fn add_columns<S: Lanes, const R: usize, const C: usize>(
    s: S,
    (acc, width): (&mut [f32], usize),
    a: Across<'_>,
    b: Rows<'_>,
    steps: usize,
) {
    let mut start = [[s.zero(); C]; R];
    for (r, row) in start.iter_mut().enumerate() {
        for (c, x) in row.iter_mut().enumerate() {
            *x = s.load(&acc[r * width + c * S::N..]);
        }
    }
    let total = product::<S, _, R, C>(s, start, a, b, steps);
    for (r, row) in total.into_iter().enumerate() {
        for (c, x) in row.into_iter().enumerate() {
            s.store(&mut acc[r * width + c * S::N..], x);
        }
    }
}

/// The cold path: moves the maximum of a panel to what a tile holds and rescales weights, sums and output.
struct Rebase<'a, 'b, 'c, V> {
    softmax: &'a mut Softmax<'b>,
    meeting: &'a Meeting<'c>,
    tile: usize,
    variant: std::marker::PhantomData<V>,
}

impl<V: Variant> Task for Rebase<'_, '_, '_, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Rebase { softmax, meeting, tile, .. } = self;
        let (x, _) = meeting.logits::<S, R, V>(s, tile, [s.zero(); 2]);
        let lowest = s.splat(f32::NEG_INFINITY);
        for c in 0..2 {
            let old = s.load(&softmax.maximum[c * S::N..]);
            let mut new = old;
            for (r, row) in x.iter().enumerate() {
                let seen = if V::MASKED { s.select(meeting.seen(s, tile * R + r, c), row[c], lowest) } else { row[c] };
                new = s.max(seen, new);
            }
            let unset = s.equal(old, lowest);
            let shift = s.select(unset, s.zero(), s.exp2(s.sub(old, new)));
            let base = s.select(s.equal(new, lowest), s.zero(), new);
            s.store(&mut softmax.maximum[c * S::N..], new);
            softmax.rescale(s, c, (softmax.first * R)..(tile * R), shift);
            let mut sum = s.load(&softmax.sum[c * S::N..]);
            for (r, row) in x.iter().enumerate() {
                let key = tile * R + r;
                let e = meeting.keep::<S, V>(s, key, c, s.exp2(s.sub(row[c], base)));
                sum = s.add(sum, e);
                let weight = meeting.drop::<S, V>(s, key, c, e);
                s.store(&mut softmax.p[(key * 2 + c) * S::N..], weight);
            }
            s.store(&mut softmax.sum[c * S::N..], sum);
        }
    }
}

impl Softmax<'_> {
    /// Multiplies the weights of `keys`, the sum and the output of one register of queries by `factor`.
    #[inline(always)]
    fn rescale<S: Lanes>(&mut self, s: S, c: usize, keys: Range<usize>, factor: S::F) {
        for key in keys {
            let p = &mut self.p[(key * 2 + c) * S::N..];
            let scaled = s.mul(s.load(p), factor);
            s.store(p, scaled);
        }
        let sum = &mut self.sum[c * S::N..];
        let scaled = s.mul(s.load(sum), factor);
        s.store(sum, scaled);
        let mut factors = [0.0f32; 16];
        s.store(&mut factors, factor);
        for (lane, row) in self.acc[c * S::N * self.width..(c + 1) * S::N * self.width].chunks_mut(self.width).enumerate() {
            for x in row.chunks_mut(S::N) {
                let scaled = s.mul(s.load(x), s.splat(factors[lane]));
                s.store(x, scaled);
            }
        }
    }
}
