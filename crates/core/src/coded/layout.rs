//! Sequences cut into blocks of queries, and for each block which keys are read through their codes' counts and sums, and which one by
//! one.
//!
//! A query at position p sees keys `j <= p - gap` before it (gap 0: its own too) and, bidirectional with a gap, `j >= p + gap` after it.
//! Keys that every query of a block sees are *far*, `0..before` and `after..M`; those that only some see are *near*, and so is the last one
//! before all see it: a query that sees one key alone has a weight of 1 and no slope, which sums over queries would lose in rounding.

use crate::Problem;
use std::ops::Range;

/// Most queries in a block: longer ones only cost more.
pub(crate) const QUERIES: usize = 128;
/// Blocks that a piece has at least, where a sequence is cut for several threads.
const BLOCKS: usize = 4;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) causal: bool,
    /// Positions between two boundaries.
    pub(crate) block: usize,
    /// Keys nearer than this are left out; 0: none.
    pub(crate) gap: usize,
}

/// One sequence of one batch row: valid rows, and the position of the first query.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) batch: usize,
    pub(crate) queries: Range<usize>,
    pub(crate) keys: Range<usize>,
    first: i64,
}

/// Keys one by one, as numbers in the sequence, and which of them a query at position p sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Near {
    /// Those up to `p - gap`.
    Before(Range<usize>),
    /// Those from `p + gap` on.
    After(Range<usize>),
}

impl Near {
    pub(crate) fn keys(&self) -> Range<usize> {
        match self {
            Near::Before(keys) | Near::After(keys) => keys.clone(),
        }
    }

    /// Those of some keys that a query at positions from `low` to `high` may see.
    #[inline(always)]
    pub(crate) fn within(&self, keys: Range<usize>, gap: usize, (low, high): (i32, i32)) -> Range<usize> {
        let gap = gap.min(1 << 40) as i64;
        match self {
            Near::Before(_) => {
                let end = (i64::from(high) - gap + 1).clamp(keys.start as i64, keys.end as i64);
                keys.start..end as usize
            }
            Near::After(_) => {
                let start = (i64::from(low) + gap).clamp(keys.start as i64, keys.end as i64);
                start as usize..keys.end
            }
        }
    }

    /// The first and last position that sees a key.
    #[inline(always)]
    pub(crate) fn seen_by(&self, key: usize, gap: usize) -> (i32, i32) {
        let (key, gap) = (key as i64, gap.min(1 << 40) as i64);
        let clip = |x: i64| x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        match self {
            Near::Before(_) => (clip(key + gap), i32::MAX),
            Near::After(_) => (i32::MIN, clip(key - gap)),
        }
    }
}

/// Some queries of a sequence.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Rows along N.
    pub(crate) rows: Range<usize>,
    /// The position of the first row.
    pub(crate) position: i64,
    /// Keys below this are far.
    pub(crate) before: usize,
    /// Keys from this on are far.
    pub(crate) after: usize,
    pub(crate) near: [Near; 2],
}

impl Sequence {
    /// Every sequence of a problem.
    pub(crate) fn all(problem: &Problem<'_>) -> Vec<Self> {
        let of = |sequence| {
            let scope = problem.sight.scope(&problem.dims, sequence, 0);
            let first = if scope.queries.is_empty() { 0 } else { scope.query_position(scope.queries.start).into() };
            Sequence { batch: scope.batch, queries: scope.queries, keys: scope.keys, first }
        };
        (0..problem.sight.sequences(&problem.dims)).map(of).collect()
    }

    /// The same keys and so many queries.
    pub(crate) fn with_queries(&self, count: usize) -> Self {
        Sequence { queries: 0..count, first: 0, ..self.clone() }
    }

    /// The numbers of its blocks.
    pub(crate) fn blocks(&self, rule: &Rule) -> Range<i64> {
        let length = rule.length();
        if self.queries.is_empty() {
            return 0..0;
        }
        let last = self.first + self.queries.len() as i64 - 1;
        self.first.div_euclid(length)..last.div_euclid(length) + 1
    }

    /// One of them.
    pub(crate) fn block(&self, rule: &Rule, number: i64) -> Block {
        let (start, end) = (number * rule.length(), (number + 1) * rule.length());
        let row = |position: i64| self.queries.start + (position - self.first).clamp(0, self.queries.len() as i64) as usize;
        let key = |at: i64| at.clamp(0, self.keys.len() as i64) as usize;
        let (gap, all) = (rule.gap.min(1 << 40) as i64, self.keys.len());
        let (before, near_end) = if rule.causal || rule.gap > 0 { (key(start - gap), key(end - gap)) } else { (all, all) };
        let both = !rule.causal && rule.gap > 0;
        let (near_start, after) = if both { (key(start + gap), key(end + gap)) } else { (all, all) };
        let near = [Near::Before(before.min(near_end)..near_end), Near::After(near_start..after.max(near_start))];
        Block { rows: row(start)..row(end), position: start.max(self.first), before, after, near }
    }

    /// Its blocks in pieces for several threads: so many that all heads together have work for sixteen.
    pub(crate) fn pieces(&self, rule: &Rule, most: usize) -> Vec<Range<i64>> {
        let blocks = self.blocks(rule);
        let count = blocks.end - blocks.start;
        let pieces = (most as i64).min(count / BLOCKS as i64).max(1);
        (0..pieces)
            .map(|i| blocks.start + count * i / pieces..blocks.start + count * (i + 1) / pieces)
            .filter(|piece| !piece.is_empty())
            .collect()
    }

    /// Pairs of queries and keys that stand in one block's table.
    pub(crate) fn near(&self, rule: &Rule) -> usize {
        let of = |number| {
            let block = self.block(rule, number);
            block.rows.len() * block.near.iter().map(|near| near.keys().len()).sum::<usize>()
        };
        self.blocks(rule).map(of).sum()
    }
}

impl Rule {
    /// Positions in a block. Without boundaries it is only how many queries share a table.
    fn length(&self) -> i64 {
        if self.causal { self.block.min(QUERIES) as i64 } else { QUERIES as i64 }
    }
}
