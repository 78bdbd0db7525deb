//! Passing keys, panel by panel: of the keys whose lifetimes start or end among some queries, those alive at the panel at
//! hand are packed densely, so that few lanes and few rows of a tile are wasted.
//!
//! The walk goes over panels of ascending positions. A key is copied when the first query comes that sees it; a dead one
//! gives its place to the youngest. So keys that started long ago stand in front, those that start just now at the end,
//! in order, and the tiles of a diagonal stay triangular.

use super::pack::Packed;
use super::plan::{Facts, Keys};
use crate::sight::Scope;
use crate::simd::{Aligned, Lanes, Rows};
use crate::view::View;
use crate::{Dims, Problem};

/// Whose keys pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passing<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) scope: &'a Scope<'a>,
    /// Batch row and kv head.
    pub(super) at: [usize; 2],
    /// The keys, in the order in which their lifetimes start.
    pub(super) rows: &'a [usize],
}

/// The living among them.
#[derive(Debug, Default)]
pub(super) struct Live {
    facts: Facts,
    k: Aligned<f32>,
    v: Aligned<f32>,
    /// How many keys have been looked at.
    next: usize,
}

impl Live {
    /// Before the first panel.
    pub(super) fn begin(&mut self) {
        self.facts.clear();
        self.next = 0;
    }

    /// The keys that will be looked at next.
    pub(super) fn upcoming(&self, rows: &[usize], count: usize) -> Keys {
        Keys::Passing(self.next..rows.len().min(self.next + count))
    }

    /// Goes on to a panel: no query from here on stands before `horizon`, none of the panel's behind `high`.
    #[inline(always)]
    pub(super) fn advance<S: Lanes, const R: usize>(&mut self, s: S, passing: Passing<'_>, (horizon, high): (i32, i32)) {
        let Passing { problem, scope, at, rows } = passing;
        let (most, dims) = (rows.len().next_multiple_of(R), &problem.dims);
        let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
        let (k, v) = (self.k.take(most * dk), self.v.take(most * dv));
        self.facts.cut();
        let mut slot = 0;
        while slot < self.facts.count {
            if self.facts.last[slot] >= horizon {
                slot += 1;
                continue;
            }
            self.facts.swap_remove(slot);
            let last = self.facts.count;
            k.copy_within(last * dk..(last + 1) * dk, slot * dk);
            v.copy_within(last * dv..(last + 1) * dv, slot * dv);
        }
        while let Some(&row) = rows.get(self.next) {
            let (first, last) = scope.seen_by(row);
            if first > high {
                break;
            }
            self.next += 1;
            if last >= horizon {
                let slot = self.facts.count;
                copy_row(s, &problem.k, (at, row), &mut k[slot * dk..(slot + 1) * dk]);
                copy_row(s, &problem.v, (at, row), &mut v[slot * dv..(slot + 1) * dv]);
                self.facts.push(problem, scope, at[1], row);
            }
        }
        self.facts.close(R);
    }

    /// The keys of the panel at hand.
    pub(super) fn keys<S: Lanes>(&self, dims: &Dims) -> Packed<'_> {
        let (rows, facts) = (self.facts.first.len(), &self.facts);
        let (dk, dv) = (dims.dk.next_multiple_of(S::N), dims.dv.next_multiple_of(S::N));
        Packed::new::<S>(facts, [Rows::new(self.k.get(rows * dk), dk), Rows::new(self.v.get(rows * dv), dv)])
    }
}

#[inline(always)]
fn copy_row<S: Lanes>(s: S, view: &View<'_>, ([b, g], row): ([usize; 2], usize), into: &mut [f32]) {
    view.widen_row(s, [b, g, row], into);
    into[view.shape()[3]..].fill(0.0);
}
