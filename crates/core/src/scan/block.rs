//! Rows of one head in working form: f32, widths and counts rounded up, zeros in what that adds.

use super::plan::{Part, Sequence, Stretch};
use super::tiles::{add, multiply, scale};
use super::{Scan, state};
use crate::simd::{Aligned, Lanes};
use crate::view::{SharedRows, View};
use std::ops::Range;

/// Working memory of a thread. In a block: rows of q, k, v, of factors e^g, of dO; what pairs weigh and its gradient; keys and values
/// turned; sums for outputs and gradients.
#[derive(Default)]
pub(super) struct Forms {
    pub(super) q: Aligned<f32>,
    pub(super) k: Aligned<f32>,
    pub(super) v: Aligned<f32>,
    pub(super) e: Aligned<f32>,
    pub(super) d_o: Aligned<f32>,
    pub(super) a: Aligned<f32>,
    pub(super) da: Aligned<f32>,
    pub(super) kt: Aligned<f32>,
    pub(super) vt: Aligned<f32>,
    pub(super) o: Aligned<f32>,
    pub(super) dq: Aligned<f32>,
    pub(super) dk: Aligned<f32>,
    pub(super) dv: Aligned<f32>,
    pub(super) dg: Aligned<f32>,
    /// Denominators, or two numbers a row.
    pub(super) rims: Aligned<f32>,
    pub(super) row: Aligned<f32>,
    pub(super) total: Aligned<f32>,
    pub(super) state: Aligned<f32>,
    pub(super) slope: Aligned<f32>,
    pub(super) turned: Aligned<f32>,
    pub(super) slope_turned: Aligned<f32>,
    pub(super) history: Aligned<f32>,
    pub(super) sums: Aligned<f32>,
    /// Never written.
    pub(super) zeros: Aligned<f32>,
}

/// One query head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) scan: &'a Scan<'a>,
    pub(super) sequence: &'a Sequence,
    pub(super) b: usize,
    pub(super) h: usize,
    /// Its kv head.
    pub(super) g: usize,
}

impl<'a> Head<'a> {
    pub(super) fn new(scan: &'a Scan<'a>, [b, h]: [usize; 2], part: &Part) -> Self {
        Head { scan, sequence: &scan.sequences[part.sequence(b)], b, h, g: h / scan.dims.group() }
    }

    /// The rows of a block that are queries of the sequence.
    pub(super) fn valid(&self, rows: &Range<usize>) -> Range<usize> {
        let all = &self.sequence.queries;
        let start = rows.start.clamp(all.start, all.end);
        start..rows.end.clamp(start, all.end)
    }

    #[inline(always)]
    pub(super) fn queries<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let [width, _] = self.scan.widths();
        load(s, &self.scan.q, [self.b, self.h], rows, into, width);
        self.map(s, rows, into);
        let factor = self.scan.rules.scale(self.scan.dims.dk);
        if factor != 1.0 {
            scale(s, into, factor);
        }
    }

    #[inline(always)]
    pub(super) fn keys<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let [width, _] = self.scan.widths();
        load(s, &self.scan.k, [self.b, self.g], rows, into, width);
        self.map(s, rows, into);
    }

    #[inline(always)]
    pub(super) fn values<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let [_, width] = self.scan.widths();
        load(s, &self.scan.v, [self.b, self.g], rows, into, width);
    }

    /// What the state is multiplied by at every token; 1 in rows that are none.
    #[inline(always)]
    pub(super) fn factors<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let [width, _] = self.scan.widths();
        let Some(gates) = &self.scan.gates else { return };
        load(s, gates, [self.b, self.h], rows, into, width);
        for x in into.chunks_exact_mut(S::N) {
            s.store(x, s.exp(s.load(x)));
        }
    }

    #[inline(always)]
    fn map<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let [width, _] = self.scan.widths();
        for row in into[..rows.len() * width].chunks_exact_mut(width).skip(rows.lead) {
            self.scan.rules.map.apply(s, row, self.scan.dims.dk);
        }
    }

    /// Takes keys and values into a state.
    #[inline(always)]
    pub(super) fn absorb<S: Lanes>(&self, s: S, rows: &Stretch, state: &mut [f32], forms: &mut Forms) {
        let ([dk, dv], tokens) = (self.scan.widths(), self.scan.rows());
        let (k, v) = (forms.k.take(tokens * dk), forms.v.take(tokens * dv));
        self.keys(s, rows, k);
        self.values(s, rows, v);
        if self.scan.rules.decays {
            let (e, total) = (forms.e.take(tokens * dk), forms.total.take(dk));
            self.factors(s, rows, e);
            total.fill(1.0);
            for (k, e) in k.chunks_exact_mut(dk).zip(e.chunks_exact(dk)).rev() {
                multiply(s, k, total);
                multiply(s, total, e);
            }
            state::decay(s, state, [dk, dv], total);
        }
        state::gather(s, state, [dk, dv], (k, v));
    }
}

/// Rows of one head of a tensor, `width` apart.
#[inline(always)]
pub(super) fn load<S: Lanes>(s: S, from: &View<'_>, [b, h]: [usize; 2], rows: &Stretch, into: &mut [f32], width: usize) {
    let own = from.shape()[3];
    into[..rows.lead * width].fill(0.0);
    for (n, row) in rows.rows.clone().zip(into[rows.lead * width..].chunks_exact_mut(width)) {
        from.widen_row(s, [b, h, n], row);
        row[own..].fill(0.0);
    }
    into[rows.len() * width..].fill(0.0);
}

/// A block of an output: batch row, head, number, its rows and which of them are valid.
pub(super) struct Place<'a> {
    pub(super) at: [usize; 3],
    pub(super) all: &'a Range<usize>,
    pub(super) valid: &'a Range<usize>,
}

impl Place<'_> {
    /// Writes the valid rows from rows `width` apart, zeros to the others.
    pub(super) fn write(&self, into: &SharedRows<'_>, (from, width): (&[f32], usize), zeros: &mut Aligned<f32>) {
        let ([b, h, block], zeros) = (self.at, &*zeros.take(width));
        let first = self.valid.start.wrapping_sub(self.all.start);
        into.write(b, h, block, |i| {
            let row = i.wrapping_sub(first);
            if row < self.valid.len() { &from[row * width..][..width] } else { zeros }
        });
    }
}

/// Running denominators `q_i·z_i`, the key of each row being taken into z first.
#[inline(always)]
pub(super) fn denominators<S: Lanes>(s: S, (q, k): (&[f32], &[f32]), z: &mut [f32], into: &mut [f32]) {
    let width = z.len();
    for ((q, k), den) in q.chunks_exact(width).zip(k.chunks_exact(width)).zip(into) {
        let mut sum = s.zero();
        for at in (0..width).step_by(S::N) {
            let total = s.add(s.load(&z[at..]), s.load(&k[at..]));
            s.store(&mut z[at..], total);
            sum = s.mul_add(s.load(&q[at..]), total, sum);
        }
        *den = s.sum(sum);
    }
}

/// Adds all rows to one.
#[inline(always)]
pub(super) fn add_rows<S: Lanes>(s: S, rows: &[f32], into: &mut [f32]) {
    for row in rows.chunks_exact(into.len()) {
        add(s, into, row, 1.0);
    }
}

/// One over a denominator; a row whose features all vanish sees nothing.
pub(super) fn inverse(denominator: f32, epsilon: f32) -> f32 {
    let sum = denominator + epsilon;
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}
