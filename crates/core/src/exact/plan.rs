//! From visibility to work: which keys a block of queries meets, and what each of them is.
//!
//! A [`Plan`] lists, for one block of queries, blocks of at most [`BLOCK`] keys (runs of neighbours, or keys that all of the
//! queries see, gathered from where they lie scattered) and the *passing* keys, whose lifetimes start or end among the
//! queries: those are packed panel by panel, see [`super::live`]. [`Facts`] holds, for some keys, the interval of query
//! positions that sees each; per tile of `R` keys their extremes say whether a panel of queries sees all of it
//! ([`Class::Full`]), some ([`Class::Edge`], masked in lanes) or nothing.
//!
//! Scattered lifetimes are looked up in an [`Order`], made once per kv head: one byte per key. A block's keys are found in
//! time proportional to their number, and one comparison per run of [`BLOCK`] keys.

use crate::Problem;
use crate::sight::Scope;
use std::cmp::Reverse;
use std::f32::consts::LOG2_E;
use std::ops::Range;
use std::sync::OnceLock;

/// Keys in a block.
pub(super) const BLOCK: usize = 128;
/// Passing keys of a plan; more are gathered like those that all queries see, and masked where they are hidden.
const PASSING: usize = 2048;

/// The keys of one block.
#[derive(Debug, Clone)]
pub(super) enum Keys {
    /// Neighbours.
    Run(Range<usize>),
    /// Positions in the plan's list of gathered rows.
    Gathered(Range<usize>),
    /// Positions in its list of passing keys.
    Passing(Range<usize>),
}

/// The keys that one block of queries meets.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) blocks: Vec<Keys>,
    gathered: Vec<usize>,
    /// Keys that only some of the queries see, in the order in which their lifetimes start.
    pub(super) passing: Vec<usize>,
}

impl Plan {
    /// Plans for queries at positions `low ..= high`; scattered lifetimes come with their order.
    pub(super) fn make(&mut self, scope: &Scope<'_>, order: Option<&Order>, (low, high): (i32, i32)) {
        self.blocks.clear();
        self.gathered.clear();
        self.passing.clear();
        let mut sifted = 0;
        for range in scope.candidates(low, high) {
            let Some(order) = order else {
                self.blocks.extend(range.clone().step_by(BLOCK).map(|start| Keys::Run(start..range.end.min(start + BLOCK))));
                continue;
            };
            let runs = order.runs(range);
            for run in runs.start.max(sifted)..runs.end {
                self.sift(scope, (order, run), (low, high));
            }
            sifted = runs.end;
        }
        if scope.has_positions() {
            self.passing.sort_by_key(|&row| scope.seen_by(row).0);
        }
        let scattered = (0..self.gathered.len()).step_by(BLOCK);
        self.blocks.extend(scattered.map(|start| Keys::Gathered(start..self.gathered.len().min(start + BLOCK))));
    }

    /// Takes the live keys of a run. Where all have started, they are the first in order; near the diagonal it is
    /// looked through, because passing keys have to come by their starts.
    fn sift(&mut self, scope: &Scope<'_>, (order, run): (&Order, usize), (low, high): (i32, i32)) {
        let span = order.spans[run];
        match span.class((low, high)) {
            Class::Hidden => {}
            Class::Full => self.blocks.push(Keys::Run(order.rows(run))),
            Class::Edge if span.first.1 <= low => {
                for row in order.by_end(run) {
                    let (_, last) = scope.seen_by(row);
                    if last < low {
                        break;
                    }
                    self.take(row, last >= high);
                }
            }
            Class::Edge => {
                for row in order.rows(run) {
                    let (first, last) = scope.seen_by(row);
                    if first <= high && last >= low {
                        self.take(row, first <= low && last >= high);
                    }
                }
            }
        }
    }

    fn take(&mut self, row: usize, seen_by_all: bool) {
        let list = if seen_by_all || self.passing.len() == PASSING { &mut self.gathered } else { &mut self.passing };
        list.push(row);
    }

    /// The row of the i-th key of a block.
    #[inline(always)]
    pub(super) fn row(&self, keys: &Keys, i: usize) -> usize {
        match keys {
            Keys::Run(run) => run.start + i,
            Keys::Gathered(list) => self.gathered[list.start + i],
            Keys::Passing(list) => self.passing[list.start + i],
        }
    }
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        match self {
            Keys::Run(range) | Keys::Gathered(range) | Keys::Passing(range) => range.len(),
        }
    }

    /// Start of the range.
    pub(super) fn first(&self) -> usize {
        match self {
            Keys::Run(range) | Keys::Gathered(range) | Keys::Passing(range) => range.start,
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

/// Extremes over some keys.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: (i32, i32),
    last: (i32, i32),
}

impl Span {
    fn of(first: &[i32], last: &[i32]) -> Self {
        Span { first: extremes(first), last: extremes(last) }
    }

    /// What queries at positions `low ..= high` see of the keys.
    #[inline(always)]
    fn class(&self, (low, high): (i32, i32)) -> Class {
        if self.first.0 > high || self.last.1 < low {
            Class::Hidden
        } else if self.first.1 <= low && self.last.0 >= high {
            Class::Full
        } else {
            Class::Edge
        }
    }
}

const ALWAYS: Span = Span { first: (i32::MIN, i32::MIN), last: (i32::MAX, i32::MAX) };

/// What is known of the keys of one block, beside their vectors.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Keys in the block.
    pub(super) count: usize,
    /// Row along M of each key.
    pub(super) rows: Vec<usize>,
    /// First query position that sees it; above the last where its bias hides it.
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
        let hides = self.bias.contains(&f32::NEG_INFINITY);
        if keys.seen_all && padded == self.count && !hides {
            self.first.resize(padded, i32::MIN);
            self.last.resize(padded, i32::MAX);
            return self.spans.resize(padded / tile, ALWAYS);
        }
        for (&row, &bias) in self.rows.iter().zip(&self.bias) {
            let (first, last) = seen_by(scope, row, bias);
            self.first.push(first);
            self.last.push(last);
        }
        self.close_intervals(tile);
    }

    /// Tiles in the block.
    pub(super) fn tiles(&self) -> usize {
        self.spans.len()
    }

    /// What queries at these positions see of a tile.
    #[inline(always)]
    pub(super) fn class(&self, tile: usize, positions: (i32, i32)) -> Class {
        self.spans[tile].class(positions)
    }

    /// Some tiles, from the first to the last that queries at these positions see something of.
    #[inline(always)]
    pub(super) fn visible(&self, tiles: Range<usize>, positions: (i32, i32)) -> Range<usize> {
        let Range { mut start, mut end } = tiles;
        while start < end && self.class(start, positions) == Class::Hidden {
            start += 1;
        }
        while start < end && self.class(end - 1, positions) == Class::Hidden {
            end -= 1;
        }
        start..end
    }

    /// The tiles at the front of some that queries at these positions see in full, or none of which they do; and which of the two.
    #[inline(always)]
    pub(super) fn run(&self, tiles: Range<usize>, positions: (i32, i32)) -> (Range<usize>, bool) {
        let full = |tile| self.class(tile, positions) == Class::Full;
        let (start, kind) = (tiles.start, full(tiles.start));
        (start..(start + 1..tiles.end).find(|&tile| full(tile) != kind).unwrap_or(tiles.end), kind)
    }

    /// Forgets all keys.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.rows.clear();
        self.spans.clear();
        self.cut();
    }

    /// Drops the padding, so that keys can come and go until [`Facts::close`].
    pub(super) fn cut(&mut self) {
        self.first.truncate(self.count);
        self.last.truncate(self.count);
        self.position.truncate(self.count);
        self.bias.truncate(self.count);
    }

    /// Adds a key.
    pub(super) fn push(&mut self, problem: &Problem<'_>, scope: &Scope<'_>, g: usize, row: usize) {
        let bias = problem.key_bias(scope.batch, g).map_or(0.0, |bias| bias[row] * LOG2_E);
        let (first, last) = seen_by(scope, row, bias);
        self.count += 1;
        self.rows.push(row);
        self.first.push(first);
        self.last.push(last);
        self.position.push(scope.key_position(row));
        self.bias.push(bias);
    }

    /// Removes a key; the last one takes its place.
    pub(super) fn swap_remove(&mut self, slot: usize) {
        self.count -= 1;
        self.rows.swap_remove(slot);
        self.first.swap_remove(slot);
        self.last.swap_remove(slot);
        self.position.swap_remove(slot);
        self.bias.swap_remove(slot);
    }

    /// Pads to whole tiles with keys that nobody sees, and takes the extremes.
    pub(super) fn close(&mut self, tile: usize) {
        let padded = self.count.next_multiple_of(tile);
        self.position.resize(padded, 0);
        self.bias.resize(padded, 0.0);
        self.close_intervals(tile);
    }

    fn close_intervals(&mut self, tile: usize) {
        let padded = self.count.next_multiple_of(tile);
        self.first.resize(padded, i32::MAX);
        self.last.resize(padded, i32::MIN);
        self.spans.clear();
        self.spans.extend(self.first.chunks(tile).zip(self.last.chunks(tile)).map(|(first, last)| Span::of(first, last)));
    }
}

/// The keys of one block and what their plan knows of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyList<'a> {
    pub(super) plan: &'a Plan,
    pub(super) list: &'a Keys,
    pub(super) seen_all: bool,
}

/// The query positions that see a key: none where its bias is -inf.
#[inline(always)]
fn seen_by(scope: &Scope<'_>, row: usize, bias: f32) -> (i32, i32) {
    if bias == f32::NEG_INFINITY { (i32::MAX, i32::MIN) } else { scope.seen_by(row) }
}

fn extremes(values: &[i32]) -> (i32, i32) {
    values.iter().fold((i32::MAX, i32::MIN), |(low, high), &x| (low.min(x), high.max(x)))
}

/// The keys of one kv head run by run, for plans of scattered lifetimes.
#[derive(Debug)]
pub(super) struct Order {
    keys: Range<usize>,
    spans: Vec<Span>,
    /// Places in the run by descending end of life.
    places: Vec<u8>,
}

impl Order {
    fn new(scope: &Scope<'_>) -> Self {
        let mut order = Order { keys: scope.keys.clone(), spans: Vec::new(), places: Vec::with_capacity(scope.keys.len()) };
        for start in scope.keys.clone().step_by(BLOCK) {
            let (first, last): (Vec<_>, Vec<_>) = (start..scope.keys.end.min(start + BLOCK)).map(|row| scope.seen_by(row)).unzip();
            let before = order.places.len();
            order.spans.push(Span::of(&first, &last));
            order.places.extend(0..first.len() as u8);
            order.places[before..].sort_unstable_by_key(|&place| (Reverse(last[usize::from(place)]), place));
        }
        order
    }

    /// The runs that some rows lie in.
    fn runs(&self, rows: Range<usize>) -> Range<usize> {
        let end = rows.end - self.keys.start;
        (rows.start - self.keys.start) / BLOCK..if rows.is_empty() { 0 } else { end.div_ceil(BLOCK) }
    }

    fn rows(&self, run: usize) -> Range<usize> {
        let start = self.keys.start + run * BLOCK;
        start..self.keys.end.min(start + BLOCK)
    }

    /// Rows of a run, those that live longest first.
    fn by_end(&self, run: usize) -> impl Iterator<Item = usize> {
        let rows = self.rows(run);
        let places = &self.places[run * BLOCK..][..rows.len()];
        places.iter().map(move |&place| rows.start + usize::from(place))
    }
}

/// The orders of a problem's sequences and kv heads, each made when it is asked for first.
#[derive(Debug)]
pub(super) struct Orders {
    made: Vec<OnceLock<Order>>,
    kv_heads: usize,
}

impl Orders {
    pub(super) fn new(problem: &Problem<'_>) -> Self {
        let kv_heads = problem.dims.kv_heads;
        let count = problem.sight.sequences(&problem.dims) * kv_heads;
        Orders { made: (0..count).map(|_| OnceLock::new()).collect(), kv_heads }
    }

    /// The order of kv head `g`, if its lifetimes are scattered.
    pub(super) fn of(&self, scope: &Scope<'_>, g: usize) -> Option<&Order> {
        scope.is_scattered().then(|| self.made[scope.sequence * self.kv_heads + g].get_or_init(|| Order::new(scope)))
    }
}
