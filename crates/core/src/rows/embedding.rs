//! Rows of a table by number: `y_i = table[id_i]`, table `[vocabulary, width]`, y `[rows, width]`.
//! Backward: `dtable_v = Σ_{i: id_i = v} dy_i`, in the order of i whatever the threads; rows that no id names are zero.

use super::id::Id;
use super::matrix::{Matrix, MatrixMut, check_length};
use super::sweep::{Sweep, blocks, load, store, sweep};
use crate::simd::{Aligned, LINE, Lanes, Task, dispatch};
use crate::view::{DisjointRows, Element};
use crate::{Error, Par};
use std::ops::Range;

/// Whether an id is not in the table: a task, so that the comparison is compiled for the level.
struct AnyOutside<'a, I> {
    ids: &'a [I],
    vocabulary: usize,
}

impl<I: Id> Task for AnyOutside<'_, I> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, _: S) -> bool {
        let mut outside = false;
        for id in self.ids {
            outside |= id.to_i64() as u64 >= self.vocabulary as u64;
        }
        outside
    }
}

fn check_ids<I: Id>(ids: &[I], vocabulary: usize, par: Par) -> Result<(), Error> {
    // The row is looked for only where there is one to name.
    if !dispatch(par.level_in_use(), AnyOutside { ids, vocabulary }) {
        return Ok(());
    }
    for (row, id) in ids.iter().enumerate().map(|(row, id)| (row, id.to_i64())) {
        if !(0..vocabulary as i64).contains(&id) {
            return Err(Error::value("ids", format!("row {row} has id {id}, the vocabulary has {vocabulary} entries")));
        }
    }
    Ok(())
}

/// `y_i = table[id_i]`.
///
/// # Errors
/// If shapes differ, or an id is not in the table; its row is named.
pub fn forward<T: Element, I: Id>(table: &Matrix<'_, T>, ids: &[I], y: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    let [vocabulary, width] = table.shape();
    table.check([vocabulary, width], "table")?;
    y.check([ids.len(), width], "y")?;
    check_ids(ids, vocabulary, par)?;
    let blocks = blocks([ids.len(), width]);
    let work = Gather { table, ids, y: y.share(&blocks) };
    sweep(&work, &blocks, ids.len() * width, par);
    Ok(())
}

/// The gradient of the whole table.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element, I: Id>(ids: &[I], dy: &Matrix<'_, T>, dtable: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    let [vocabulary, width] = dtable.shape();
    check_length(dy.shape()[0], ids.len(), "dy")?;
    dy.check([ids.len(), width], "dy")?;
    check_ids(ids, vocabulary, par)?;
    let mut order: Vec<(u64, usize)> = ids.iter().enumerate().map(|(row, id)| (id.to_i64() as u64, row)).collect();
    order.sort_unstable();
    let blocks = blocks([vocabulary, width]);
    let work = Scatter { order: &order, dy, dtable: dtable.share(&blocks) };
    sweep(&work, &blocks, (vocabulary + ids.len()) * width, par);
    Ok(())
}

struct Gather<'a, T, I> {
    table: &'a Matrix<'a, T>,
    ids: &'a [I],
    y: DisjointRows<'a, T>,
}

impl<T: Element, I: Id> Sweep for Gather<'_, T, I> {
    #[inline(always)]
    fn block<S: Lanes>(&self, _: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut y = self.y.claim(0, 0, block);
        for (i, id) in self.ids[rows].iter().enumerate() {
            copy(self.table.row(id.to_i64() as usize), y.row(i));
        }
    }
}

/// Copies a row line by line: a call that finds out about its length first takes longer than a row of a hundred numbers.
#[inline(always)]
fn copy<T: Copy>(from: &[T], into: &mut [T]) {
    if size_of::<T>() == 2 { copy_chunks::<T, { 2 * LINE }>(from, into) } else { copy_chunks::<T, LINE>(from, into) }
}

#[inline(always)]
fn copy_chunks<T: Copy, const N: usize>(from: &[T], into: &mut [T]) {
    let (from, rest) = from.as_chunks::<N>();
    let (into, last) = into.as_chunks_mut::<N>();
    into.iter_mut().zip(from).for_each(|(into, from)| *into = *from);
    // Where nothing is left there is no call either.
    if !rest.is_empty() {
        last.copy_from_slice(rest);
    }
}

struct Scatter<'a, T> {
    /// Ids with the rows that have them, sorted.
    order: &'a [(u64, usize)],
    dy: &'a Matrix<'a, T>,
    dtable: DisjointRows<'a, T>,
}

impl<T: Element> Sweep for Scatter<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, scratch: &mut Aligned<f32>) {
        let mut dtable = self.dtable.claim(0, 0, block);
        let sum = scratch.take(self.dy.shape()[1]);
        let mut next = self.order.partition_point(|(id, _)| *id < rows.start as u64);
        for (i, id) in rows.enumerate() {
            let own = self.order[next..].iter().take_while(|(other, _)| *other == id as u64).count();
            if own == 0 {
                dtable.row(i).fill(T::default());
                continue;
            }
            sum.fill(0.0);
            for (_, row) in &self.order[next..next + own] {
                let dy = self.dy.row(*row);
                for at in (0..dy.len()).step_by(S::N) {
                    store(s, sum, at, s.add(load(s, sum, at, 0.0), load(s, dy, at, 0.0)));
                }
            }
            next += own;
            let into = dtable.row(i);
            for at in (0..into.len()).step_by(S::N) {
                store(s, into, at, load(s, sum, at, 0.0));
            }
        }
    }
}
