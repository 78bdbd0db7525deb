//! Working forms: rows of K and V where the kernel can read them, queries transposed into panels.

use super::dropout::Mask;
use super::plan::{Facts, KeyList, Keys};
use crate::Problem;
use crate::sight::Scope;
use crate::simd::{Aligned, Form, LINE, Lanes, Rows, Strips, pair_of, zip_pairs};
use crate::view::{Strided, View};
use half::bf16;
use std::ops::Range;

/// Keys in working form: what is known of them, and their rows of K and V, padded to whole tiles where tiles read them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    pub(super) facts: &'a Facts,
    pub(super) k: Rows<'a>,
    pub(super) v: Rows<'a>,
    /// What is multiplied by weights that are 0 where a key is hidden: V forward, K backward.
    pub(super) weighed: Strips<'a>,
    /// Keys whose rows are zeros in `weighed` because they are not finite.
    pub(super) spoilt: &'a [usize],
}

impl<'a> Packed<'a> {
    /// For a forward pass over finite values.
    pub(super) fn new<S: Lanes>(facts: &'a Facts, [k, v]: [Rows<'a>; 2]) -> Self {
        Packed { facts, k, v, weighed: Strips::side_by_side(v, S::N), spoilt: &[] }
    }

    /// Puts the strips of what is weighed, `rows` rows of this width, end to end: it pays where they are read a few times.
    #[inline(always)]
    pub(super) fn in_strips<S: Lanes>(self, s: S, (rows, width): (usize, usize), room: &'a mut Aligned<f32>) -> Self {
        Packed { weighed: strips(s, self.weighed, (rows, width), room), ..self }
    }

    /// Weighs these rows of the keys, zeros in place of those that are not finite: 0 times infinity is not a number.
    #[inline(always)]
    pub(super) fn guard<S: Lanes>(self, s: S, (rows, width): (Rows<'a>, usize), spare: &'a mut Spare) -> Self {
        let Spare { values, spoilt } = spare;
        spoilt.clear();
        for i in 0..self.facts.count {
            if !is_finite(s, &rows.data[i * rows.stride..][..width]) {
                spoilt.push(i);
            }
        }
        if spoilt.is_empty() {
            return Packed { weighed: Strips::side_by_side(rows, S::N), spoilt, ..self };
        }
        let stride = width.next_multiple_of(S::N);
        let values = values.take(self.facts.count * stride);
        for (row, from) in values.chunks_mut(stride).zip(rows.data.chunks(rows.stride)) {
            row[..width].copy_from_slice(&from[..width]);
            row[width..].fill(0.0);
        }
        for &i in spoilt.iter() {
            values[i * stride..(i + 1) * stride].fill(0.0);
        }
        Packed { weighed: Strips::side_by_side(Rows::new(values, stride), S::N), spoilt, ..self }
    }
}

/// A copy of the strips of `rows` rows of this width, end to end, the last one filled up to a register with zeros.
#[inline(always)]
pub(super) fn strips<'a, S: Lanes>(s: S, from: Strips<'_>, (rows, width): (usize, usize), room: &'a mut Aligned<f32>) -> Strips<'a> {
    let strip = rows * 2 * S::N;
    let room = room.take(width.div_ceil(2 * S::N) * strip);
    for (i, column) in (0..width).step_by(2 * S::N).enumerate() {
        let (from, width) = (from.strip(i), (width - column).min(2 * S::N));
        for (row, into) in room[i * strip..(i + 1) * strip].chunks_exact_mut(2 * S::N).enumerate() {
            let from = &from.data[row * from.stride..][..width];
            for (from, into) in from.chunks(S::N).zip(into.chunks_exact_mut(S::N)) {
                let values = if from.len() == S::N { s.load(from) } else { s.load_part(from, 0.0) };
                s.store(into, values);
            }
        }
    }
    Strips::end_to_end(room, rows, S::N)
}

/// Room for rows in which some are zeros, and which.
#[derive(Debug, Default)]
pub(super) struct Spare {
    values: Aligned<f32>,
    spoilt: Vec<usize>,
}

/// Whether all of some values are finite.
#[inline(always)]
pub(super) fn is_finite<S: Lanes>(s: S, values: &[f32]) -> bool {
    let mut sums = [s.zero(); 4];
    let mut chunks = values.chunks_exact(S::N);
    for (i, x) in (&mut chunks).enumerate() {
        sums[i % 4] = s.mul_add(s.load(x), s.zero(), sums[i % 4]);
    }
    let sum = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
    sum == 0.0 && chunks.remainder().iter().all(|x| x.is_finite())
}

/// How rows of keys are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Broadcast or copied, a few times: where they stand.
    Once,
    /// Broadcast again and again. Rows far apart, those of a head in `[B, N, H, D]`, meet in few sets of the cache, and take a page each:
    /// forward passes over 8 heads of 128 took half as long again.
    Often,
    /// Along the lanes, a few times: at multiples of a cache line.
    Lanes,
}

/// The rows of a block of keys: where they stand if they can be used there, else copied to `scratch`, padded with zeros
/// to whole registers and to `rows` rows.
#[inline(always)]
pub(super) fn key_rows<'a, S: Lanes>(
    s: S,
    view: &View<'a>,
    [b, g]: [usize; 2],
    keys: KeyList<'_>,
    (rows, purpose): (usize, Use),
    scratch: &'a mut [f32],
) -> Rows<'a> {
    let width = view.shape()[3];
    let count = keys.list.len();
    if let Keys::Run(run) = keys.list
        && rows == count
        && let Some((data, stride)) = view.rows(b, g, run.clone())
        && match purpose {
            Use::Once => true,
            Use::Often => stride == width,
            Use::Lanes => stands_on_lines(data, [width, stride], S::N),
        }
    {
        return Rows { data, stride };
    }
    let stride = width.next_multiple_of(S::N);
    for (i, row) in scratch[..rows * stride].chunks_mut(stride).enumerate() {
        row[if i < count { width } else { 0 }..].fill(0.0);
        if i < count {
            view.widen_row(s, [b, g, keys.plan.row(keys.list, i)], row);
        }
    }
    Rows { data: &scratch[..rows * stride], stride }
}

/// The rows of a block of keys as pairs of neighbours along the row, the last one of an odd width with zero: what is broadcast to
/// queries in pairs. `rows` of them, those beyond the keys zeros.
#[inline(always)]
fn paired_along<'a, S: Lanes>(
    s: S,
    view: &Strided<'a, bf16>,
    [b, g]: [usize; 2],
    keys: KeyList<'_>,
    (rows, purpose): (usize, Use),
    scratch: &'a mut [f32],
) -> Rows<'a> {
    if let Some(pairs) = view.as_pairs() {
        return key_rows(s, &View::F32(pairs), [b, g], keys, (rows, purpose), scratch);
    }
    let width = view.shape()[3];
    let stride = width.div_ceil(2);
    let scratch = &mut scratch[..rows * stride];
    for (i, into) in scratch.chunks_exact_mut(stride).enumerate() {
        if i < keys.list.len() {
            pair_neighbours(view, [b, g, keys.plan.row(keys.list, i)], into);
        } else {
            into.fill(0.0);
        }
    }
    Rows { data: scratch, stride }
}

/// A row as pairs of neighbours, the last one of an odd width with zero.
#[inline(always)]
pub(super) fn pair_neighbours(view: &Strided<'_, bf16>, [b, g, n]: [usize; 3], into: &mut [f32]) {
    let width = view.shape()[3];
    if let Some(row) = view.row(b, g, n) {
        let (pairs, last) = row.as_chunks::<2>();
        for (to, &[first, second]) in into.iter_mut().zip(pairs) {
            *to = pair_of(first, second);
        }
        if let (Some(to), &[first]) = (into.last_mut(), last) {
            *to = pair_of(first, bf16::ZERO);
        }
        return;
    }
    for (i, to) in into.iter_mut().enumerate() {
        let second = if 2 * i + 1 < width { view.at([b, g, n, 2 * i + 1]) } else { bf16::ZERO };
        *to = pair_of(view.at([b, g, n, 2 * i]), second);
    }
}

/// Rows in pairs of neighbouring keys, value by value, padded with zeros to whole registers; the last one of an odd number with zeros.
#[inline(always)]
fn paired_across<'a, S: Lanes>(s: S, view: &Strided<'_, bf16>, [b, g]: [usize; 2], keys: KeyList<'_>, scratch: &'a mut [f32]) -> Rows<'a> {
    let width = view.shape()[3];
    let (stride, count) = (width.next_multiple_of(S::N), keys.list.len());
    let scratch = &mut scratch[..count.div_ceil(2) * stride];
    for (i, into) in scratch.chunks_exact_mut(stride).enumerate() {
        let row = |i: usize| [b, g, keys.plan.row(keys.list, i)];
        let second = (2 * i + 1 < count).then(|| row(2 * i + 1));
        into[width..].fill(0.0);
        zip_rows(s, view, (row(2 * i), second), &mut into[..width]);
    }
    Rows { data: scratch, stride }
}

#[inline(always)]
fn zip_rows<S: Lanes>(s: S, view: &Strided<'_, bf16>, (first, second): ([usize; 3], Option<[usize; 3]>), into: &mut [f32]) {
    let row = |[b, g, n]: [usize; 3]| view.row(b, g, n);
    if let (Some(first), Some(second)) = (row(first), second.map_or(Some(&[][..]), row)) {
        return zip_pairs(s, [first, second], into);
    }
    let at = |[b, g, n]: [usize; 3], d: usize| view.at([b, g, n, d]);
    for (d, to) in into.iter_mut().enumerate() {
        *to = pair_of(at(first, d), second.map_or(bf16::ZERO, |second| at(second, d)));
    }
}

/// Puts the values of `second` beside those of `first`.
#[inline(always)]
fn pair_rows<S: Lanes>(s: S, first: &mut [f32], second: &[f32]) {
    for (first, second) in first.chunks_exact_mut(S::N).zip(second.chunks_exact(S::N)) {
        let both = s.pair([s.load(first), s.load(second)]);
        s.store(first, both);
    }
}

/// Floats that [`keys`] or [`values`] need for so many rows of this width.
pub(super) fn room<S: Lanes>(rows: usize, width: usize) -> usize {
    (rows + 2) * width.next_multiple_of(S::N)
}

/// Rows of K, as many as are asked for, as tiles of `M` broadcast them.
#[inline(always)]
pub(super) fn keys<'a, S: Lanes, M: Form>(
    s: S,
    (view, at): (&View<'a>, [usize; 2]),
    keys: KeyList<'_>,
    (rows, purpose): (usize, Use),
    room: &'a mut [f32],
) -> Rows<'a> {
    match view {
        View::Bf16(view) if M::PER_LANE == 2 => paired_along(s, view, at, keys, (rows, purpose), room),
        _ => key_rows(s, view, at, keys, (rows, purpose), room),
    }
}

/// Rows of V, as tiles of `M` load them.
#[inline(always)]
pub(super) fn values<'a, S: Lanes, M: Form>(
    s: S,
    (view, at): (&View<'a>, [usize; 2]),
    keys: KeyList<'_>,
    purpose: Use,
    room: &'a mut [f32],
) -> Rows<'a> {
    match view {
        View::Bf16(view) if M::PER_LANE == 2 => paired_across(s, view, at, keys, room),
        _ => key_rows(s, view, at, keys, (keys.list.len(), purpose), room),
    }
}

/// Rows of a head as a panel for tiles of `M`: see [`panel`]. Pairs that do not stand in memory are made by way of `wide`.
#[inline(always)]
pub(super) fn queries<S: Lanes, M: Form>(
    s: S,
    (view, at): (&View<'_>, [usize; 2]),
    rows: Range<usize>,
    (staged, wide, into): (&mut [f32], &mut [f32], &mut [f32]),
    factor: f32,
) {
    if M::PER_LANE == 1 {
        return panel(s, (view, at), rows, (staged, into), Some(factor));
    }
    if let View::Bf16(view) = view
        && let Some(pairs) = view.as_pairs()
        && pairs.shape()[3].is_multiple_of(S::N)
    {
        return panel(s, (&View::F32(pairs), at), rows, (staged, into), None);
    }
    panel(s, (view, at), rows, (staged, wide), None);
    let lanes = 2 * S::N;
    for (two, into) in wide.chunks_exact(2 * lanes).zip(into.chunks_exact_mut(lanes)) {
        into.copy_from_slice(&two[..lanes]);
        pair_rows(s, into, &two[lanes..]);
    }
}

/// Asks for the `part.0`-th of `part.1` equal parts of the rows of some keys, which will be read soon.
#[inline(always)]
pub(super) fn prefetch<S: Lanes>(s: S, view: &View<'_>, [b, g]: [usize; 2], keys: KeyList<'_>, part: (usize, usize)) {
    let share = keys.list.len().div_ceil(part.1);
    for i in part.0 * share..keys.list.len().min((part.0 + 1) * share) {
        let row = keys.plan.row(keys.list, i);
        let Some((data, _)) = view.rows(b, g, row..row + 1) else { return };
        for at in (0..data.len()).step_by(LINE) {
            s.prefetch(&raw const data[at]);
        }
    }
}

/// Whether rows consist of whole registers that start at multiples of their size.
fn stands_on_lines(data: &[f32], [width, stride]: [usize; 2], lanes: usize) -> bool {
    let start = data.as_ptr().addr() / size_of::<f32>();
    [width, stride, start].into_iter().all(|x| x.is_multiple_of(lanes))
}

/// Writes rows `rows` of head `h` to `into` as f32, `width` padded with zeros to whole registers, and the last one again up to
/// the end: an infinite key makes of it what it makes of a row that is there, and of zeros what is not a number.
#[inline(always)]
pub(crate) fn stage_rows<S: Lanes>(s: S, view: &View<'_>, [b, h]: [usize; 2], rows: Range<usize>, into: &mut [f32]) {
    let width = view.shape()[3];
    let stride = width.next_multiple_of(S::N);
    let filled = rows.len() * stride;
    for (row, to) in rows.zip(into.chunks_mut(stride)) {
        view.widen_row(s, [b, h, row], to);
        to[width..].fill(0.0);
    }
    for at in (filled..into.len() / stride * stride).step_by(stride) {
        into.copy_within(filled - stride..filled, at);
    }
}

/// Transposes `2·N` staged rows of `width` into a panel `[width][2·N]`, multiplied by `factor`.
#[inline(always)]
pub(crate) fn transpose_panel<S: Lanes>(s: S, staged: &[f32], width: usize, into: &mut [f32], factor: Option<f32>) {
    transpose_rows(s, (staged, width.next_multiple_of(S::N)), (2, width), into, factor);
}

/// Transposes `halves` times `N` rows.
#[inline(always)]
fn transpose_rows<S: Lanes>(s: S, (from, stride): (&[f32], usize), (halves, width): (usize, usize), into: &mut [f32], factor: Option<f32>) {
    for half in 0..halves {
        for column in (0..width).step_by(S::N) {
            let from = &from[half * S::N * stride + column..];
            s.transpose(from, stride, &mut into[column * 2 * S::N + half * S::N..], 2 * S::N, factor);
        }
    }
}

/// Rows of a head as a panel `[width][2·N]`, multiplied by `factor`; lanes beyond `rows` repeat the last one, or are anything where the
/// upper register has no row. Rows that are whole registers of f32 are read where they stand, others by way of `staged`.
#[inline(always)]
pub(crate) fn panel<S: Lanes>(
    s: S,
    (view, [b, h]): (&View<'_>, [usize; 2]),
    rows: Range<usize>,
    (staged, into): (&mut [f32], &mut [f32]),
    factor: Option<f32>,
) {
    let width = view.shape()[3];
    let (stride, registers) = (width.next_multiple_of(S::N), rows.len().div_ceil(S::N));
    let whole = width.is_multiple_of(S::N) && rows.len().is_multiple_of(S::N);
    match view.rows(b, h, rows.clone()) {
        Some((data, stride)) if whole => transpose_rows(s, (data, stride), (registers, width), into, factor),
        _ => {
            let staged = &mut staged[..registers * S::N * stride];
            stage_rows(s, view, [b, h], rows, staged);
            transpose_rows(s, (staged, stride), (registers, width), into, factor);
        }
    }
}

/// Lets the upper register of a panel, which [`panel`] leaves alone where it has no rows, repeat the last one, too.
#[inline(always)]
pub(super) fn repeat_last<S: Lanes>(s: S, panel: &mut [f32]) {
    for both in panel.chunks_exact_mut(2 * S::N) {
        let last = both[S::N - 1];
        s.store(&mut both[S::N..], s.splat(last));
    }
}

/// Positions and dropout hashes of a panel of queries; lanes beyond `rows` repeat the last one.
pub(super) fn describe_panel(
    scope: &Scope<'_>,
    (h, dropout): (usize, Option<Mask>),
    rows: Range<usize>,
    positions: &mut [i32],
    hashes: &mut [i32],
) {
    for (lane, position) in positions.iter_mut().enumerate() {
        let row = (rows.start + lane).min(rows.end - 1);
        *position = scope.query_position(row);
        if let Some(mask) = dropout {
            hashes[lane] = mask.row(scope.sequence, h, row - scope.queries.start);
        }
    }
}

/// Fills a panel's table `[key][2·N]` with the dense bias in units of log2, -inf where the dense mask hides.
#[inline(always)]
pub(super) fn fill_dense<S: Lanes>(
    s: S,
    problem: &Problem<'_>,
    [b, h]: [usize; 2],
    (queries, keys): (Range<usize>, &[usize]),
    (square, into): (&mut [f32], &mut [f32]),
) {
    let panel = 2 * S::N;
    for first_key in (0..keys.len()).step_by(S::N) {
        let keys = &keys[first_key..keys.len().min(first_key + S::N)];
        for half in 0..2 {
            for (lane, to) in square[..S::N * S::N].chunks_mut(S::N).enumerate() {
                let row = (queries.start + half * S::N + lane).min(queries.end - 1);
                dense_row(problem, [b, h, row], keys, to);
            }
            s.transpose(square, S::N, &mut into[first_key * panel + half * S::N..], panel, Some(std::f32::consts::LOG2_E));
        }
    }
}

fn dense_row(problem: &Problem<'_>, [b, h, n]: [usize; 3], keys: &[usize], to: &mut [f32]) {
    to.fill(f32::NEG_INFINITY);
    for (x, &key) in to.iter_mut().zip(keys) {
        if problem.dense_mask().is_none_or(|mask| mask.at([b, h, n, key]) != 0) {
            *x = problem.bias().map_or(0.0, |bias| bias.at([b, h, n, key]));
        }
    }
}
