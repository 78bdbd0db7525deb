//! Which keys a query sees.
//!
//! Every rule about positions (causal, windows, sinks, lifetimes, lengths, segments, cache spans) says, for one key,
//! that the queries at positions `first ..= last` see it. A [`Sight`] is the rules as the caller states them; a
//! [`Scope`] is what they come to for one sequence and one kv head; a dense mask is looked up beside it.

use crate::view::Strided;
use crate::{Dims, Error};
use std::ops::Range;

/// Where queries stand when their number differs from the keys'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Alignment {
    /// The last query stands at the last key: `p(i) = i + M - N`.
    #[default]
    BottomRight,
    /// The first query stands at the first key: `p(i) = i`.
    TopLeft,
}

/// Visibility rules; all of them hold together. Reaches are inclusive and count positions.
///
/// ```
/// use regard_core::Sight;
/// let recent = Sight::causal().window(Some(255), None).sinks(4); // 256 most recent keys and the first four
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight<'a> {
    pub(crate) causal: bool,
    pub(crate) left: Option<usize>,
    pub(crate) right: Option<usize>,
    pub(crate) sinks: usize,
    pub(crate) alignment: Alignment,
    pub(crate) until: Option<&'a [i64]>,
    pub(crate) lengths: Option<&'a [usize]>,
    pub(crate) lengths_q: Option<&'a [usize]>,
    pub(crate) offsets: Option<[&'a [usize]; 2]>,
    pub(crate) spans: Option<&'a [[usize; 2]]>,
    pub(crate) positions: Option<[&'a [i64]; 2]>,
    pub(crate) mask: Option<Strided<'a, u8>>,
}

impl<'a> Sight<'a> {
    /// Every query sees every key.
    pub fn full() -> Self {
        Self::default()
    }

    /// A query sees keys at positions up to its own.
    pub fn causal() -> Self {
        Sight { causal: true, ..Self::default() }
    }

    /// `|reach|` to the left and to the right of a query's own position, both inclusive; `None` is unlimited.
    #[must_use]
    pub fn window(self, left: Option<usize>, right: Option<usize>) -> Self {
        Sight { left, right, ..self }
    }

    /// Keys `j < sinks` are excepted from the left reach.
    #[must_use]
    pub fn sinks(self, sinks: usize) -> Self {
        Sight { sinks, ..self }
    }

    /// See [`Alignment`].
    #[must_use]
    pub fn alignment(self, alignment: Alignment) -> Self {
        Sight { alignment, ..self }
    }

    /// Lifetimes `[B, G, M]`: key `j` is hidden from queries at positions `>= until_j`.
    #[must_use]
    pub fn until(self, until: &'a [i64]) -> Self {
        Sight { until: Some(until), ..self }
    }

    /// Valid keys per batch row, `[B]`.
    #[must_use]
    pub fn lengths(self, lengths: &'a [usize]) -> Self {
        Sight { lengths: Some(lengths), ..self }
    }

    /// Valid queries per batch row, `[B]`; without it the key lengths if `N = M`, else `N`.
    #[must_use]
    pub fn lengths_q(self, lengths: &'a [usize]) -> Self {
        Sight { lengths_q: Some(lengths), ..self }
    }

    /// Packed sequences (`B = 1`): sequence `s` has queries `queries[s]..queries[s+1]` and keys `keys[s]..keys[s+1]`.
    #[must_use]
    pub fn offsets(self, queries: &'a [usize], keys: &'a [usize]) -> Self {
        Sight { offsets: Some([queries, keys]), ..self }
    }

    /// Ragged caches: `[B, G]` pairs (start, count) of valid keys along M.
    #[must_use]
    pub fn key_spans(self, spans: &'a [[usize; 2]]) -> Self {
        Sight { spans: Some(spans), ..self }
    }

    /// Positions that rules compare instead of indices: queries `[B, N]`, keys `[B, G, M]`.
    #[must_use]
    pub fn positions(self, queries: &'a [i64], keys: &'a [i64]) -> Self {
        Sight { positions: Some([queries, keys]), ..self }
    }

    /// A dense mask, 0 = hidden, `[B|1, H|1, N, M]`.
    #[must_use]
    pub fn mask(self, mask: Strided<'a, u8>) -> Self {
        Sight { mask: Some(mask), ..self }
    }

    /// Whether the causal rule is on.
    pub fn is_causal(&self) -> bool {
        self.causal
    }

    /// Checks every rule against the sizes and broadcasts the mask.
    pub(crate) fn checked(mut self, dims: &Dims) -> Result<Self, Error> {
        self.check_lengths(dims)?;
        self.check_ragged(dims)?;
        let cache = dims.batch * dims.kv_heads * dims.keys;
        check_count("until", self.until.map(<[_]>::len), cache)?;
        if let Some(mask) = self.mask {
            self.mask = Some(mask.broadcast([dims.batch, dims.heads, dims.queries, dims.keys], "mask")?);
        }
        if dims.queries.max(dims.keys) > i32::MAX as usize / 4 {
            return Err(Error::value("length", format!("{} exceeds {}", dims.queries.max(dims.keys), i32::MAX / 4)));
        }
        Ok(self)
    }

    fn check_lengths(&self, dims: &Dims) -> Result<(), Error> {
        for (name, lengths, limit) in [("lengths", self.lengths, dims.keys), ("lengths_q", self.lengths_q, dims.queries)] {
            check_count(name, lengths.map(<[_]>::len), dims.batch)?;
            for (b, &length) in lengths.unwrap_or_default().iter().enumerate() {
                if length > limit {
                    return Err(Error::value(name, format!("{length} in batch row {b} exceeds the {limit} that are there")));
                }
            }
        }
        let Some([queries, keys]) = self.offsets else { return Ok(()) };
        if self.lengths.is_some() || self.lengths_q.is_some() || self.spans.is_some() || self.positions.is_some() {
            return Err(Error::Combination("offsets exclude lengths, key_spans and key_positions".into()));
        }
        if dims.batch != 1 {
            return Err(Error::Combination(format!("packed sequences need a batch of 1, found {}", dims.batch)));
        }
        if queries.len() != keys.len() {
            return Err(Error::Shape { tensor: "offsets_k", found: vec![keys.len()], expected: vec![queries.len()] });
        }
        check_offsets("offsets_q", queries, dims.queries)?;
        check_offsets("offsets_k", keys, dims.keys)
    }

    fn check_ragged(&self, dims: &Dims) -> Result<(), Error> {
        check_count("key_spans", self.spans.map(<[_]>::len), dims.batch * dims.kv_heads)?;
        for &[start, count] in self.spans.unwrap_or_default() {
            if start.checked_add(count).is_none_or(|end| end > dims.keys) {
                return Err(Error::value("key_spans", format!("({start}, {count}) exceeds the {} keys", dims.keys)));
            }
        }
        if self.spans.is_some() && self.lengths.is_some() {
            return Err(Error::Combination("key_spans exclude lengths".into()));
        }
        let Some([queries, keys]) = self.positions else { return Ok(()) };
        if self.alignment == Alignment::TopLeft {
            return Err(Error::Combination("key_positions exclude the top_left alignment".into()));
        }
        check_count("query_positions", Some(queries.len()), dims.batch * dims.queries)?;
        check_count("key_positions", Some(keys.len()), dims.batch * dims.kv_heads * dims.keys)?;
        let limit = i64::from(i32::MAX / 4);
        match queries.iter().chain(keys).find(|p| p.unsigned_abs() > limit.unsigned_abs()) {
            Some(p) => Err(Error::value("key_positions", format!("{p} exceeds {limit}"))),
            None => Ok(()),
        }
    }

    /// Pieces of at most `size` query rows that lie in one sequence each.
    pub(crate) fn query_pieces(&self, dims: &Dims, size: usize) -> Vec<Range<usize>> {
        pieces(self.offsets.map(|[queries, _]| queries), dims.queries, size)
    }

    /// Pieces of at most `size` key rows that lie in one sequence each.
    pub(crate) fn key_pieces(&self, dims: &Dims, size: usize) -> Vec<Range<usize>> {
        pieces(self.offsets.map(|[_, keys]| keys), dims.keys, size)
    }

    /// The sequence that query row `n` of batch row `b` belongs to.
    pub(crate) fn sequence_of_query(&self, b: usize, n: usize) -> usize {
        self.offsets.map_or(b, |[queries, _]| queries.partition_point(|&o| o <= n) - 1)
    }

    /// The sequence that key row `m` of batch row `b` belongs to.
    pub(crate) fn sequence_of_key(&self, b: usize, m: usize) -> usize {
        self.offsets.map_or(b, |[_, keys]| keys.partition_point(|&o| o <= m) - 1)
    }

    /// Number of sequences: segments of a packed input, else batch rows.
    pub(crate) fn sequences(&self, dims: &Dims) -> usize {
        self.offsets.map_or(dims.batch, |[queries, _]| queries.len().saturating_sub(1))
    }

    /// Whether a rule says something of single kv heads.
    pub(crate) fn tells_heads_apart(&self) -> bool {
        self.until.is_some() || self.spans.is_some() || self.positions.is_some()
    }

    /// The rules for one sequence and one kv head.
    pub(crate) fn scope(&self, dims: &Dims, sequence: usize, g: usize) -> Scope<'a> {
        let batch = if self.offsets.is_some() { 0 } else { sequence };
        let cache = batch * dims.kv_heads + g;
        let length_k = self.lengths.map_or(dims.keys, |l| l[batch]);
        let default_q = if dims.queries == dims.keys { length_k } else { dims.queries };
        let (queries, keys) = match (self.offsets, self.spans) {
            (Some([q, k]), _) => (q[sequence]..q[sequence + 1], k[sequence]..k[sequence + 1]),
            (None, Some(spans)) => {
                let [start, count] = spans[cache];
                (0..self.lengths_q.map_or(dims.queries, |l| l[batch]), start..start + count)
            }
            (None, None) => (0..self.lengths_q.map_or(default_q, |l| l[batch]), 0..length_k),
        };
        let shift = match self.alignment {
            Alignment::BottomRight => keys.len() as i32 - queries.len() as i32,
            Alignment::TopLeft => 0,
        };
        let row = cache * dims.keys..(cache + 1) * dims.keys;
        let right = if self.causal { Some(0) } else { self.right };
        Scope {
            sequence,
            batch,
            shift,
            left: reach(self.left),
            right: reach(right),
            sinks: i32::try_from(self.sinks).unwrap_or(i32::MAX),
            for_ever: keys.len() as i64,
            until: self.until.map(|until| &until[row.clone()]),
            positions: self.positions.map(|[q, k]| [&q[batch * dims.queries..(batch + 1) * dims.queries], &k[row]]),
            queries,
            keys,
        }
    }
}

/// Longer than any sequence: stands for "unlimited" without overflowing.
const FAR: i32 = i32::MAX / 2;

fn reach(limit: Option<usize>) -> i32 {
    limit.map_or(FAR, |r| i32::try_from(r).unwrap_or(FAR).min(FAR))
}

fn pieces(offsets: Option<&[usize]>, total: usize, size: usize) -> Vec<Range<usize>> {
    let bounds = offsets.map_or_else(|| vec![0, total], <[_]>::to_vec);
    let cut = |pair: &[usize]| {
        let (start, end) = (pair[0], pair[1]);
        (start..end).step_by(size).map(move |at| at..end.min(at + size)).collect::<Vec<_>>()
    };
    bounds.windows(2).flat_map(cut).collect()
}

fn check_count(tensor: &'static str, found: Option<usize>, expected: usize) -> Result<(), Error> {
    match found {
        Some(found) if found != expected => Err(Error::Shape { tensor, found: vec![found], expected: vec![expected] }),
        _ => Ok(()),
    }
}

fn check_offsets(name: &'static str, offsets: &[usize], total: usize) -> Result<(), Error> {
    let ascending = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    if offsets.first() != Some(&0) || offsets.last() != Some(&total) || !ascending {
        return Err(Error::value(name, format!("offsets must ascend from 0 to {total}, found {offsets:?}")));
    }
    Ok(())
}

/// The rules for one sequence and one kv head. Rows are absolute row numbers along N and M; positions are the
/// sequence's own.
#[derive(Debug, Clone)]
pub(crate) struct Scope<'a> {
    pub(crate) sequence: usize,
    pub(crate) batch: usize,
    /// Valid query rows.
    pub(crate) queries: Range<usize>,
    /// Valid key rows.
    pub(crate) keys: Range<usize>,
    shift: i32,
    left: i32,
    right: i32,
    sinks: i32,
    for_ever: i64,
    until: Option<&'a [i64]>,
    positions: Option<[&'a [i64]; 2]>,
}

impl Scope<'_> {
    /// Whether query rows carry positions of their own.
    pub(crate) fn has_positions(&self) -> bool {
        self.positions.is_some()
    }

    /// Position of a query row.
    pub(crate) fn query_position(&self, row: usize) -> i32 {
        match self.positions {
            Some([queries, _]) => queries[row] as i32,
            None => (row as i64 - self.queries.start as i64) as i32 + self.shift,
        }
    }

    /// Position of a key row.
    pub(crate) fn key_position(&self, row: usize) -> i32 {
        match self.positions {
            Some([_, keys]) => keys[row] as i32,
            None => (row - self.keys.start) as i32,
        }
    }

    /// The first and last query position that sees a key row; first > last where none does.
    #[inline]
    pub(crate) fn seen_by(&self, row: usize) -> (i32, i32) {
        let position = self.key_position(row);
        let first = position.saturating_sub(self.right).max(-FAR);
        let last = if position < self.sinks { FAR } else { position.saturating_add(self.left).min(FAR) };
        let Some(until) = self.until.map(|until| until[row]) else { return (first, last) };
        if until <= 0 {
            return (first, -FAR - 1);
        }
        let alive = if self.positions.is_none() && until >= self.for_ever { FAR } else { until.min(i64::from(FAR)) as i32 - 1 };
        (first, last.min(alive))
    }

    /// Whether a query row sees a key row, dense masks aside.
    pub(crate) fn sees(&self, query: usize, key: usize) -> bool {
        let (first, last) = self.seen_by(key);
        let position = self.query_position(query);
        self.queries.contains(&query) && self.keys.contains(&key) && first <= position && position <= last
    }

    /// Smallest and largest position of some query rows.
    pub(crate) fn position_range(&self, rows: Range<usize>) -> (i32, i32) {
        match self.positions {
            Some([queries, _]) => {
                let all = queries[rows].iter().map(|&p| p as i32);
                (all.clone().min().unwrap_or(0), all.max().unwrap_or(0))
            }
            None => (self.query_position(rows.start), self.query_position(rows.end - 1)),
        }
    }

    /// Key rows outside of which no query at positions `low ..= high` sees anything: sinks, then the window.
    pub(crate) fn candidates(&self, low: i32, high: i32) -> [Range<usize>; 2] {
        if self.positions.is_some() {
            return [self.keys.start..self.keys.start, self.keys.clone()];
        }
        let count = self.keys.len() as i64;
        let clip = |x: i64| self.keys.start + x.clamp(0, count) as usize;
        let end = clip(i64::from(high) + i64::from(self.right) + 1);
        let start = clip(i64::from(low) - i64::from(self.left)).min(end);
        let sinks = clip(i64::from(self.sinks)).min(start).min(end);
        [self.keys.start..sinks, start..end]
    }

    /// Whether every query at positions `low ..= high` sees every one of these keys, as far as that shows without
    /// looking at single keys.
    pub(crate) fn sees_all(&self, keys: Range<usize>, low: i32, high: i32) -> bool {
        if self.is_scattered() || keys.is_empty() {
            return false;
        }
        let (first, _) = self.seen_by(keys.end - 1);
        let (_, last) = self.seen_by(keys.start);
        let sinks_end = self.keys.start + self.sinks as usize;
        let all_later = if keys.start < sinks_end && keys.end > sinks_end { self.seen_by(sinks_end).1 } else { last };
        first <= low && last.min(all_later) >= high
    }

    /// Whether liveness has to be looked up key by key.
    pub(crate) fn is_scattered(&self) -> bool {
        self.until.is_some() || self.positions.is_some()
    }
}
