//! Rows of tensors: read as f32 wherever they stand, written by several threads.

use crate::Par;
use crate::mechanism::owned::Owned;
use crate::view::{Claim, DisjointRows, StridedMut, View};
use std::ops::Range;

/// A tensor whose rows are f32, a copy of it where they were not.
pub(super) struct Wide<'a> {
    view: View<'a>,
    copy: Option<Owned>,
}

impl<'a> Wide<'a> {
    pub(super) fn of(view: View<'a>) -> Self {
        let [batch, heads, rows, _] = view.shape();
        let stands = batch * heads * rows > 0 && view.rows(0, 0, 0..rows).is_some();
        Wide { view, copy: (!stands).then(|| Owned::widened(&view)) }
    }

    pub(super) fn row(&self, [b, h, n]: [usize; 3]) -> &[f32] {
        match &self.copy {
            Some(copy) => copy.row([b, h, n]),
            None => self.view.rows(b, h, n..n + 1).expect("looked at before").0,
        }
    }

    pub(super) fn view(&self) -> View<'_> {
        self.copy.as_ref().map_or(self.view, Owned::view)
    }
}

/// Takes row number `count` into a mean. Equal rows leave the bits of the mean as they are.
#[inline]
pub(super) fn add_to_mean(mean: &mut [f32], row: &[f32], count: u32) {
    if count == 1 {
        return mean.copy_from_slice(row);
    }
    let share = 1.0 / count as f32;
    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += (x - *mean) * share);
}

/// `into += factor · row`.
#[inline]
pub(super) fn add(into: &mut [f32], row: &[f32], factor: f32) {
    into.iter_mut().zip(row).for_each(|(into, x)| *into += factor * x);
}

/// Runs `each` for every `[batch row, head, piece]` of rows.
pub(super) fn fill(into: &mut Owned, pieces: &[Range<usize>], par: Par, each: impl Fn([usize; 3], &mut Claim<'_, f32>) + Sync) {
    let [batch, heads, _, _] = into.shape;
    let elements = into.data.len();
    let mut rows = StridedMut::contiguous(&mut into.data, into.shape, "rows").expect("its own shape");
    let rows = DisjointRows::new(&mut rows, pieces);
    par.run(batch * heads * pieces.len(), 16.0 * elements as f64, |jobs| {
        while let Some(job) = jobs.take() {
            let [b, h, piece] = [job / pieces.len() / heads, job / pieces.len() % heads, job % pieces.len()];
            each([b, h, piece], &mut rows.claim(b, h, piece));
        }
    });
}
