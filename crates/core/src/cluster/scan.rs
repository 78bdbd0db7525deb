//! The leader scan: rows in order; each joins the most similar leader so far (the earliest of equals) if their cosine reaches the
//! threshold, else it leads a cluster of its own. A row that is similar to nothing leads one that nobody joins.
//!
//! Blocks of rows look at the leaders known before the block in parallel, then row by row at those founded inside it. No rows of
//! one scan wait for another scan. Memory is that of the rows and of the leaders: `O(N E)`, never `N × N`.

use super::index::{Columns, Found, Index, NOBODY};
use super::{Clusters, Directions};
use crate::Par;
use crate::view::{DisjointRows, StridedMut};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Rows that look at the leaders known so far together.
const BLOCK: usize = 256;

/// A scan that has come to some row.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    threshold: f32,
    index: Index,
    /// The cluster of every leader in the index.
    led: Vec<u32>,
    clusters: Clusters,
}

impl Scan {
    /// Of rows of this width, nothing known of them.
    pub(crate) fn new(threshold: f32, width: usize) -> Self {
        Self::with(threshold, Columns::all(width))
    }

    fn with(threshold: f32, columns: Columns) -> Self {
        Scan { threshold, index: Index::new(columns), led: Vec::new(), clusters: Clusters::default() }
    }

    pub(crate) fn clusters(&self) -> &Clusters {
        &self.clusters
    }

    pub(crate) fn bytes(&self) -> usize {
        let numbers = self.led.capacity() + self.clusters.assignment.capacity() + 2 * self.clusters.leaders.capacity();
        self.index.bytes() + numbers * size_of::<u32>()
    }

    /// The clusters of the rows since the last time, which it forgets.
    pub(crate) fn take_assignment(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.clusters.assignment)
    }

    /// Takes in rows one after another.
    pub(crate) fn absorb(&mut self, rows: &Directions, par: Par) {
        self.settle(rows, 0..rows.count(), &vec![Found::NOTHING; rows.count()], (0, par));
    }

    /// Whether anybody can join anything.
    fn is_open(&self) -> bool {
        self.threshold <= 1.0
    }

    /// Decides for some rows, given what they found before leader `known`.
    fn settle(&mut self, rows: &Directions, range: Range<usize>, found: &[Found], (known, par): (usize, Par)) {
        for (row, &found) in range.zip(found) {
            let mut best = [found];
            if self.is_open() {
                self.index.look_up((rows, row..row + 1), &mut best, (self.threshold, known), par);
            }
            if best[0].entry != NOBODY {
                self.clusters.join(self.led[best[0].entry as usize]);
                continue;
            }
            let cluster = self.clusters.len() as u32;
            if self.is_open() && rows.has_direction(row) {
                self.index.push(rows, row);
                self.led.push(cluster);
            }
            self.clusters.join(cluster);
        }
    }
}

/// Rows to scan, and the threshold.
pub(crate) struct Scanned<'a> {
    pub(crate) rows: &'a Directions,
    pub(crate) threshold: f32,
}

/// One of several scans on its way.
struct Progress<'a> {
    rows: &'a Directions,
    scan: Scan,
    found: Vec<Found>,
    /// The block it is at, and the leaders known before it.
    block: Range<usize>,
    known: usize,
}

impl<'a> Progress<'a> {
    fn new(&Scanned { rows, threshold }: &Scanned<'a>) -> Self {
        let scan = Scan::with(threshold, Columns::choose(rows, threshold));
        Progress { rows, scan, found: Vec::new(), block: 0..0, known: 0 }
    }

    fn begin(&mut self, round: usize) {
        let count = self.rows.count();
        self.block = count.min(round * BLOCK)..count.min((round + 1) * BLOCK);
        self.known = self.scan.index.count();
        self.found.clear();
        self.found.resize(self.block.len(), Found::NOTHING);
    }
}

/// Runs several scans block by block, side by side.
pub(crate) fn scan_all(scanned: &[Scanned<'_>], par: Par) -> Vec<Clusters> {
    let mut all: Vec<Mutex<Progress<'_>>> = scanned.iter().map(|scanned| Mutex::new(Progress::new(scanned))).collect();
    let longest = scanned.iter().map(|scanned| scanned.rows.count()).max().unwrap_or(0);
    for round in 0..longest.div_ceil(BLOCK) {
        all.iter_mut().map(held).for_each(|progress| progress.begin(round));
        look_up(&mut all, par);
        let rows: usize = all.iter_mut().map(|progress| held(progress).block.len()).sum();
        par.run(all.len(), 1e4 * rows as f64, |jobs| {
            while let Some(job) = jobs.take() {
                let progress = &mut *all[job].lock().unwrap_or_else(PoisonError::into_inner);
                progress.scan.settle(progress.rows, progress.block.clone(), &progress.found, (progress.known, par));
            }
        });
    }
    all.into_iter().map(|progress| progress.into_inner().unwrap_or_else(PoisonError::into_inner).scan.clusters).collect()
}

fn held<'m, 'a>(progress: &'m mut Mutex<Progress<'a>>) -> &'m mut Progress<'a> {
    progress.get_mut().unwrap_or_else(PoisonError::into_inner)
}

/// What the rows of every block find among the leaders known before it.
fn look_up(all: &mut [Mutex<Progress<'_>>], par: Par) {
    let pieces = Index::pieces(BLOCK);
    let cut: Vec<Vec<Range<usize>>> = all.iter_mut().map(|progress| Index::pieces(held(progress).block.len())).collect();
    let mut flops = 0.0;
    let mut shared = Vec::new();
    for progress in all.iter_mut().map(held) {
        flops += progress.scan.index.flops(progress.block.len());
        let Progress { rows, scan, found, block, .. } = progress;
        let count = found.len();
        shared.push((&**rows, &*scan, block.start, StridedMut::contiguous(found, [1, 1, count, 1], "found").expect("its own shape")));
    }
    let shared: Vec<_> = shared
        .iter_mut()
        .zip(&cut)
        .map(|((rows, scan, start, found), cut)| (*rows, *scan, *start, DisjointRows::new(found, cut)))
        .collect();
    par.run(shared.len() * pieces.len(), flops, |jobs| {
        while let Some(job) = jobs.take() {
            let (job, piece) = (job / pieces.len(), job % pieces.len());
            let (rows, scan, start, found) = &shared[job];
            let Some(range) = cut[job].get(piece).filter(|_| scan.is_open()) else { continue };
            let mut found = found.claim(0, 0, piece);
            let found = found.together().expect("rows follow one another");
            scan.index.look_up((rows, start + range.start..start + range.end), found, (scan.threshold, 0), par);
        }
    });
}
