//! Backward: from the last block to the first, weights from the log-sum-exp.
//!
//! `P_is = e^(x_is - lse_i)`, `D_i = dO_i·O_i`. A far code's slope is `dS_is = P_is (dO_i·U_s - n_s D_i)`, a near key's `P_ij (dO_i·v_j -
//! D_i)`; `dq_i = scale Σ_s dS_is C_s`, near slopes added to those of their codes. Keys have gradients straight through their codewords.
//! What queries leave for far keys is kept as sums ([`Kept`]), and a key takes it at the block where it ceases to be far. Keys after a gap
//! take theirs in a second walk, from the first block to the last. For queries as they are this costs up to `O(N S Dk Dv)`: the gradient of
//! a key needs a matrix of its code, or a look at every query. For those that are codewords it costs `O(M S_q (2 Dv + Dk))`.
//!
//! Gradients are linear in what was left: pieces walk at the same time, and a piece's keys take the sums of later pieces at the end.

use super::Coded;
use super::forward::{Job, NEAR, Scratch, positions};
use super::layout::{Block, Near};
use super::leave::{Give, Kept};
use super::queries::{CODES, Queries};
use super::shared_queries::{self, ByKey};
use super::state;
use super::summary::{Keys, Summary};
use crate::exact::pack;
use crate::exact::softmax::add_product;
use crate::par::Jobs;
use crate::quantise::Codewords;
use crate::simd::{Across, Aligned, Along, Lanes, Rows, Task, dispatch, product};
use crate::view::{DisjointRows, SharedRows, StridedMut, ViewMut};
use crate::{Par, Saved};
use std::cell::RefCell;
use std::f32::consts::LOG2_E;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Bytes that the states of all pieces may take.
const STATES: usize = 256 << 20;

pub(super) fn run(coded: &Coded<'_>, saved: &Saved<'_>, gradients: &mut crate::Gradients<'_>, par: Par) {
    let dims = &coded.dims;
    let [queries, keys] = [dims.queries, dims.keys].map(|rows| (0..rows).map(|n| n..n + 1).collect::<Vec<Range<usize>>>());
    let (mut spare_k, mut spare_v) = (Vec::new(), Vec::new());
    {
        let mut dk = in_single(&mut gradients.dk, &mut spare_k);
        let mut dv = in_single(&mut gradients.dv, &mut spare_v);
        let shared = Shared {
            coded,
            saved,
            by_key: by_key(coded),
            dq: gradients.dq.as_mut().map(|dq| dq.share(&queries)),
            dk: dk.as_mut().map(|dk| DisjointRows::new(dk, &keys)),
            dv: dv.as_mut().map(|dv| DisjointRows::new(dv, &keys)),
        };
        shared.clear();
        shared.sweep(par);
    }
    for (spare, into) in [(&spare_k, &mut gradients.dk), (&spare_v, &mut gradients.dv)] {
        if let Some(into) = into.as_mut().filter(|_| !spare.is_empty()) {
            into.round(spare, par);
        }
    }
}

/// Of every query head, where queries are codewords.
fn by_key(coded: &Coded<'_>) -> Vec<ByKey> {
    match &coded.queries {
        Queries::Rows(_) => Vec::new(),
        Queries::Codes { codewords, tables, .. } => {
            let codes = |h: usize| coded.codewords[h / coded.dims.group()].padded();
            let of = |(h, (table, codewords)): (usize, (_, &Codewords))| ByKey::new(table, codewords.count(), codes(h));
            tables.iter().zip(codewords.iter()).enumerate().map(of).collect()
        }
    }
}

/// The output itself, or f32 to be rounded into it later.
fn in_single<'s>(into: &'s mut Option<ViewMut<'_>>, spare: &'s mut Vec<f32>) -> Option<StridedMut<'s, f32>> {
    match into {
        None => None,
        Some(ViewMut::F32(rows)) => Some(rows.every(0, 1)),
        Some(rows) => {
            let shape = rows.shape();
            spare.resize(shape.iter().product(), 0.0);
            Some(StridedMut::contiguous(spare, shape, "gradient").expect("its own shape"))
        }
    }
}

pub(super) struct Shared<'a> {
    pub(super) coded: &'a Coded<'a>,
    pub(super) saved: &'a Saved<'a>,
    /// Logits of queries that are codewords, by query head.
    pub(super) by_key: Vec<ByKey>,
    dq: Option<SharedRows<'a>>,
    pub(super) dk: Option<DisjointRows<'a, f32>>,
    pub(super) dv: Option<DisjointRows<'a, f32>>,
}

/// Which keys take what queries left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Those before the queries; blocks come from the last on.
    Before,
    /// Those after them; blocks come from the first on.
    After,
}

impl Shared<'_> {
    /// Zeros where gradients are added up, and where nothing will be written.
    fn clear(&self) {
        let dims = &self.coded.dims;
        for rows in self.dk.iter().chain(&self.dv) {
            for at in 0..dims.batch * dims.kv_heads * dims.keys {
                let head = at / dims.keys;
                rows.claim(head / dims.kv_heads, head % dims.kv_heads, at % dims.keys).row(0).fill(0.0);
            }
        }
        let zeros = vec![0.0; dims.dk];
        for ([b, n], dq) in self.coded.padding().into_iter().flat_map(|at| self.dq.iter().map(move |dq| (at, dq))) {
            (0..dims.heads).for_each(|h| dq.write(b, h, n, |_| &zeros));
        }
    }

    fn sweep(&self, par: Par) {
        let coded = self.coded;
        let heads = coded.sequences.len() * coded.dims.kv_heads;
        let state = Kept::bytes(coded);
        let both = !coded.rule.causal && coded.rule.gap > 0;
        let most = if both { 1 } else { (STATES / (state * heads).max(1)).max(1) };
        let all = coded.jobs(most);
        let left: Vec<Mutex<Option<Kept>>> = all.iter().map(|_| Mutex::default()).collect();
        let flops = 3.0 * coded.flops();
        par.run(all.len(), flops, |jobs| {
            DESK.with_borrow_mut(|desk| dispatch(par.level_in_use(), Worker { shared: self, all: &all, left: &left, jobs, desk }));
        });
        self.exchange(&all, left, par);
    }

    /// Adds sums of some keys to their gradients.
    #[inline(always)]
    pub(super) fn add(&self, keys: Keys<'_>, range: Range<usize>, sums: [&[f32]; 2], widths: [usize; 2]) {
        let ([b, g], factors) = (keys.head, [self.coded.scale, 1.0]);
        for (((rows, sums), width), factor) in [&self.dk, &self.dv].into_iter().zip(sums).zip(widths).zip(factors) {
            let Some(rows) = rows else { continue };
            for (key, sum) in range.clone().zip(sums.chunks(width)) {
                let mut claim = rows.claim(b, g, keys.first + key);
                claim.row(0).iter_mut().zip(sum).for_each(|(into, x)| *into += factor * x);
            }
        }
    }

    /// Keys take what later pieces left.
    fn exchange(&self, all: &[Job], left: Vec<Mutex<Option<Kept>>>, par: Par) {
        let mut states: Vec<Option<Kept>> =
            left.into_iter().map(|state| state.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        let follows = |at: usize| at + 1 < all.len() && (all[at].sequence, all[at].g) == (all[at + 1].sequence, all[at + 1].g);
        for at in (1..all.len()).rev().filter(|&at| follows(at)) {
            let (before, after) = states.split_at_mut(at + 1);
            if let (Some(state), Some(later)) = (&mut before[at], &after[0]) {
                state.add(later);
            }
        }
        par.run(all.len(), self.coded.flops(), |jobs| {
            while let Some(at) = jobs.take() {
                if let Some(kept) = states.get(at + 1).and_then(Option::as_ref).filter(|_| follows(at)) {
                    let (job, next) = (&all[at], &all[at + 1]);
                    let sequence = &self.coded.sequences[job.sequence];
                    let before = |number: i64| sequence.block(&self.coded.rule, number).before;
                    let first = if at > 0 && follows(at - 1) { before(job.blocks.start) } else { 0 };
                    let keys = Keys::of(sequence, job.g, &self.coded.v, self.coded.codes);
                    let range = first..before(next.blocks.start);
                    DESK.with_borrow_mut(|desk| {
                        let direction = Direction::Before;
                        dispatch(par.level_in_use(), Give { shared: self, kept, keys, range, direction, desk });
                    });
                }
            }
        });
    }
}

/// Working memory of a thread.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) scratch: Scratch,
    /// Slopes by logits, panel by panel `[S padded][2·N]`.
    slopes: Aligned<f32>,
    staged: Aligned<f32>,
    pub(super) d_o: Aligned<f32>,
    pub(super) d_ot: Aligned<f32>,
    pub(super) q: Aligned<f32>,
    pub(super) delta: Aligned<f32>,
    /// Weights and slopes of near keys, `[key][query]`.
    pub(super) near: [Aligned<f32>; 2],
    /// Sums of a block: dq by query, dk and dv by near key.
    pub(super) acc: [Aligned<f32>; 3],
    /// Far keys by themselves, and their slots.
    pub(super) few: Vec<(usize, usize)>,
    pub(super) room: state::Room,
    pub(super) taking: shared_queries::Room,
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    all: &'a [Job],
    left: &'a [Mutex<Option<Kept>>],
    jobs: &'a Jobs<'a>,
    desk: &'a mut Desk,
}

impl Task for Worker<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Worker { shared, all, left, jobs, desk } = self;
        let rule = &shared.coded.rule;
        while let Some(at) = jobs.take() {
            let together = |x: usize, y: usize| y < all.len() && (all[x].sequence, all[x].g) == (all[y].sequence, all[y].g);
            let first = at == 0 || !together(at - 1, at);
            let state = s.vectorize(Walk { shared, job: &all[at], first, direction: Direction::Before, desk: &mut *desk });
            if !first || together(at, at + 1) {
                *left[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
            }
            if !rule.causal && rule.gap > 0 {
                s.vectorize(Walk { shared, job: &all[at], first, direction: Direction::After, desk: &mut *desk });
            }
        }
    }
}

/// Through the blocks of a job.
struct Walk<'a> {
    shared: &'a Shared<'a>,
    job: &'a Job,
    /// Whether its sequence begins with it.
    first: bool,
    direction: Direction,
    desk: &'a mut Desk,
}

impl Task for Walk<'_> {
    type Output = Kept;

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) -> Kept {
        let Walk { shared, job: Job { sequence, g, blocks }, first, direction, desk } = self;
        let coded = shared.coded;
        let (sequence, dims) = (&coded.sequences[*sequence], &coded.dims);
        let keys = Keys::of(sequence, *g, &coded.v, coded.codes);
        let mut summary = Summary::new(coded.codewords[*g].count(), dims.dv, sequence.keys.len());
        let mut kept = Kept::new::<S>(shared, keys, direction);
        let block = |number: i64| sequence.block(&coded.rule, number);
        for i in 0..blocks.end - blocks.start {
            let number = if direction == Direction::Before { blocks.end - 1 - i } else { blocks.start + i };
            let block = block(number);
            summary.move_to(s, keys, &block);
            for h in g * dims.group()..(g + 1) * dims.group() {
                let part = Part { shared, summary: &summary, keys, block: &block, h };
                s.vectorize(Differentiate { part, direction, desk: &mut *desk, kept: &mut kept });
            }
            let range = match direction {
                Direction::Before if number > blocks.start => sequence.block(&coded.rule, number - 1).before..block.before,
                Direction::Before if first => 0..block.before,
                Direction::Before => continue,
                Direction::After if number + 1 < blocks.end => block.after..sequence.block(&coded.rule, number + 1).after,
                Direction::After => block.after..sequence.keys.len(),
            };
            s.vectorize(Give { shared, kept: &kept, keys, range, direction, desk: &mut *desk });
        }
        kept
    }
}

/// One block of one query head.
pub(super) struct Part<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) summary: &'a Summary,
    pub(super) keys: Keys<'a>,
    pub(super) block: &'a Block,
    pub(super) h: usize,
}

struct Differentiate<'a> {
    part: Part<'a>,
    direction: Direction,
    desk: &'a mut Desk,
    kept: &'a mut Kept,
}

impl Task for Differentiate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Differentiate { part, direction, desk, kept } = self;
        if part.block.rows.is_empty() {
            return;
        }
        part.stage(s, desk);
        part.weigh::<S, R>(s, desk);
        if direction == Direction::Before {
            part.far_slopes::<S, R>(s, desk);
            for near in &part.block.near {
                for start in near.keys().step_by(NEAR) {
                    part.near::<S, R>(s, (near, start..near.keys().end.min(start + NEAR)), desk);
                }
            }
            part.write_dq::<S, R>(s, desk);
        }
        part.leave::<S, R>(s, direction, desk, kept);
    }
}

/// Sizes of a block's tables.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Queries.
    pub(super) rows: usize,
    /// Queries of a panel.
    pub(super) lanes: usize,
    /// Queries, padded to whole panels.
    pub(super) padded: usize,
    /// Codes, padded.
    pub(super) codes: usize,
    /// Values of a key's and a value's row, padded.
    pub(super) widths: [usize; 2],
}

impl Part<'_> {
    pub(super) fn sizes<S: Lanes>(&self) -> Sizes {
        let (rows, dims) = (self.block.rows.len(), &self.shared.coded.dims);
        Sizes {
            rows,
            lanes: 2 * S::N,
            padded: rows.next_multiple_of(2 * S::N),
            codes: self.summary.counts().len(),
            widths: [dims.dk, dims.dv].map(|width| width.next_multiple_of(S::N)),
        }
    }

    /// Rows of dO and of queries, dO transposed, and D.
    #[inline(always)]
    fn stage<S: Lanes>(&self, s: S, desk: &mut Desk) {
        let (Sizes { lanes, padded, widths: [dk, dv], .. }, rows) = (self.sizes::<S>(), self.block.rows.clone());
        let (coded, at) = (self.shared.coded, [self.keys.head[0], self.h]);
        let width = coded.dims.dv;
        let (d_o, o) = (desk.d_o.take(padded * dv), desk.staged.take(padded * dv));
        pack::stage_rows(s, &self.shared.saved.d_o, at, rows.clone(), d_o);
        pack::stage_rows(s, &self.shared.saved.o, at, rows.clone(), o);
        let delta = desk.delta.take(padded);
        for (delta, (o, d_o)) in delta.iter_mut().zip(o.chunks(dv).zip(d_o.chunks(dv))) {
            let mut sum = s.zero();
            for at in (0..dv).step_by(S::N) {
                sum = s.mul_add(s.load(&o[at..]), s.load(&d_o[at..]), sum);
            }
            *delta = s.sum(sum);
        }
        let d_ot = desk.d_ot.take(padded / lanes * dv * lanes);
        for (i, d_o) in d_o.chunks(lanes * dv).enumerate() {
            pack::transpose_panel(s, d_o, width, &mut d_ot[i * width * lanes..], None);
        }
        coded.stage_queries(s, at, rows, desk.q.take(padded * dk));
        positions(self.block, desk.scratch.positions.take(padded));
    }

    /// `P_is` of every code, as if all queries saw it; that of a code that no query sees may be infinite.
    #[inline(always)]
    fn weigh<S: Lanes, const R: usize>(&self, s: S, desk: &mut Desk) {
        let Sizes { lanes, padded, codes, .. } = self.sizes::<S>();
        let (coded, b, rows) = (self.shared.coded, self.keys.head[0], self.block.rows.clone());
        let weights = desk.scratch.weights.take(padded * codes);
        coded.logits::<S, R>(s, [b, self.h], rows.clone(), &mut desk.scratch.panels, weights);
        let lse = &self.shared.saved.lse[(b * coded.dims.heads + self.h) * coded.dims.queries..][rows];
        for (lse, weights) in lse.chunks(lanes).zip(weights.chunks_mut(codes * lanes)) {
            let mut offsets = [f32::NEG_INFINITY; 32];
            for (offset, &lse) in offsets.iter_mut().zip(lse).filter(|(_, lse)| **lse != f32::NEG_INFINITY) {
                *offset = -lse * LOG2_E;
            }
            let offsets = [s.load(&offsets), s.load(&offsets[S::N..])];
            for row in weights.chunks_mut(lanes) {
                for (x, offset) in row.chunks_mut(S::N).zip(offsets) {
                    let weight = s.exp2(s.add(s.load(x), offset));
                    s.store(x, weight);
                }
            }
        }
    }

    /// `P_is (dO_i·U_s - n_s D_i)` of far codes, 0 of others.
    #[inline(always)]
    fn far_slopes<S: Lanes, const R: usize>(&self, s: S, desk: &mut Desk) {
        let Sizes { lanes, padded, codes, .. } = self.sizes::<S>();
        let (counts, width) = (self.summary.counts(), self.shared.coded.dims.dv);
        let slopes = desk.slopes.take(padded * codes);
        let (weights, d_ot, delta) = (desk.scratch.weights.get(padded * codes), desk.d_ot.get(padded * width), desk.delta.get(padded));
        for start in (0..codes).step_by(CODES) {
            for i in 0..padded / lanes {
                let panel = Rows::new(&d_ot[i * width * lanes..], lanes);
                let delta = [s.load(&delta[i * lanes..]), s.load(&delta[i * lanes + S::N..])];
                for first in (start..codes.min(start + CODES)).step_by(R) {
                    let at = (i * codes + first) * lanes;
                    let slopes = &mut slopes[at..at + R * lanes];
                    let counts = &counts[first..first + R];
                    if counts.iter().all(|&count| count == 0) {
                        slopes.fill(0.0);
                        continue;
                    }
                    let sums = Along(self.summary.rows().from(first));
                    let x = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], sums, panel, width);
                    for (r, (x, &count)) in x.into_iter().zip(counts).enumerate() {
                        for c in 0..2 {
                            let weight = s.load(&weights[at + r * lanes + c * S::N..]);
                            let slope = s.mul(weight, s.sub(x[c], s.mul(s.splat(count as f32), delta[c])));
                            s.store(&mut slopes[r * lanes + c * S::N..], if count > 0 { slope } else { s.zero() });
                        }
                    }
                }
            }
        }
    }

    /// Some near keys: their slopes join those of their codes, and their own gradients what is there.
    #[inline(always)]
    fn near<S: Lanes, const R: usize>(&self, s: S, (near, keys): (&Near, Range<usize>), desk: &mut Desk) {
        let sizes = self.sizes::<S>();
        self.near_slopes::<S, R>(s, (near, keys.clone()), sizes, desk);
        let Sizes { rows, lanes, padded, codes, widths: [dk, dv] } = sizes;
        let slopes = desk.slopes.take(padded * codes);
        let of_keys = desk.near[1].get(NEAR * padded);
        for (key, row) in keys.clone().zip(of_keys.chunks(padded)) {
            let code = self.keys.codes[key] as usize;
            for (i, row) in row.chunks(lanes).enumerate() {
                let into = &mut slopes[(i * codes + code) * lanes..][..lanes];
                for (into, x) in into.chunks_mut(S::N).zip(row.chunks(S::N)) {
                    let sum = s.add(s.load(into), s.load(x));
                    s.store(into, sum);
                }
            }
        }
        let [_, into_k, into_v] = &mut desk.acc;
        let (into_k, into_v) = (into_k.take(NEAR * dk), into_v.take(NEAR * dv));
        into_k.fill(0.0);
        into_v.fill(0.0);
        let weights = desk.near[0].get(NEAR * padded);
        for first in (0..keys.len()).step_by(R) {
            let (k, v) = (&mut into_k[first * dk..(first + R) * dk], &mut into_v[first * dv..(first + R) * dv]);
            add_product::<S, R>(
                s,
                (k, dk),
                Along(Rows::new(&of_keys[first * padded..], padded)),
                Rows::new(desk.q.get(padded * dk), dk),
                rows,
            );
            add_product::<S, R>(
                s,
                (v, dv),
                Along(Rows::new(&weights[first * padded..], padded)),
                Rows::new(desk.d_o.get(padded * dv), dv),
                rows,
            );
        }
        self.shared.add(self.keys, keys, [into_k, into_v], [dk, dv]);
    }

    /// `P_ij` and `P_ij (dO_i·v_j - D_i)` of near keys, 0 where a query does not see one.
    #[inline(always)]
    fn near_slopes<S: Lanes, const R: usize>(&self, s: S, (near, keys): (&Near, Range<usize>), sizes: Sizes, desk: &mut Desk) {
        let Sizes { lanes, padded, codes, widths: [_, dv], .. } = sizes;
        let (width, gap) = (self.shared.coded.dims.dv, self.shared.coded.rule.gap);
        let values = desk.scratch.values.take(NEAR * dv);
        pack::stage_rows(s, self.keys.values, self.keys.head, self.keys.first + keys.start..self.keys.first + keys.end, values);
        let [weights, slopes] = &mut desk.near;
        let (near_weights, near_slopes) = (weights.take(NEAR * padded), slopes.take(NEAR * padded));
        near_weights.fill(0.0);
        near_slopes.fill(0.0);
        let (weights, d_ot, delta) = (desk.scratch.weights.get(padded * codes), desk.d_ot.get(padded * width), desk.delta.get(padded));
        for i in 0..padded / lanes {
            let at = &desk.scratch.positions.get(padded)[i * lanes..(i + 1) * lanes];
            let seen = near.within(keys.clone(), gap, (at[0], at[lanes - 1]));
            let at = [s.load_i(at), s.load_i(&at[S::N..])];
            let delta = [s.load(&delta[i * lanes..]), s.load(&delta[i * lanes + S::N..])];
            let (first, last) = ((seen.start - keys.start) / R * R, seen.end - keys.start);
            for tile in (first..last).step_by(R) {
                let panel = Rows::new(&d_ot[i * width * lanes..], lanes);
                let x = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], Along(Rows::new(&values[tile * dv..], dv)), panel, width);
                for (r, x) in x.into_iter().enumerate().take(keys.len() - tile) {
                    let key = keys.start + tile + r;
                    let (first, last) = near.seen_by(key, gap);
                    let row = &weights[(i * codes + self.keys.codes[key] as usize) * lanes..][..lanes];
                    for c in 0..2 {
                        let mask = s.between(at[c], first, last);
                        let weight = s.load(&row[c * S::N..]);
                        let into = (tile + r) * padded + i * lanes + c * S::N;
                        s.store(&mut near_weights[into..], s.keep(mask, weight));
                        s.store(&mut near_slopes[into..], s.keep(mask, s.mul(weight, s.sub(x[c], delta[c]))));
                    }
                }
            }
        }
    }

    /// `scale Σ_s dS_is C_s`.
    #[inline(always)]
    fn write_dq<S: Lanes, const R: usize>(&self, s: S, desk: &mut Desk) {
        let Some(dq) = &self.shared.dq else { return };
        let Sizes { rows, lanes, padded, codes, widths: [dk, _] } = self.sizes::<S>();
        let codewords = &self.shared.coded.codewords[self.keys.head[1]];
        let slopes = desk.slopes.get(padded * codes);
        let acc = desk.acc[0].take(padded * dk);
        acc.fill(0.0);
        for start in (0..codes).step_by(CODES) {
            let steps = CODES.min(codes - start);
            for i in 0..padded / lanes {
                for group in (0..lanes.min(rows - i * lanes)).step_by(R) {
                    let acc = &mut acc[(i * lanes + group) * dk..][..R * dk];
                    let slopes = Across(Rows::new(&slopes[(i * codes + start) * lanes + group..], lanes));
                    add_product::<S, R>(s, (acc, dk), slopes, codewords.rows().from(start), steps);
                }
            }
        }
        let scale = s.splat(self.shared.coded.scale);
        for (row, n) in acc.chunks_mut(dk).zip(self.block.rows.clone()) {
            for x in row.chunks_mut(S::N) {
                let scaled = s.mul(s.load(x), scale);
                s.store(x, scaled);
            }
            dq.write(self.keys.head[0], self.h, n, |_| &row[..self.shared.coded.dims.dk]);
        }
    }
}
