//! In a window: blocks of queries meet the blocks of keys around them, forward and backward; what a query does not see is cleared.

use super::backward::{Rims, Slopes, divide, pull_keys, pull_queries};
use super::block::{Forms, Head, Place, inverse};
use super::job::{self, Job};
use super::plan::{Cuts, Sequence, Side, Stretch, pieces};
use super::tiles::{Multiply, Shape, Turn, add, dot, scale};
use super::{Scan, Wanted};
use crate::simd::{Across, Along, Lanes, Rows};
use crate::view::{DisjointRows, SharedRows, ViewMut};
use crate::{Par, Saved};
use std::ops::Range;

/// How far to the left and to the right.
type Reach = [usize; 2];

pub(super) fn forward(scan: &Scan<'_>, reach: Reach, o: &mut ViewMut<'_>, par: Par) {
    let cuts = scan.cuts_of(Side::Queries, scan.rules.block());
    let attend = Attend { scan, reach, cuts: &cuts, o: o.share(&cuts.blocks) };
    job::run(&attend, scan.dims.batch * scan.dims.heads * cuts.blocks.len(), scan.flops(), par);
}

/// The block of a job, as there is one in every part: batch row, head, block, and what is valid of it.
fn block<'a>(scan: &'a Scan<'a>, cuts: &Cuts, number: usize) -> (Head<'a>, usize, Range<usize>) {
    let (at, block) = (number / cuts.blocks.len(), number % cuts.blocks.len());
    let head = Head::new(scan, [at / scan.dims.heads, at % scan.dims.heads], &cuts.parts[block]);
    let rows = head.valid(&cuts.blocks[block]);
    (head, block, rows)
}

/// Clears what queries do not see among some keys.
fn hide(a: &mut [f32], sequence: &Sequence, (queries, keys): (&Range<usize>, &Range<usize>), [left, right]: Reach) {
    let tokens = a.len().isqrt();
    let first = (keys.start - sequence.keys.start) as isize;
    for (row, n) in a.chunks_exact_mut(tokens).zip(queries.clone()) {
        let own = sequence.position(n) - first;
        let clip = |position: isize| position.clamp(0, tokens as isize) as usize;
        let start = clip(own.saturating_sub_unsigned(left));
        row[..start].fill(0.0);
        row[clip(own.saturating_add_unsigned(right).saturating_add(1)).max(start)..].fill(0.0);
    }
}

/// `a = x yᵀ` over what a query sees, or `a += x yᵀ`.
struct Pairs<'a> {
    sequence: &'a Sequence,
    queries: &'a Range<usize>,
    keys: &'a Range<usize>,
    reach: Reach,
}

impl Pairs<'_> {
    #[inline(always)]
    fn meet<S: Lanes>(&self, s: S, [x, y]: [&[f32]; 2], adds: bool, (turned, a): (&mut [f32], &mut [f32])) {
        let tokens = a.len().isqrt();
        let width = x.len() / tokens;
        s.vectorize(Turn { from: y, into: turned, size: [tokens, width] });
        let (left, right) = (Along(Rows::new(x, width)), Rows::new(turned, tokens));
        s.vectorize(Multiply { a: left, b: right, c: a, stride: tokens, steps: width, shape: Shape::Full, adds });
        hide(a, self.sequence, (self.queries, self.keys), self.reach);
    }
}

struct Attend<'a> {
    scan: &'a Scan<'a>,
    reach: Reach,
    cuts: &'a Cuts,
    o: SharedRows<'a>,
}

impl Job for Attend<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let scan = self.scan;
        let (head, block, rows) = block(scan, self.cuts, number);
        let ([_, dv], tokens) = (scan.widths(), scan.rows());
        look_around(s, &head, &rows, self.reach, forms);
        let o = forms.o.take(tokens * dv);
        if let Some(epsilon) = scan.rules.epsilon {
            for (row, den) in o.chunks_exact_mut(dv).zip(forms.rims.get(tokens)) {
                scale(s, row, inverse(*den, epsilon));
            }
        }
        if o.iter().any(|x| !x.is_finite()) {
            one_by_one(s, &head, &rows, self.reach, forms);
        }
        let place = Place { at: [head.b, head.h, block], all: &self.cuts.blocks[block], valid: &rows };
        place.write(&self.o, (forms.o.get(tokens * dv), dv), &mut forms.zeros);
    }
}

/// Sums over the keys around some queries into `forms.o`, and of their weights into `forms.rims`.
#[inline(always)]
fn look_around<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, reach: Reach, forms: &mut Forms) {
    let (scan, tokens) = (head.scan, head.scan.rows());
    let [dk, dv] = scan.widths();
    let Forms { q, k, v, a, kt, o, rims, row, .. } = forms;
    let (q, k, v) = (q.take(tokens * dk), k.take(tokens * dk), v.take(tokens * dv));
    let (a, o, rims) = (a.take(tokens * tokens), o.take(tokens * dv), rims.take(tokens));
    head.queries(s, &Stretch::of(rows.clone()), q);
    o.fill(0.0);
    rims.fill(0.0);
    let ones = row.take(tokens);
    ones.fill(1.0);
    for keys in pieces(head.sequence.around(rows, reach), scan.rules.block()) {
        let stretch = Stretch::of(keys.clone());
        head.keys(s, &stretch, k);
        head.values(s, &stretch, v);
        let pairs = Pairs { sequence: head.sequence, queries: rows, keys: &keys, reach };
        pairs.meet(s, [q, k], false, (kt.take(tokens * dk), a));
        let (left, right) = (Along(Rows::new(a, tokens)), Rows::new(v, dv));
        s.vectorize(Multiply { a: left, b: right, c: o, stride: dv, steps: keys.len(), shape: Shape::Full, adds: true });
        for (row, den) in a.chunks_exact(tokens).zip(&mut *rims) {
            *den += dot(s, row, ones);
        }
    }
}

/// The same by the definition, for values that are not finite.
#[inline(always)]
fn one_by_one<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, reach: Reach, forms: &mut Forms) {
    let (scan, [dk, dv]) = (head.scan, head.scan.widths());
    let Forms { q, k, v, o, .. } = forms;
    let (q, o) = (q.take(scan.rows() * dk), o.take(scan.rows() * dv));
    let (k, v) = (k.take(dk), v.take(dv));
    for ((n, q), o) in rows.clone().zip(q.chunks_exact(dk)).zip(o.chunks_exact_mut(dv)) {
        let mut sum = 0.0;
        o.fill(0.0);
        for key in head.sequence.around(&(n..n + 1), [reach[0], reach[1]]) {
            let key = Stretch::of(key..key + 1);
            head.keys(s, &key, k);
            head.values(s, &key, v);
            let weight = dot(s, q, k);
            add(s, o, v, weight);
            sum += weight;
        }
        if let Some(epsilon) = scan.rules.epsilon {
            scale(s, o, inverse(sum, epsilon));
        }
    }
}

pub(super) fn backward(scan: &Scan<'_>, (saved, reach): (&Saved<'_>, Reach), wanted: Wanted<'_, '_>, par: Par) {
    let dims = scan.dims;
    let cuts = scan.cuts_of(Side::Queries, scan.rules.block());
    let count = dims.batch * dims.heads * cuts.blocks.len();
    let rims = Rims::fill(scan, |into| {
        let dividing = Dividing { scan, reach, cuts: &cuts, saved, into: DisjointRows::new(into, &cuts.blocks) };
        job::run(&dividing, count, scan.flops(), par);
    });
    let slopes = Slopes { saved, rims: &rims };
    if let Some(dq) = wanted.dq {
        job::run(&OfQueries { scan, reach, cuts: &cuts, slopes, dq: dq.share(&cuts.blocks) }, count, scan.flops(), par);
    }
    let cuts = scan.cuts_of(Side::Keys, scan.rules.block());
    let back = Back {
        scan,
        reach,
        cuts: &cuts,
        slopes,
        dk: wanted.dk.map(|dk| dk.share(&cuts.blocks)),
        dv: wanted.dv.map(|dv| dv.share(&cuts.blocks)),
    };
    job::run(&back, dims.batch * dims.kv_heads * cuts.blocks.len(), 2.0 * scan.flops(), par);
}

/// Finds the denominators.
struct Dividing<'a> {
    scan: &'a Scan<'a>,
    reach: Reach,
    cuts: &'a Cuts,
    saved: &'a Saved<'a>,
    into: DisjointRows<'a, f32>,
}

impl Job for Dividing<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (head, block, rows) = block(self.scan, self.cuts, number);
        look_around(s, &head, &rows, self.reach, forms);
        let (start, mut claim) = (self.cuts.blocks[block].start, self.into.claim(head.b, head.h, block));
        divide(s, &head, (&rows, 0), self.saved, forms, |n, pair| claim.row(n - start).copy_from_slice(&pair));
    }
}

/// Gradients of queries.
struct OfQueries<'a> {
    scan: &'a Scan<'a>,
    reach: Reach,
    cuts: &'a Cuts,
    slopes: Slopes<'a>,
    dq: SharedRows<'a>,
}

impl Job for OfQueries<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (head, block, rows) = block(self.scan, self.cuts, number);
        let ([dk, dv], tokens) = (self.scan.widths(), self.scan.rows());
        {
            let Forms { q, k, v, d_o, rims, da, vt, dq, .. } = &mut *forms;
            let (q, k, v) = (q.take(tokens * dk), k.take(tokens * dk), v.take(tokens * dv));
            let (d_o, dden, da, dq) = (d_o.take(tokens * dv), rims.take(tokens), da.take(tokens * tokens), dq.take(tokens * dk));
            head.queries(s, &Stretch::of(rows.clone()), q);
            self.slopes.load(s, &head, &rows, (d_o, dden));
            dq.fill(0.0);
            for keys in pieces(head.sequence.around(&rows, self.reach), self.scan.rules.block()) {
                let stretch = Stretch::of(keys.clone());
                head.keys(s, &stretch, k);
                head.values(s, &stretch, v);
                spread(da, dden);
                let pairs = Pairs { sequence: head.sequence, queries: &rows, keys: &keys, reach: self.reach };
                pairs.meet(s, [d_o, v], true, (vt.take(tokens * dv), da));
                let (a, b) = (Along(Rows::new(da, tokens)), Rows::new(k, dk));
                s.vectorize(Multiply { a, b, c: dq, stride: dk, steps: keys.len(), shape: Shape::Full, adds: true });
            }
        }
        pull_queries(s, &head, &rows, forms);
        let place = Place { at: [head.b, head.h, block], all: &self.cuts.blocks[block], valid: &rows };
        place.write(&self.dq, (forms.dq.get(tokens * dk), dk), &mut forms.zeros);
    }
}

/// Row i becomes `dden_i`.
fn spread(da: &mut [f32], dden: &[f32]) {
    da.chunks_exact_mut(dden.len()).zip(dden).for_each(|(row, dden)| row.fill(*dden));
}

/// Gradients of keys and values.
struct Back<'a> {
    scan: &'a Scan<'a>,
    reach: Reach,
    cuts: &'a Cuts,
    slopes: Slopes<'a>,
    dk: Option<SharedRows<'a>>,
    dv: Option<SharedRows<'a>>,
}

impl Job for Back<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (scan, dims) = (self.scan, self.scan.dims);
        let (at, block) = (number / self.cuts.blocks.len(), number % self.cuts.blocks.len());
        let [b, g] = [at / dims.kv_heads, at % dims.kv_heads];
        let ([dk, dv], tokens) = (scan.widths(), scan.rows());
        let (part, all) = (&self.cuts.parts[block], &self.cuts.blocks[block]);
        let head = Head::new(scan, [b, g * dims.group()], part);
        let valid = &head.sequence.keys;
        let start = all.start.clamp(valid.start, valid.end);
        let keys = start..all.end.clamp(start, valid.end);
        forms.dk.take(tokens * dk).fill(0.0);
        forms.dv.take(tokens * dv).fill(0.0);
        let stretch = Stretch::of(keys.clone());
        head.keys(s, &stretch, forms.k.take(tokens * dk));
        head.values(s, &stretch, forms.v.take(tokens * dv));
        for h in g * dims.group()..(g + 1) * dims.group() {
            let head = Head::new(scan, [b, h], part);
            for rows in pieces(head.sequence.facing(&keys, self.reach), scan.rules.block()) {
                self.meet(s, &head, (&rows, &keys), forms);
            }
        }
        let mut memory = std::mem::take(&mut forms.sums);
        let own = memory.take(tokens * dk);
        own.copy_from_slice(forms.dk.get(tokens * dk));
        pull_keys(s, &head, &keys, own, forms);
        let place = Place { at: [b, g, block], all, valid: &keys };
        if let Some(into) = &self.dk {
            place.write(into, (own, dk), &mut forms.zeros);
        }
        if let Some(into) = &self.dv {
            place.write(into, (forms.dv.get(tokens * dv), dv), &mut forms.zeros);
        }
        forms.sums = memory;
    }
}

impl Back<'_> {
    /// Adds what some queries give to a block of keys.
    #[inline(always)]
    fn meet<S: Lanes>(&self, s: S, head: &Head<'_>, (rows, keys): (&Range<usize>, &Range<usize>), forms: &mut Forms) {
        let ([dk, dv], tokens) = (self.scan.widths(), self.scan.rows());
        let Forms { q, k, v, d_o, rims, a, da, kt, vt, dk: d_k, dv: d_v, .. } = forms;
        let (q, k, v) = (q.take(tokens * dk), k.get(tokens * dk), v.get(tokens * dv));
        let (d_o, dden) = (d_o.take(tokens * dv), rims.take(tokens));
        let (a, da) = (a.take(tokens * tokens), da.take(tokens * tokens));
        head.queries(s, &Stretch::of(rows.clone()), q);
        self.slopes.load(s, head, rows, (d_o, dden));
        spread(da, dden);
        let pairs = Pairs { sequence: head.sequence, queries: rows, keys, reach: self.reach };
        pairs.meet(s, [q, k], false, (kt.take(tokens * dk), a));
        pairs.meet(s, [d_o, v], true, (vt.take(tokens * dv), da));
        let steps = rows.len();
        let (left, right) = (Across(Rows::new(a, tokens)), Rows::new(d_o, dv));
        s.vectorize(Multiply { a: left, b: right, c: d_v.take(tokens * dv), stride: dv, steps, shape: Shape::Full, adds: true });
        let (left, right) = (Across(Rows::new(da, tokens)), Rows::new(q, dk));
        s.vectorize(Multiply { a: left, b: right, c: d_k.take(tokens * dk), stride: dk, steps, shape: Shape::Full, adds: true });
    }
}
