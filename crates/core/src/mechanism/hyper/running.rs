//! Outputs in the making: what a row has seen so far, merged part by part.
//!
//! `lse = ln(e^l₁ + e^l₂)`, `o = o₁ e^(l₁-lse) + o₂ e^(l₂-lse)`, shares in f64.

use super::gather::pieces;
use crate::Par;
use crate::mechanism::owned::Owned;
use crate::simd::{Lanes, Task};
use crate::view::{DisjointRows, SharedRows, StridedMut};
use std::ops::Range;

/// `o` and `lse` of some heads of one batch row.
pub(super) struct Running {
    /// `[1, heads, N, Dv]`.
    pub(super) o: Owned,
    /// `[heads, N]`.
    lse: Vec<f64>,
}

impl Running {
    pub(super) fn new([heads, rows, width]: [usize; 3]) -> Self {
        Running { o: Owned::zeros([1, heads, rows, width]), lse: vec![f64::NEG_INFINITY; heads * rows] }
    }

    /// Takes the log-sum-exps `[heads, rows]` of rows that had seen nothing.
    pub(super) fn set(&mut self, rows: &Range<usize>, lse: &[f32]) {
        let all = self.o.shape[2];
        for (own, lse) in self.lse.chunks_mut(all).zip(lse.chunks(rows.len())) {
            own[rows.clone()].iter_mut().zip(lse).for_each(|(own, &lse)| *own = lse.into());
        }
    }

    /// Lends single rows to threads.
    pub(super) fn share<R>(&mut self, single: &[Range<usize>], run: impl FnOnce(&Shared<'_>) -> R) -> R {
        let [_, heads, rows, _] = self.o.shape;
        let mut o = StridedMut::contiguous(&mut self.o.data, self.o.shape, "o").expect("its own shape");
        let mut lse = StridedMut::contiguous(&mut self.lse, [1, heads, rows, 1], "lse").expect("its own shape");
        run(&Shared { o: DisjointRows::new(&mut o, single), lse: DisjointRows::new(&mut lse, single) })
    }

    /// Rounds to the output, from head `first` of batch row `b` on.
    pub(super) fn write(&self, [b, first]: [usize; 2], into: &SharedRows<'_>, lse: Option<&mut [f32]>, par: Par) {
        write(&self.o, [b, first], into, par);
        if let Some(lse) = lse {
            lse.iter_mut().zip(&self.lse).for_each(|(into, &lse)| *into = lse as f32);
        }
    }
}

/// Rounds all rows of some heads to those of an output, whose pieces are [`pieces`].
pub(super) fn write(from: &Owned, [b, first]: [usize; 2], into: &SharedRows<'_>, par: Par) {
    let [_, heads, rows, _] = from.shape;
    let pieces = pieces(rows);
    par.run(heads * pieces.len(), 16.0 * from.data.len() as f64, |jobs| {
        while let Some(job) = jobs.take() {
            let (h, piece) = (job / pieces.len(), job % pieces.len());
            into.write(b, first + h, piece, |i| from.row([0, h, pieces[piece].start + i]));
        }
    });
}

/// Rows that threads claim one by one.
pub(super) struct Shared<'a> {
    o: DisjointRows<'a, f32>,
    lse: DisjointRows<'a, f64>,
}

/// Merges what some rows of a head saw of further keys.
pub(super) struct Merge<'a> {
    pub(super) into: &'a Shared<'a>,
    pub(super) head: usize,
    pub(super) rows: &'a [u32],
    pub(super) o: &'a [f32],
    pub(super) lse: &'a [f32],
}

impl Task for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let width = self.o.len() / self.rows.len();
        for ((&row, from), &lse) in self.rows.iter().zip(self.o.chunks(width)).zip(self.lse) {
            let mut own = self.into.lse.claim(0, self.head, row as usize);
            let own = &mut own.row(0)[0];
            let mut o = self.into.o.claim(0, self.head, row as usize);
            if *own == f64::NEG_INFINITY {
                // Fresh memory is written before it is read: a page that is read first is mapped twice.
                *own = lse.into();
                o.row(0).copy_from_slice(from);
            } else {
                blend(s, o.row(0), from, shares(own, lse.into()));
            }
        }
    }
}

/// Shares of what was seen before, which is something, and of what comes; moves the log-sum-exp.
fn shares(own: &mut f64, new: f64) -> [f32; 2] {
    let highest = own.max(new);
    let [before, now] = [*own, new].map(|lse| (lse - highest).exp());
    *own = highest + (before + now).ln();
    [before, now].map(|share| (share / (before + now)) as f32)
}

/// `into = shares[0]·into + shares[1]·from`.
#[inline(always)]
fn blend<S: Lanes>(s: S, into: &mut [f32], from: &[f32], shares: [f32; 2]) {
    let whole = into.len() / S::N * S::N;
    for at in (0..whole).step_by(S::N) {
        let kept = s.mul(s.load(&into[at..]), s.splat(shares[0]));
        let sum = s.mul_add(s.load(&from[at..]), s.splat(shares[1]), kept);
        s.store(&mut into[at..], sum);
    }
    for at in whole..into.len() {
        into[at] = shares[0] * into[at] + shares[1] * from[at];
    }
}
