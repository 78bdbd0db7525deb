//! The plan of a problem as integers, for devices that have no kernel of ours: every rule about positions says, for one
//! key, between which query positions it is seen, so visibility is `O(N + M)` numbers and two comparisons.

use crate::Problem;
use crate::sight::Scope;
use std::ops::Range;

/// Who sees whom. Query row `n` of kv head `(b, g)` sees key row `m` if `query_sequence == key_sequence` and
/// `first <= query_position <= last`. Dense masks and biases of -inf come on top.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Intervals {
    /// `[B, G, N]`: the batch row or packed sequence of a query, -1 for padding.
    pub query_sequence: Vec<i32>,
    /// `[B, G, N]`.
    pub query_position: Vec<i32>,
    /// `[B, G, M]`: the batch row or packed sequence of a key, -2 for padding.
    pub key_sequence: Vec<i32>,
    /// `[B, G, M]`.
    pub key_position: Vec<i32>,
    /// `[B, G, M]`, the first query position that sees a key.
    pub first: Vec<i32>,
    /// `[B, G, M]`, the last one; before `first` where none does.
    pub last: Vec<i32>,
}

impl Intervals {
    /// Those of a problem.
    pub fn new(problem: &Problem<'_>) -> Self {
        let dims = &problem.dims;
        let (rows, columns) = (dims.batch * dims.kv_heads * dims.queries, dims.batch * dims.kv_heads * dims.keys);
        let mut intervals = Intervals {
            query_sequence: vec![-1; rows],
            query_position: vec![0; rows],
            key_sequence: vec![-2; columns],
            key_position: vec![0; columns],
            first: vec![1; columns],
            last: vec![0; columns],
        };
        for sequence in 0..problem.sight.sequences(dims) {
            for g in 0..dims.kv_heads {
                let scope = problem.sight.scope(dims, sequence, g);
                let cache = scope.batch * dims.kv_heads + g;
                intervals.add(&scope, [cache * dims.queries, cache * dims.keys]);
            }
        }
        intervals
    }

    fn add(&mut self, scope: &Scope<'_>, [rows, columns]: [usize; 2]) {
        for n in scope.queries.clone() {
            self.query_sequence[rows + n] = scope.sequence as i32;
            self.query_position[rows + n] = scope.query_position(n);
        }
        for m in scope.keys.clone() {
            self.key_sequence[columns + m] = scope.sequence as i32;
            self.key_position[columns + m] = scope.key_position(m);
            (self.first[columns + m], self.last[columns + m]) = scope.seen_by(m);
        }
    }

    /// The smallest range of key rows that holds every key which one of the query `rows` sees, in any batch row and head;
    /// `caches` is B·G.
    pub fn columns(&self, rows: Range<usize>, caches: usize) -> Range<usize> {
        let (queries, keys) = (self.query_position.len() / caches.max(1), self.key_position.len() / caches.max(1));
        let mut seen = keys..0;
        for cache in 0..caches {
            let rows = cache * queries + rows.start..cache * queries + rows.end;
            let positions = self.query_position[rows.clone()].iter().zip(&self.query_sequence[rows]);
            let real = positions.filter(|(_, sequence)| **sequence >= 0).map(|(position, _)| *position);
            let (Some(low), Some(high)) = (real.clone().min(), real.max()) else { continue };
            let column = |m: usize| cache * keys + m;
            let meets = |m: &usize| self.key_sequence[column(*m)] >= 0 && self.first[column(*m)] <= high && self.last[column(*m)] >= low;
            seen.start = (0..seen.start.min(keys)).find(meets).unwrap_or(seen.start);
            seen.end = (seen.end..keys).rev().find(meets).map_or(seen.end, |m| m + 1);
        }
        if seen.is_empty() { 0..0 } else { seen }
    }
}
