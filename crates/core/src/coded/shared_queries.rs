//! What queries that are codewords leave for keys: one row per codeword of queries, `W_a = Σ_(i of a) e^(-lse_i) (dO_i, -D_i)`, since
//! `P_ij = e^(x_ac) e^(-lse_i)` for query i of code a and key j of code c. With `E_ja = e^(x_ac)`, `dv_j = Σ_a E_ja W_a` and
//! `dk_j = scale Σ_a E_ja (W_a·(v_j, 1)) C^q_a`: `O(S_q (2 Dv + Dk))` a key, `O(Dv)` a query.
//!
//! Row a holds the sum times `e^(min lse)` over its queries, and E the other factor: both are at most 1, as every key that takes from a row
//! has been seen by all its queries, so neither overflows. Logits and offsets are in units of log2, sums in f64.

use crate::exact::softmax::add_product;
use crate::quantise::Codewords;
use crate::simd::{Aligned, Along, Lanes, Rows, product};
use std::f32::consts::LOG2_E;

/// Logits by code of a key, `[S_k padded][S_q padded]`.
#[derive(Debug)]
pub(super) struct ByKey {
    logits: Aligned<f32>,
    /// S_q, padded to whole panels of any level.
    stride: usize,
    codes: usize,
}

/// Lanes of the widest panel.
const PANEL: usize = 32;

impl ByKey {
    /// The same as a table `[S_q][S_k padded]`, for so many codes of either side.
    pub(super) fn new(table: &Aligned<f32>, queries: usize, codes: usize) -> Self {
        let stride = queries.next_multiple_of(PANEL);
        let mut logits = Aligned::zeros(codes * stride);
        let rows = table.get(queries * codes);
        for (code, row) in logits.take(codes * stride).chunks_mut(stride).enumerate() {
            row.iter_mut().enumerate().take(queries).for_each(|(a, x)| *x = rows[a * codes + code]);
        }
        ByKey { logits, stride, codes }
    }

    #[inline(always)]
    fn row(&self, code: usize) -> &[f32] {
        &self.logits.get(self.codes * self.stride)[code * self.stride..][..self.stride]
    }
}

/// W of one query head.
#[derive(Debug)]
pub(super) struct Left {
    /// The largest `-lse` of each row's queries, in units of log2; -inf where there was none.
    offsets: Vec<f32>,
    /// `[S_q][Dv + 1]`.
    sums: Vec<f64>,
    width: usize,
}

impl Left {
    /// Of nothing, for so many codewords of queries and values of that width.
    pub(super) fn new(queries: usize, dv: usize) -> Self {
        Left { offsets: vec![f32::NEG_INFINITY; queries], sums: vec![0.0; queries * (dv + 1)], width: dv + 1 }
    }

    /// Bytes of one.
    pub(super) fn bytes(queries: usize, dv: usize) -> usize {
        queries * (size_of::<f32>() + (dv + 1) * size_of::<f64>())
    }

    /// Takes in a query of code `a`.
    #[inline(always)]
    pub(super) fn take_in(&mut self, a: usize, lse: f32, (d_o, delta): (&[f32], f32)) {
        if lse == f32::NEG_INFINITY {
            return;
        }
        let factor = self.meet(a, -lse * LOG2_E);
        let row = &mut self.sums[a * self.width..(a + 1) * self.width];
        for (sum, &x) in row.iter_mut().zip(d_o) {
            *sum += factor * f64::from(x);
        }
        row[self.width - 1] -= factor * f64::from(delta);
    }

    /// What a sum with this offset is to be multiplied by when it joins row `a`, whose own offset rises to it where it is lower.
    #[inline(always)]
    fn meet(&mut self, a: usize, offset: f32) -> f64 {
        let own = self.offsets[a];
        if offset > own {
            let factor = (f64::from(own) - f64::from(offset)).exp2();
            self.sums[a * self.width..(a + 1) * self.width].iter_mut().for_each(|sum| *sum *= factor);
            self.offsets[a] = offset;
            return 1.0;
        }
        (f64::from(offset) - f64::from(own)).exp2()
    }

    /// Adds what later queries left.
    pub(super) fn add(&mut self, other: &Left) {
        for (a, from) in other.sums.chunks(other.width).enumerate().filter(|(a, _)| other.offsets[*a] != f32::NEG_INFINITY) {
            let factor = self.meet(a, other.offsets[a]);
            self.sums[a * self.width..][..self.width].iter_mut().zip(from).for_each(|(sum, x)| *sum += factor * x);
        }
    }
}

/// Some keys that take what was left: their codes, and rows of their values.
pub(super) struct Taking<'a> {
    pub(super) codes: &'a [u32],
    pub(super) values: Rows<'a>,
    /// The logits of the query head, and its codewords.
    pub(super) by_key: &'a ByKey,
    pub(super) codewords: &'a Codewords,
    /// Padded widths of keys and values.
    pub(super) widths: [usize; 2],
}

/// Room for keys that take.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// W in f32, row by row.
    rows: Aligned<f32>,
    /// The same transposed, panel by panel `[Dv + 1][2·N]`.
    panels: Aligned<f32>,
    offsets: Aligned<f32>,
    /// E, and E times `W_a·(v_j, 1)`, by key.
    weights: [Aligned<f32>; 2],
}

impl Left {
    /// Adds to sums for dk, not yet scaled, and dv, `[keys padded to tiles][width padded]`.
    #[inline(always)]
    pub(super) fn give<S: Lanes, const R: usize>(&self, s: S, keys: &Taking<'_>, into: [&mut [f32]; 2], room: &mut Room) {
        let (stride, [dk, dv]) = (keys.by_key.stride, keys.widths);
        self.stage::<S>(keys, room);
        self.weigh::<S, R>(s, keys, room);
        let count = keys.codes.len().next_multiple_of(R);
        let [weights, slopes] = room.weights.each_ref().map(|rows| rows.get(count * stride));
        let (rows, queries) = (Rows::new(room.rows.get(self.offsets.len() * dv), dv), self.offsets.len());
        let [into_k, into_v] = into;
        for first in (0..count).step_by(R) {
            let tile = Along(Rows::new(&slopes[first * stride..], stride));
            add_product::<S, R>(s, (&mut into_k[first * dk..(first + R) * dk], dk), tile, keys.codewords.rows(), queries);
            let tile = Along(Rows::new(&weights[first * stride..], stride));
            add_product::<S, R>(s, (&mut into_v[first * dv..(first + R) * dv], dv), tile, rows, queries);
        }
    }

    /// W and its offsets in f32.
    #[inline(always)]
    fn stage<S: Lanes>(&self, keys: &Taking<'_>, room: &mut Room) {
        let (lanes, stride, dv, width) = (2 * S::N, keys.by_key.stride, keys.widths[1], self.width);
        let rows = room.rows.take(self.offsets.len() * dv);
        rows.fill(0.0);
        let panels = room.panels.take(stride * width);
        panels.fill(0.0);
        for (a, sums) in self.sums.chunks(width).enumerate() {
            let panel = &mut panels[a / lanes * width * lanes + a % lanes..];
            for (d, &sum) in sums.iter().enumerate() {
                panel[d * lanes] = sum as f32;
                if d + 1 < width {
                    rows[a * dv + d] = sum as f32;
                }
            }
        }
        let offsets = room.offsets.take(stride);
        offsets.fill(f32::NEG_INFINITY);
        offsets[..self.offsets.len()].copy_from_slice(&self.offsets);
    }

    /// E and slopes of all keys by all codewords of queries.
    #[inline(always)]
    fn weigh<S: Lanes, const R: usize>(&self, s: S, keys: &Taking<'_>, room: &mut Room) {
        let (lanes, stride, width) = (2 * S::N, keys.by_key.stride, self.width);
        let count = keys.codes.len().next_multiple_of(R);
        let [weights, slopes] = &mut room.weights;
        let (weights, slopes) = (weights.take(count * stride), slopes.take(count * stride));
        weights[keys.codes.len() * stride..].fill(0.0);
        slopes[keys.codes.len() * stride..].fill(0.0);
        let (offsets, panels) = (room.offsets.get(stride), room.panels.get(stride * width));
        for (i, panel) in panels.chunks(width * lanes).enumerate() {
            let offset = [s.load(&offsets[i * lanes..]), s.load(&offsets[i * lanes + S::N..])];
            let last = &panel[(width - 1) * lanes..];
            let last = [s.load(last), s.load(&last[S::N..])];
            for first in (0..keys.codes.len()).step_by(R) {
                let values = Along(keys.values.from(first));
                let x = product::<S, _, R, 2>(s, [[s.zero(); 2]; R], values, Rows::new(panel, lanes), width - 1);
                for (r, x) in x.into_iter().enumerate().take(keys.codes.len() - first) {
                    let logits = &keys.by_key.row(keys.codes[first + r] as usize)[i * lanes..];
                    for c in 0..2 {
                        let weight = s.exp2(s.add(s.load(&logits[c * S::N..]), offset[c]));
                        let into = (first + r) * stride + i * lanes + c * S::N;
                        s.store(&mut weights[into..], weight);
                        s.store(&mut slopes[into..], s.mul(weight, s.add(x[c], last[c])));
                    }
                }
            }
        }
    }
}
