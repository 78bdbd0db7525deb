//! The running softmax of one panel of queries, and its product with V.
//!
//! The maximum `m` is not tracked in the hot loop: a tile whose weights sum to more than [`REBASE_ABOVE`] takes a cold
//! path that moves `m` and rescales what was gathered so far. A query that has seen nothing yet has `m = -inf`; a run of
//! tiles that starts there takes its first tile through the cold path at once. Weights grow up to 2^60 before a rescale: values
//! above about 2^60 overflow, and the panel is computed again with a low threshold ([`Softmax::limit`]).
//!
//! Milakov & Gimelshein 2018 (online softmax); lanes over queries and the lazy maximum are ours.

use super::plan::Class;
use super::score::{Biased, Masked, MaskedBiased, Meeting, Of, Plain, Rich, Tile, Variant};
use crate::simd::{Across, Form, Lanes, Left, Rows, Strips, Task, product};
use std::marker::PhantomData;
use std::ops::Range;

/// 2^60.
pub(super) const REBASE_ABOVE: f32 = 1_152_921_504_606_846_976.0;
/// Groups of queries in a panel, at most: a product takes as many together as a tile has rows.
const MOST_GROUPS: usize = 4;
/// As low as a tile just after a rescale allows: nothing overflows that is not itself near the end of the range.
pub(super) const REBASE_EARLY: f32 = 16.0;

/// Smallest and largest of some positions.
#[inline(always)]
pub(super) fn bounds(positions: &[i32]) -> (i32, i32) {
    positions.iter().fold((i32::MAX, i32::MIN), |(low, high), &p| (low.min(p), high.max(p)))
}

/// The running softmax of one panel of queries.
pub(super) struct Softmax<'a> {
    /// Weights `[2][key][N]` of the tiles at hand, or `[2][pair of keys][N]`: a product reads lines of one register of queries only.
    pub(super) p: &'a mut [f32],
    /// Running maximum in units of log2.
    pub(super) maximum: &'a mut [f32],
    /// Running sum of weights relative to the maximum.
    pub(super) sum: &'a mut [f32],
    /// The same of weights as the product with V takes them, where it rounds them: output divided by it is a mean of values.
    pub(super) rounded: &'a mut [f32],
    /// Unnormalised output `[2·N][width]`.
    pub(super) acc: &'a mut [f32],
    pub(super) width: usize,
    /// Queries in the panel.
    pub(super) queries: usize,
    /// The first of these tiles.
    pub(super) first: usize,
    /// The sum of a tile's weights above which the maximum moves.
    pub(super) limit: f32,
}

/// The registers of a panel that a run of tiles is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Both,
    Lower,
    Upper,
}

/// What the tiles of one run have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    full: bool,
    part: Part,
}

impl Kind {
    /// Of one tile. Of a panel at the edge, a register that sees nothing is left out.
    #[inline(always)]
    fn of<S: Lanes>(meeting: &Meeting<'_>, tile: usize, queries: usize, positions: [(i32, i32); 3]) -> Kind {
        let [both, lower, upper] = positions;
        let full = meeting.facts.class(tile, both) == Class::Full;
        let sees = |positions| meeting.facts.class(tile, positions) != Class::Hidden;
        let part = match () {
            _ if queries <= S::N => Part::Lower,
            _ if full => Part::Both,
            _ if !sees(upper) => Part::Lower,
            _ if !sees(lower) => Part::Upper,
            _ => Part::Both,
        };
        Kind { full, part }
    }
}

impl Softmax<'_> {
    /// Fills `p` for the visible tiles and updates maximum and sum.
    #[inline(always)]
    pub(super) fn weigh<S: Lanes, M: Form, const R: usize>(&mut self, s: S, meeting: &Meeting<'_>, tiles: Range<usize>) {
        let (lower, upper) = (bounds(&meeting.positions[..S::N]), bounds(&meeting.positions[S::N..]));
        let positions = [(lower.0.min(upper.0), lower.1.max(upper.1)), lower, upper];
        let mut start = tiles.start;
        while start < tiles.end {
            let kind = Kind::of::<S>(meeting, start, self.queries, positions);
            let mut end = start + 1;
            while end < tiles.end && Kind::of::<S>(meeting, end, self.queries, positions) == kind {
                end += 1;
            }
            let run = (start..end, kind.part);
            match (kind.full, meeting.extras.biased, meeting.extras.rich) {
                (_, _, true) => self.weigh_part::<S, R, Of<M, Rich>>(s, meeting, run),
                (true, false, _) => self.weigh_part::<S, R, Of<M, Plain>>(s, meeting, run),
                (false, false, _) => self.weigh_part::<S, R, Of<M, Masked>>(s, meeting, run),
                (true, true, _) => self.weigh_part::<S, R, Of<M, Biased>>(s, meeting, run),
                (false, true, _) => self.weigh_part::<S, R, Of<M, MaskedBiased>>(s, meeting, run),
            }
            start = end;
        }
    }

    #[inline(always)]
    fn weigh_part<S: Lanes, const R: usize, V: Variant>(&mut self, s: S, meeting: &Meeting<'_>, (tiles, part): (Range<usize>, Part)) {
        match part {
            Part::Both => self.weigh_run::<S, R, 2, V>(s, meeting, tiles, 0),
            Part::Lower => self.weigh_half::<S, R, V>(s, meeting, tiles, 0),
            Part::Upper => self.weigh_half::<S, R, V>(s, meeting, tiles, 1),
        }
    }

    /// One register only; the weights of the other are zero.
    #[inline(always)]
    fn weigh_half<S: Lanes, const R: usize, V: Variant>(&mut self, s: S, meeting: &Meeting<'_>, tiles: Range<usize>, from: usize) {
        if self.queries > S::N {
            let rows = self.row::<V::Form, R>(tiles.start)..self.row::<V::Form, R>(tiles.end);
            self.weights_of::<S>(1 - from, rows).fill(0.0);
        }
        self.weigh_run::<S, R, 1, V>(s, meeting, tiles, from);
    }

    #[inline(always)]
    fn weigh_run<S: Lanes, const R: usize, const C: usize, V: Variant>(
        &mut self,
        s: S,
        meeting: &Meeting<'_>,
        mut tiles: Range<usize>,
        from: usize,
    ) {
        let limit = s.splat(self.limit);
        if self.has_unset::<S, C>(s, from) {
            self.rebase::<S, R, C, V>(s, meeting, tiles.start, from);
            tiles.start += 1;
        }
        let mut below = self.below_maximum::<S, C>(s, from);
        let mut sums = self.load_sums::<S, V::Form, C>(s, from);
        for tile in tiles {
            let (x, _) = meeting.logits::<S, R, C, V>(s, (tile, from), below);
            let added = self.store_weights::<S, R, C, V>(s, meeting, (tile, from), x);
            if any_above::<S, C>(s, added[0], limit) {
                self.store_sums::<S, V::Form, C>(s, sums, from);
                self.rebase::<S, R, C, V>(s, meeting, tile, from);
                below = self.below_maximum::<S, C>(s, from);
                sums = self.load_sums::<S, V::Form, C>(s, from);
            } else {
                sums = add_sums::<S, C>(s, sums, added);
            }
        }
        self.store_sums::<S, V::Form, C>(s, sums, from);
    }

    #[inline(always)]
    fn load_sums<S: Lanes, M: Form, const C: usize>(&self, s: S, from: usize) -> Sums<S, C> {
        let sum = load_registers::<S, C>(s, self.sum, from);
        let rounded = if M::PER_LANE == 1 { sum } else { load_registers::<S, C>(s, self.rounded, from) };
        [sum, rounded]
    }

    #[inline(always)]
    fn store_sums<S: Lanes, M: Form, const C: usize>(&mut self, s: S, [sum, rounded]: Sums<S, C>, from: usize) {
        store_registers::<S, C>(s, sum, self.sum, from);
        if M::PER_LANE == 2 {
            store_registers::<S, C>(s, rounded, self.rounded, from);
        }
    }

    /// The row of `p` in which the weights of a tile begin.
    #[inline(always)]
    fn row<M: Form, const R: usize>(&self, tile: usize) -> usize {
        (tile - self.first) * R / M::PER_LANE
    }

    /// The weights of some rows, one register of queries.
    #[inline(always)]
    fn weights_of<S: Lanes>(&mut self, c: usize, rows: Range<usize>) -> &mut [f32] {
        let half = self.p.len() / 2;
        &mut self.p[c * half + rows.start * S::N..c * half + rows.end * S::N]
    }

    /// Fills `p` for one tile whose logits are relative to the maximum; gives their sums before dropout.
    #[inline(always)]
    fn store_weights<S: Lanes, const R: usize, const C: usize, V: Variant>(
        &mut self,
        s: S,
        meeting: &Meeting<'_>,
        (tile, from): (usize, usize),
        x: Tile<S, R, C>,
    ) -> Sums<S, C> {
        let [mut added, mut rounded] = [[s.zero(); C]; 2];
        let one = V::Form::join(s, [s.splat(1.0); 2]);
        let (first, rows) = (self.row::<V::Form, R>(tile), R / V::Form::PER_LANE);
        let (lower, upper) = self.p.split_at_mut(self.p.len() / 2);
        let p = [&mut lower[first * S::N..][..rows * S::N], &mut upper[first * S::N..][..rows * S::N]];
        for row in 0..rows {
            for c in 0..C {
                let [mut whole, mut weights] = [[s.zero(); 2]; 2];
                for i in 0..V::Form::PER_LANE {
                    let r = row * V::Form::PER_LANE + i;
                    let e = meeting.keep::<S, V>(s, tile * R + r, from + c, s.exp2(x[r][c]));
                    added[c] = if r == 0 { e } else { s.add(added[c], e) };
                    (whole[i], weights[i]) = (e, meeting.drop::<S, V>(s, tile * R + r, from + c, e));
                }
                rounded[c] = V::Form::multiply_add(s, V::Form::join(s, whole), one, rounded[c]);
                s.store(&mut p[from + c][row * S::N..], V::Form::join(s, weights));
            }
        }
        [added, rounded]
    }

    /// Whether some lane has seen nothing yet.
    #[inline(always)]
    fn has_unset<S: Lanes, const C: usize>(&self, s: S, from: usize) -> bool {
        any_above::<S, C>(s, self.below_maximum::<S, C>(s, from), s.splat(f32::MAX))
    }

    #[inline(always)]
    fn below_maximum<S: Lanes, const C: usize>(&self, s: S, from: usize) -> [S::F; C] {
        let mut below = load_registers::<S, C>(s, self.maximum, from);
        for x in &mut below {
            *x = s.sub(s.zero(), *x);
        }
        below
    }

    /// Moves the maximum to what a tile holds.
    #[inline(always)]
    fn rebase<S: Lanes, const R: usize, const C: usize, V: Variant>(&mut self, s: S, meeting: &Meeting<'_>, tile: usize, from: usize) {
        s.vectorize(Rebase::<V, C> { softmax: self, meeting, tile, from, variant: PhantomData });
    }

    /// Adds `P·V` of the visible tiles to the output, trimmed for every `R` queries to the tiles that they see.
    #[inline(always)]
    pub(super) fn gather<S: Lanes, M: Form, const R: usize>(&mut self, s: S, meeting: &Meeting<'_>, v: Strips<'_>, tiles: Range<usize>) {
        let mut seen = [const { 0..0 }; MOST_GROUPS];
        let seen = &mut seen[..self.queries.div_ceil(R)];
        for (seen, positions) in seen.iter_mut().zip(meeting.positions.chunks(R)) {
            *seen = meeting.facts.visible(tiles.clone(), bounds(positions));
        }
        for (strip, column) in (0..self.width).step_by(2 * S::N).enumerate() {
            let rows = v.strip(strip);
            for (group, seen) in seen.iter().enumerate() {
                let keys = seen.start * R..meeting.facts.count.min(seen.end * R);
                if keys.is_empty() {
                    continue;
                }
                let (register, lane) = (group * R / S::N, group * R % S::N);
                let first = register * (self.p.len() / 2) + self.row::<M, R>(seen.start) * S::N + lane;
                let p = M::left(Across(Rows::new(&self.p[first..], S::N)));
                let acc = (&mut self.acc[group * R * self.width..], self.width);
                add_strip::<S, R>(s, acc, column, p, rows.from(keys.start / M::PER_LANE), M::rows(keys.len()));
            }
        }
    }

    /// Adds the rows of V that are not finite to the queries that see them, and to no other.
    #[cold]
    pub(super) fn gather_spoilt<S: Lanes, const R: usize>(
        &mut self,
        meeting: &Meeting<'_>,
        (v, dv): (Rows<'_>, usize),
        (spoilt, tiles): (&[usize], Range<usize>),
    ) {
        for &key in spoilt.iter().filter(|&&key| tiles.contains(&(key / R))) {
            let row = &v.data[key * v.stride..][..dv];
            for lane in (0..self.queries).filter(|&lane| meeting.sees(key, lane)) {
                let weight = self.p[lane / S::N * (self.p.len() / 2) + (key - self.first * R) * S::N + lane % S::N];
                let acc = &mut self.acc[lane * self.width..];
                acc.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
        }
    }

    /// Multiplies the first `rows` of weights, the sum and the output of one register of queries by `factor`.
    #[inline(always)]
    fn rescale<S: Lanes, M: Form>(&mut self, s: S, c: usize, rows: usize, factor: S::F) {
        for weights in self.weights_of::<S>(c, 0..rows).chunks_exact_mut(S::N) {
            let scaled = M::scale(s, s.load(weights), factor);
            s.store(weights, scaled);
        }
        let mut sums = self.load_sums::<S, M, 1>(s, c);
        for sum in sums.as_flattened_mut() {
            *sum = s.mul(*sum, factor);
        }
        self.store_sums::<S, M, 1>(s, sums, c);
        let mut factors = [0.0f32; 16];
        s.store(&mut factors, factor);
        for (lane, row) in self.acc[c * S::N * self.width..(c + 1) * S::N * self.width].chunks_mut(self.width).enumerate() {
            for x in row.chunks_mut(S::N) {
                let scaled = s.mul(s.load(x), s.splat(factors[lane]));
                s.store(x, scaled);
            }
        }
    }
}

/// Sums of weights, and of weights as products take them.
type Sums<S, const C: usize> = [[<S as Lanes>::F; C]; 2];

#[inline(always)]
fn add_sums<S: Lanes, const C: usize>(s: S, mut sums: Sums<S, C>, added: Sums<S, C>) -> Sums<S, C> {
    for (sum, added) in sums.as_flattened_mut().iter_mut().zip(added.as_flattened()) {
        *sum = s.add(*sum, *added);
    }
    sums
}

#[inline(always)]
fn load_registers<S: Lanes, const C: usize>(s: S, values: &[f32], from: usize) -> [S::F; C] {
    let mut registers = [s.zero(); C];
    for (c, x) in registers.iter_mut().enumerate() {
        *x = s.load(&values[(from + c) * S::N..]);
    }
    registers
}

#[inline(always)]
fn store_registers<S: Lanes, const C: usize>(s: S, registers: [S::F; C], into: &mut [f32], from: usize) {
    for (c, x) in registers.into_iter().enumerate() {
        s.store(&mut into[(from + c) * S::N..], x);
    }
}

/// Whether some lane is above `limit` or not a number.
#[inline(always)]
fn any_above<S: Lanes, const C: usize>(s: S, registers: [S::F; C], limit: S::F) -> bool {
    let mut above = false;
    for x in registers {
        above |= s.any_not_at_most(x, limit);
    }
    above
}

/// The cold path: moves the maximum of a panel to what a tile holds and rescales weights, sums and output.
struct Rebase<'a, 'b, 'c, V, const C: usize> {
    softmax: &'a mut Softmax<'b>,
    meeting: &'a Meeting<'c>,
    tile: usize,
    from: usize,
    variant: PhantomData<V>,
}

impl<V: Variant, const C: usize> Task for Rebase<'_, '_, '_, V, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Rebase { softmax, meeting, tile, from, .. } = self;
        let (mut x, _) = meeting.logits::<S, R, C, V>(s, (tile, from), [s.zero(); C]);
        let lowest = s.splat(f32::NEG_INFINITY);
        for i in 0..C {
            let c = from + i;
            let old = s.load(&softmax.maximum[c * S::N..]);
            let mut new = old;
            for (r, row) in x.iter().enumerate() {
                new = s.max(meeting.seen_or::<S, V>(s, tile * R + r, c, [row[i], lowest]), new);
            }
            let base = s.select(s.equal(new, lowest), s.zero(), new);
            s.store(&mut softmax.maximum[c * S::N..], new);
            if s.any_not_at_most(old, lowest) {
                let shift = s.select(s.equal(old, lowest), s.zero(), s.exp2(s.sub(old, new)));
                softmax.rescale::<S, V::Form>(s, c, softmax.row::<V::Form, R>(tile), shift);
            }
            for row in &mut x {
                row[i] = s.sub(row[i], base);
            }
        }
        let added = softmax.store_weights::<S, R, C, V>(s, meeting, (tile, from), x);
        let sums = add_sums::<S, C>(s, softmax.load_sums::<S, V::Form, C>(s, from), added);
        softmax.store_sums::<S, V::Form, C>(s, sums, from);
    }
}

/// `acc[r][·] += Σ_t a[r][t] · b[t][·]` for `R` rows of `width` values.
#[inline(always)]
pub(crate) fn add_product<S: Lanes, const R: usize>(s: S, (acc, width): (&mut [f32], usize), a: impl Left, b: Rows<'_>, steps: usize) {
    for column in (0..width).step_by(2 * S::N) {
        add_strip::<S, R>(s, (&mut *acc, width), column, a, Rows::new(&b.data[column..], b.stride), steps);
    }
}

/// The same for the strip of `acc` that begins at `column`; `b` is this strip's.
#[inline(always)]
pub(super) fn add_strip<S: Lanes, const R: usize>(
    s: S,
    (acc, width): (&mut [f32], usize),
    column: usize,
    a: impl Left,
    b: Rows<'_>,
    steps: usize,
) {
    if column + 2 * S::N <= width {
        add_columns::<S, R, 2>(s, (&mut acc[column..], width), a, b, steps);
    } else {
        add_columns::<S, R, 1>(s, (&mut acc[column..], width), a, b, steps);
    }
}

#[inline(always)]
fn add_columns<S: Lanes, const R: usize, const C: usize>(s: S, (acc, width): (&mut [f32], usize), a: impl Left, b: Rows<'_>, steps: usize) {
    let mut start = [[s.zero(); C]; R];
    for (r, row) in start.iter_mut().enumerate() {
        for (c, x) in row.iter_mut().enumerate() {
            *x = s.load(&acc[r * width + c * S::N..]);
        }
    }
    let total = product::<S, _, R, C>(s, start, a, b, steps);
    for (r, row) in total.into_iter().enumerate() {
        for (c, x) in row.into_iter().enumerate() {
            s.store(&mut acc[r * width + c * S::N..], x);
        }
    }
}
