//! What queries leave for far keys, and how these take it: sums per code of keys, or where queries are codewords too, per code of queries.

use super::Coded;
use super::backward::{Desk, Direction, Part, Shared};
use super::forward::NEAR;
use super::queries::Queries;
use super::ranks::Ranks;
use super::shared_queries::{Left, Taking};
use super::state::{self, Leaving, State};
use super::summary::Keys;
use crate::exact::pack;
use crate::exact::softmax::add_product;
use crate::simd::{Along, Lanes, Rows, Task, product};
use std::ops::Range;

/// Sums over queries of one sequence and kv head.
pub(super) enum Kept {
    /// Queries as they are: per code of keys.
    Codes(State),
    /// Queries that are codewords: of each query head per code of queries.
    Queries(Vec<Left>),
}

impl Kept {
    /// Of nothing.
    pub(super) fn new<S: Lanes>(shared: &Shared<'_>, keys: Keys<'_>, direction: Direction) -> Self {
        let (coded, [_, g]) = (shared.coded, keys.head);
        let (dims, codewords) = (&coded.dims, &coded.codewords[g]);
        if let Queries::Codes { codewords, .. } = &coded.queries {
            let heads = &codewords[g * dims.group()..(g + 1) * dims.group()];
            return Kept::Queries(heads.iter().map(|codewords| Left::new(codewords.count(), dims.dv)).collect());
        }
        let widths = [dims.dk, dims.dv];
        let of = |codes: &mut dyn Iterator<Item = u32>| Ranks::new(codes, codewords.count(), state::few(widths));
        let ranks = shared.dk.is_some().then(|| match direction {
            Direction::Before => of(&mut keys.codes.iter().copied()),
            Direction::After => of(&mut keys.codes.iter().rev().copied()),
        });
        Kept::Codes(State::new::<S>(codewords.padded(), widths, ranks, shared.dv.is_some()))
    }

    /// Bytes of one at most.
    pub(super) fn bytes(coded: &Coded<'_>) -> usize {
        let dims = &coded.dims;
        match &coded.queries {
            Queries::Codes { codewords, .. } => {
                codewords.iter().map(|codewords| Left::bytes(codewords.count(), dims.dv)).max().unwrap_or(0) * dims.group()
            }
            Queries::Rows(_) => {
                let codes = coded.codewords.iter().map(|codewords| codewords.padded()).max().unwrap_or(0);
                State::bytes(codes, [dims.dk, dims.dv])
            }
        }
    }

    /// Adds what later queries left.
    pub(super) fn add(&mut self, later: &Kept) {
        match (self, later) {
            (Kept::Codes(state), Kept::Codes(later)) => state.add(later),
            (Kept::Queries(heads), Kept::Queries(later)) => heads.iter_mut().zip(later).for_each(|(left, later)| left.add(later)),
            _ => {}
        }
    }
}

impl Direction {
    /// The number of a key among all in the order in which they become far.
    #[inline(always)]
    fn number(self, key: usize, keys: usize) -> usize {
        match self {
            Direction::Before => key,
            Direction::After => keys - 1 - key,
        }
    }
}

impl Part<'_> {
    /// What these queries leave for far keys.
    #[inline(always)]
    pub(super) fn leave<S: Lanes, const R: usize>(&self, s: S, direction: Direction, desk: &mut Desk, kept: &mut Kept) {
        match kept {
            Kept::Queries(heads) => self.leave_by_query(s, desk, &mut heads[self.h % self.shared.coded.dims.group()]),
            Kept::Codes(state) => self.leave_by_key::<S, R>(s, direction, desk, state),
        }
    }

    #[inline(always)]
    fn leave_by_query<S: Lanes>(&self, _: S, desk: &Desk, left: &mut Left) {
        let (sizes, dims, b) = (self.sizes::<S>(), &self.shared.coded.dims, self.keys.head[0]);
        let Queries::Codes { codes, .. } = &self.shared.coded.queries else { return };
        let first = (b * dims.heads + self.h) * dims.queries + self.block.rows.start;
        let (codes, lse) = (&codes[first..][..sizes.rows], &self.shared.saved.lse[first..][..sizes.rows]);
        let (d_o, delta) = (desk.d_o.get(sizes.padded * sizes.widths[1]), desk.delta.get(sizes.padded));
        for (i, (&code, &lse)) in codes.iter().zip(lse).enumerate() {
            left.take_in(code as usize, lse, (&d_o[i * sizes.widths[1]..][..dims.dv], delta[i]));
        }
    }

    #[inline(always)]
    fn leave_by_key<S: Lanes, const R: usize>(&self, s: S, direction: Direction, desk: &mut Desk, state: &mut State) {
        let sizes = self.sizes::<S>();
        let (counts, [dk, dv], all) = (self.summary.counts(), sizes.widths, self.keys.codes.len());
        let weights = desk.scratch.weights.take(sizes.padded * sizes.codes);
        for weights in weights.chunks_mut(sizes.codes * sizes.lanes) {
            for (row, _) in weights.chunks_mut(sizes.lanes).zip(counts).filter(|(_, count)| **count == 0) {
                row.fill(0.0);
            }
        }
        let far = match direction {
            Direction::Before => self.block.before,
            Direction::After => all - self.block.after,
        };
        let leaving = Leaving {
            rows: sizes.rows,
            d_o: desk.d_o.get(sizes.padded * dv),
            q: desk.q.get(sizes.padded * dk),
            delta: desk.delta.get(sizes.padded),
        };
        state.take_in::<S, R>(s, weights, (counts, far), &leaving, &mut desk.room);
        let key = |number: usize| direction.number(number, all);
        state.list_few(far, |number| self.keys.codes[key(number)] as usize, &mut desk.few);
        desk.few.iter_mut().for_each(|(number, _)| *number = key(*number));
        for start in (0..desk.few.len()).step_by(NEAR) {
            self.leave_few::<S, R>(s, start..desk.few.len().min(start + NEAR), desk, state);
        }
    }

    /// Slopes of some keys by themselves times queries.
    #[inline(always)]
    fn leave_few<S: Lanes, const R: usize>(&self, s: S, range: Range<usize>, desk: &mut Desk, state: &mut State) {
        let (sizes, [b, g], width) = (self.sizes::<S>(), self.keys.head, self.shared.coded.dims.dv);
        let (padded, lanes, [dk, dv]) = (sizes.padded, sizes.lanes, sizes.widths);
        let few = &desk.few[range];
        let values = desk.scratch.values.take(NEAR * dv);
        values.fill(0.0);
        for (&(key, _), row) in few.iter().zip(values.chunks_mut(dv)) {
            self.keys.values.widen_row(s, [b, g, self.keys.first + key], row);
            row[width..].fill(0.0);
        }
        let slopes = desk.near[1].take(NEAR * padded);
        let (weights, d_ot, delta) =
            (desk.scratch.weights.get(padded * sizes.codes), desk.d_ot.get(padded * width), desk.delta.get(padded));
        for i in 0..padded / lanes {
            let delta = [s.load(&delta[i * lanes..]), s.load(&delta[i * lanes + S::N..])];
            let panel = Rows::new(&d_ot[i * width * lanes..], lanes);
            for first in (0..few.len()).step_by(R) {
                let x = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], Along(Rows::new(&values[first * dv..], dv)), panel, width);
                for (r, x) in x.into_iter().enumerate().take(few.len() - first) {
                    let code = self.keys.codes[few[first + r].0] as usize;
                    let row = &weights[(i * sizes.codes + code) * lanes..][..lanes];
                    for c in 0..2 {
                        let slope = s.mul(s.load(&row[c * S::N..]), s.sub(x[c], delta[c]));
                        s.store(&mut slopes[(first + r) * padded + i * lanes + c * S::N..], slope);
                    }
                }
            }
        }
        let (sums, q) = (desk.acc[1].take(NEAR * dk), desk.q.get(padded * dk));
        for first in (0..few.len()).step_by(R) {
            let sums = &mut sums[..R * dk];
            sums.fill(0.0);
            let tile = Along(Rows::new(&slopes[first * padded..], padded));
            add_product::<S, R>(s, (&mut *sums, dk), tile, Rows::new(q, dk), sizes.rows);
            for (&(_, slot), sum) in few[first..].iter().zip(sums.chunks(dk)) {
                let Some(into) = state.few_mut(slot) else { continue };
                for (into, x) in into.chunks_mut(S::N).zip(sum.chunks(S::N)) {
                    let total = s.add(s.load(into), s.load(x));
                    s.store(into, total);
                }
            }
        }
    }
}

/// Some keys take what was left for them.
pub(super) struct Give<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) kept: &'a Kept,
    pub(super) keys: Keys<'a>,
    pub(super) range: Range<usize>,
    pub(super) direction: Direction,
    pub(super) desk: &'a mut Desk,
}

impl Task for Give<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        match self.kept {
            Kept::Codes(state) => self.by_key(s, state),
            Kept::Queries(heads) => self.by_query::<S, R>(s, heads),
        }
    }
}

impl Give<'_> {
    #[inline(always)]
    fn by_key<S: Lanes>(self, s: S, state: &State) {
        let Give { shared, keys, range, direction, .. } = self;
        let ([b, g], mut value) = (keys.head, vec![0.0; shared.coded.dims.dv]);
        for key in range {
            let row = keys.first + key;
            keys.values.widen_row(s, [b, g, row], &mut value);
            let mut dk = shared.dk.as_ref().map(|dk| dk.claim(b, g, row));
            let mut dv = shared.dv.as_ref().map(|dv| dv.claim(b, g, row));
            let dk = (dk.as_mut().map(|dk| dk.row(0)), shared.coded.scale);
            let at = [direction.number(key, keys.codes.len()), keys.codes[key] as usize];
            state.give(at, &value, dk, dv.as_mut().map(|dv| dv.row(0)));
        }
    }

    #[inline(always)]
    fn by_query<S: Lanes, const R: usize>(self, s: S, heads: &[Left]) {
        let Give { shared, keys, range, desk, .. } = self;
        let Queries::Codes { codewords, .. } = &shared.coded.queries else { return };
        let (dims, [_, g]) = (&shared.coded.dims, keys.head);
        let widths @ [dk, dv] = [dims.dk, dims.dv].map(|width| width.next_multiple_of(S::N));
        for start in range.clone().step_by(NEAR) {
            let part = start..range.end.min(start + NEAR);
            let values = desk.scratch.values.take(NEAR * dv);
            pack::stage_rows(s, keys.values, keys.head, keys.first + part.start..keys.first + part.end, values);
            let [_, into_k, into_v] = &mut desk.acc;
            let (into_k, into_v) = (into_k.take(NEAR * dk), into_v.take(NEAR * dv));
            into_k.fill(0.0);
            into_v.fill(0.0);
            for (at, left) in heads.iter().enumerate() {
                let h = g * dims.group() + at;
                let codes = &keys.codes[part.clone()];
                let taking = Taking { codes, values: Rows::new(values, dv), by_key: &shared.by_key[h], codewords: &codewords[h], widths };
                left.give::<S, R>(s, &taking, [&mut *into_k, &mut *into_v], &mut desk.taking);
            }
            shared.add(keys, part, [into_k, into_v], widths);
        }
    }
}
