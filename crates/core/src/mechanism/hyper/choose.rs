//! Ranks of queries and keys, norms of values, and the seed of the draws: orders, blocks and draws follow from them.

use super::ground::{Ground, Sequence};
use crate::cluster::dot;
use crate::hash::{Hyperplanes, bin_of, sorted};
use crate::mechanism::Trace;
use crate::simd::{Lanes, Task, dispatch};
use crate::view::{DisjointRows, StridedMut, View};
use crate::{Dims, Error, Par};
use std::ops::Range;

/// What was hashed and what is drawn by.
#[derive(Debug, Clone)]
pub struct Hashed {
    pub(super) seed: u64,
    /// Ranks lie below `2^bits`.
    pub(super) bits: usize,
    /// `[B, H, N]`.
    pub(super) ranks_q: Vec<u32>,
    /// `[B, G, M]`.
    pub(super) ranks_k: Vec<u32>,
    /// `|v|`, `[B, G, M]`; empty unless keys are drawn by it.
    pub(super) norms: Vec<f32>,
}

impl Hashed {
    pub(super) fn choose(ground: &Ground<'_>, seed: u64, par: Par) -> Self {
        let problem = &ground.problem;
        let planes = match &ground.hyperplanes {
            Some(given) => Hyperplanes::given(given),
            None => Hyperplanes::drawn([problem.dims.dk, ground.config.bits], seed),
        };
        let norms = if ground.config.by_norm { norms(&problem.v, par) } else { Vec::new() };
        let [ranks_q, ranks_k] = [&problem.q, &problem.k].map(|rows| planes.ranks(rows, par));
        Hashed { seed, bits: planes.bits(), ranks_q, ranks_k, norms }
    }

    /// Refuses choices made on other inputs.
    pub(super) fn check(&self, ground: &Ground<'_>) -> Result<(), Error> {
        let Dims { batch, heads, kv_heads, queries, keys, .. } = ground.problem.dims;
        let cache = batch * kv_heads * keys;
        let expected = vec![batch * heads * queries, cache, if ground.config.by_norm { cache } else { 0 }];
        let found = vec![self.ranks_q.len(), self.ranks_k.len(), self.norms.len()];
        if found != expected {
            return Err(Error::Shape { tensor: "ranks of q, of k, norms of v", found, expected });
        }
        Ok(())
    }

    pub(super) fn traces(&self, ground: &Ground<'_>) -> Vec<Trace> {
        let Dims { batch, heads, kv_heads, queries, keys, .. } = ground.problem.dims;
        let trace = |name, heads, rows, values| Trace { name, shape: vec![batch, heads, rows], values };
        let q = self.of_rows(ground, (&self.ranks_q, heads, queries), |sequence| sequence.queries.clone());
        let k = self.of_rows(ground, (&self.ranks_k, kv_heads, keys), |sequence| sequence.keys.clone());
        let [(order_q, buckets_q), (order_k, buckets_k)] = [q, k];
        vec![
            trace("order_q", heads, queries, order_q),
            trace("order_k", kv_heads, keys, order_k),
            trace("buckets_q", heads, queries, buckets_q),
            trace("buckets_k", kv_heads, keys, buckets_k),
        ]
    }

    /// The order of every sequence's rows, sequence by sequence, and the bin of every row. That of a square is the order of its own rows.
    fn of_rows(
        &self,
        ground: &Ground<'_>,
        (ranks, heads, rows): (&[u32], usize, usize),
        of: impl Fn(&Sequence) -> Range<usize>,
    ) -> (Vec<i64>, Vec<i64>) {
        let (mut order, mut bins) = (vec![-1; ranks.len()], vec![-1; ranks.len()]);
        for sequence in &ground.sequences {
            for head in 0..heads {
                let (first, own) = ((sequence.batch * heads + head) * rows, of(sequence));
                let ranks = &ranks[first + own.start..first + own.end];
                for (at, (place, &rank)) in sorted(ranks, self.bits).into_iter().zip(ranks).enumerate() {
                    order[first + own.start + at] = (own.start + place as usize) as i64;
                    bins[first + own.start + at] = i64::from(bin_of(rank));
                }
            }
        }
        (order, bins)
    }
}

/// Euclidean norms of rows.
fn norms(view: &View<'_>, par: Par) -> Vec<f32> {
    const PIECE: usize = 512;
    let [batch, heads, rows, _] = view.shape();
    let mut norms = vec![0.0; batch * heads * rows];
    let pieces: Vec<Range<usize>> = (0..rows).step_by(PIECE).map(|at| at..rows.min(at + PIECE)).collect();
    let mut all = StridedMut::contiguous(&mut norms, [batch, heads, rows, 1], "norms").expect("its own shape");
    let all = DisjointRows::new(&mut all, &pieces);
    par.run(batch * heads * pieces.len(), 2.0 * view.shape().iter().product::<usize>() as f64, |jobs| {
        while let Some(job) = jobs.take() {
            let [b, h, piece] = [job / pieces.len() / heads, job / pieces.len() % heads, job % pieces.len()];
            let mut claim = all.claim(b, h, piece);
            let into = claim.together().expect("rows of one number follow one another");
            dispatch(par.level_in_use(), Norms { view, head: [b, h], first: pieces[piece].start, into });
        }
    });
    drop(all);
    norms
}

/// Norms of some rows of a head; 0 where one is not a finite number, which cannot be drawn by.
struct Norms<'a> {
    view: &'a View<'a>,
    head: [usize; 2],
    first: usize,
    into: &'a mut [f32],
}

impl Task for Norms<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let mut row = vec![0.0; self.view.shape()[3]];
        for (i, norm) in self.into.iter_mut().enumerate() {
            self.view.widen_row(s, [self.head[0], self.head[1], self.first + i], &mut row);
            let length = dot(&row, &row).sqrt() as f32;
            *norm = if length.is_finite() { length } else { 0.0 };
        }
    }
}
