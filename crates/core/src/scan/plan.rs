//! How tokens are cut: sequences, parts that threads take up, blocks.

use super::{Reach, Scan};
use std::ops::Range;

/// Tokens between two states that the backward pass keeps, and at least of a part of a forward pass.
pub(super) const PART: usize = 512;
/// Parts of all heads that are enough for any machine at hand.
const JOBS: usize = 8;

/// Rows of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) batch: usize,
    pub(crate) queries: Range<usize>,
    pub(crate) keys: Range<usize>,
}

impl Sequence {
    /// Position of the first query; negative where there are more queries than keys.
    fn first_position(&self) -> isize {
        self.keys.len() as isize - self.queries.len() as isize
    }

    /// The position of a query row.
    pub(super) fn position(&self, row: usize) -> isize {
        row as isize - self.queries.start as isize + self.first_position()
    }

    /// Keys before the first query.
    pub(super) fn before(&self) -> Range<usize> {
        let count = self.first_position().max(0) as usize;
        self.keys.start..self.keys.start + count
    }

    /// The keys that stand where these query rows do.
    pub(super) fn beside(&self, rows: &Range<usize>) -> Stretch {
        let first = self.position(rows.start);
        let lead = ((-first).max(0) as usize).min(rows.len());
        let start = self.keys.start + (first + lead as isize).max(0) as usize;
        Stretch { lead, rows: start..start + rows.len() - lead }
    }

    /// The keys from `left` before to `right` after some query rows.
    pub(super) fn around(&self, rows: &Range<usize>, [left, right]: [usize; 2]) -> Range<usize> {
        let count = self.keys.len() as isize;
        let clip = |position: isize| self.keys.start + position.clamp(0, count) as usize;
        let start = clip(self.position(rows.start).saturating_sub_unsigned(left));
        let end = clip(self.position(rows.end).saturating_add_unsigned(right)).max(start);
        start..end
    }

    /// The query rows from `right` before to `left` after some keys.
    pub(super) fn facing(&self, keys: &Range<usize>, [left, right]: [usize; 2]) -> Range<usize> {
        let count = self.queries.len() as isize;
        let clip = |row: isize| self.queries.start + row.clamp(0, count) as usize;
        let row = |key: usize| key as isize - self.keys.start as isize - self.first_position();
        let start = clip(row(keys.start).saturating_sub_unsigned(right));
        let end = clip(row(keys.end).saturating_add_unsigned(left)).max(start);
        start..end
    }
}

/// Rows of a tensor, and so many of zeros before them.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    pub(super) lead: usize,
    pub(super) rows: Range<usize>,
}

impl Stretch {
    pub(super) fn of(rows: Range<usize>) -> Self {
        Stretch { lead: 0, rows }
    }

    pub(super) fn len(&self) -> usize {
        self.lead + self.rows.len()
    }
}

/// What one thread takes up of a head.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The packed sequence; without packing it is the batch row.
    sequence: Option<usize>,
    pub(super) keys: Range<usize>,
    /// Its blocks of queries.
    pub(super) blocks: Range<usize>,
}

impl Part {
    pub(super) fn sequence(&self, b: usize) -> usize {
        self.sequence.unwrap_or(b)
    }
}

/// Parts and blocks of every head.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    pub(super) parts: Vec<Part>,
    /// Query rows of each block.
    pub(super) blocks: Vec<Range<usize>>,
}

impl Cuts {
    /// Key rows of each part.
    pub(super) fn keys(&self) -> Vec<Range<usize>> {
        self.parts.iter().map(|part| part.keys.clone()).collect()
    }

    /// Whether some sequence has several parts.
    pub(super) fn divide(&self) -> bool {
        self.parts.windows(2).any(|pair| pair[0].sequence == pair[1].sequence)
    }

    fn push(&mut self, (sequence, block): (Option<usize>, usize), queries: Range<usize>, keys: Range<usize>) {
        let first = self.blocks.len();
        self.blocks.extend(pieces(queries, block));
        self.parts.push(Part { sequence, keys, blocks: first..self.blocks.len() });
    }
}

/// Pieces of `size` rows.
pub(super) fn pieces(rows: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(size).map(move |start| start..rows.end.min(start.saturating_add(size)))
}

impl Scan<'_> {
    /// The rows of whole sequences, padding included.
    fn wholes(&self) -> Vec<(Option<usize>, Range<usize>, Range<usize>)> {
        if !self.packed {
            return vec![(None, 0..self.dims.queries, 0..self.dims.keys)];
        }
        let of = |(s, sequence): (usize, &Sequence)| (Some(s), sequence.queries.clone(), sequence.keys.clone());
        self.sequences.iter().enumerate().map(of).collect()
    }

    /// Whether every query has the key of its row.
    pub(super) fn is_aligned(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.queries == sequence.keys)
    }

    /// Queries with the keys beside them. Where they are not aligned a sequence stays whole.
    pub(super) fn cuts(&self, size: usize) -> Cuts {
        let (mut cuts, aligned, block) = (Cuts::default(), self.is_aligned(), self.rules.block());
        for (sequence, queries, keys) in self.wholes() {
            if !aligned {
                cuts.push((sequence, block), queries, keys);
                continue;
            }
            pieces(queries, size).for_each(|rows| cuts.push((sequence, block), rows.clone(), rows));
        }
        cuts
    }

    /// Queries alone, or keys alone.
    pub(super) fn cuts_of(&self, side: Side, size: usize) -> Cuts {
        let (mut cuts, block) = (Cuts::default(), self.rules.block());
        for (sequence, queries, keys) in self.wholes() {
            let rows = if side == Side::Queries { queries } else { keys };
            pieces(rows, size).for_each(|rows| cuts.push((sequence, block), rows.clone(), rows));
        }
        cuts
    }

    /// Tokens of a part of a forward pass: all, unless there are few heads.
    pub(super) fn forward_part(&self) -> usize {
        let heads = (self.dims.batch * self.dims.heads).max(1);
        let wanted = if self.reach == Reach::Past { JOBS.div_ceil(heads) } else { JOBS };
        self.whole_blocks(self.dims.queries.max(self.dims.keys).div_ceil(wanted))
    }

    /// Tokens of a part of a backward pass.
    pub(super) fn backward_part(&self) -> usize {
        self.whole_blocks(PART)
    }

    fn whole_blocks(&self, tokens: usize) -> usize {
        tokens.max(PART).next_multiple_of(self.rules.block())
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Side {
    Queries,
    Keys,
}
