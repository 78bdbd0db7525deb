//! From visibility to work: which keys a block of queries meets, and what each of them is.
//!
//! A [`Plan`] lists blocks of at most [`BLOCK`] keys for one block of queries: runs of neighbours, or live keys gathered
//! from where they lie scattered. [`Facts`] holds, for the keys of one block, the interval of query positions that sees
//! each; per tile of `R` keys their extremes say whether a panel of queries sees all of it ([`Class::Full`]), some
//! ([`Class::Edge`], masked in lanes) or nothing.

use crate::Problem;
use crate::sight::Scope;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Keys in a block.
pub(super) const BLOCK: usize = 128;
/// A run of candidates with a smaller share of live keys is gathered.
const GATHER_BELOW: usize = BLOCK * 5 / 8;

/// The keys of one block.
#[derive(Debug, Clone)]
pub(super) enum Keys {
    /// Neighbours.
    Run(Range<usize>),
    /// Positions in the plan's list of gathered rows.
    Gathered(Range<usize>),
}

/// The blocks that one block of queries meets.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) blocks: Vec<Keys>,
    pub(super) gathered: Vec<usize>,
}

impl Plan {
    /// Plans for queries at positions `low ..= high`.
    pub(super) fn make(&mut self, scope: &Scope<'_>, low: i32, high: i32) {
        self.blocks.clear();
        self.gathered.clear();
        for range in scope.candidates(low, high) {
            for start in range.clone().step_by(BLOCK) {
                let run = start..range.end.min(start + BLOCK);
                if scope.is_scattered() { self.sift(scope, run, low, high) } else { self.blocks.push(Keys::Run(run)) }
            }
        }
        let scattered = (0..self.gathered.len()).step_by(BLOCK);
        self.blocks.extend(scattered.map(|start| Keys::Gathered(start..self.gathered.len().min(start + BLOCK))));
    }

    /// Keeps a run that is mostly alive, gathers the live keys of another.
    fn sift(&mut self, scope: &Scope<'_>, run: Range<usize>, low: i32, high: i32) {
        let alive = |&key: &usize| {
            let (first, last) = scope.seen_by(key);
            first <= high && last >= low
        };
        let before = self.gathered.len();
        self.gathered.extend(run.clone().filter(alive));
        let live = self.gathered.len() - before;
        if live >= GATHER_BELOW.min(run.len()) {
            self.gathered.truncate(before);
            if live > 0 {
                self.blocks.push(Keys::Run(run));
            }
        }
    }

    /// The row of the i-th key of a block.
    #[inline(always)]
    pub(super) fn row(&self, keys: &Keys, i: usize) -> usize {
        match keys {
            Keys::Run(run) => run.start + i,
            Keys::Gathered(list) => self.gathered[list.start + i],
        }
    }
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        match self {
            Keys::Run(range) | Keys::Gathered(range) => range.len(),
        }
    }

    /// Start of the range.
    pub(super) fn first(&self) -> usize {
        match self {
            Keys::Run(range) | Keys::Gathered(range) => range.start,
        }
    }
}

/// What a panel of queries sees of a tile of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Full,
    Edge,
    Hidden,
}

/// Extremes over the keys of a tile.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: (i32, i32),
    last: (i32, i32),
}

const ALWAYS: Span = Span { first: (i32::MIN, i32::MIN), last: (i32::MAX, i32::MAX) };

/// What is known of the keys of one block, beside their vectors.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Keys in the block.
    pub(super) count: usize,
    /// Row along M of each key.
    pub(super) rows: Vec<usize>,
    /// First query position that sees it.
    pub(super) first: Vec<i32>,
    /// Last query position that sees it.
    pub(super) last: Vec<i32>,
    /// Its own position.
    pub(super) position: Vec<i32>,
    /// Its bias in units of log2; 0 without biases.
    pub(super) bias: Vec<f32>,
    spans: Vec<Span>,
}

impl Facts {
    /// Collects the facts of `count` keys, padded to whole tiles of `tile` keys with keys that nobody sees. `seen_all`
    /// says that every query in question sees all of them.
    pub(super) fn collect(&mut self, problem: &Problem<'_>, scope: &Scope<'_>, g: usize, keys: KeyList<'_>, tile: usize) {
        let count = keys.list.len();
        let padded = count.next_multiple_of(tile);
        self.count = count;
        self.rows.clear();
        self.rows.extend((0..count).map(|i| keys.plan.row(keys.list, i)));
        self.bias.clear();
        match problem.key_bias(scope.batch, g) {
            Some(bias) => self.bias.extend(self.rows.iter().map(|&row| bias[row] * LOG2_E)),
            None => self.bias.resize(count, 0.0),
        }
        self.bias.resize(padded, 0.0);
        self.position.clear();
        self.position.extend(self.rows.iter().map(|&row| scope.key_position(row)));
        self.position.resize(padded, 0);
        self.collect_intervals(scope, keys, padded, tile);
    }

    fn collect_intervals(&mut self, scope: &Scope<'_>, keys: KeyList<'_>, padded: usize, tile: usize) {
        self.spans.clear();
        self.first.clear();
        self.last.clear();
        if keys.seen_all && padded == self.count {
            self.first.resize(padded, i32::MIN);
            self.last.resize(padded, i32::MAX);
            return self.spans.resize(padded / tile, ALWAYS);
        }
        for &row in &self.rows {
            let (first, last) = scope.seen_by(row);
            self.first.push(first);
            self.last.push(last);
        }
        self.first.resize(padded, i32::MAX);
        self.last.resize(padded, i32::MIN);
        for (first, last) in self.first.chunks(tile).zip(self.last.chunks(tile)) {
            self.spans.push(Span { first: extremes(first), last: extremes(last) });
        }
    }

    /// Tiles in the block.
    pub(super) fn tiles(&self) -> usize {
        self.spans.len()
    }

    /// What queries at positions `low ..= high` see of a tile.
    #[inline(always)]
    pub(super) fn class(&self, tile: usize, (low, high): (i32, i32)) -> Class {
        let span = &self.spans[tile];
        if span.first.0 > high || span.last.1 < low {
            Class::Hidden
        } else if span.first.1 <= low && span.last.0 >= high {
            Class::Full
        } else {
            Class::Edge
        }
    }

    /// The tiles from the first to the last that queries at these positions see something of.
    pub(super) fn visible(&self, positions: (i32, i32)) -> Range<usize> {
        let seen = |&tile: &usize| self.class(tile, positions) != Class::Hidden;
        match (0..self.tiles()).find(seen) {
            Some(start) => start..(start..self.tiles()).rfind(seen).map_or(start, |last| last + 1),
            None => 0..0,
        }
    }
}

/// The keys of one block and what their plan knows of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyList<'a> {
    pub(super) plan: &'a Plan,
    pub(super) list: &'a Keys,
    pub(super) seen_all: bool,
}

fn extremes(values: &[i32]) -> (i32, i32) {
    values.iter().fold((i32::MAX, i32::MIN), |(low, high), &x| (low.min(x), high.max(x)))
}
