//! Where the logits of queries come from.

use super::Coded;
use crate::Par;
use crate::exact::pack;
use crate::quantise::Codewords;
use crate::simd::{Aligned, Along, Lanes, Rows, Task, dispatch, product};
use crate::view::View;
use std::f32::consts::LOG2_E;
use std::ops::Range;
use std::sync::Arc;

/// Of each query head its codewords' logits, `[S_q, S_k padded]`, in units of log2.
pub(crate) type Tables = Arc<[Aligned<f32>]>;

/// Queries of a problem.
pub(crate) enum Queries<'a> {
    /// As they are.
    Rows(View<'a>),
    /// As codewords.
    Codes {
        /// Of each query head.
        codewords: Arc<[Codewords]>,
        /// `[B, H, N]`; of valid queries below their S.
        codes: &'a [u32],
        /// See [`Tables`].
        tables: Tables,
    },
}

/// Working memory for a block of queries.
#[derive(Default)]
pub(super) struct Panels {
    staged: Aligned<f32>,
    panel: Aligned<f32>,
}

/// Codes between two looks at the same panel of queries, so that their rows stay in the nearest cache.
pub(super) const CODES: usize = 128;

impl Coded<'_> {
    /// Logits of a block of queries in units of log2: panel by panel `[S padded][2·N]`; of lanes beyond the rows anything.
    #[inline(always)]
    pub(super) fn logits<S: Lanes, const R: usize>(
        &self,
        s: S,
        [b, h]: [usize; 2],
        rows: Range<usize>,
        panels: &mut Panels,
        into: &mut [f32],
    ) {
        let codewords = &self.codewords[h / self.dims.group()];
        match &self.queries {
            Queries::Rows(q) => multiply::<S, R>(s, (q, [b, h]), rows, (panels, into), (codewords, self.scale * LOG2_E)),
            Queries::Codes { codes, tables, .. } => {
                let codes = &codes[(b * self.dims.heads + h) * self.dims.queries..][rows];
                look_up(s, codes, &tables[h], (panels, into), codewords.padded());
            }
        }
    }

    /// The query of a row as the definition has it.
    pub(super) fn query<'q>(&'q self, [b, h, n]: [usize; 3], row: &'q mut [f32]) -> &'q [f32] {
        match &self.queries {
            Queries::Rows(q) => {
                row.iter_mut().enumerate().for_each(|(d, x)| *x = q.at([b, h, n, d]));
                row
            }
            Queries::Codes { codewords, codes, .. } => codewords[h].row(codes[(b * self.dims.heads + h) * self.dims.queries + n] as usize),
        }
    }

    /// Rows of queries as f32, padded with zeros to whole registers.
    #[inline(always)]
    pub(super) fn stage_queries<S: Lanes>(&self, s: S, [b, h]: [usize; 2], rows: Range<usize>, into: &mut [f32]) {
        match &self.queries {
            Queries::Rows(q) => pack::stage_rows(s, q, [b, h], rows, into),
            Queries::Codes { codewords, codes, .. } => {
                let (width, stride) = (self.dims.dk, self.dims.dk.next_multiple_of(S::N));
                into.fill(0.0);
                let codes = &codes[(b * self.dims.heads + h) * self.dims.queries..][rows];
                for (row, &code) in into.chunks_mut(stride).zip(codes) {
                    row[..width].copy_from_slice(codewords[h].row(code as usize));
                }
            }
        }
    }
}

/// Products of queries and codewords.
#[inline(always)]
fn multiply<S: Lanes, const R: usize>(
    s: S,
    (q, at): (&View<'_>, [usize; 2]),
    rows: Range<usize>,
    (panels, into): (&mut Panels, &mut [f32]),
    (codewords, factor): (&Codewords, f32),
) {
    let (width, lanes) = (q.shape()[3], 2 * S::N);
    let (size, all) = (width.next_multiple_of(S::N) * lanes, codewords.padded());
    let count = rows.len().div_ceil(lanes);
    let (staged, panel) = (panels.staged.take(size), panels.panel.take(count * size));
    for (i, panel) in panel.chunks_mut(size).enumerate() {
        let first = rows.start + i * lanes;
        pack::panel(s, (q, at), first..rows.end.min(first + lanes), (staged, panel), Some(factor));
    }
    for start in (0..all).step_by(CODES) {
        for (panel, into) in panel.chunks(size).zip(into.chunks_mut(all * lanes)) {
            for first in (start..all.min(start + CODES)).step_by(R) {
                let x = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], Along(codewords.rows().from(first)), Rows::new(panel, lanes), width);
                for (row, x) in into[first * lanes..(first + R) * lanes].chunks_mut(lanes).zip(x) {
                    s.store(row, x[0]);
                    s.store(&mut row[S::N..], x[1]);
                }
            }
        }
    }
}

/// Rows of the table, transposed.
#[inline(always)]
fn look_up<S: Lanes>(s: S, codes: &[u32], table: &Aligned<f32>, (panels, into): (&mut Panels, &mut [f32]), width: usize) {
    let lanes = 2 * S::N;
    let staged = panels.staged.take(lanes * width);
    for (codes, into) in codes.chunks(lanes).zip(into.chunks_mut(width * lanes)) {
        for (row, &code) in staged.chunks_mut(width).zip(codes) {
            row.copy_from_slice(&table.get((code as usize + 1) * width)[code as usize * width..]);
        }
        pack::transpose_panel(s, staged, width, into, None);
    }
}

/// Logits of codewords of queries by codewords of keys, `[S_q, S_k padded]`, in units of log2.
pub(crate) fn table(queries: &Codewords, keys: &Codewords, scale: f32, par: Par) -> Aligned<f32> {
    dispatch(par.level_in_use(), Table { queries, keys, factor: scale * LOG2_E })
}

struct Table<'a> {
    queries: &'a Codewords,
    keys: &'a Codewords,
    factor: f32,
}

impl Task for Table<'_> {
    type Output = Aligned<f32>;

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) -> Aligned<f32> {
        let (width, all, lanes) = (self.keys.width(), self.keys.padded(), 2 * S::N);
        let stride = width.next_multiple_of(S::N);
        let mut table = Aligned::zeros(self.queries.padded() * all);
        let (mut staged, mut panel, mut x) = (Aligned::zeros(lanes * stride), Aligned::zeros(lanes * stride), Aligned::zeros(all * lanes));
        let (staged, panel, x) = (staged.take(lanes * stride), panel.take(lanes * stride), x.take(all * lanes));
        let into = table.take(self.queries.padded() * all);
        for first in (0..self.queries.count()).step_by(lanes) {
            staged.fill(0.0);
            for (code, row) in (first..self.queries.count()).zip(staged.chunks_mut(stride)) {
                row[..width].copy_from_slice(self.queries.row(code));
            }
            pack::transpose_panel(s, staged, width, panel, Some(self.factor));
            for code in (0..all).step_by(R) {
                let tile = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], Along(self.keys.rows().from(code)), Rows::new(panel, lanes), width);
                for (row, tile) in x[code * lanes..(code + R) * lanes].chunks_mut(lanes).zip(tile) {
                    s.store(row, tile[0]);
                    s.store(&mut row[S::N..], tile[1]);
                }
            }
            for (lane, row) in into[first * all..].chunks_mut(all).take(lanes).enumerate() {
                for (code, to) in row.iter_mut().enumerate() {
                    *to = x[code * lanes + lane];
                }
            }
        }
        table
    }
}
