//! Decode: few queries over many keys, bound by reading K and V once.
//!
//! Values lie in the lanes, as they do in memory or, of 16 bits, in the order in which two registers are loaded at the least cost: up to
//! four query rows (heads of a group, or several queries) share each row of K and V that is read. Queries and keys of bf16 are multiplied in
//! pairs where the forward pass does so. Keys are split into parts of fixed size that threads take; a part leaves its maximum, sum and
//! unnormalised output, and the parts of a row are merged in order, so the bits do not depend on threads.
//!
//! A hidden value has weight zero, and zero times infinity is not a number. So a part whose output is not finite is computed once
//! more, *guarded*: a value that is not finite is added to the rows that see it only.

use super::dropout::Mask;
use super::forward::takes_pairs;
use super::pack::pair_neighbours;
use crate::par::Jobs;
use crate::problem::Output;
use crate::sight::Scope;
use crate::simd::{Aligned, Form, LINE, Lanes, MOST_LANES, Pairs, Singles, Task, asks_early, dispatch};
use crate::view::{DisjointRows, Element, Strided, StridedMut, View};
use crate::{Par, Problem};
use half::bf16;
use std::cell::RefCell;
use std::f32::consts::LOG2_E;
use std::marker::PhantomData;
use std::ops::Range;

/// Keys of a part.
const PART: usize = 2048;
/// Keys between two updates of the maximum.
const STRIP: usize = 32;
/// Rows between what is read and what is asked for, where that pays.
const AHEAD: usize = 16;
/// Query rows that share a read of K and V.
const SHARE: usize = 4;
/// Query rows per kv head up to which this path is taken.
const FEW: usize = 8;

/// Whether reading dominates: few query rows for each kv head.
pub(super) fn suits(problem: &Problem<'_>) -> bool {
    let dims = &problem.dims;
    dims.queries * dims.group() <= FEW && dims.keys > 0 && dims.queries > 0 && problem.sight.offsets.is_none()
}

/// Runs the decode path; shapes are checked. Queries and keys of bf16 are multiplied in pairs where that is faster.
pub(super) fn run(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) {
    if takes_pairs(problem, par) { run_in::<Pairs>(problem, out, par) } else { run_in::<Singles>(problem, out, par) }
}

/// The same with products of one form.
fn run_in<M: Form>(problem: &Problem<'_>, out: &mut Output<'_>, par: Par) {
    let dims = problem.dims;
    let rows = dims.queries * dims.group();
    let parts = dims.keys.div_ceil(PART);
    let width = dims.dv + 2;
    let caches = dims.batch * dims.kv_heads;
    let mut values = vec![0.0f32; caches * parts * rows * width];
    let mut partial = StridedMut::contiguous(&mut values, [1, caches, parts, rows * width], "parts").expect("parts are sized");
    let pieces: Vec<Range<usize>> = (0..parts).map(|part| part..part + 1).collect();
    let shared = Shared { problem, parts: DisjointRows::new(&mut partial, &pieces) };
    par.run(caches * parts, super::flops(problem), |jobs| {
        SCRATCH
            .with_borrow_mut(|scratch| M::dispatch(par.level_in_use(), Worker::<M> { shared: &shared, jobs, scratch, form: PhantomData }));
    });
    drop(shared);
    dispatch(par.level_in_use(), Merge { problem, values: &values, parts, out });
}

struct Shared<'a> {
    problem: &'a Problem<'a>,
    /// `[1, B·G, parts, rows·(Dv + 2)]`: output, maximum in units of log2, sum.
    parts: DisjointRows<'a, f32>,
}

/// Working memory of a thread.
#[derive(Default)]
struct Scratch {
    q: Aligned<f32>,
    o: Aligned<f32>,
    row: Aligned<f32>,
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
        let problem = self.shared.problem;
        let dims = &problem.dims;
        let caches = dims.batch * dims.kv_heads;
        let rows = dims.queries * dims.group();
        while let Some(job) = self.jobs.take() {
            let (cache, part) = (job % caches, job / caches);
            let (b, g) = (cache / dims.kv_heads, cache % dims.kv_heads);
            let mut claim = self.shared.parts.claim(0, cache, part);
            let out = claim.row(0);
            let scope = problem.sight.scope(dims, b, g);
            for first in (0..rows).step_by(SHARE) {
                let count = SHARE.min(rows - first);
                for row in first..first + count {
                    out[row * (dims.dv + 2) + dims.dv] = f32::NEG_INFINITY;
                }
                let keys = part * PART..dims.keys.min((part + 1) * PART);
                let mut part = Part { problem, scope: &scope, b, g, first, count, keys, guarded: false };
                let out = &mut out[first * (dims.dv + 2)..(first + count) * (dims.dv + 2)];
                if !part.attend::<S, M>(s, &mut *self.scratch, out) {
                    part.guarded = true;
                    part.attend::<S, M>(s, &mut *self.scratch, out);
                }
            }
        }
    }
}

/// Up to four query rows of one kv head over one part of its keys.
struct Part<'a> {
    problem: &'a Problem<'a>,
    scope: &'a Scope<'a>,
    b: usize,
    g: usize,
    /// First query row: `query · group + head of the group`.
    first: usize,
    count: usize,
    keys: Range<usize>,
    /// See the head of this file.
    guarded: bool,
}

impl Part<'_> {
    /// Query head and query of a row.
    fn place(&self, row: usize) -> [usize; 2] {
        let group = self.problem.dims.group();
        [self.g * group + row % group, row / group]
    }

    /// Leaves output, maximum and sum of every row in `out`; whether all outputs are finite.
    #[inline(always)]
    fn attend<S: Lanes, M: Form>(&self, s: S, scratch: &mut Scratch, out: &mut [f32]) -> bool {
        if M::PER_LANE == 2 {
            let (View::Bf16(k), View::Bf16(v)) = (self.problem.k, self.problem.v) else { unreachable!("pairs are of bf16") };
            return self.attend_to::<S, M, _, _>(s, (Neighbours(k), v), scratch, out);
        }
        match (self.problem.k, self.problem.v) {
            (View::F32(k), View::F32(v)) => self.attend_to::<S, M, _, _>(s, (k, v), scratch, out),
            (View::Bf16(k), View::Bf16(v)) => self.attend_to::<S, M, _, _>(s, (k, v), scratch, out),
            (View::F16(k), View::F16(v)) => self.attend_to::<S, M, _, _>(s, (k, v), scratch, out),
            _ => unreachable!("k and v share a dtype"),
        }
    }

    #[inline(always)]
    fn attend_to<'a, S: Lanes, M: Form, K: Stored<'a>, T: Element>(
        &self,
        s: S,
        (k, v): (K, Strided<'a, T>),
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> bool {
        let dims = &self.problem.dims;
        let (mut k, mut values) = (Cache::of(s, k), Cache::of(s, v));
        let (dk, dv) = (k.width, values.width);
        let q = scratch.q.take(SHARE * dk);
        let factor = self.stage_queries::<S, M>(s, Order::of::<S, K::Element>(s), q);
        let o = scratch.o.take(SHARE * dv);
        o.fill(0.0);
        let row = scratch.row.take(dv);
        let mut softmax = Softmax { maximum: [f32::NEG_INFINITY; SHARE], sum: [0.0; SHARE], o };
        let keys = self.keys.start.max(self.scope.keys.start)..self.keys.end.min(self.scope.keys.end);
        let mut positions = [0; SHARE];
        for (i, position) in positions.iter_mut().enumerate().take(self.count) {
            *position = self.scope.query_position(self.place(self.first + i)[1]);
        }
        let (low, high) = super::softmax::bounds(&positions[..self.count]);
        for range in self.scope.candidates(low, high) {
            let range = range.start.max(keys.start)..range.end.min(keys.end);
            if !range.is_empty() {
                let caches = (&mut k, &mut values);
                s.vectorize(Sweep { part: self, caches, q: (q, factor), range, row, softmax: &mut softmax, form: PhantomData::<M> });
            }
        }
        for (i, to) in out.chunks_exact_mut(dims.dv + 2).enumerate() {
            let o = &mut softmax.o[i * dv..(i + 1) * dv];
            if let (Some(order), false) = (Order::of::<S, T>(s), self.guarded) {
                order.restore(o);
            }
            copy(s, o, &mut to[..dims.dv]);
            to[dims.dv] = softmax.maximum[i];
            to[dims.dv + 1] = softmax.sum[i];
        }
        super::pack::is_finite(s, &softmax.o[..self.count * dv])
    }

    /// The query rows as products of `M` take them, in the order in which keys are loaded, with zeros in place of absent ones; what the
    /// products are still to be multiplied by, as pairs stay as they stand.
    #[inline(always)]
    fn stage_queries<S: Lanes, M: Form>(&self, s: S, order: Option<Order>, q: &mut [f32]) -> f32 {
        let dk = q.len() / SHARE;
        q.fill(0.0);
        let factor = if self.problem.softcap().is_some() { self.problem.scale() } else { self.problem.scale() * LOG2_E };
        for (i, q) in q.chunks_exact_mut(dk).enumerate().take(self.count) {
            let [h, n] = self.place(self.first + i);
            if let (View::Bf16(from), 2) = (self.problem.q, M::PER_LANE) {
                pair_neighbours(&from, [self.b, h, n], &mut q[..M::rows(self.problem.dims.dk)]);
                continue;
            }
            self.problem.q.widen_row(s, [self.b, h, n], q);
            for x in q.chunks_exact_mut(S::N) {
                let scaled = s.mul(s.load(x), s.splat(factor));
                s.store(x, scaled);
            }
            if let Some(order) = &order {
                order.arrange(q);
            }
        }
        if M::PER_LANE == 2 { factor } else { 1.0 }
    }
}

/// Copies the front of `from`, which is whole registers long, without a call.
#[inline(always)]
fn copy<S: Lanes>(s: S, from: &[f32], to: &mut [f32]) {
    let (length, whole) = (to.len(), to.len() / S::N * S::N);
    for at in (0..whole).step_by(S::N) {
        s.store(&mut to[at..], s.load(&from[at..]));
    }
    if whole < length {
        to[whole..].copy_from_slice(&from[whole..length]);
    }
}

/// The order in which rows are loaded, where that is two registers at a time and not the order in which their elements stand: a dot
/// product does not mind it, and an output is put in order once.
struct Order {
    /// Elements of two registers.
    size: usize,
    places: [usize; 2 * MOST_LANES],
}

impl Order {
    /// None where rows are loaded as they stand.
    #[inline(always)]
    fn of<S: Lanes, T: Element>(s: S) -> Option<Self> {
        if T::as_f32(&[]).is_some() {
            return None;
        }
        let (mut count, mut places) = ([T::default(); 2 * MOST_LANES], [0.0f32; 2 * MOST_LANES]);
        for (i, count) in count.iter_mut().enumerate() {
            *count = T::from_f32(i as f32);
        }
        let [lower, upper] = T::load_two(s, &count);
        s.store(&mut places, lower);
        s.store(&mut places[S::N..], upper);
        let mut order = Order { size: 2 * S::N, places: [0; 2 * MOST_LANES] };
        for (to, place) in order.places.iter_mut().zip(places) {
            *to = place as usize;
        }
        Some(order)
    }

    /// Puts a row in this order.
    fn arrange(&self, row: &mut [f32]) {
        let mut from = [0.0f32; 2 * MOST_LANES];
        for part in row.chunks_exact_mut(self.size) {
            from[..self.size].copy_from_slice(part);
            for (to, place) in part.iter_mut().zip(self.places) {
                *to = from[place];
            }
        }
    }

    /// Puts a row back in order.
    fn restore(&self, row: &mut [f32]) {
        let mut from = [0.0f32; 2 * MOST_LANES];
        for part in row.chunks_exact_mut(self.size) {
            from[..self.size].copy_from_slice(part);
            for (x, place) in from.iter().zip(self.places).take(self.size) {
                part[place] = *x;
            }
        }
    }
}

/// Running softmax of up to four rows.
struct Softmax<'a> {
    maximum: [f32; SHARE],
    sum: [f32; SHARE],
    o: &'a mut [f32],
}

/// Some keys of one part, in strips.
struct Sweep<'a, 'b, 'c, M, K: Stored<'c>, T: Element> {
    part: &'a Part<'a>,
    caches: (&'a mut Cache<'c, K>, &'a mut Cache<'c, Strided<'c, T>>),
    /// Query rows, and what is still to multiply their products by.
    q: (&'a [f32], f32),
    range: Range<usize>,
    /// Room for a row of values in f32.
    row: &'a mut [f32],
    softmax: &'a mut Softmax<'b>,
    form: PhantomData<M>,
}

impl<'c, M: Form, K: Stored<'c>, T: Element> Task for Sweep<'_, '_, 'c, M, K, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Sweep { part, caches: (k, v), q, range, row, softmax, .. } = self;
        let at = [part.b, part.g];
        let all = (0..part.count).all(|i| part.takes_as_they_are(&range, i));
        for start in range.clone().step_by(STRIP) {
            let strip = start..range.end.min(start + STRIP);
            let mut logits = [[f32::NEG_INFINITY; STRIP]; SHARE];
            let rows = k.strip(s, at, strip.clone());
            match part.count {
                1 => scores::<S, M, K::Element, 1>(s, &rows, q, strip.len(), &mut logits),
                2 => scores::<S, M, K::Element, 2>(s, &rows, q, strip.len(), &mut logits),
                _ => scores::<S, M, K::Element, 4>(s, &rows, q, strip.len(), &mut logits),
            }
            if !all {
                part.finish_scores(&strip, &mut logits);
            }
            let mut weights = [[0.0f32; STRIP]; SHARE];
            for i in 0..part.count {
                weigh(s, softmax, i, (&logits[i], strip.len()), &mut weights[i]);
            }
            part.drop_weights(&strip, &mut weights);
            if part.guarded {
                gather_guarded(s, (&v.rows, at), (&weights, &logits), (strip, &mut *row), softmax.o);
                continue;
            }
            let (rows, weights) = (v.strip(s, at, strip.clone()), (&weights, strip.len()));
            match part.count {
                1 => gather::<S, T, 1>(s, &rows, weights, softmax.o),
                2 => gather::<S, T, 2>(s, &rows, weights, softmax.o),
                _ => gather::<S, T, 4>(s, &rows, weights, softmax.o),
            }
        }
    }
}

impl Part<'_> {
    /// Whether scores are more than the scaled product over visible keys.
    fn is_plain(&self) -> bool {
        let problem = self.problem;
        let extras = problem.softcap().is_some() || problem.has_alibi() || problem.bias().is_some() || problem.dense_mask().is_some();
        !extras && problem.key_bias(self.b, self.g).is_none()
    }

    /// Whether a row's scores of these keys are the scaled products, all of them visible.
    fn takes_as_they_are(&self, keys: &Range<usize>, i: usize) -> bool {
        let n = self.place(self.first + i)[1];
        let position = self.scope.query_position(n);
        self.is_plain() && self.scope.sees_all(keys.clone(), position, position) && n < self.scope.queries.end
    }

    /// Soft-cap, biases and visibility of a strip; logits are in units of log2 afterwards.
    fn finish_scores(&self, strip: &Range<usize>, logits: &mut [[f32; STRIP]; SHARE]) {
        let plain = self.is_plain();
        for (i, row) in logits.iter_mut().enumerate().take(self.count) {
            if self.takes_as_they_are(strip, i) {
                continue;
            }
            let [h, n] = self.place(self.first + i);
            for (x, key) in row.iter_mut().zip(strip.clone()) {
                if !plain {
                    *x = self.rich_score(*x, [h, n], key);
                }
                if !self.scope.sees(n, key) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn rich_score(&self, x: f32, [h, n]: [usize; 2], key: usize) -> f32 {
        let problem = self.problem;
        if problem.dense_mask().is_some_and(|mask| mask.at([self.b, h, n, key]) == 0) {
            return f32::NEG_INFINITY;
        }
        let key_bias = problem.key_bias(self.b, self.g).map_or(0.0, |bias| bias[key]);
        let bias = problem.bias().map_or(0.0, |bias| bias.at([self.b, h, n, key]));
        if key_bias == f32::NEG_INFINITY || bias == f32::NEG_INFINITY {
            return f32::NEG_INFINITY;
        }
        let capped = problem.softcap().map_or(x, |cap| cap * (x / cap).tanh() * LOG2_E);
        let distance = (self.scope.query_position(n) - self.scope.key_position(key)).abs() as f32;
        capped + (key_bias + bias) * LOG2_E - problem.slope(h) * distance
    }

    fn drop_weights(&self, strip: &Range<usize>, weights: &mut [[f32; STRIP]; SHARE]) {
        let Some(mask) = self.problem.dropout().map(Mask::new) else { return };
        for (i, row) in weights.iter_mut().enumerate().take(self.count) {
            let [h, n] = self.place(self.first + i);
            let hash = mask.row(self.scope.sequence, h, n - self.scope.queries.start);
            for (x, key) in row.iter_mut().zip(strip.clone()) {
                *x *= mask.weight(hash, key - self.scope.keys.start);
            }
        }
    }
}

/// `q·k` of `Q` rows with every key of a strip.
#[inline(always)]
fn scores<S: Lanes, M: Form, T: Element, const Q: usize>(
    s: S,
    rows: &WholeRows<'_, T>,
    q: (&[f32], f32),
    count: usize,
    logits: &mut [[f32; STRIP]; SHARE],
) {
    if !S::SPECIALISED {
        return scores_of_rows::<S, M, T, Q, 0>(s, rows, q, count, logits);
    }
    match (rows.width / (2 * S::N), rows.width % (2 * S::N)) {
        (1, 0) => scores_of_rows::<S, M, T, Q, 1>(s, rows, q, count, logits),
        (2, 0) => scores_of_rows::<S, M, T, Q, 2>(s, rows, q, count, logits),
        (3, 0) => scores_of_rows::<S, M, T, Q, 3>(s, rows, q, count, logits),
        (4, 0) => scores_of_rows::<S, M, T, Q, 4>(s, rows, q, count, logits),
        _ => scores_of_rows::<S, M, T, Q, 0>(s, rows, q, count, logits),
    }
}

/// The same of keys that are `P` pairs of registers wide, or as wide as they are if `P` is 0.
///
/// Memory delivers four rows in turns a third more slowly than one row after another (Zen 4). So queries are loaded before the loop, and where
/// they do not all stay in registers a loop over keys with questions has no fixed length: else the compiler shares loads among keys and reads those in
/// turns.
#[inline(always)]
fn scores_of_rows<S: Lanes, M: Form, T: Element, const Q: usize, const P: usize>(
    s: S,
    rows: &WholeRows<'_, T>,
    (q, factor): (&[f32], f32),
    count: usize,
    logits: &mut [[f32; STRIP]; SHARE],
) {
    let mut queries = [[[s.zero(); 2]; P]; Q];
    for i in 0..Q {
        for p in 0..P {
            let q = &q[(i * P + p) * 2 * S::N..];
            queries[i][p] = [s.load(q), s.load(&q[S::N..])];
        }
    }
    if let (Some(values), true) = (rows.end_to_end(count), Q > 1 && P * Q >= 8 && count == STRIP) {
        return scores_end_to_end::<S, M, T, Q, P>(s, values, (&queries, factor), logits);
    }
    for slot in (0..count).step_by(4) {
        let slots = slot..count.min(slot + 4);
        let mut sums = [[s.zero(); 4]; Q];
        if P > 0 && P * Q <= 8 && slots.len() == 4 {
            for (key, slot) in (slot..slot + 4).enumerate() {
                let dots = multiply_pairs::<S, M, T, Q, P>(s, rows.at(s, slot), &queries);
                for i in 0..Q {
                    sums[i][key] = dots[i];
                }
            }
        } else {
            for (key, slot) in slots.clone().enumerate() {
                let row = rows.at(s, slot);
                let dots = if P > 0 { multiply_pairs::<S, M, T, Q, P>(s, row, &queries) } else { multiply::<S, M, T, Q>(s, row, q) };
                for i in 0..Q {
                    sums[i][key] = dots[i];
                }
            }
        }
        write_sums(s, (&sums, factor), slots, logits);
    }
}

/// The same of a whole strip without gaps, with queries that fill the registers or more: of known length and free of questions, so that
/// loads stand close together. Keys of fewer queries the compiler would read from the last of four to the first, at half the speed.
#[inline(always)]
fn scores_end_to_end<S: Lanes, M: Form, T: Element, const Q: usize, const P: usize>(
    s: S,
    keys: &[T],
    (queries, factor): (&[[[S::F; 2]; P]; Q], f32),
    logits: &mut [[f32; STRIP]; SHARE],
) {
    let width = P * 2 * S::N;
    let keys = &keys[..STRIP * width];
    for slot in (0..STRIP).step_by(4) {
        let mut sums = [[s.zero(); 4]; Q];
        for key in 0..4 {
            let dots = multiply_pairs::<S, M, T, Q, P>(s, &keys[(slot + key) * width..][..width], queries);
            for i in 0..Q {
                sums[i][key] = dots[i];
            }
        }
        write_sums(s, (&sums, factor), slot..slot + 4, logits);
    }
}

/// Lane by lane, what `q·k` of `Q` rows with one key comes to.
#[inline(always)]
fn multiply<S: Lanes, M: Form, T: Element, const Q: usize>(s: S, row: &[T], q: &[f32]) -> [S::F; Q] {
    let mut sums = [s.zero(); Q];
    let pairs = row.chunks_exact(2 * S::N);
    let last = pairs.remainder();
    for (p, pair) in pairs.enumerate() {
        let [lower, upper] = T::load_two(s, pair);
        for (i, sum) in sums.iter_mut().enumerate() {
            let q = &q[i * row.len() + p * 2 * S::N..];
            *sum = M::multiply_add(s, s.load(&q[S::N..]), upper, M::multiply_add(s, s.load(q), lower, *sum));
        }
    }
    if !last.is_empty() {
        let last = T::load(s, last);
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = M::multiply_add(s, s.load(&q[(i + 1) * row.len() - S::N..]), last, *sum);
        }
    }
    sums
}

/// The same of a key of `P` pairs of registers, with queries that are loaded.
#[inline(always)]
fn multiply_pairs<S: Lanes, M: Form, T: Element, const Q: usize, const P: usize>(
    s: S,
    row: &[T],
    queries: &[[[S::F; 2]; P]; Q],
) -> [S::F; Q] {
    let row = &row[..P * 2 * S::N];
    let mut sums = [s.zero(); Q];
    for p in 0..P {
        let pair = T::load_two(s, &row[p * 2 * S::N..]);
        for half in 0..2 {
            for i in 0..Q {
                sums[i] = M::multiply_add(s, queries[i][p][half], pair[half], sums[i]);
            }
        }
    }
    sums
}

/// Writes the sums over lanes of up to four keys' products with every row.
#[inline(always)]
fn write_sums<S: Lanes, const Q: usize>(
    s: S,
    (sums, factor): (&[[S::F; 4]; Q], f32),
    slots: Range<usize>,
    logits: &mut [[f32; STRIP]; SHARE],
) {
    let rows = S::N / 4;
    if Q < rows {
        for (logits, sums) in logits.iter_mut().zip(sums) {
            let mut found = [0.0; 4];
            s.sum_four(*sums, &mut found);
            let found = found.map(|x| x * factor);
            logits[slots.clone()].copy_from_slice(&found[..slots.len()]);
        }
        return;
    }
    for first in (0..Q).step_by(rows) {
        let (mut registers, mut found) = ([s.zero(); MOST_LANES], [0.0; MOST_LANES]);
        for at in 0..S::N {
            registers[at] = sums[first + at / 4][at % 4];
        }
        s.store(&mut found, s.mul(s.sums(&registers), s.splat(factor)));
        for i in 0..rows {
            logits[first + i][slots.clone()].copy_from_slice(&found[i * 4..][..slots.len()]);
        }
    }
}

/// Rows of a cache as they are stored, and as products read them.
trait Stored<'a>: Copy {
    type Element: Element;

    /// Elements of a row.
    fn width(&self) -> usize;
    /// The rows where they stand, if they can be read there.
    fn standing(&self) -> Option<Strided<'a, Self::Element>>;
    /// Writes row `at = [b, g, n]`.
    fn write(&self, at: [usize; 3], into: &mut [Self::Element]);
}

impl<'a, T: Element> Stored<'a> for Strided<'a, T> {
    type Element = T;

    fn width(&self) -> usize {
        self.shape()[3]
    }
    fn standing(&self) -> Option<Strided<'a, T>> {
        Some(*self)
    }
    #[inline(always)]
    fn write(&self, [b, g, n]: [usize; 3], into: &mut [T]) {
        match self.row(b, g, n) {
            Some(row) => into.copy_from_slice(row),
            None => into.iter_mut().enumerate().for_each(|(d, to)| *to = self.at([b, g, n, d])),
        }
    }
}

/// Rows of bf16 as pairs of neighbours.
#[derive(Clone, Copy)]
struct Neighbours<'a>(Strided<'a, bf16>);

impl<'a> Stored<'a> for Neighbours<'a> {
    type Element = f32;

    fn width(&self) -> usize {
        Pairs::rows(self.0.shape()[3])
    }
    fn standing(&self) -> Option<Strided<'a, f32>> {
        self.0.as_pairs()
    }
    #[inline(always)]
    fn write(&self, at: [usize; 3], into: &mut [f32]) {
        pair_neighbours(&self.0, at, into);
    }
}

/// The rows of a cache in strips of whole registers: where they stand if they do so, else copied and padded with zeros, so that the sums
/// are the same wherever they lie.
struct Cache<'a, C: Stored<'a>> {
    rows: C,
    standing: Option<Strided<'a, C::Element>>,
    width: usize,
    room: Aligned<C::Element>,
    /// Whether rows are asked for [`AHEAD`] rows before they are read.
    early: bool,
}

impl<'a, C: Stored<'a>> Cache<'a, C> {
    #[inline(always)]
    fn of<S: Lanes>(_: S, rows: C) -> Self {
        let width = rows.width().next_multiple_of(S::N);
        let standing = rows.standing().filter(|standing| rows.width() == width && standing.has_rows());
        Cache { rows, standing, width, room: Aligned::new(), early: asks_early() }
    }

    #[inline(always)]
    fn strip<S: Lanes>(&mut self, _: S, [b, g]: [usize; 2], strip: Range<usize>) -> WholeRows<'_, C::Element> {
        let (width, early) = (self.width, self.early);
        if let Some((values, stride)) = self.standing.and_then(|standing| standing.rows(b, g, strip.clone())) {
            return WholeRows { values, stride, width, early };
        }
        let values = self.room.take(STRIP * width);
        for (row, n) in values.chunks_exact_mut(width).zip(strip) {
            self.rows.write([b, g, n], &mut row[..self.rows.width()]);
        }
        WholeRows { values, stride: width, width, early: false }
    }
}

/// Rows that are loaded where they stand, two registers at a time and perhaps one at the end.
struct WholeRows<'a, T> {
    values: &'a [T],
    stride: usize,
    width: usize,
    /// See [`Cache::early`].
    early: bool,
}

impl<'a, T: Element> WholeRows<'a, T> {
    /// The first rows, if they leave no gaps and none is asked for early: a loop over them needs nothing but loads, and the fewer other
    /// instructions stand between loads the more of these are under way.
    #[inline(always)]
    fn end_to_end(&self, count: usize) -> Option<&'a [T]> {
        (self.stride == self.width && !self.early).then(|| &self.values[..count * self.width])
    }

    /// A row; asks for the one some rows after it, where that pays.
    #[inline(always)]
    fn at<S: Lanes>(&self, s: S, row: usize) -> &'a [T] {
        if self.early {
            let ahead = self.values.as_ptr().wrapping_add((row + AHEAD) * self.stride);
            for at in (0..self.width).step_by(LINE * size_of::<f32>() / size_of::<T>()) {
                s.prefetch(ahead.wrapping_add(at));
            }
        }
        &self.values[row * self.stride..][..self.width]
    }
}

/// Turns the first `count` logits of one row into weights relative to its running maximum; the others are -inf.
#[inline(always)]
fn weigh<S: Lanes>(s: S, softmax: &mut Softmax<'_>, i: usize, (logits, count): (&[f32; STRIP], usize), weights: &mut [f32; STRIP]) {
    let mut top = s.load(logits);
    for at in (S::N..count).step_by(S::N) {
        top = s.max(s.load(&logits[at..]), top);
    }
    let top = s.largest(top);
    if top > softmax.maximum[i] {
        if softmax.maximum[i] != f32::NEG_INFINITY {
            softmax.rescale(s, i, (softmax.maximum[i] - top).exp2());
        }
        softmax.maximum[i] = top;
    }
    let base = if softmax.maximum[i] == f32::NEG_INFINITY { 0.0 } else { softmax.maximum[i] };
    let mut sum = s.zero();
    for at in (0..count).step_by(S::N) {
        let e = s.exp2(s.sub(s.load(&logits[at..]), s.splat(base)));
        sum = s.add(sum, e);
        s.store(&mut weights[at..], e);
    }
    softmax.sum[i] += s.sum(sum);
}

impl Softmax<'_> {
    /// Multiplies what row `i` has gathered.
    #[inline(always)]
    fn rescale<S: Lanes>(&mut self, s: S, i: usize, factor: f32) {
        let dv = self.o.len() / SHARE;
        for x in self.o[i * dv..(i + 1) * dv].chunks_mut(S::N) {
            let scaled = s.mul(s.load(x), s.splat(factor));
            s.store(x, scaled);
        }
        self.sum[i] *= factor;
    }
}

/// Adds the weighted values of a strip to `Q` outputs.
#[inline(always)]
fn gather<S: Lanes, T: Element, const Q: usize>(s: S, rows: &WholeRows<'_, T>, weights: (&[[f32; STRIP]; SHARE], usize), o: &mut [f32]) {
    let width = rows.width;
    let mut d = 0;
    while S::SPECIALISED && d + 8 * S::N <= width {
        gather_pairs::<S, T, Q, 4>(s, rows, d, weights, o);
        d += 8 * S::N;
    }
    if S::SPECIALISED && d + 4 * S::N <= width {
        gather_pairs::<S, T, Q, 2>(s, rows, d, weights, o);
        d += 4 * S::N;
    }
    while d + 2 * S::N <= width {
        gather_pairs::<S, T, Q, 1>(s, rows, d, weights, o);
        d += 2 * S::N;
    }
    if d < width {
        gather_last::<S, T, Q>(s, rows, d, weights, o);
    }
}

/// The same for all rows, one value after another, where those that are not finite go to the rows that see them.
#[inline(always)]
fn gather_guarded<S: Lanes, T: Element>(
    s: S,
    (v, [b, g]): (&Strided<'_, T>, [usize; 2]),
    (weights, logits): (&[[f32; STRIP]; SHARE], &[[f32; STRIP]; SHARE]),
    (strip, row): (Range<usize>, &mut [f32]),
    o: &mut [f32],
) {
    let width = v.shape()[3];
    let padded = width.next_multiple_of(S::N);
    for slot in 0..strip.len() {
        v.widen_row(s, [b, g, strip.start + slot], row);
        row[width..padded].fill(0.0);
        let finite = super::pack::is_finite(s, &row[..padded]);
        for i in 0..SHARE {
            let o = &mut o[i * padded..(i + 1) * padded];
            if finite || logits[i][slot] != f32::NEG_INFINITY {
                for d in (0..padded).step_by(S::N) {
                    let sum = s.mul_add(s.splat(weights[i][slot]), s.load(&row[d..]), s.load(&o[d..]));
                    s.store(&mut o[d..], sum);
                }
            }
        }
    }
}

/// The same of `P` pairs of registers of columns from `d` on: as many rows at once as registers hold, so that values are read from end to
/// end.
#[inline(always)]
fn gather_pairs<S: Lanes, T: Element, const Q: usize, const P: usize>(
    s: S,
    rows: &WholeRows<'_, T>,
    d: usize,
    (weights, count): (&[[f32; STRIP]; SHARE], usize),
    o: &mut [f32],
) {
    if P < 4 || Q < 2 {
        return gather_rows::<S, T, Q, P>(s, rows, d, (weights.first_chunk().expect("four rows"), count), o);
    }
    let (twos, _) = weights[..Q].as_chunks();
    for (weights, o) in twos.iter().zip(o.chunks_exact_mut(2 * rows.width)) {
        gather_rows::<S, T, 2, P>(s, rows, d, (weights, count), o);
    }
}

/// The same of `Q` rows.
#[inline(always)]
fn gather_rows<S: Lanes, T: Element, const Q: usize, const P: usize>(
    s: S,
    rows: &WholeRows<'_, T>,
    d: usize,
    (weights, count): (&[[f32; STRIP]; Q], usize),
    o: &mut [f32],
) {
    let mut sums = [[[s.zero(); 2]; P]; Q];
    for (sums, o) in sums.iter_mut().zip(o.chunks_exact(rows.width)) {
        for (sum, o) in sums.iter_mut().zip(o[d..].chunks_exact(2 * S::N)) {
            *sum = [s.load(o), s.load(&o[S::N..])];
        }
    }
    let width = P * 2 * S::N;
    match rows.end_to_end(count) {
        Some(values) if rows.width == width => {
            for (slot, row) in values.chunks_exact(width).enumerate().take(STRIP) {
                add_values::<S, T, Q, P>(s, row, (weights, slot), &mut sums);
            }
        }
        _ => {
            for slot in 0..count.min(STRIP) {
                add_values::<S, T, Q, P>(s, &rows.at(s, slot)[d..][..width], (weights, slot), &mut sums);
            }
        }
    }
    for (sums, o) in sums.iter().zip(o.chunks_exact_mut(rows.width)) {
        for (sum, o) in sums.iter().zip(o[d..].chunks_exact_mut(2 * S::N)) {
            s.store(o, sum[0]);
            s.store(&mut o[S::N..], sum[1]);
        }
    }
}

/// Adds `P` pairs of registers of a weighted value to `Q` sums.
#[inline(always)]
fn add_values<S: Lanes, T: Element, const Q: usize, const P: usize>(
    s: S,
    row: &[T],
    (weights, slot): (&[[f32; STRIP]; Q], usize),
    sums: &mut [[[S::F; 2]; P]; Q],
) {
    for p in 0..P {
        let [lower, upper] = T::load_two(s, &row[p * 2 * S::N..]);
        for i in 0..Q {
            let weight = s.splat(weights[i][slot]);
            let [first, second] = sums[i][p];
            sums[i][p] = [s.mul_add(weight, lower, first), s.mul_add(weight, upper, second)];
        }
    }
}

/// The same of the last register of columns, at `d`.
#[inline(always)]
fn gather_last<S: Lanes, T: Element, const Q: usize>(
    s: S,
    rows: &WholeRows<'_, T>,
    d: usize,
    (weights, count): (&[[f32; STRIP]; SHARE], usize),
    o: &mut [f32],
) {
    for (weights, o) in weights[..Q].iter().zip(o.chunks_exact_mut(rows.width)) {
        let mut sum = s.load(&o[d..]);
        for (slot, weight) in weights[..count].iter().enumerate() {
            sum = s.mul_add(s.splat(*weight), T::load(s, &rows.at(s, slot)[d..]), sum);
        }
        s.store(&mut o[d..], sum);
    }
}

/// Merges the parts of every row in order and writes `o` and `lse`.
struct Merge<'a, 'b, 'c> {
    problem: &'a Problem<'a>,
    /// See [`Shared::parts`].
    values: &'a [f32],
    parts: usize,
    out: &'b mut Output<'c>,
}

impl Task for Merge<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Merge { problem, values, parts, out } = self;
        let dims = &problem.dims;
        let (group, width) = (dims.group(), dims.dv + 2);
        let rows = dims.queries * group;
        let whole = 0..dims.queries;
        let o = out.o.share(std::slice::from_ref(&whole));
        let (mut merged, mut factors) = (vec![0.0f32; dims.queries * dims.dv], vec![0.0f32; parts]);
        for head in 0..dims.batch * dims.heads {
            let (b, h) = (head / dims.heads, head % dims.heads);
            let cache = b * dims.kv_heads + h / group;
            for (n, to) in merged.chunks_exact_mut(dims.dv).enumerate() {
                let first = (cache * parts * rows + n * group + h % group) * width;
                let lse = Partials { values: &values[first..], step: rows * width }.merge(s, &mut factors, to);
                if let Some(all) = &mut out.lse {
                    all[head * dims.queries + n] = lse;
                }
            }
            o.write(b, h, 0, |n| &merged[n * dims.dv..(n + 1) * dims.dv]);
        }
    }
}

/// The partial results of one row: a result and what follows it every `step` values.
#[derive(Clone, Copy)]
struct Partials<'a> {
    values: &'a [f32],
    step: usize,
}

impl<'a> Partials<'a> {
    /// Result `part`: output, maximum, sum.
    #[inline(always)]
    fn of(self, part: usize, dv: usize) -> (&'a [f32], f32, f32) {
        let values = &self.values[part * self.step..][..dv + 2];
        (&values[..dv], values[dv], values[dv + 1])
    }

    /// Writes their sum to `to`, each multiplied by its factor; gives the log-sum-exp of all.
    #[inline(always)]
    fn merge<S: Lanes>(self, s: S, factors: &mut [f32], to: &mut [f32]) -> f32 {
        let dv = to.len();
        let mut top = f32::NEG_INFINITY;
        for part in 0..factors.len() {
            top = top.max(self.of(part, dv).1);
        }
        let mut total = 0.0;
        for (part, factor) in factors.iter_mut().enumerate() {
            let (_, maximum, sum) = self.of(part, dv);
            *factor = match sum {
                0.0 => 0.0,
                _ if maximum == top => 1.0,
                _ => (maximum - top).exp2(),
            };
            total += sum * *factor;
        }
        if total == 0.0 {
            to.fill(0.0);
            return f32::NEG_INFINITY;
        }
        self.add_up(s, (factors, 1.0 / total), to);
        ((f64::from(top) + f64::from(total).log2()) * std::f64::consts::LN_2) as f32
    }

    #[inline(always)]
    fn add_up<S: Lanes>(self, s: S, (factors, share): (&[f32], f32), to: &mut [f32]) {
        let dv = to.len();
        let whole = dv / S::N * S::N;
        for at in (0..whole).step_by(S::N) {
            let mut sum = s.zero();
            for (part, factor) in factors.iter().enumerate() {
                sum = s.mul_add(s.load(&self.of(part, dv).0[at..]), s.splat(*factor), sum);
            }
            s.store(&mut to[at..], s.mul(sum, s.splat(share)));
        }
        for (at, to) in to.iter_mut().enumerate().skip(whole) {
            let mut sum = 0.0;
            for (part, factor) in factors.iter().enumerate() {
                sum += self.of(part, dv).0[at] * factor;
            }
            *to = sum * share;
        }
    }
}
