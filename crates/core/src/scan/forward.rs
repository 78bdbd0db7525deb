//! Outputs of the causal form: per block `o = q S + (q kᵀ, lower triangle) v`, then `S += kᵀ v`.

use super::block::{Forms, Head, Place, denominators, inverse};
use super::decay::Decayed;
use super::job::{self, Job};
use super::plan::{Cuts, Stretch, pieces};
use super::sums::Sums;
use super::tiles::{Multiply, Shape, Turn, clear_above, scale};
use super::{Scan, state};
use crate::Par;
use crate::simd::{Along, Lanes, Rows};
use crate::view::{SharedRows, ViewMut};
use std::ops::Range;

pub(super) fn run(scan: &Scan<'_>, o: &mut ViewMut<'_>, par: Par) {
    let cuts = scan.cuts(scan.forward_part());
    let starts = starts(scan, &cuts, par);
    let count = scan.dims.batch * scan.dims.heads * cuts.parts.len();
    let attend = Attend { scan, cuts: &cuts, starts, o: o.share(&cuts.blocks) };
    job::run(&attend, count, scan.flops(), par);
}

/// The states that parts begin with, where they are not the empty one.
pub(super) fn starts(scan: &Scan<'_>, cuts: &Cuts, par: Par) -> Option<Sums> {
    cuts.divide().then(|| {
        let mut sums = Sums::of_keys(scan, cuts, par);
        sums.carry(&cuts.parts, false);
        sums
    })
}

/// Brings `state` to where a part begins.
#[inline(always)]
pub(super) fn begin<S: Lanes>(s: S, head: &Head<'_>, start: Option<&[f32]>, state: &mut [f32], forms: &mut Forms) {
    let (scan, sequence) = (head.scan, head.sequence);
    match start {
        Some(start) => {
            state.copy_from_slice(start);
            let [_, _, total] = state::parts(state, scan.widths());
            total.fill(1.0);
        }
        None => state::clear(state, scan.widths()),
    }
    for rows in pieces(sequence.before(), scan.rules.block()) {
        head.absorb(s, &Stretch::of(rows), state, forms);
    }
}

struct Attend<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    starts: Option<Sums>,
    o: SharedRows<'a>,
}

impl Job for Attend<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (scan, heads) = (self.scan, self.scan.dims.heads);
        let (at, part) = (number / self.cuts.parts.len(), number % self.cuts.parts.len());
        let [b, h] = [at / heads, at % heads];
        let head = Head::new(scan, [b, h], &self.cuts.parts[part]);
        let mut memory = std::mem::take(&mut forms.state);
        let state = memory.take(state::size(scan.widths()));
        begin(s, &head, self.starts.as_ref().map(|starts| starts.get([b, h, part], heads)), state, forms);
        for block in self.cuts.parts[part].blocks.clone() {
            let (all, width) = (&self.cuts.blocks[block], scan.widths()[1]);
            let valid = &head.valid(all);
            attend(s, &head, valid, state, forms);
            let Forms { o, zeros, .. } = &mut *forms;
            Place { at: [b, h, block], all, valid }.write(&self.o, (o.get(scan.rows() * width), width), zeros);
        }
        forms.state = memory;
    }
}

/// Outputs of some query rows into `forms.o`; the state takes in the keys beside them.
#[inline(always)]
fn attend<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, state: &mut [f32], forms: &mut Forms) {
    let scan = head.scan;
    let ([dk, dv], tokens) = (scan.widths(), scan.rows());
    let (queries, keys) = (Stretch::of(rows.clone()), head.sequence.beside(rows));
    let Forms { q, k, v, e, a, kt, o, rims, row, total, .. } = forms;
    let (q, k, v) = (q.take(tokens * dk), k.take(tokens * dk), v.take(tokens * dv));
    let (a, o, total) = (a.take(tokens * tokens), o.take(tokens * dv), total.take(dk));
    if rows.is_empty() {
        return;
    }
    head.queries(s, &queries, q);
    head.keys(s, &keys, k);
    head.values(s, &keys, v);
    let z = row.take(dk);
    let rims = rims.take(tokens);
    if scan.rules.decays {
        let e = e.take(tokens * dk);
        head.factors(s, &keys, e);
        Decayed { q, k, e, total }.meet(s, a);
    } else {
        let kt = kt.take(tokens * dk);
        s.vectorize(Turn { from: k, into: kt, size: [tokens, dk] });
        let (left, right) = (Along(Rows::new(q, dk)), Rows::new(kt, tokens));
        s.vectorize(Multiply { a: left, b: right, c: a, stride: tokens, steps: scan.dims.dk, shape: Shape::LowerResult, adds: false });
        clear_above(a, tokens);
        if scan.rules.epsilon.is_some() {
            let [_, before, _] = state::parts(state, [dk, dv]);
            z.copy_from_slice(before);
            denominators(s, (q, k), z, rims);
        }
    }
    let [sums, ..] = state::parts(state, [dk, dv]);
    let (left, right) = (Along(Rows::new(q, dk)), Rows::new(sums, dv));
    s.vectorize(Multiply { a: left, b: right, c: o, stride: dv, steps: scan.dims.dk, shape: Shape::Full, adds: false });
    let (left, right) = (Along(Rows::new(a, tokens)), Rows::new(v, dv));
    s.vectorize(Multiply { a: left, b: right, c: o, stride: dv, steps: rows.len(), shape: Shape::Lower, adds: true });
    if let Some(epsilon) = scan.rules.epsilon {
        for (row, den) in o.chunks_exact_mut(dv).zip(rims).take(rows.len()).skip(keys.lead) {
            scale(s, row, inverse(*den, epsilon));
        }
    }
    if all_finite(s, &o[..rows.len() * dv]) {
        if scan.rules.decays {
            state::decay(s, state, [dk, dv], total);
        }
        state::gather(s, state, [dk, dv], (k, v));
    } else {
        token_by_token(s, head, rows, state, forms);
    }
}

#[inline(always)]
fn all_finite<S: Lanes>(s: S, values: &[f32]) -> bool {
    let mut total = s.zero();
    for x in values.chunks_exact(S::N) {
        total = s.mul_add(s.load(x), s.zero(), total);
    }
    s.sum(total) == 0.0
}

/// The same by the definition: a tile multiplies what a query does not see by zero, which is not a number where that is none.
#[inline(always)]
fn token_by_token<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, state: &mut [f32], forms: &mut Forms) {
    let scan = head.scan;
    let ([dk, dv], tokens) = (scan.widths(), scan.rows());
    let (queries, keys) = (Stretch::of(rows.clone()), head.sequence.beside(rows));
    let Forms { q, k, v, e, o, .. } = forms;
    let (q, k, v, e) = (q.take(tokens * dk), k.take(tokens * dk), v.take(tokens * dv), e.take(tokens * dk));
    head.queries(s, &queries, q);
    head.keys(s, &keys, k);
    head.values(s, &keys, v);
    head.factors(s, &keys, e);
    let o = o.take(tokens * dv);
    for i in 0..rows.len() {
        let [q, k, e] = [&q, &k, &e].map(|form| &form[i * dk..][..dk]);
        state::take_in(s, state, scan.rules.decays.then_some(e), (k, &v[i * dv..][..dv]));
        let o = &mut o[i * dv..][..dv];
        let denominator = state::read(s, state, q, o);
        if let Some(epsilon) = scan.rules.epsilon.filter(|_| i >= keys.lead) {
            scale(s, o, inverse(denominator, epsilon));
        }
    }
}
