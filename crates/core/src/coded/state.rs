//! What queries leave for the keys of a code: `A_s = Σ_i P_is dO_i` for their values, and for the keys themselves
//! `B_s = Σ_i P_is (dO_i, -D_i) ⊗ q_i`, since `dk_j = scale Σ_i P_is (dO_i·v_j - D_i) q_i = scale (v_j, 1) B_s` for every key j of code s.
//!
//! B_s costs `Dk (Dv + 1)` products per query, a key by itself `Dk + Dv`. So the first few keys of a code have sums of their own, and B_s
//! takes in only queries that see more than those few: whichever is less, per code and block.

use super::ranks::Ranks;
use crate::exact::softmax::add_product;
use crate::quantise::PAD;
use crate::simd::{Aligned, Along, Lanes, Rows};

/// Values of a row of a key that are added up together; every padded width is a multiple of it.
const LANES: usize = 8;

/// Sums over queries, per code and for the first few keys of each.
#[derive(Debug, Default)]
pub(super) struct State {
    codes: usize,
    dv: usize,
    /// Padded widths of keys and values.
    widths: [usize; 2],
    /// A, `[S][Dv]`; empty where it is not wanted.
    values: Vec<f32>,
    /// What is left for keys; none where it is not wanted.
    keys: Option<OfKeys>,
}

#[derive(Debug)]
struct OfKeys {
    ranks: Ranks,
    /// Codes with a matrix, padded.
    places: usize,
    /// B, `[Dv + 1][places][Dk]`.
    matrices: Vec<f32>,
    /// Sums of keys by themselves, `[slots][Dk]`.
    few: Vec<f32>,
}

/// A block of queries: rows of dO and of q, and D.
pub(super) struct Leaving<'a> {
    pub(super) rows: usize,
    pub(super) d_o: &'a [f32],
    pub(super) q: &'a [f32],
    pub(super) delta: &'a [f32],
}

/// Room for the weights of a block, code by code, and for its queries times one number each.
#[derive(Debug, Default)]
pub(super) struct Room {
    weights: Aligned<f32>,
    queries: Aligned<f32>,
}

/// Weights of a block, panel by panel `[S][2·N]`.
#[derive(Clone, Copy)]
struct Weights<'a> {
    panels: &'a [f32],
    codes: usize,
    lanes: usize,
}

impl Weights<'_> {
    /// The row of a code.
    #[inline(always)]
    fn copy(&self, code: usize, into: &mut [f32]) {
        for (i, into) in into.chunks_mut(self.lanes).enumerate() {
            into.copy_from_slice(&self.panels[(i * self.codes + code) * self.lanes..][..self.lanes]);
        }
    }
}

/// From so many keys of a code on it has a matrix.
pub(super) fn few([dk, dv]: [usize; 2]) -> usize {
    dk * (dv + 1) / (dk + dv)
}

impl State {
    /// Of nothing, for keys in this order; whether sums for values are wanted.
    pub(super) fn new<S: Lanes>(codes: usize, [dk, dv]: [usize; 2], ranks: Option<Ranks>, of_values: bool) -> Self {
        let widths = [dk, dv].map(|width| width.next_multiple_of(S::N));
        let keys = ranks.map(|ranks| {
            let places = ranks.places().next_multiple_of(PAD);
            let (matrices, few) = (vec![0.0; (dv + 1) * places * widths[0]], vec![0.0; ranks.slots() * widths[0]]);
            OfKeys { ranks, places, matrices, few }
        });
        State { codes, dv, widths, values: vec![0.0; if of_values { codes * widths[1] } else { 0 }], keys }
    }

    /// Bytes of one where every code has more than a few keys.
    pub(super) fn bytes(codes: usize, [dk, dv]: [usize; 2]) -> usize {
        let [dk_padded, dv_padded] = [dk, dv].map(|width| width.next_multiple_of(PAD));
        codes * (dv_padded + (dv + 1 + few([dk, dv])) * dk_padded) * size_of::<f32>()
    }

    /// Adds what other queries left for the same keys.
    pub(super) fn add(&mut self, other: &State) {
        let add = |into: &mut [f32], from: &[f32]| into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
        add(&mut self.values, &other.values);
        if let (Some(into), Some(from)) = (&mut self.keys, &other.keys) {
            add(&mut into.matrices, &from.matrices);
            add(&mut into.few, &from.few);
        }
    }

    /// The keys that are taken by themselves, number and slot of each, where the first `far` are far.
    pub(super) fn list_few(&self, far: usize, code: impl Fn(usize) -> usize, into: &mut Vec<(usize, usize)>) {
        into.clear();
        into.extend(self.keys.iter().flat_map(|keys| keys.ranks.few(far, &code)));
    }

    /// The sum of a key by itself.
    pub(super) fn few_mut(&mut self, slot: usize) -> Option<&mut [f32]> {
        let width = self.widths[0];
        self.keys.as_mut().map(|keys| &mut keys.few[slot * width..][..width])
    }

    /// Takes in the weights of a block, panel by panel `[S][2·N]`, of codes with keys, the first `far` of which are far.
    #[inline(always)]
    pub(super) fn take_in<S: Lanes, const R: usize>(
        &mut self,
        s: S,
        weights: &[f32],
        (counts, far): (&[u32], usize),
        block: &Leaving<'_>,
        room: &mut Room,
    ) {
        let weights = Weights { panels: weights, codes: self.codes, lanes: 2 * S::N };
        if !self.values.is_empty() {
            self.take_in_values::<S, R>(s, weights, counts, block, room);
        }
        if self.keys.is_some() {
            self.take_in_keys::<S, R>(s, weights, far, block, room);
        }
    }

    #[inline(always)]
    fn take_in_values<S: Lanes, const R: usize>(
        &mut self,
        s: S,
        weights: Weights<'_>,
        counts: &[u32],
        block: &Leaving<'_>,
        room: &mut Room,
    ) {
        let (width, length) = (self.widths[1], block.rows.next_multiple_of(weights.lanes));
        let tile = room.weights.take(R * length);
        for first in (0..self.codes).step_by(R) {
            if counts[first..first + R].iter().all(|&count| count == 0) {
                continue;
            }
            for (r, row) in tile.chunks_mut(length).enumerate() {
                weights.copy(first + r, row);
            }
            let acc = &mut self.values[first * width..(first + R) * width];
            add_product::<S, R>(s, (acc, width), Along(Rows::new(tile, length)), Rows::new(block.d_o, width), block.rows);
        }
    }

    /// `B_s += Σ_i P_is (dO_i, -D_i) ⊗ q_i`, a column of dO after the other, so that its products with q serve all codes.
    #[inline(always)]
    fn take_in_keys<S: Lanes, const R: usize>(&mut self, s: S, weights: Weights<'_>, far: usize, block: &Leaving<'_>, room: &mut Room) {
        let Some(keys) = &mut self.keys else { return };
        let ([dk, dv], length) = (self.widths, block.rows.next_multiple_of(weights.lanes));
        let codes = keys.ranks.many(far);
        let count = codes.len().next_multiple_of(R);
        let rows = room.weights.take(count * length);
        rows[codes.len() * length..].fill(0.0);
        for (code, row) in codes.zip(rows.chunks_mut(length)) {
            weights.copy(code, row);
        }
        let queries = room.queries.take(block.rows * dk);
        for (d, matrices) in keys.matrices.chunks_mut((keys.places * dk).max(1)).enumerate() {
            for (i, (into, q)) in queries.chunks_mut(dk).zip(block.q.chunks(dk)).enumerate() {
                let factor = s.splat(if d < self.dv { block.d_o[i * dv + d] } else { -block.delta[i] });
                for (into, q) in into.chunks_mut(S::N).zip(q.chunks(S::N)) {
                    s.store(into, s.mul(factor, s.load(q)));
                }
            }
            for first in (0..count).step_by(R) {
                let acc = &mut matrices[first * dk..(first + R) * dk];
                let tile = Along(Rows::new(&rows[first * length..], length));
                add_product::<S, R>(s, (acc, dk), tile, Rows::new(queries, dk), block.rows);
            }
        }
    }

    /// Adds to the gradients of a key of a code, as far as they are wanted.
    #[inline(always)]
    pub(super) fn give(&self, [key, code]: [usize; 2], value: &[f32], (dk, scale): (Option<&mut [f32]>, f32), dv: Option<&mut [f32]>) {
        if let Some(into) = dv {
            let row = &self.values[code * self.widths[1]..];
            for (into, x) in into.iter_mut().zip(row) {
                *into += x;
            }
        }
        let (Some(into), Some(keys)) = (dk, &self.keys) else { return };
        let width = self.widths[0];
        if let Some(slot) = keys.ranks.slot(key) {
            for (into, x) in into.iter_mut().zip(&keys.few[slot * width..]) {
                *into += scale * x;
            }
        }
        let Some(place) = keys.ranks.place(code) else { return };
        // In f64: what is left of the two parts may be far less than they are.
        for at in (0..width).step_by(LANES) {
            let mut sums = [0.0f64; LANES];
            for (d, x) in value[..self.dv].iter().copied().chain([1.0]).enumerate() {
                let row = &keys.matrices[(d * keys.places + place) * width + at..][..LANES];
                for (sum, &y) in sums.iter_mut().zip(row) {
                    *sum += f64::from(x) * f64::from(y);
                }
            }
            into.iter_mut().skip(at).zip(sums).for_each(|(into, sum)| *into += (f64::from(scale) * sum) as f32);
        }
    }
}
