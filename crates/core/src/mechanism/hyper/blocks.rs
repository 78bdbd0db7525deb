//! The squares of a level for some heads: keys in order, queries by the block that they belong to.

use super::choose::Hashed;
use super::draw::{Drawn, Pool};
use super::ground::Ground;
use super::squares::Square;
use crate::hash::{Stream, sorted};
use crate::{Dims, Par};
use std::ops::Range;
use std::sync::OnceLock;

/// Most queries of a visit.
const QUERIES: usize = 1024;

/// Some kv heads of one batch row, and the query heads that read them.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    pub(super) batch: usize,
    pub(super) kv: Range<usize>,
    /// Query heads per kv head.
    pub(super) group: usize,
}

impl Heads {
    pub(super) fn query(&self) -> Range<usize> {
        self.kv.start * self.group..self.kv.end * self.group
    }
}

/// The keys of a square in order.
#[derive(Debug)]
struct SortedKeys {
    rows: Vec<u32>,
    /// As in [`Pool::sums`].
    sums: Vec<f64>,
}

/// Some queries of one head that meet the same keys.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    square: usize,
    /// Query head.
    pub(super) head: usize,
    block: usize,
    /// Places in the order of the square's queries.
    queries: Range<usize>,
    /// Keys in the block and beside it.
    pub(super) keys: usize,
}

/// A level of squares, arranged.
#[derive(Debug)]
pub(super) struct Arranged<'a> {
    ground: &'a Ground<'a>,
    chosen: &'a Hashed,
    heads: &'a Heads,
    squares: Vec<&'a Square>,
    /// Of each square and kv head.
    keys: Vec<SortedKeys>,
    /// Rows of each square and query head, by rank.
    queries: Vec<Vec<u32>>,
    pub(super) visits: Vec<Visit>,
}

impl<'a> Arranged<'a> {
    pub(super) fn new((ground, chosen): (&'a Ground<'a>, &'a Hashed), level: &'a [Square], heads: &'a Heads, par: Par) -> Self {
        let squares: Vec<_> = level.iter().filter(|square| square.batch == heads.batch).collect();
        let mut arranged = Arranged { ground, chosen, heads, squares, keys: Vec::new(), queries: Vec::new(), visits: Vec::new() };
        let (kv, query) = (heads.kv.len(), heads.query().len());
        let rows: usize = arranged.squares.iter().map(|square| square.keys.len() * kv + square.queries.len() * query).sum();
        let effort = 64.0 * rows as f64;
        arranged.keys = collect(arranged.squares.len() * kv, effort, par, |_: &mut (), at| arranged.sort_keys(at));
        arranged.queries = collect(arranged.squares.len() * query, effort, par, |_: &mut (), at| arranged.sort_queries(at));
        arranged.visits = (0..arranged.queries.len()).flat_map(|at| arranged.visits_of(at)).collect();
        arranged
    }

    /// Ranks of the keys of kv head `g`.
    fn ranks_k(&self, g: usize) -> &'a [u32] {
        let Dims { kv_heads, keys, .. } = self.ground.problem.dims;
        &self.chosen.ranks_k[(self.heads.batch * kv_heads + g) * keys..][..keys]
    }

    /// Ranks of the queries of head `h`.
    fn ranks_q(&self, h: usize) -> &'a [u32] {
        let Dims { heads, queries, .. } = self.ground.problem.dims;
        &self.chosen.ranks_q[(self.heads.batch * heads + h) * queries..][..queries]
    }

    fn sort_keys(&self, at: usize) -> SortedKeys {
        let (square, g) = (self.squares[at / self.heads.kv.len()], self.heads.kv.start + at % self.heads.kv.len());
        let rows = in_order(self.ranks_k(g), &square.keys, self.chosen.bits);
        let mut sums = Vec::new();
        if !self.chosen.norms.is_empty() {
            let Dims { kv_heads, keys, .. } = self.ground.problem.dims;
            let norms = &self.chosen.norms[(self.heads.batch * kv_heads + g) * keys..];
            let add = |sum: &mut f64, &row: &u32| Some(std::mem::replace(sum, *sum + f64::from(norms[row as usize])));
            sums.extend(rows.iter().chain(rows.last()).scan(0.0, add));
        }
        SortedKeys { rows, sums }
    }

    fn sort_queries(&self, at: usize) -> Vec<u32> {
        let (square, h) = (self.squares[at / self.heads.query().len()], self.heads.query().start + at % self.heads.query().len());
        in_order(self.ranks_q(h), &square.queries, self.chosen.bits)
    }

    /// The visits of one square and query head.
    fn visits_of(&self, at: usize) -> Vec<Visit> {
        let (square, head) = (at / self.heads.query().len(), self.heads.query().start + at % self.heads.query().len());
        let (keys, ranks_k, ranks_q) = (self.keys_of(square, head), self.ranks_k(head / self.heads.group), self.ranks_q(head));
        let rank_k = |place: usize| ranks_k[keys.rows[place] as usize];
        let order = &self.queries[at];
        let (mut visits, mut first) = (Vec::new(), 0);
        while first < order.len() {
            let rank = ranks_q[order[first] as usize];
            let inserted = keys.rows.partition_point(|&row| ranks_k[row as usize] < rank);
            let block = inserted.min(keys.rows.len() - 1) / self.ground.config.block;
            let places = self.block(block, keys.rows.len());
            let highest = if places.end == keys.rows.len() { u32::MAX } else { rank_k(places.end - 1) };
            let end = first + order[first..].partition_point(|&row| ranks_q[row as usize] <= highest);
            let pool = Pool { block: places.clone(), keys: keys.rows.len(), sums: &[] };
            let count = places.len() + pool.drawn(self.ground.config.samples);
            let pieces = (first..end).step_by(QUERIES).map(|start| start..end.min(start + QUERIES));
            visits.extend(pieces.map(|queries| Visit { square, head, block, queries, keys: count }));
            first = end;
        }
        visits
    }

    fn keys_of(&self, square: usize, head: usize) -> &SortedKeys {
        &self.keys[square * self.heads.kv.len() + head / self.heads.group - self.heads.kv.start]
    }

    /// Places of a block.
    fn block(&self, block: usize, keys: usize) -> Range<usize> {
        let start = block * self.ground.config.block;
        start..keys.min(start.saturating_add(self.ground.config.block))
    }

    /// Query rows of a visit.
    pub(super) fn queries(&self, visit: &Visit) -> &[u32] {
        &self.queries[visit.square * self.heads.query().len() + visit.head - self.heads.query().start][visit.queries.clone()]
    }

    /// Key rows of a visit and what is added to their logits.
    pub(super) fn keys(&self, visit: &Visit, drawn: &mut Vec<Drawn>, (rows, weights): (&mut Vec<u32>, &mut Vec<f32>)) {
        let keys = self.keys_of(visit.square, visit.head);
        let block = self.block(visit.block, keys.rows.len());
        let pool = Pool { block: block.clone(), keys: keys.rows.len(), sums: &keys.sums };
        let number = self.squares[visit.square].number;
        pool.draw(self.ground.config.samples, self.chosen.stream([self.heads.batch, visit.head, visit.block], number), drawn);
        rows.clear();
        rows.extend_from_slice(&keys.rows[block.clone()]);
        rows.extend(drawn.iter().map(|drawn| keys.rows[drawn.place as usize]));
        weights.clear();
        weights.resize(block.len(), 0.0);
        weights.extend(drawn.iter().map(|drawn| drawn.weight as f32));
    }

    /// Pairs of queries and keys that meet.
    pub(super) fn pairs(&self) -> u64 {
        self.visits.iter().map(|visit| (visit.queries.len() * visit.keys) as u64).sum()
    }
}

impl Hashed {
    /// The numbers by which one query head's keys beside one block are drawn.
    pub(super) fn stream(&self, [batch, head, block]: [usize; 3], square: u64) -> Stream {
        Stream::new(&[self.seed, batch as u64, head as u64, square, block as u64])
    }
}

/// Some rows by their ranks.
fn in_order(ranks: &[u32], rows: &Range<usize>, bits: usize) -> Vec<u32> {
    let mut order = sorted(&ranks[rows.clone()], bits);
    order.iter_mut().for_each(|place| *place += rows.start as u32);
    order
}

/// What `make` gives for each number below `count`; each thread has working memory of its own.
pub(super) fn collect<W: Default, T: Send + Sync>(count: usize, effort: f64, par: Par, make: impl Fn(&mut W, usize) -> T + Sync) -> Vec<T> {
    let made: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    par.run(count, effort, |jobs| {
        let mut scratch = W::default();
        while let Some(job) = jobs.take() {
            made[job].get_or_init(|| make(&mut scratch, job));
        }
    });
    made.into_iter().map(|made| made.into_inner().expect("every job is taken")).collect()
}
