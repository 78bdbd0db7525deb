//! Rows of one head in working form: f32, widths and counts rounded up, zeros in what that adds.

use super::features::Map;
use super::plan::{Part, Sequence, Stretch};
use super::tiles::{add, multiply, scale};
use super::{Scan, state};
use crate::simd::{Aligned, Lanes, Task};
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
    pub(super) pulled: Aligned<f32>,
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

    /// Features of queries, scaled.
    #[inline(always)]
    pub(super) fn queries<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let (rules, dims) = (&self.scan.rules, &self.scan.dims);
        let how = How { width: self.scan.widths()[0], map: Some(rules.map), factor: rules.scale(dims.dk), exponential: false };
        s.vectorize(Load { from: &self.scan.q, at: [self.b, self.h], rows, into, how });
    }

    /// Features of keys.
    #[inline(always)]
    pub(super) fn keys<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let how = How { map: Some(self.scan.rules.map), ..How::plain(self.scan.widths()[0]) };
        s.vectorize(Load { from: &self.scan.k, at: [self.b, self.g], rows, into, how });
    }

    #[inline(always)]
    pub(super) fn values<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        load(s, &self.scan.v, [self.b, self.g], rows, into, self.scan.widths()[1]);
    }

    /// What the state is multiplied by at every token; 1 in rows that are none.
    #[inline(always)]
    pub(super) fn factors<S: Lanes>(&self, s: S, rows: &Stretch, into: &mut [f32]) {
        let Some(from) = &self.scan.gates else { return };
        let how = How { exponential: true, ..How::plain(self.scan.widths()[0]) };
        s.vectorize(Load { from, at: [self.b, self.h], rows, into, how });
    }

    /// Takes keys and values into a state.
    #[inline(always)]
    pub(super) fn absorb<S: Lanes>(&self, s: S, rows: &Stretch, state: &mut [f32], forms: &mut Forms) {
        s.vectorize(Absorb { head: self, rows, state, forms });
    }
}

struct Absorb<'a, 'h> {
    head: &'a Head<'h>,
    rows: &'a Stretch,
    state: &'a mut [f32],
    forms: &'a mut Forms,
}

impl Task for Absorb<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Absorb { head, rows, state, forms } = self;
        let ([dk, dv], tokens) = (head.scan.widths(), head.scan.rows());
        let (k, v) = (forms.k.take(tokens * dk), forms.v.take(tokens * dv));
        head.keys(s, rows, k);
        head.values(s, rows, v);
        if head.scan.rules.decays {
            let (e, total) = (forms.e.take(tokens * dk), forms.total.take(dk));
            head.factors(s, rows, e);
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

/// What becomes of a row when it is read.
#[derive(Clone, Copy)]
pub(super) struct How {
    /// Distance between rows of the working form.
    pub(super) width: usize,
    pub(super) map: Option<Map>,
    pub(super) factor: f32,
    /// Whether it becomes e^x, everywhere.
    pub(super) exponential: bool,
}

impl How {
    pub(super) fn plain(width: usize) -> Self {
        How { width, map: None, factor: 1.0, exponential: false }
    }
}

/// Reads rows of one head of a tensor.
pub(super) struct Load<'a> {
    pub(super) from: &'a View<'a>,
    pub(super) at: [usize; 2],
    pub(super) rows: &'a Stretch,
    pub(super) into: &'a mut [f32],
    pub(super) how: How,
}

impl Task for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Load { from, at: [b, h], rows, into, how } = self;
        let (own, width) = (from.shape()[3], how.width);
        into[..rows.lead * width].fill(0.0);
        into[rows.len() * width..].fill(0.0);
        for (n, row) in rows.rows.clone().zip(into[rows.lead * width..].chunks_exact_mut(width)) {
            from.widen_row(s, [b, h, n], row);
            row[own..].fill(0.0);
            if let Some(map) = how.map {
                map.apply(s, row, own);
            }
            if how.factor != 1.0 {
                scale(s, row, how.factor);
            }
        }
        if how.exponential {
            for x in into.chunks_exact_mut(S::N) {
                s.store(x, s.exp(s.load(x)));
            }
        }
    }
}

/// Rows of one head of a tensor as they are, `width` apart.
#[inline(always)]
pub(super) fn load<S: Lanes>(s: S, from: &View<'_>, at: [usize; 2], rows: &Stretch, into: &mut [f32], width: usize) {
    s.vectorize(Load { from, at, rows, into, how: How::plain(width) });
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
