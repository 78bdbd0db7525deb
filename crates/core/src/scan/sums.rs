//! The states that parts begin with: what each part adds, computed by jobs, then carried from part to part in order.

use super::block::{Forms, Head};
use super::job::{self, Job};
use super::plan::{Cuts, Part, Stretch, pieces};
use super::{Scan, state};
use crate::Par;
use crate::simd::Lanes;
use crate::view::{DisjointRows, StridedMut};
use std::ops::Range;

/// States by batch row, head and part.
pub(super) struct Sums {
    values: Vec<f32>,
    heads: usize,
    parts: usize,
    widths: [usize; 2],
}

/// Fills one state.
pub(super) trait Fill: Sync {
    /// Of part `part` of head `h` of those that there are sums of.
    fn fill<S: Lanes>(&self, s: S, at: [usize; 3], state: &mut [f32], forms: &mut Forms);
}

impl Sums {
    /// What each part adds.
    pub(super) fn collect(scan: &Scan<'_>, [heads, parts]: [usize; 2], fill: &impl Fill, par: Par) -> Self {
        let (batch, widths) = (scan.dims.batch, scan.widths());
        let size = state::size(widths);
        let mut values = vec![0.0; batch * heads * parts * size];
        let ones: Vec<Range<usize>> = (0..parts).map(|part| part..part + 1).collect();
        let mut rows = StridedMut::contiguous(&mut values, [batch, heads, parts, size], "sums").expect("so many were made");
        let collecting = Collecting { fill, heads, parts, into: DisjointRows::new(&mut rows, &ones) };
        job::run(&collecting, batch * heads * parts, scan.flops(), par);
        drop(collecting);
        Sums { values, heads, parts, widths }
    }

    /// Of the keys and values of each part; with gates there is a state for every query head.
    pub(super) fn of_keys(scan: &Scan<'_>, cuts: &Cuts, par: Par) -> Self {
        let heads = if scan.rules.decays { scan.dims.heads } else { scan.dims.kv_heads };
        Sums::collect(scan, [heads, cuts.parts.len()], &OfKeys { scan, cuts }, par)
    }

    /// The state of a part, for the query head `h` of `heads`.
    pub(super) fn get(&self, [b, h, part]: [usize; 3], heads: usize) -> &[f32] {
        let size = state::size(self.widths);
        let head = b * self.heads + h * self.heads / heads;
        &self.values[(head * self.parts + part) * size..][..size]
    }

    /// What each part adds becomes what there is before it, or after it where the order is turned around.
    pub(super) fn carry(&mut self, parts: &[Part], turned: bool) {
        let size = state::size(self.widths);
        let mut carried = vec![0.0; size];
        for head in self.values.chunks_mut((self.parts * size).max(1)) {
            let mut last = None;
            for at in 0..parts.len() {
                let at = if turned { parts.len() - 1 - at } else { at };
                let sequence = parts[at].sequence(0);
                if last.replace(sequence) != Some(sequence) {
                    carried.fill(0.0);
                }
                carry(&mut carried, &mut head[at * size..][..size], self.widths);
            }
        }
    }

    /// The sum over all parts of a sequence and over the heads `heads`.
    pub(super) fn total(&self, parts: &[Part], [b, sequence]: [usize; 2], heads: Range<usize>) -> Vec<f32> {
        let mut total = vec![0.0; state::size(self.widths)];
        for h in heads {
            for part in (0..parts.len()).filter(|&part| parts[part].sequence(b) == sequence) {
                total.iter_mut().zip(self.get([b, h, part], self.heads)).for_each(|(total, x)| *total += x);
            }
        }
        total
    }
}

/// `carried` goes to `own`, and `own + carried`, decayed, takes its place.
fn carry(carried: &mut [f32], own: &mut [f32], widths @ [_, dv]: [usize; 2]) {
    let [sums, z, total] = state::parts(own, widths);
    let [carried_sums, carried_z, _] = state::parts(carried, widths);
    for ((sums, carried), factor) in sums.chunks_mut(dv).zip(carried_sums.chunks_mut(dv)).zip(total) {
        for (x, carried) in sums.iter_mut().zip(carried) {
            let next = *factor * *carried + *x;
            (*x, *carried) = (*carried, next);
        }
    }
    for (x, carried) in z.iter_mut().zip(carried_z) {
        let next = *carried + *x;
        (*x, *carried) = (*carried, next);
    }
}

struct Collecting<'a, F> {
    fill: &'a F,
    heads: usize,
    parts: usize,
    into: DisjointRows<'a, f32>,
}

impl<F: Fill> Job for Collecting<'_, F> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (head, part) = (number / self.parts, number % self.parts);
        let at @ [b, h, _] = [head / self.heads, head % self.heads, part];
        self.fill.fill(s, at, self.into.claim(b, h, part).row(0), forms);
    }
}

struct OfKeys<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
}

impl Fill for OfKeys<'_> {
    #[inline(always)]
    fn fill<S: Lanes>(&self, s: S, [b, h, part]: [usize; 3], state: &mut [f32], forms: &mut Forms) {
        let (scan, part) = (self.scan, &self.cuts.parts[part]);
        let h = if scan.rules.decays { h } else { h * scan.dims.group() };
        let head = Head::new(scan, [b, h], part);
        state::clear(state, scan.widths());
        let keys = &head.sequence.keys;
        let end = part.keys.end.min(keys.end);
        for rows in pieces(part.keys.start.max(keys.start).min(end)..end, scan.rules.block()) {
            head.absorb(s, &Stretch::of(rows), state, forms);
        }
    }
}
