//! Some queries of one head that belong to the same block: their rows and those of their keys are gathered and go through the exact
//! kernel, each visit a job.
//!
//! Backward, two visits may have a key in common. So each writes the gradients of its keys to rows of its own, which are added in the
//! order of visits, batch after batch: the bits do not depend on the number of threads.

use super::blocks::{Arranged, Heads, Visit, collect};
use super::gather::{Add, Gathered, add, gather};
use super::running::{Merge, Shared};
use crate::mechanism::owned::Owned;
use crate::simd::{Aligned, Lanes, Level, Task, dispatch};
use crate::view::{Claim, DisjointRows, Strided, StridedMut, View, ViewMut};
use crate::{Dims, Gradients, Output, Par, Problem, Saved, exact};
use std::ops::Range;

/// Most keys of a batch of visits, unless one has more.
const BATCH: usize = 32_768;
/// In how many pieces the keys of a head take what a batch found.
const PIECES: usize = 16;

/// The visits of a level of squares.
pub(super) struct Visits<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) arranged: Arranged<'a>,
    pub(super) heads: &'a Heads,
    pub(super) par: Par,
}

/// Gradients of some heads of one batch row in the making.
pub(super) struct Slopes {
    /// `[1, heads, N, Dk]`.
    pub(super) dq: Owned,
    /// `[1, kv heads, M, Dk]`.
    pub(super) dk: Owned,
    /// `[1, kv heads, M, Dv]`.
    pub(super) dv: Owned,
}

impl Slopes {
    /// Of zeros; leaves are written before anything is added to them.
    pub(super) fn new(heads: &Heads, dims: &Dims, leaves: bool) -> Self {
        let [queries, keys] = [(heads.query().len(), dims.queries), (heads.kv.len(), dims.keys)];
        let of = if leaves { Owned::zeros } else { Owned::sums };
        let rows = |(heads, rows), width| of([1, heads, rows, width]);
        Slopes { dq: rows(queries, dims.dk), dk: rows(keys, dims.dk), dv: rows(keys, dims.dv) }
    }
}

impl Visits<'_> {
    /// Operations of a forward pass over some visits.
    fn flops(&self, visits: &[Visit]) -> f64 {
        let pairs: usize = visits.iter().map(|visit| visit.keys * self.arranged.queries(visit).len()).sum();
        2.0 * pairs as f64 * (self.problem.dims.dk + self.problem.dims.dv) as f64
    }

    /// Runs on one thread, for it is one of many jobs.
    fn alone(&self) -> Par {
        Par::serial().level(self.par.level_in_use())
    }

    pub(super) fn forward(&self, into: &Shared<'_>) {
        let (level, visits) = (self.par.level_in_use(), &self.arranged.visits);
        self.par.run(visits.len(), self.flops(visits), |jobs| {
            let (mut gathered, mut o, mut lse) = (Gathered::default(), Aligned::new(), Aligned::new());
            while let Some(job) = jobs.take() {
                let rows = self.arranged.queries(&visits[job]);
                gathered.fill((self.problem, &self.arranged), &visits[job], self.heads.batch, level);
                let (o, lse) = (o.take(rows.len() * self.problem.dims.dv), lse.take(rows.len()));
                let mut out = Output { o: contiguous(o, [rows.len(), self.problem.dims.dv]), lse: Some(lse) };
                let problem = gathered.problem(self.problem.dims, self.problem.scale());
                exact::forward_tiled(&problem, &mut out, self.alone()).expect("outputs fit");
                dispatch(level, Merge { into, head: visits[job].head - self.heads.query().start, rows, o, lse });
            }
        });
    }

    pub(super) fn backward(&self, saved: &Saved<'_>, into: &mut Slopes, single: &[Range<usize>]) {
        let mut visits = &self.arranged.visits[..];
        while !visits.is_empty() {
            let (batch, rest) = visits.split_at(batch(visits));
            let found = self.retrace(batch, saved, (&mut into.dq, single));
            self.add(batch, &found, into);
            visits = rest;
        }
    }

    /// Adds the gradients of queries; gives those of keys.
    fn retrace(&self, visits: &[Visit], saved: &Saved<'_>, (dq, single): (&mut Owned, &[Range<usize>])) -> Vec<Found> {
        let mut dq = StridedMut::contiguous(&mut dq.data, dq.shape, "dq").expect("its own shape");
        let dq = DisjointRows::new(&mut dq, single);
        collect(visits.len(), 2.5 * self.flops(visits), self.par, |scratch: &mut Scratch, job| {
            let (found, from) = self.retrace_one(&visits[job], saved, scratch);
            let (head, rows) = (visits[job].head - self.heads.query().start, self.arranged.queries(&visits[job]));
            dispatch(self.par.level_in_use(), Add { into: &dq, head, rows, from });
            found
        })
    }

    fn retrace_one<'s>(&self, visit: &Visit, saved: &Saved<'_>, scratch: &'s mut Scratch) -> (Found, &'s [f32]) {
        let (dims, level) = (self.problem.dims, self.par.level_in_use());
        let Scratch { gathered, upstream, dq } = scratch;
        let queries = self.arranged.queries(visit);
        gathered.fill((self.problem, &self.arranged), visit, self.heads.batch, level);
        let saved = upstream.fill(&dims, saved, ([self.heads.batch, visit.head], queries), level);
        let keys = gathered.keys.clone();
        let mut found = Found { dk: vec![0.0; keys.len() * dims.dk], dv: vec![0.0; keys.len() * dims.dv], keys };
        let dq = dq.take(queries.len() * dims.dk);
        let mut gradients = Gradients {
            dq: Some(contiguous(dq, [queries.len(), dims.dk])),
            dk: Some(contiguous(&mut found.dk, [visit.keys, dims.dk])),
            dv: Some(contiguous(&mut found.dv, [visit.keys, dims.dv])),
            ..Gradients::default()
        };
        let problem = gathered.problem(dims, self.problem.scale());
        exact::backward(&problem, &saved, &mut gradients, self.alone()).expect("gradients fit");
        (found, dq)
    }

    /// Adds the gradients of keys.
    fn add(&self, visits: &[Visit], found: &[Found], into: &mut Slopes) {
        let keys = self.problem.dims.keys;
        let pieces: Vec<Range<usize>> = (0..PIECES).map(|at| at * keys / PIECES..(at + 1) * keys / PIECES).collect();
        let [mut dk, mut dv] =
            [&mut into.dk, &mut into.dv].map(|sums| StridedMut::contiguous(&mut sums.data, sums.shape, "sums").expect("its own shape"));
        let [dk, dv] = [&mut dk, &mut dv].map(|sums| DisjointRows::new(sums, &pieces));
        let effort = 16.0 * found.iter().map(|found| found.dk.len() + found.dv.len()).sum::<usize>() as f64;
        self.par.run(self.heads.kv.len() * PIECES, effort, |jobs| {
            while let Some(job) = jobs.take() {
                let (head, rows) = (job / PIECES, pieces[job % PIECES].clone());
                let met = |visit: &Visit| visit.head / self.heads.group == self.heads.kv.start + head;
                let own = visits.iter().zip(found).filter(|(visit, _)| met(visit)).map(|(_, found)| found);
                let into = [&dk, &dv].map(|sums| sums.claim(0, head, job % PIECES));
                dispatch(self.par.level_in_use(), Sum { found: own, rows, into });
            }
        });
    }
}

fn contiguous(values: &mut [f32], [rows, width]: [usize; 2]) -> ViewMut<'_> {
    ViewMut::F32(StridedMut::contiguous(values, [1, 1, rows, width], "rows").expect("its own shape"))
}

/// How many visits make a batch.
fn batch(visits: &[Visit]) -> usize {
    let mut keys = 0;
    let fits = |visit: &&Visit| {
        keys += visit.keys;
        keys <= BATCH
    };
    visits.iter().take_while(fits).count().max(1)
}

/// Working memory of a thread.
#[derive(Default)]
struct Scratch {
    gathered: Gathered,
    upstream: Upstream,
    dq: Aligned<f32>,
}

/// What flows back into the queries of a visit.
#[derive(Default)]
struct Upstream {
    o: Aligned<f32>,
    d_o: Aligned<f32>,
    lse: Vec<f32>,
}

impl Upstream {
    fn fill(&mut self, dims: &Dims, saved: &Saved<'_>, ([b, h], rows): ([usize; 2], &[u32]), level: Level) -> Saved<'_> {
        for (view, into) in [(&saved.o, &mut self.o), (&saved.d_o, &mut self.d_o)] {
            gather(level, view, [b, h], rows, into.take(rows.len() * dims.dv));
        }
        let of_head = &saved.lse[(b * dims.heads + h) * dims.queries..];
        self.lse.clear();
        self.lse.extend(rows.iter().map(|&row| of_head[row as usize]));
        let shape = [1, 1, rows.len(), dims.dv];
        let [o, d_o] = [&self.o, &self.d_o]
            .map(|values| View::F32(Strided::contiguous(values.get(rows.len() * dims.dv), shape, "rows").expect("its own shape")));
        Saved { o, lse: &self.lse, d_o }
    }
}

/// Gradients of the keys of a visit.
struct Found {
    keys: Vec<u32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Adds what was found to some rows of a head.
struct Sum<'a, I> {
    found: I,
    rows: Range<usize>,
    into: [Claim<'a, f32>; 2],
}

impl<'f, I: Iterator<Item = &'f Found>> Task for Sum<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Sum { found, rows, into: [mut dk, mut dv] } = self;
        for found in found {
            let (dk_width, dv_width) = (found.dk.len() / found.keys.len(), found.dv.len() / found.keys.len());
            for (i, &key) in found.keys.iter().enumerate() {
                if rows.contains(&(key as usize)) {
                    let row = key as usize - rows.start;
                    add(s, dk.row(row), &found.dk[i * dk_width..][..dk_width]);
                    add(s, dv.row(row), &found.dv[i * dv_width..][..dv_width]);
                }
            }
        }
    }
}
