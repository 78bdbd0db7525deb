//! Sequences cut into what is exact and what is sorted.

use super::ground::{Ground, Sequence};
use std::ops::Range;

/// Queries over keys that they all see.
#[derive(Debug, Clone)]
pub(super) struct Square {
    pub(super) batch: usize,
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    /// Which half of which half it joins: 1 is the whole, `2n` and `2n + 1` are the halves of `n`; 0 if bidirectional.
    pub(super) number: u64,
}

/// Rows that attend to each other exactly, by the caller's rule.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) batch: usize,
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

/// Everything that a call consists of. Squares of one level share no query.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) leaves: Vec<Leaf>,
    pub(super) levels: Vec<Vec<Square>>,
}

impl Parts {
    pub(super) fn of(ground: &Ground<'_>) -> Self {
        let mut parts = Parts::default();
        for sequence in &ground.sequences {
            if ground.causal {
                let mut halving = Halving { sequence, min_len: ground.config.min_len.max(1), parts: &mut parts };
                halving.cut(0..sequence.keys.len(), 1, 0);
            } else {
                parts.whole(sequence, ground.config.block);
            }
        }
        parts.levels.retain(|level| !level.is_empty());
        parts
    }

    /// A bidirectional sequence.
    fn whole(&mut self, sequence: &Sequence, block: usize) {
        let Sequence { batch, queries, keys } = sequence.clone();
        if queries.is_empty() || keys.is_empty() {
            return;
        }
        if keys.len() <= block {
            return self.leaves.push(Leaf { batch, queries, keys });
        }
        self.level(0).push(Square { batch, queries, keys, number: 0 });
    }

    fn level(&mut self, depth: usize) -> &mut Vec<Square> {
        if self.levels.len() <= depth {
            self.levels.resize_with(depth + 1, Vec::new);
        }
        &mut self.levels[depth]
    }
}

/// A causal sequence on its way into parts.
struct Halving<'a> {
    sequence: &'a Sequence,
    min_len: usize,
    parts: &'a mut Parts,
}

impl Halving<'_> {
    fn cut(&mut self, positions: Range<usize>, number: u64, depth: usize) {
        let queries = self.sequence.queries_at(&positions);
        if queries.is_empty() {
            return;
        }
        let (batch, first) = (self.sequence.batch, self.sequence.keys.start);
        if positions.len() <= self.min_len {
            let keys = first + positions.start..first + positions.end;
            return self.parts.leaves.push(Leaf { batch, queries, keys });
        }
        let middle = positions.start + positions.len() / 2;
        let later = self.sequence.queries_at(&(middle..positions.end));
        if !later.is_empty() {
            let keys = first + positions.start..first + middle;
            self.parts.level(depth).push(Square { batch, queries: later, keys, number });
        }
        self.cut(positions.start..middle, 2 * number, depth + 1);
        self.cut(middle..positions.end, 2 * number + 1, depth + 1);
    }
}
