//! Rows that lie scattered, copied to where a kernel reads them, and spread again.

use super::blocks::{Arranged, Visit};
use super::draw::Drawn;
use crate::mechanism::owned::Owned;
use crate::simd::{Aligned, LINE, Lanes, Level, Task, dispatch};
use crate::view::{DisjointRows, Strided, StridedMut, View};
use crate::{Dims, Par, Problem, Scores, Sight};
use std::ops::Range;

/// Rows asked for ahead of the one that is copied.
const AHEAD: usize = 8;
/// Copies rows of a head one after the other, as f32.
pub(super) fn gather(level: Level, view: &View<'_>, head: [usize; 2], rows: &[u32], into: &mut [f32]) {
    dispatch(level, Gather { view, head, rows, into });
}

struct Gather<'a> {
    view: &'a View<'a>,
    head: [usize; 2],
    rows: &'a [u32],
    into: &'a mut [f32],
}

impl Task for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let [b, h] = self.head;
        let width = self.view.shape()[3];
        for (i, (&row, into)) in self.rows.iter().zip(self.into.chunks_mut(width)).enumerate() {
            if let Some(&next) = self.rows.get(i + AHEAD)
                && let Some((data, _)) = self.view.rows(b, h, next as usize..next as usize + 1)
            {
                for at in (0..data.len()).step_by(LINE) {
                    s.prefetch(&raw const data[at]);
                }
            }
            self.view.widen_row(s, [b, h, row as usize], into);
        }
    }
}

/// Adds rows of `from` to rows of a head.
pub(super) struct Add<'a> {
    pub(super) into: &'a DisjointRows<'a, f32>,
    pub(super) head: usize,
    pub(super) rows: &'a [u32],
    pub(super) from: &'a [f32],
}

impl Task for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let width = self.from.len() / self.rows.len();
        for (&row, from) in self.rows.iter().zip(self.from.chunks(width)) {
            add(s, self.into.claim(0, self.head, row as usize).row(0), from);
        }
    }
}

/// `into += from`.
#[inline(always)]
pub(super) fn add<S: Lanes>(s: S, into: &mut [f32], from: &[f32]) {
    let whole = into.len() / S::N * S::N;
    for at in (0..whole).step_by(S::N) {
        let sum = s.add(s.load(&into[at..]), s.load(&from[at..]));
        s.store(&mut into[at..], sum);
    }
    for at in whole..into.len() {
        into[at] += from[at];
    }
}

/// What one visit reads.
#[derive(Default)]
pub(super) struct Gathered {
    drawn: Vec<Drawn>,
    pub(super) keys: Vec<u32>,
    weights: Vec<f32>,
    queries: usize,
    q: Aligned<f32>,
    k: Aligned<f32>,
    v: Aligned<f32>,
}

impl Gathered {
    pub(super) fn fill(&mut self, (problem, arranged): (&Problem<'_>, &Arranged<'_>), visit: &Visit, batch: usize, level: Level) {
        let dims = &problem.dims;
        let rows = arranged.queries(visit);
        let g = visit.head / dims.group();
        self.queries = rows.len();
        arranged.keys(visit, &mut self.drawn, (&mut self.keys, &mut self.weights));
        gather(level, &problem.q, [batch, visit.head], rows, self.q.take(rows.len() * dims.dk));
        gather(level, &problem.k, [batch, g], &self.keys, self.k.take(self.keys.len() * dims.dk));
        gather(level, &problem.v, [batch, g], &self.keys, self.v.take(self.keys.len() * dims.dv));
    }

    /// Exact attention of the queries over the keys.
    pub(super) fn problem(&self, Dims { dk, dv, .. }: Dims, scale: f32) -> Problem<'_> {
        let (n, m) = (self.queries, self.keys.len());
        let view = |data, shape| View::F32(Strided::contiguous(data, shape, "rows").expect("its own shape"));
        let [q, k] = [(&self.q, n), (&self.k, m)].map(|(rows, count)| view(rows.get(count * dk), [1, 1, count, dk]));
        let v = view(self.v.get(m * dv), [1, 1, m, dv]);
        let scores = Scores::new().scale(scale);
        let alike = self.weights.iter().all(|&weight| weight == 0.0);
        let scores = if alike { scores } else { scores.key_bias(&self.weights) };
        Problem::new(q, k, v, Sight::full(), scores).expect("rows of one problem fit")
    }
}

/// A tensor whose rows are f32, a copy of it where they were not.
pub(super) struct Floats<'a> {
    view: View<'a>,
    copy: Option<Owned>,
}

impl<'a> Floats<'a> {
    pub(super) fn of(view: View<'a>, par: Par) -> Self {
        let copy = (view.dtype() != "f32").then(|| widened(&view, par));
        Floats { view, copy }
    }

    pub(super) fn view(&self) -> View<'_> {
        self.copy.as_ref().map_or(self.view, Owned::view)
    }
}

fn widened(view: &View<'_>, par: Par) -> Owned {
    let [batch, heads, rows, width] = view.shape();
    let mut copy = Owned::zeros([batch, heads, rows, width]);
    let (pieces, elements) = (pieces(rows), copy.data.len());
    let mut all = StridedMut::contiguous(&mut copy.data, copy.shape, "rows").expect("its own shape");
    let all = DisjointRows::new(&mut all, &pieces);
    par.run(batch * heads * pieces.len(), 16.0 * elements as f64, |jobs| {
        while let Some(job) = jobs.take() {
            let [b, h, piece] = [job / pieces.len() / heads, job / pieces.len() % heads, job % pieces.len()];
            let rows: Vec<u32> = pieces[piece].clone().map(|row| row as u32).collect();
            let mut claim = all.claim(b, h, piece);
            gather(par.level_in_use(), view, [b, h], &rows, claim.together().expect("rows follow one another"));
        }
    });
    drop(all);
    copy
}

/// Rows cut into what a thread copies at a time.
pub(super) fn pieces(rows: usize) -> Vec<Range<usize>> {
    const PIECE: usize = 256;
    (0..rows).step_by(PIECE).map(|at| at..rows.min(at + PIECE)).collect()
}

/// Every row by itself.
pub(super) fn single(rows: usize) -> Vec<Range<usize>> {
    (0..rows).map(|row| row..row + 1).collect()
}
