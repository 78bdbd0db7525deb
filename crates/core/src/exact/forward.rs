//! Forward pass: online softmax over tiles with queries in the lanes.
//!
//! `Sᵀ = K·Qᵀ` in tiles of `R` keys by two registers of queries, `P = 2^(S - m)` straight into a buffer `[key][query]`,
//! `O += P·V` in tiles of `R` queries by two registers of values. Only Q is transposed, once per block of queries. K is read from
//! its natural rows where they stand together, V from a copy in strips of a tile's width where a block of queries is longer than
//! a panel.
//!
//! A tile multiplies hidden keys by weights of zero, and zero times infinity is not a number. So a block of queries whose output
//! is not finite is computed once more in f32, *guarded*: rows of V that are not finite are zeros in the products, and are added to the
//! queries that see them one by one.
//!
//! Dao et al. 2022 (tiling); lanes over queries are ours.

use super::live::{Live, Passing};
use super::pack::{self, Packed, Spare, Use};
use super::plan::{BLOCK, Facts, KeyList, Keys, Orders, Plan};
use super::score::{Extras, Meeting};
use super::softmax::{REBASE_ABOVE, REBASE_EARLY, Softmax, bounds};
use crate::par::Jobs;
use crate::problem::Output;
use crate::sight::Scope;
use crate::simd::{Aligned, Form, Lanes, Level, Pairs, Singles, Task, dispatch};
use crate::view::{DisjointRows, SharedRows, StridedMut, View};
use crate::{Par, Problem};
use std::cell::RefCell;
use std::f64::consts::LN_2;
use std::marker::PhantomData;
use std::ops::Range;

/// Most queries in a block.
const QUERIES: usize = 512;
/// The same with scattered lifetimes: those that are alive at its first query are packed for every block anew.
const QUERIES_SCATTERED: usize = 1024;

/// Panels in a block of queries from which on it pays to copy keys and values to where they are read fastest.
const OFTEN: usize = 2;

/// Runs the tiled forward pass; shapes are checked. bf16 is multiplied in pairs where that is faster.
pub(super) fn run(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) {
    if takes_pairs(problem, par) { run_in::<Pairs>(problem, out, par) } else { run_in::<Singles>(problem, out, par) }
}

/// Whether products of queries and keys are those of pairs of bf16: where that is faster, and keys do not come and go one by one among the
/// queries of a block, which would leave no pairs in order. Few queries, which are not taken in blocks, do not mind.
pub(super) fn takes_pairs(problem: &Problem<'_>, par: Par) -> bool {
    let of_pairs = matches!((problem.q, problem.v), (View::Bf16(_), View::Bf16(_)));
    let in_order = problem.sight.until.is_none() && problem.sight.positions.is_none();
    par.multiplies_pairs() && of_pairs && (in_order || super::decode::suits(problem))
}

/// The same with operands of one form.
pub(super) fn run_in<M: Form>(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) {
    let dims = problem.dims;
    let pieces = problem.sight.query_pieces(&dims, block_size(problem));
    let rows = [dims.batch, dims.heads, dims.queries, 1];
    let mut lse = out.lse.as_deref_mut().map(|lse| StridedMut::contiguous(lse, rows, "lse").expect("lse was checked"));
    let lse = lse.as_mut().map(|lse| DisjointRows::new(lse, &pieces));
    let level = par.level_in_use();
    let shared = Shared { problem, pieces: &pieces, orders: Orders::new(problem), o: out.o.share(&pieces), lse, level };
    let heads = dims.batch * dims.heads;
    par.run(heads * pieces.len(), super::flops(problem), |jobs| {
        SCRATCH.with_borrow_mut(|scratch| M::dispatch(level, Worker::<M> { shared: &shared, jobs, scratch, form: PhantomData }));
    });
}

/// Rows per job: smaller where few heads would leave threads idle; a function of the problem alone, so that bits do
/// not depend on the number of threads.
fn block_size(problem: &Problem<'_>) -> usize {
    let heads = problem.dims.batch * problem.dims.heads;
    let rows = heads * problem.dims.queries;
    let most = if problem.sight.until.is_some() { QUERIES_SCATTERED } else { QUERIES };
    (rows / 16).next_multiple_of(64).clamp(64, most)
}

/// What all jobs of a call share.
struct Shared<'a> {
    problem: &'a Problem<'a>,
    pieces: &'a [Range<usize>],
    orders: Orders,
    o: SharedRows<'a>,
    lse: Option<DisjointRows<'a, f32>>,
    level: Level,
}

/// Working memory of a thread.
#[derive(Default)]
struct Scratch {
    plan: Plan,
    facts: Facts,
    k: Aligned<f32>,
    v: Aligned<f32>,
    strips: Aligned<f32>,
    live: Live,
    spare: Spare,
    panels: Panels,
}

/// A block of queries in working form, and what was gathered for it.
#[derive(Default)]
struct Panels {
    staged: Aligned<f32>,
    wide: Aligned<f32>,
    qt: Aligned<f32>,
    positions: Aligned<i32>,
    hashes: Aligned<i32>,
    p: Aligned<f32>,
    dense: Aligned<f32>,
    square: Aligned<f32>,
    acc: Aligned<f32>,
    maximum: Aligned<f32>,
    sum: Aligned<f32>,
    rounded: Aligned<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Worker<'a, M> {
    shared: &'a Shared<'a>,
    jobs: &'a Jobs<'a>,
    scratch: &'a mut Scratch,
    form: PhantomData<M>,
}

impl<M: Form> Task for Worker<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let heads = self.shared.problem.dims.batch * self.shared.problem.dims.heads;
        while let Some(job) = self.jobs.take() {
            let piece = self.shared.pieces.len() - 1 - job / heads;
            let mut block = Block::new(self.shared, job % heads, piece);
            if !block.attend::<S, M, R>(s, self.scratch) {
                block.guarded = true;
                dispatch(self.shared.level, Guarded { block: &block, scratch: self.scratch });
            }
        }
    }
}

/// A block whose output was not finite, once more: see the head of this file.
struct Guarded<'a, 'b> {
    block: &'b Block<'a>,
    scratch: &'b mut Scratch,
}

impl Task for Guarded<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        self.block.attend::<S, Singles, R>(s, self.scratch);
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
    /// See the head of this file.
    guarded: bool,
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
        Block { shared, problem, scope, extras: Extras::new(problem, h), b, h, g, piece, rows, guarded: false }
    }

    /// Computes the block and writes it, unless values are not finite that a hidden key may have made so; whether it did.
    #[inline(always)]
    fn attend<S: Lanes, M: Form, const R: usize>(&self, s: S, scratch: &mut Scratch) -> bool {
        self.meet_all::<S, M, R>(s, scratch);
        let done = self.normalise::<S, M>(s, &mut scratch.panels) || self.guarded;
        if done {
            self.write(s, &mut scratch.panels);
        }
        done
    }

    #[inline(always)]
    fn meet_all<S: Lanes, M: Form, const R: usize>(&self, s: S, scratch: &mut Scratch) {
        let width = self.problem.dims.dv.next_multiple_of(S::N);
        let padded = self.shared.pieces[self.piece].len().next_multiple_of(2 * S::N);
        scratch.panels.acc.take(padded * width).fill(0.0);
        scratch.panels.maximum.take(padded).fill(f32::NEG_INFINITY);
        scratch.panels.sum.take(padded).fill(0.0);
        scratch.panels.rounded.take(padded).fill(0.0);
        if !self.rows.is_empty() && !self.scope.keys.is_empty() {
            self.pack_queries::<S, M>(s, &mut scratch.panels);
            let range = self.scope.position_range(self.rows.clone());
            scratch.plan.make(&self.scope, self.shared.orders.of(&self.scope, self.g), range);
            for index in 0..scratch.plan.blocks.len() {
                self.meet_block::<S, M, R>(s, (index, range), scratch);
            }
            self.meet_passing::<S, R>(s, scratch);
        }
    }

    /// One block of the plan against all panels.
    #[inline(always)]
    fn meet_block<S: Lanes, M: Form, const R: usize>(&self, s: S, (index, range): (usize, (i32, i32)), scratch: &mut Scratch) {
        let Scratch { plan, facts, k, v, strips, spare, panels, .. } = scratch;
        let (problem, dims, at) = (self.problem, &self.problem.dims, [self.b, self.g]);
        let list = &plan.blocks[index];
        let seen_all = match list {
            Keys::Run(run) => self.scope.sees_all(run.clone(), range.0, range.1),
            Keys::Gathered(_) | Keys::Passing(_) => false,
        };
        let keys = KeyList { plan, list, seen_all };
        facts.collect(problem, &self.scope, self.g, keys, R);
        let rows = facts.tiles() * R;
        let (room_k, room_v) = (k.take(pack::room::<S>(rows, dims.dk)), v.take(pack::room::<S>(rows, dims.dv)));
        let all = 0..self.rows.len().div_ceil(2 * S::N);
        let often = all.len() >= OFTEN;
        let [use_k, use_v] = if often { [Use::Often, Use::Once] } else { [Use::Once, Use::Lanes] };
        let k = pack::keys::<S, M>(s, (&problem.k, at), keys, (rows, use_k), room_k);
        let v = pack::values::<S, M>(s, (&problem.v, at), keys, use_v, room_v);
        let first_passing = Keys::Passing(0..plan.passing.len().min(BLOCK));
        let next = Some(KeyList { plan, list: plan.blocks.get(index + 1).unwrap_or(&first_passing), seen_all: false });
        let mut keys = self.guard(s, Packed::new::<S>(facts, [k, v]), spare);
        if often {
            keys = keys.in_strips(s, (M::rows(facts.count), dims.dv), strips);
        }
        s.vectorize(Meet::<M> { block: self, keys, next, range: all, panels, form: PhantomData });
    }

    /// Passing keys against one panel after another.
    #[inline(always)]
    fn meet_passing<S: Lanes, const R: usize>(&self, s: S, scratch: &mut Scratch) {
        let Scratch { plan, live, spare, panels, .. } = scratch;
        if plan.passing.is_empty() {
            return;
        }
        let passing = Passing { problem: self.problem, scope: &self.scope, at: [self.b, self.g], rows: &plan.passing };
        live.begin();
        for (i, rows) in self.panels::<S>().enumerate() {
            let (horizon, _) = self.scope.position_range(rows.start..self.rows.end);
            let (_, high) = self.scope.position_range(rows);
            live.advance::<S, R>(s, passing, (horizon, high));
            let list = &live.upcoming(&plan.passing, 2 * S::N);
            let next = Some(KeyList { plan, list, seen_all: false });
            let keys = self.guard(s, live.keys::<S>(&self.problem.dims), spare);
            s.vectorize(Meet::<Singles> { block: self, keys, next, range: i..i + 1, panels, form: PhantomData });
        }
    }

    #[inline(always)]
    fn guard<'k, S: Lanes>(&self, s: S, keys: Packed<'k>, spare: &'k mut Spare) -> Packed<'k> {
        if self.guarded { keys.guard(s, (keys.v, self.problem.dims.dv), spare) } else { keys }
    }

    #[inline(always)]
    fn panels<S: Lanes>(&self) -> impl Iterator<Item = Range<usize>> + use<'_, 'a, S> {
        let end = self.rows.end;
        self.rows.clone().step_by(2 * S::N).map(move |start| start..end.min(start + 2 * S::N))
    }

    #[inline(always)]
    fn pack_queries<S: Lanes, M: Form>(&self, s: S, scratch: &mut Panels) {
        let dk = self.problem.dims.dk.next_multiple_of(S::N);
        let (panel, size) = (2 * S::N, M::rows(dk) * 2 * S::N);
        let count = self.rows.len().div_ceil(panel);
        let qt = scratch.qt.take(count * size);
        let positions = scratch.positions.take(count * panel);
        let hashes = scratch.hashes.take(count * panel);
        let (staged, wide) = (scratch.staged.take(dk * panel), scratch.wide.take(dk * panel));
        for (i, rows) in self.panels::<S>().enumerate() {
            let lanes = i * panel..(i + 1) * panel;
            let head = (self.h, self.extras.dropout);
            pack::describe_panel(&self.scope, head, rows.clone(), &mut positions[lanes.clone()], &mut hashes[lanes]);
            let room = (&mut *staged, &mut *wide, &mut qt[i * size..(i + 1) * size]);
            pack::queries::<S, M>(s, (&self.problem.q, [self.b, self.h]), rows, room, self.extras.factor);
        }
    }

    /// Divides by the sums; whether all values came out finite. Rows that saw nothing are cleared.
    #[inline(always)]
    fn normalise<S: Lanes, M: Form>(&self, s: S, scratch: &mut Panels) -> bool {
        let count = self.shared.pieces[self.piece].len();
        let width = self.problem.dims.dv.next_multiple_of(S::N);
        let acc = scratch.acc.take(count * width);
        let sum = if M::PER_LANE == 1 { scratch.sum.get(count) } else { scratch.rounded.get(count) };
        let mut finite = true;
        for (i, row) in acc.chunks_mut(width).enumerate() {
            let seen = i < self.rows.len() && sum[i] != 0.0;
            finite &= scale_row(s, row, if seen { 1.0 / sum[i] } else { 0.0 }, seen);
        }
        finite
    }

    /// Writes `o` and `lse`.
    #[inline(always)]
    fn write<S: Lanes>(&self, s: S, scratch: &mut Panels) {
        let (count, dv) = (self.shared.pieces[self.piece].len(), self.problem.dims.dv);
        let width = dv.next_multiple_of(S::N);
        let (acc, maximum, sum) = (scratch.acc.get(count * width), scratch.maximum.get(count), scratch.sum.get(count));
        if let Some(lse) = &self.shared.lse {
            let mut lse = lse.claim(self.b, self.h, self.piece);
            for i in 0..count {
                let tiled = || ((f64::from(maximum[i]) + f64::from(sum[i]).log2()) * LN_2) as f32;
                lse.row(i)[0] = if i < self.rows.len() && sum[i] != 0.0 { tiled() } else { f32::NEG_INFINITY };
            }
        }
        self.shared.o.write_lanes(s, [self.b, self.h, self.piece], |i| &acc[i * width..][..dv]);
    }
}

/// Multiplies a row, or clears it if it saw nothing; whether all values came out finite.
#[inline(always)]
fn scale_row<S: Lanes>(s: S, row: &mut [f32], factor: f32, seen: bool) -> bool {
    if !seen {
        row.fill(0.0);
        return true;
    }
    let (factor, mut total) = (s.splat(factor), s.zero());
    for x in row.chunks_mut(S::N) {
        let scaled = s.mul(s.load(x), factor);
        total = s.add(total, s.mul(scaled, s.zero()));
        s.store(x, scaled);
    }
    s.sum(total) == 0.0
}

/// Some keys against some panels of a block of queries.
struct Meet<'a, 'b, M> {
    block: &'a Block<'b>,
    keys: Packed<'a>,
    /// The keys that come next.
    next: Option<KeyList<'a>>,
    range: Range<usize>,
    panels: &'a mut Panels,
    form: PhantomData<M>,
}

impl<M: Form> Task for Meet<'_, '_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Meet { block, keys: Packed { facts, k, v, weighed, spoilt }, next, range, panels, .. } = self;
        let (problem, scope, dims) = (block.problem, &block.scope, &block.problem.dims);
        let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
        let panel = 2 * S::N;
        let size = M::rows(dk) * panel;
        let p = panels.p.take(BLOCK * panel);
        let dense = panels.dense.take(if block.extras.dense { (facts.tiles() * R).next_multiple_of(S::N) * panel } else { 0 });
        let square = panels.square.take(S::N * S::N);
        let count = block.rows.len().div_ceil(panel);
        let (qt, all_positions, hashes) =
            (panels.qt.get(count * size), panels.positions.get(count * panel), panels.hashes.get(count * panel));
        let (acc, maximum) = (panels.acc.take(count * panel * dv), panels.maximum.take(count * panel));
        let (sum, rounded) = (panels.sum.take(count * panel), panels.rounded.take(count * panel));
        for (i, queries) in block.panels::<S>().enumerate().take(range.end).skip(range.start) {
            let lanes = i * panel..(i + 1) * panel;
            let positions = &all_positions[lanes.clone()];
            let visible = facts.visible(0..facts.tiles(), bounds(positions));
            if visible.is_empty() {
                continue;
            }
            if block.extras.dense {
                pack::fill_dense(s, problem, [block.b, block.h], (queries.clone(), &facts.rows), (square, dense));
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
            let rounds = visible.len().div_ceil(BLOCK / R);
            for (round, first) in visible.clone().step_by(BLOCK / R).enumerate() {
                if let Some(next) = next {
                    let part = ((i - range.start) * rounds + round, range.len() * rounds);
                    pack::prefetch(s, &problem.k, [block.b, block.g], next, part);
                    pack::prefetch(s, &problem.v, [block.b, block.g], next, part);
                }
                let mut softmax = Softmax {
                    p: &mut *p,
                    maximum: &mut maximum[lanes.clone()],
                    sum: &mut sum[lanes.clone()],
                    rounded: &mut rounded[lanes.clone()],
                    acc: &mut acc[lanes.start * dv..lanes.end * dv],
                    width: dv,
                    queries: queries.len(),
                    first,
                    limit: if block.guarded { REBASE_EARLY } else { REBASE_ABOVE },
                };
                let tiles = first..visible.end.min(first + BLOCK / R);
                softmax.weigh::<S, M, R>(s, &meeting, tiles.clone());
                softmax.gather::<S, M, R>(s, &meeting, weighed, tiles.clone());
                if !spoilt.is_empty() {
                    softmax.gather_spoilt::<S, R>(&meeting, (v, dims.dv), (spoilt, tiles));
                }
            }
        }
    }
}
