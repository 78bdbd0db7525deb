//! The factors of a product, and how parts of them are laid out for its register tile: A broadcast, B in panels of some registers.
//!
//! Steps count lanes: where both factors are bf16 and the processor multiplies pairs, two neighbours of k are one. Of a matrix whose
//! neighbours along k stand side by side, these lanes stand in memory as they are.

use super::matrix::Matrix;
use crate::simd::{Across, Aligned, Along, Form, LINE, Lanes, Pairs, Rows, Singles, Task, pair_of, zip_pairs};
use crate::view::Element;
use half::bf16;
use std::ops::Range;

/// Rows between the one that is read and the one that is asked for.
const AHEAD: isize = 8;

/// One of the two factors.
pub(super) trait Operand: Sync {
    /// What a lane holds.
    type Form: Form;

    /// A part of A, rows by steps, as tiles broadcast it: `count` rows, those beyond the part anything.
    fn broadcast<'a, S: Lanes>(&'a self, s: S, part: [Range<usize>; 2], count: usize, scratch: &'a mut Aligned<f32>) -> Side<'a>;

    /// A part of B, steps by columns, as panels of so many columns, one after the other.
    fn panels<S: Lanes>(&self, s: S, part: [Range<usize>; 2], into: &mut [f32], panel: usize);
}

/// A part of A as the tile reads it.
#[derive(Clone, Copy)]
pub(super) enum Side<'a> {
    Along(Along<'a>),
    Across(Across<'a>),
}

impl<T: Element> Operand for Matrix<'_, T> {
    type Form = Singles;

    #[inline(always)]
    fn broadcast<'a, S: Lanes>(&'a self, s: S, part: [Range<usize>; 2], count: usize, scratch: &'a mut Aligned<f32>) -> Side<'a> {
        left(s, *self, part, count, scratch)
    }

    #[inline(always)]
    fn panels<S: Lanes>(&self, s: S, part: [Range<usize>; 2], into: &mut [f32], panel: usize) {
        s.vectorize(PackPanels { from: self, part, into, panel });
    }
}

/// A factor of bf16 in pairs of neighbours along k; the last one of an odd k with zero.
pub(super) struct Paired<'a> {
    /// `[k, m]` or `[k, n]`.
    values: Matrix<'a, bf16>,
    /// The pairs, where they stand in memory.
    lanes: Option<Matrix<'a, f32>>,
}

impl<'a> Paired<'a> {
    /// Of a matrix with k as its rows.
    pub(super) fn new(values: Matrix<'a, bf16>) -> Self {
        Paired { lanes: values.transposed().as_pairs().map(Matrix::transposed), values }
    }

    fn has_rows(&self) -> bool {
        self.values.strides()[1] == 1
    }

    fn lane(&self, step: usize, column: usize) -> f32 {
        let second = if 2 * step + 1 < self.values.shape()[0] { self.values.at(2 * step + 1, column) } else { bf16::ZERO };
        pair_of(self.values.at(2 * step, column), second)
    }
}

impl Operand for Paired<'_> {
    type Form = Pairs;

    #[inline(always)]
    fn broadcast<'a, S: Lanes>(&'a self, s: S, [rows, steps]: [Range<usize>; 2], count: usize, scratch: &'a mut Aligned<f32>) -> Side<'a> {
        if let Some(lanes) = self.lanes {
            return left(s, lanes.transposed(), [rows, steps], count, scratch);
        }
        if self.has_rows() {
            let stride = odd_lines(count);
            let into = scratch.take(steps.len().max(1) * stride);
            s.vectorize(Zip { from: &self.values, part: [steps, rows], into, panel: stride });
            return Side::Across(Across(Rows::new(into, stride)));
        }
        let stride = odd_lines(steps.len());
        let into = scratch.take(count * stride);
        for (row, into) in rows.zip(into.chunks_mut(stride)) {
            for (step, to) in steps.clone().zip(into) {
                *to = self.lane(step, row);
            }
        }
        Side::Along(Along(Rows::new(into, stride)))
    }

    #[inline(always)]
    fn panels<S: Lanes>(&self, s: S, [steps, columns]: [Range<usize>; 2], into: &mut [f32], panel: usize) {
        if let Some(lanes) = &self.lanes {
            return lanes.panels(s, [steps, columns], into, panel);
        }
        if self.has_rows() {
            return s.vectorize(Zip { from: &self.values, part: [steps, columns], into, panel });
        }
        let size = steps.len() * panel;
        for (i, column) in columns.enumerate() {
            for (t, step) in steps.clone().enumerate() {
                into[i / panel * size + t * panel + i % panel] = self.lane(step, column);
            }
        }
    }
}

/// Values from one row of a copy to the next: odd multiples of a cache line, so that rows do not meet in the same sets.
fn odd_lines(length: usize) -> usize {
    length.next_multiple_of(32) + 16
}

/// Parts of a range, one of nothing if it is empty.
pub(super) fn runs(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(size).max(1);
    (0..count).map(move |i| range.start + i * size..range.end.min(range.start + (i + 1) * size))
}

/// A part of A where it stands, if that is `count` rows of f32, else a copy, in which columns stay columns.
#[inline(always)]
fn left<'a, S: Lanes, T: Element>(
    s: S,
    from: Matrix<'a, T>,
    [rows, steps]: [Range<usize>; 2],
    count: usize,
    scratch: &'a mut Aligned<f32>,
) -> Side<'a> {
    if let ([step, 1], true) = (from.strides(), rows.len() == count)
        && step > 0
        && let Some(values) = T::as_f32(from.tail(rows.start, steps.start))
    {
        return Side::Along(Along(Rows::new(values, step as usize)));
    }
    if from.strides()[0] == 1 {
        let stride = odd_lines(count);
        let into = scratch.take(steps.len().max(1) * stride);
        s.vectorize(Pack { from: &from.transposed(), part: [steps, rows], into, stride });
        return Side::Across(Across(Rows::new(into, stride)));
    }
    let stride = odd_lines(steps.len());
    let into = scratch.take(count * stride);
    s.vectorize(Pack { from: &from, part: [rows, steps], into, stride });
    Side::Along(Along(Rows::new(into, stride)))
}

/// Copies a part of a matrix to rows `stride` apart, widened.
struct Pack<'a, 'm, T> {
    from: &'a Matrix<'m, T>,
    part: [Range<usize>; 2],
    into: &'a mut [f32],
    stride: usize,
}

impl<T: Element> Task for Pack<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Pack { from, part: [rows, columns], into, stride } = self;
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        match from.strides() {
            [_, 1] => {
                for (row, to) in rows.zip(into.chunks_mut(stride)) {
                    let row = &from.tail(row, columns.start)[..columns.len()];
                    ahead(s, row, from.strides()[0]);
                    widen(s, row, to);
                }
            }
            [1, _] => turn(s, from, [rows, columns], into, stride),
            _ => {
                for (row, to) in rows.zip(into.chunks_mut(stride)) {
                    for (column, to) in columns.clone().zip(to) {
                        *to = from.at(row, column).to_f32();
                    }
                }
            }
        }
    }
}

/// Asks for the row that is read a few rows later.
#[inline(always)]
fn ahead<S: Lanes, T>(s: S, row: &[T], step: isize) {
    let next = row.as_ptr().wrapping_offset(step * AHEAD);
    for at in (0..row.len()).step_by(LINE * size_of::<f32>() / size_of::<T>()) {
        s.prefetch(next.wrapping_add(at));
    }
}

/// Copies a part of B to panels, one after the other. Rows whose elements are neighbours are read once and from end to end.
struct PackPanels<'a, 'm, T> {
    from: &'a Matrix<'m, T>,
    part: [Range<usize>; 2],
    into: &'a mut [f32],
    panel: usize,
}

impl<T: Element> Task for PackPanels<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let PackPanels { from, part: [rows, columns], into, panel } = self;
        let size = rows.len() * panel;
        if from.strides()[1] != 1 {
            for (columns, into) in runs(columns, panel).zip(into.chunks_mut(size.max(1))) {
                Pack { from, part: [rows.clone(), columns], into, stride: panel }.run::<S, R>(s);
            }
            return;
        }
        for (t, row) in rows.enumerate() {
            let row = &from.tail(row, columns.start)[..columns.len()];
            ahead(s, row, from.strides()[0]);
            for (i, part) in row.chunks(panel).enumerate() {
                widen(s, part, &mut into[i * size + t * panel..]);
            }
        }
    }
}

/// Copies pairs of neighbouring rows, from end to end, to panels, one after the other; `part` counts pairs, and columns.
struct Zip<'a, 'm> {
    from: &'a Matrix<'m, bf16>,
    part: [Range<usize>; 2],
    into: &'a mut [f32],
    panel: usize,
}

impl Task for Zip<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Zip { from, part: [pairs, columns], into, panel } = self;
        let size = pairs.len() * panel;
        let row = |row: usize| &from.tail(row, columns.start)[..columns.len()];
        for (t, pair) in pairs.enumerate() {
            let first = row(2 * pair);
            let second = if 2 * pair + 1 < from.shape()[0] { row(2 * pair + 1) } else { &[] };
            ahead(s, first, 2 * from.strides()[0]);
            ahead(s, second, 2 * from.strides()[0]);
            for (i, at) in (0..columns.len()).step_by(panel).enumerate() {
                let end = columns.len().min(at + panel);
                let second = second.get(at..end).unwrap_or(&[]);
                zip_pairs(s, [&first[at..end], second], &mut into[i * size + t * panel..]);
            }
        }
    }
}

#[inline(always)]
fn widen<S: Lanes, T: Element>(s: S, from: &[T], into: &mut [f32]) {
    let whole = from.len() / S::N * S::N;
    for at in (0..whole).step_by(S::N) {
        s.store(&mut into[at..], T::load(s, &from[at..]));
    }
    for at in whole..from.len() {
        into[at] = from[at].to_f32();
    }
}

/// [`Pack`] where columns are contiguous: squares of one register are transposed, the rim goes element by element.
#[inline(always)]
fn turn<S: Lanes, T: Element>(s: S, from: &Matrix<'_, T>, [rows, columns]: [Range<usize>; 2], into: &mut [f32], stride: usize) {
    let mut square = [0.0f32; 256];
    let (high, wide) = (rows.len() / S::N * S::N, columns.len() / S::N * S::N);
    for c in (0..wide).step_by(S::N) {
        for r in (0..high).step_by(S::N) {
            let (values, step) = (from.tail(rows.start + r, columns.start + c), from.strides()[1]);
            if let (Some(values), true) = (T::as_f32(values), step > 0) {
                s.transpose(values, step as usize, &mut into[r * stride + c..], stride, None);
                continue;
            }
            for i in 0..S::N {
                s.store(&mut square[i * S::N..], T::load(s, from.tail(rows.start + r, columns.start + c + i)));
            }
            s.transpose(&square, S::N, &mut into[r * stride + c..], stride, None);
        }
    }
    for r in 0..rows.len() {
        for c in if r < high { wide } else { 0 }..columns.len() {
            into[r * stride + c] = from.at(rows.start + r, columns.start + c).to_f32();
        }
    }
}
