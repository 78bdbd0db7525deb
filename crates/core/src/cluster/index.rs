//! The most similar of many rows, without looking at every pair in full.
//!
//! For unit rows and any choice of columns `a·b ≤ Σ_chosen a_t b_t + |rest of a||rest of b|` (Cauchy and Schwarz). The chosen
//! entries and the length of the rest are one row of an inner product, so bounds of all pairs come from the register tile; a pair
//! whose bound reaches what is looked for is then computed exactly. Columns are chosen by energy, as many as it takes for
//! unrelated rows to stay below: about a fifth of them where rows are spread evenly. With all columns the bound is the cosine.

use super::directions::{Directions, cosine};
use crate::Par;
use crate::simd::{Along, Lanes, Rows, Task, dispatch, product};
use crate::view::{DisjointRows, StridedMut};
use std::cmp::Reverse;
use std::ops::Range;

/// Rows whose entries stand side by side.
const PANEL: usize = 32;
/// Registers in a row of the tile.
const C: usize = 2;
/// Rows beyond the last that a tile may read.
const SPARE: usize = 16;
/// Rows that columns are chosen by.
const SAMPLE: usize = 512;
/// Rows that one thread looks up at a time.
const PIECE: usize = 64;

/// A row of the index and its cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Found {
    pub(crate) cosine: f32,
    /// [`NOBODY`] where there is none.
    pub(crate) entry: u32,
}

pub(crate) const NOBODY: u32 = u32::MAX;

impl Found {
    pub(super) const NOTHING: Found = Found { cosine: f32::NEG_INFINITY, entry: NOBODY };
}

/// Which columns bound a cosine, the first `whole` of `order`; where some are left, the length of the rest comes last.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    order: Vec<u32>,
    whole: usize,
}

impl Columns {
    pub(super) fn all(width: usize) -> Self {
        Columns { order: (0..width as u32).collect(), whole: width }
    }

    /// Enough for most unrelated rows to be bounded below `floor`.
    pub(super) fn choose(rows: &Directions, floor: f32) -> Self {
        let width = rows.width();
        let sample: Vec<usize> = (0..rows.count()).step_by(rows.count().div_ceil(SAMPLE).max(1)).collect();
        let (mut means, mut energies) = (vec![0.0f64; width], vec![0.0f64; width]);
        for &row in &sample {
            for ((mean, energy), &x) in means.iter_mut().zip(&mut energies).zip(rows.row(row)) {
                *mean += f64::from(x) / sample.len() as f64;
                *energy += f64::from(x).powi(2) / sample.len() as f64;
            }
        }
        let mut columns = Columns::all(width);
        columns.order.sort_by_key(|&column| Reverse(energies[column as usize].to_bits()));
        let (mut rest, mut common, mut spread) = (energies.iter().sum::<f64>(), 0.0, 0.0);
        for (at, &column) in columns.order.iter().enumerate() {
            let full = (at + 1).is_multiple_of(8) && at + 1 < width;
            if full && rest + common + 3.0 * f64::sqrt(spread) < f64::from(floor) {
                columns.whole = at;
                break;
            }
            let (mean, energy) = (means[column as usize], energies[column as usize]);
            (rest, common, spread) = (rest - energy, common + mean * mean, spread + energy * energy);
        }
        columns
    }

    fn width(&self) -> usize {
        self.whole + usize::from(self.whole < self.order.len())
    }

    /// How far the f32 sum of a tile can be from a bound, with what normalising leaves.
    fn slack(&self) -> f32 {
        (2 * self.width() + 16) as f32 * f32::EPSILON / 2.0
    }

    fn write(&self, row: &[f32], into: &mut [f32]) {
        for (to, &column) in into.iter_mut().zip(&self.order[..self.whole]) {
            *to = row[column as usize];
        }
        if self.whole < self.order.len() {
            let rest: f64 = self.order[self.whole..].iter().map(|&column| f64::from(row[column as usize]).powi(2)).sum();
            into[self.whole] = (rest.sqrt() * (1.0 + 1e-6)) as f32;
        }
    }
}

/// Rows to be found.
#[derive(Debug, Clone)]
pub(super) struct Index {
    columns: Columns,
    /// Panel by panel, what [`Columns`] takes of [`PANEL`] rows, transposed.
    panels: Vec<f32>,
    rows: Directions,
}

impl Index {
    pub(super) fn new(columns: Columns) -> Self {
        let rows = Directions::new(columns.order.len());
        Index { columns, panels: Vec::new(), rows }
    }

    pub(super) fn count(&self) -> usize {
        self.rows.count()
    }

    pub(super) fn push(&mut self, from: &Directions, row: usize) {
        let (width, lane) = (self.columns.width(), self.count() % PANEL);
        if lane == 0 {
            self.panels.resize(self.panels.len() + width * PANEL, 0.0);
        }
        let mut bound = vec![0.0; width];
        self.columns.write(from.row(row), &mut bound);
        let panel = self.panels.len() - width * PANEL;
        for (t, x) in bound.into_iter().enumerate() {
            self.panels[panel + t * PANEL + lane] = x;
        }
        self.rows.push(from, row);
    }

    pub(super) fn bytes(&self) -> usize {
        self.panels.capacity() * size_of::<f32>() + self.rows.bytes()
    }

    /// Pieces of `count` rows that [`Index::look_up`] can do apart.
    pub(super) fn pieces(count: usize) -> Vec<Range<usize>> {
        (0..count).step_by(PIECE).map(|at| at..count.min(at + PIECE)).collect()
    }

    /// Operations of a look-up of `count` rows.
    pub(super) fn flops(&self, count: usize) -> f64 {
        2.0 * count as f64 * (self.count() * self.columns.width()) as f64
    }

    /// For each of some rows the most similar entries from `first` on with a cosine of `floor` or more, best first, the earlier
    /// of equals first; `found` holds equally many for each row, and may hold earlier entries already.
    pub(super) fn look_up(&self, rows: (&Directions, Range<usize>), found: &mut [Found], (floor, first): (f32, usize), par: Par) {
        let (all, range) = rows;
        if range.is_empty() || first >= self.count() {
            return;
        }
        let width = self.columns.width();
        let mut bounds = vec![0.0f32; (range.len() + SPARE) * width];
        for (row, bound) in range.clone().zip(bounds.chunks_mut(width)) {
            self.columns.write(all.row(row), bound);
        }
        let most = found.len() / range.len();
        let mut work = LookUp { index: self, rows: all, range, floor, most, found, cuts: Vec::new(), bounds, first };
        work.cuts = (0..work.range.len() + SPARE).map(|row| work.cut(row)).collect();
        dispatch(par.level_in_use(), work);
    }
}

/// The search for some rows.
struct LookUp<'a> {
    index: &'a Index,
    rows: &'a Directions,
    range: Range<usize>,
    floor: f32,
    most: usize,
    found: &'a mut [Found],
    /// Bounds up to here are of no use to a row.
    cuts: Vec<f32>,
    bounds: Vec<f32>,
    first: usize,
}

impl LookUp<'_> {
    fn cut(&self, row: usize) -> f32 {
        if row >= self.range.len() || !self.rows.has_direction(self.range.start + row) {
            return f32::INFINITY;
        }
        self.floor.max(self.found[(row + 1) * self.most - 1].cosine) - self.index.columns.slack()
    }

    /// Looks at one pair in full.
    #[inline(always)]
    fn compare(&mut self, row: usize, entry: usize) {
        let cosine = cosine(self.rows.row(self.range.start + row), self.index.rows.row(entry));
        let found = &mut self.found[row * self.most..][..self.most];
        if cosine < self.floor || cosine <= found[self.most - 1].cosine {
            return;
        }
        let at = found.partition_point(|better| better.cosine >= cosine);
        found[at..].rotate_right(1);
        found[at] = Found { cosine, entry: entry as u32 };
        self.cuts[row] = self.cut(row);
    }

    /// `TILE` rows against one panel.
    #[inline(always)]
    fn tile<S: Lanes, const TILE: usize>(&mut self, s: S, row: usize, panel: usize) {
        let width = self.index.columns.width();
        let values = &self.index.panels[panel * width * PANEL..][..width * PANEL];
        for column in (0..PANEL).step_by(C * S::N) {
            let left = Along(Rows::new(&self.bounds[row * width..], width));
            let acc = product::<S, _, TILE, C>(s, [[s.zero(); C]; TILE], left, Rows::new(&values[column..], PANEL), width);
            for (r, acc) in acc.iter().enumerate() {
                for (c, &bounds) in acc.iter().enumerate() {
                    if s.any_not_at_most(bounds, s.splat(self.cuts[row + r])) {
                        self.candidates(s, row + r, panel * PANEL + column + c * S::N, bounds);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn candidates<S: Lanes>(&mut self, s: S, row: usize, entry: usize, bounds: S::F) {
        let mut lanes = [0.0f32; PANEL];
        s.store(&mut lanes, bounds);
        for (entry, &bound) in (entry..).zip(&lanes[..S::N]) {
            if bound > self.cuts[row] && (self.first..self.index.count()).contains(&entry) {
                self.compare(row, entry);
            }
        }
    }
}

impl Task for LookUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(mut self, s: S) {
        for panel in self.first / PANEL..self.index.count().div_ceil(PANEL) {
            if self.range.len() == 1 {
                self.tile::<S, 1>(s, 0, panel);
                continue;
            }
            for row in (0..self.range.len()).step_by(R) {
                self.tile::<S, R>(s, row, panel);
            }
        }
    }
}

/// For each row the `most` most similar of some of the rows, best first, the earlier of equals first; [`NOBODY`] where fewer can
/// be compared. Entries are places in `among`.
pub(crate) fn closest(rows: &Directions, among: &[u32], most: usize, par: Par) -> Vec<Found> {
    let mut index = Index::new(Columns::all(rows.width()));
    let able: Vec<u32> = (0..among.len() as u32).filter(|&at| rows.has_direction(among[at as usize] as usize)).collect();
    able.iter().for_each(|&at| index.push(rows, among[at as usize] as usize));
    let mut all = vec![Found::NOTHING; rows.count() * most];
    if most == 0 {
        return all;
    }
    let pieces = Index::pieces(rows.count());
    let mut shared = StridedMut::contiguous(&mut all, [1, 1, rows.count(), most], "found").expect("its own shape");
    let shared = DisjointRows::new(&mut shared, &pieces);
    par.run(pieces.len(), index.flops(rows.count()), |jobs| {
        while let Some(piece) = jobs.take() {
            let mut found = shared.claim(0, 0, piece);
            let found = found.together().expect("rows follow one another");
            index.look_up((rows, pieces[piece].clone()), found, (-1.0, 0), par);
        }
    });
    drop(shared);
    all.iter_mut().filter(|found| found.entry != NOBODY).for_each(|found| found.entry = able[found.entry as usize]);
    all
}
