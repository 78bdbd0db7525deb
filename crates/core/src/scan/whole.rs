//! Without causality: one sum over all keys of a sequence, read by every query; backward one sum over all queries, read by every key.

use super::backward::{Rims, Slopes, divide, pull_keys, pull_queries, query_back, read_back, take_back};
use super::block::{Forms, Head, Place, inverse};
use super::job::{self, Job};
use super::plan::{Cuts, Side, Stretch};
use super::sums::{Fill, Sums};
use super::tiles::{Multiply, Shape, dot, scale};
use super::{Scan, Wanted, state};
use crate::simd::{Along, Lanes, Rows};
use crate::view::{DisjointRows, SharedRows, ViewMut};
use crate::{Par, Saved};
use std::ops::Range;

/// States of every sequence and kv head.
struct Totals {
    values: Vec<Vec<f32>>,
    kv_heads: usize,
}

impl Totals {
    /// Sums over all parts, and over the heads of a group where there is a sum for every query head.
    fn new(scan: &Scan<'_>, sums: &Sums, (cuts, heads): (&Cuts, usize)) -> Self {
        let (kv_heads, each) = (scan.dims.kv_heads, heads / scan.dims.kv_heads);
        let of =
            |(sequence, g): (usize, usize)| sums.total(&cuts.parts, [scan.sequences[sequence].batch, sequence], g * each..(g + 1) * each);
        let all = (0..scan.sequences.len()).flat_map(|sequence| (0..kv_heads).map(move |g| (sequence, g)));
        Totals { values: all.map(of).collect(), kv_heads }
    }

    fn of_keys(scan: &Scan<'_>, par: Par) -> Self {
        let cuts = scan.cuts_of(Side::Keys, scan.forward_part());
        Totals::new(scan, &Sums::of_keys(scan, &cuts, par), (&cuts, scan.dims.kv_heads))
    }

    fn get(&self, sequence: usize, g: usize) -> &[f32] {
        &self.values[sequence * self.kv_heads + g]
    }
}

pub(super) fn forward(scan: &Scan<'_>, o: &mut ViewMut<'_>, par: Par) {
    let cuts = scan.cuts_of(Side::Queries, scan.forward_part());
    let attend = Attend { scan, cuts: &cuts, totals: Totals::of_keys(scan, par), o: o.share(&cuts.blocks) };
    job::run(&attend, scan.dims.batch * scan.dims.heads * cuts.parts.len(), scan.flops(), par);
}

struct Attend<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    totals: Totals,
    o: SharedRows<'a>,
}

impl Job for Attend<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (scan, tokens) = (self.scan, self.scan.rows());
        let [_, dv] = scan.widths();
        let [b, h, part] = place(self.cuts, number, scan.dims.heads);
        for block in self.cuts.parts[part].blocks.clone() {
            let head = Head::new(scan, [b, h], &self.cuts.parts[part]);
            let rows = head.valid(&self.cuts.blocks[block]);
            read(s, &head, &rows, self.totals.get(self.cuts.parts[part].sequence(b), head.g), forms);
            let o = forms.o.take(tokens * dv);
            let epsilon = scan.rules.epsilon;
            for (row, den) in o.chunks_exact_mut(dv).zip(forms.rims.get(tokens)) {
                if let Some(epsilon) = epsilon {
                    scale(s, row, inverse(*den, epsilon));
                }
            }
            let output = Place { at: [b, h, block], all: &self.cuts.blocks[block], valid: &rows };
            output.write(&self.o, (o, dv), &mut forms.zeros);
        }
    }
}

/// Head and part of a job.
fn place(cuts: &Cuts, number: usize, heads: usize) -> [usize; 3] {
    let (at, part) = (number / cuts.parts.len(), number % cuts.parts.len());
    [at / heads, at % heads, part]
}

/// Queries, what they read of a state, and denominators, into `forms`.
#[inline(always)]
fn read<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, total: &[f32], forms: &mut Forms) {
    let (scan, tokens) = (head.scan, head.scan.rows());
    let [dk, dv] = scan.widths();
    let Forms { q, o, rims, .. } = forms;
    let (q, o, rims) = (q.take(tokens * dk), o.take(tokens * dv), rims.take(tokens));
    head.queries(s, &Stretch::of(rows.clone()), q);
    let (sums, z) = total.split_at(dk * dv);
    let (a, b) = (Along(Rows::new(q, dk)), Rows::new(sums, dv));
    s.vectorize(Multiply { a, b, c: o, stride: dv, steps: scan.dims.dk, shape: Shape::Full, adds: false });
    for (row, den) in q.chunks_exact(dk).zip(rims) {
        *den = dot(s, row, &z[..dk]);
    }
}

pub(super) fn backward(scan: &Scan<'_>, saved: &Saved<'_>, wanted: Wanted<'_, '_>, par: Par) {
    let (dims, totals) = (scan.dims, Totals::of_keys(scan, par));
    let cuts = scan.cuts_of(Side::Queries, scan.forward_part());
    let count = dims.batch * dims.heads * cuts.parts.len();
    let rims = Rims::fill(scan, |into| {
        let dividing = Dividing { scan, cuts: &cuts, totals: &totals, saved, into: DisjointRows::new(into, &cuts.blocks) };
        job::run(&dividing, count, scan.flops(), par);
    });
    let slopes = Slopes { saved, rims: &rims };
    let queries = OfQueries { scan, cuts: &cuts, totals: &totals, slopes, dq: wanted.dq.map(|dq| dq.share(&cuts.blocks)) };
    let sums = Sums::collect(scan, [dims.heads, cuts.parts.len()], &queries, par);
    let totals = Totals::new(scan, &sums, (&cuts, dims.heads));
    let cuts = scan.cuts_of(Side::Keys, scan.forward_part());
    let back =
        Back { scan, cuts: &cuts, totals, dk: wanted.dk.map(|dk| dk.share(&cuts.blocks)), dv: wanted.dv.map(|dv| dv.share(&cuts.blocks)) };
    job::run(&back, dims.batch * dims.kv_heads * cuts.parts.len(), scan.flops(), par);
}

/// Finds the denominators.
struct Dividing<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    totals: &'a Totals,
    saved: &'a Saved<'a>,
    into: DisjointRows<'a, f32>,
}

impl Job for Dividing<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let [b, h, part] = place(self.cuts, number, self.scan.dims.heads);
        for block in self.cuts.parts[part].blocks.clone() {
            let head = Head::new(self.scan, [b, h], &self.cuts.parts[part]);
            let (all, rows) = (&self.cuts.blocks[block], head.valid(&self.cuts.blocks[block]));
            read(s, &head, &rows, self.totals.get(self.cuts.parts[part].sequence(b), head.g), forms);
            let mut claim = self.into.claim(b, h, block);
            divide(s, &head, (&rows, 0), self.saved, forms, |n, pair| claim.row(n - all.start).copy_from_slice(&pair));
        }
    }
}

/// Gradients of queries, and what they add to that of the state.
struct OfQueries<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    totals: &'a Totals,
    slopes: Slopes<'a>,
    dq: Option<SharedRows<'a>>,
}

impl Fill for OfQueries<'_> {
    #[inline(always)]
    fn fill<S: Lanes>(&self, s: S, [b, h, part]: [usize; 3], slope: &mut [f32], forms: &mut Forms) {
        let (scan, tokens) = (self.scan, self.scan.rows());
        let ([dk, dv], part) = (scan.widths(), &self.cuts.parts[part]);
        let head = Head::new(scan, [b, h], part);
        let mut memory = std::mem::take(&mut forms.state);
        let state = memory.take(state::size([dk, dv]));
        state.copy_from_slice(self.totals.get(part.sequence(b), head.g));
        state::clear(slope, [dk, dv]);
        for block in part.blocks.clone() {
            let rows = head.valid(&self.cuts.blocks[block]);
            take_back(s, &head, &rows, self.slopes, slope, forms);
            let Some(dq) = &self.dq else { continue };
            {
                let Forms { d_o, rims, turned, dq, .. } = &mut *forms;
                let (d_o, dden) = (d_o.get(tokens * dv), rims.get(tokens));
                query_back(s, &head, (d_o, dden), state, (turned.take(dk * dv), dq.take(tokens * dk)));
            }
            pull_queries(s, &head, &rows, forms);
            let output = Place { at: [b, h, block], all: &self.cuts.blocks[block], valid: &rows };
            output.write(dq, (forms.dq.get(tokens * dk), dk), &mut forms.zeros);
        }
        forms.state = memory;
    }
}

/// Gradients of keys and values.
struct Back<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    totals: Totals,
    dk: Option<SharedRows<'a>>,
    dv: Option<SharedRows<'a>>,
}

impl Job for Back<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (scan, tokens, dims) = (self.scan, self.scan.rows(), self.scan.dims);
        let [dk, dv] = scan.widths();
        let (mut memory, mut sums) = (std::mem::take(&mut forms.slope), std::mem::take(&mut forms.sums));
        let slope = memory.take(state::size([dk, dv]));
        let [b, g, part] = place(self.cuts, number, dims.kv_heads);
        for block in self.cuts.parts[part].blocks.clone() {
            let head = Head::new(scan, [b, g * dims.group()], &self.cuts.parts[part]);
            let (all, keys) = (&self.cuts.blocks[block], &head.sequence.keys);
            let start = all.start.clamp(keys.start, keys.end);
            let rows = start..all.end.clamp(start, keys.end);
            slope.copy_from_slice(self.totals.get(self.cuts.parts[part].sequence(b), g));
            read_back(s, &head, &Stretch::of(rows.clone()), slope, forms);
            let own = sums.take(tokens * dk);
            own.copy_from_slice(forms.dk.get(tokens * dk));
            pull_keys(s, &head, &rows, own, forms);
            let output = Place { at: [b, g, block], all, valid: &rows };
            if let Some(into) = &self.dk {
                output.write(into, (own, dk), &mut forms.zeros);
            }
            if let Some(into) = &self.dv {
                output.write(into, (forms.dv.get(tokens * dv), dv), &mut forms.zeros);
            }
        }
        (forms.slope, forms.sums) = (memory, sums);
    }
}
