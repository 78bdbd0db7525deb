//! How much a token is attended to, 1 on average under every mask.
//!
//! `c_j = Σ_h Σ_i A_hij / Σ_h Σ_i (1/n_hi)`: received attention over what uniform attention would give, both summed over query heads h and
//! over the queries i that see key j; `n_hi` is the number of keys that query i sees. Where all heads see alike this is the mean over heads of
//! `Σ_i A_ij / Σ_i 1/n_i`. A key that nobody sees has the score 0.
//!
//! Visibility is an interval of query positions per key, so both counts are running sums over positions, O(N + M); with a dense mask or
//! bias every pair is looked up.

use crate::par::Jobs;
use crate::rows::matrix::check_length;
use crate::sight::Scope;
use crate::view::{DisjointRows, StridedMut};
use crate::{Error, Par, Problem};
use std::ops::Range;

/// What every key of a problem receives under uniform attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Uniform {
    heads: usize,
    keys: usize,
    /// `[B, M]`, summed over query heads.
    received: Vec<f32>,
}

impl Uniform {
    /// Of a problem's visibility: its sight, its dense mask, and biases of -inf.
    pub fn new(problem: &Problem<'_>, par: Par) -> Self {
        let dims = &problem.dims;
        let by_pairs = problem.dense_mask().is_some() || problem.bias().is_some();
        // Without a dense mask the query heads of a group see alike, and all of them where nothing is said of single kv heads.
        let (heads, times) = match (by_pairs, problem.all_key_biases().is_some() || problem.sight.tells_heads_apart()) {
            (true, _) => (dims.heads, 1.0),
            (false, true) => (dims.kv_heads, dims.group() as f64),
            (false, false) => (1, dims.heads as f64),
        };
        let mut rows = vec![0.0f64; dims.batch * heads * dims.keys];
        let ones: Vec<Range<usize>> = (0..dims.batch * heads).map(|row| row..row + 1).collect();
        let mut out = StridedMut::contiguous(&mut rows, [1, 1, dims.batch * heads, dims.keys], "rows").expect("one row per head");
        let shared = DisjointRows::new(&mut out, &ones);
        let pairs = (dims.batch * heads * dims.keys) as f64 * if by_pairs { dims.queries as f64 } else { 1.0 };
        par.run(dims.batch * heads, 10.0 * pairs, |jobs: &Jobs<'_>| {
            while let Some(row) = jobs.take() {
                let mut claim = shared.claim(0, 0, row);
                let head = Head { problem, b: row / heads, h: row % heads * dims.heads / heads };
                head.fill(by_pairs, claim.row(0));
            }
        });
        drop(shared);
        let total = |b: usize, j: usize| (0..heads).map(|h| rows[(b * heads + h) * dims.keys + j]).sum::<f64>() * times;
        let received = (0..dims.batch).flat_map(|b| (0..dims.keys).map(move |j| (b, j))).map(|(b, j)| total(b, j) as f32).collect();
        Uniform { heads: dims.heads, keys: dims.keys, received }
    }

    /// The score `[B, M]` from received attention `[B, H, M]`, the column sums of [`crate::exact::received`].
    ///
    /// # Errors
    /// If a length does not fit.
    pub fn score(&self, received: &[f32], score: &mut [f32]) -> Result<(), Error> {
        self.check(received.len(), score.len(), ["received", "score"])?;
        for (at, score) in score.iter_mut().enumerate() {
            let sum: f32 = (0..self.heads).map(|h| received[self.place(at, h)]).sum();
            *score = if self.received[at] > 0.0 { sum / self.received[at] } else { 0.0 };
        }
        Ok(())
    }

    /// The gradient of received attention, `[B, H, M]`, from that of the score, `[B, M]`.
    ///
    /// # Errors
    /// If a length does not fit.
    pub fn backward(&self, dscore: &[f32], dreceived: &mut [f32]) -> Result<(), Error> {
        self.check(dreceived.len(), dscore.len(), ["dreceived", "dscore"])?;
        for (at, dscore) in dscore.iter().enumerate() {
            let share = if self.received[at] > 0.0 { dscore / self.received[at] } else { 0.0 };
            (0..self.heads).for_each(|h| dreceived[self.place(at, h)] = share);
        }
        Ok(())
    }

    fn check(&self, per_head: usize, per_key: usize, [of_heads, of_keys]: [&'static str; 2]) -> Result<(), Error> {
        check_length(per_head, self.received.len() * self.heads, of_heads)?;
        check_length(per_key, self.received.len(), of_keys)
    }

    /// Where `[b, j]` stands in `[B, H, M]`.
    fn place(&self, at: usize, h: usize) -> usize {
        (at / self.keys * self.heads + h) * self.keys + at % self.keys
    }
}

/// One query head, or a kv head whose query heads see alike.
struct Head<'a> {
    problem: &'a Problem<'a>,
    b: usize,
    h: usize,
}

impl Head<'_> {
    fn fill(&self, by_pairs: bool, into: &mut [f64]) {
        let problem = self.problem;
        let g = self.h / problem.dims.group();
        let sequences = problem.sight.sequences(&problem.dims);
        let own = if problem.sight.offsets.is_none() { self.b..self.b + 1 } else { 0..sequences };
        for sequence in own {
            let scope = problem.sight.scope(&problem.dims, sequence, g);
            let bias = problem.key_bias(scope.batch, g);
            let open = |key: usize| bias.is_none_or(|bias| bias[key] != f32::NEG_INFINITY);
            if by_pairs { self.by_pairs(&scope, open, into) } else { by_positions(&scope, open, into) }
        }
    }

    fn by_pairs(&self, scope: &Scope<'_>, open: impl Fn(usize) -> bool, into: &mut [f64]) {
        let at = |query, key| [self.b, self.h, query, key];
        let allowed = |query, key| {
            let masked = self.problem.dense_mask().is_some_and(|mask| mask.at(at(query, key)) == 0);
            !masked && self.problem.bias().is_none_or(|bias| bias.at(at(query, key)) != f32::NEG_INFINITY)
        };
        for query in scope.queries.clone() {
            let seen: Vec<usize> = scope.keys.clone().filter(|&key| open(key) && scope.sees(query, key) && allowed(query, key)).collect();
            seen.iter().for_each(|&key| into[key] += 1.0 / seen.len() as f64);
        }
    }
}

/// Running sums over the queries in order of position.
fn by_positions(scope: &Scope<'_>, open: impl Fn(usize) -> bool, into: &mut [f64]) {
    let mut positions: Vec<i32> = scope.queries.clone().map(|query| scope.query_position(query)).collect();
    positions.sort_unstable();
    // The queries that see a key: a run in the order of positions.
    let run = |key: usize| {
        let (first, last) = scope.seen_by(key);
        let start = positions.partition_point(|&position| position < first);
        start..positions.partition_point(|&position| position <= last).max(start)
    };
    let runs: Vec<_> = scope.keys.clone().filter(|&key| open(key)).map(|key| (key, run(key))).collect();
    let mut seen = vec![0i64; positions.len() + 1];
    for (_, run) in &runs {
        seen[run.start] += 1;
        seen[run.end] -= 1;
    }
    let mut shares = vec![0.0f64; positions.len() + 1];
    let mut keys = 0;
    for i in 0..positions.len() {
        keys += seen[i];
        shares[i + 1] = shares[i] + if keys > 0 { 1.0 / keys as f64 } else { 0.0 };
    }
    for (key, run) in runs {
        into[key] = shares[run.end] - shares[run.start];
    }
}
