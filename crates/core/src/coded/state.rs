//! What queries leave for the keys of a code: `A_s = Σ_i P_is dO_i` for their values, and for the keys themselves
//! `B_s = Σ_i P_is (dO_i, -D_i) ⊗ q_i`, since `dk_j = scale Σ_i P_is (dO_i·v_j - D_i) q_i = scale (v_j, 1) B_s` for every key j of code s.

use crate::exact::softmax::add_product;
use crate::quantise::PAD;
use crate::simd::{Along, Lanes, Rows};

/// Values of a row of a key that are added up together; every padded width is a multiple of it.
const LANES: usize = 8;

/// Sums over queries, per code.
#[derive(Debug, Default)]
pub(super) struct State {
    codes: usize,
    dv: usize,
    /// Padded widths of keys and values.
    widths: [usize; 2],
    /// A, `[S][Dv]`; empty where it is not wanted.
    values: Vec<f32>,
    /// B, `[Dv + 1][S][Dk]`; empty where it is not wanted.
    keys: Vec<f32>,
}

/// A block of queries: rows of dO and q, dO transposed panel by panel `[Dv][2·N]`, and D.
pub(super) struct Leaving<'a> {
    pub(super) rows: usize,
    pub(super) d_o: &'a [f32],
    pub(super) q: &'a [f32],
    pub(super) d_ot: &'a [f32],
    pub(super) delta: &'a [f32],
}

impl State {
    /// Of nothing; which of both are wanted.
    pub(super) fn new<S: Lanes>(codes: usize, [dk, dv]: [usize; 2], [of_keys, of_values]: [bool; 2]) -> Self {
        let widths = [dk, dv].map(|width| width.next_multiple_of(S::N));
        State {
            codes,
            dv,
            widths,
            values: vec![0.0; if of_values { codes * widths[1] } else { 0 }],
            keys: vec![0.0; if of_keys { (dv + 1) * codes * widths[0] } else { 0 }],
        }
    }

    /// Bytes of one with all of it.
    pub(super) fn bytes(codes: usize, [dk, dv]: [usize; 2]) -> usize {
        let [dk_padded, dv_padded] = [dk, dv].map(|width| width.next_multiple_of(PAD));
        codes * (dv_padded + (dv + 1) * dk_padded) * size_of::<f32>()
    }

    pub(super) fn add(&mut self, other: &State) {
        for (into, from) in [(&mut self.values, &other.values), (&mut self.keys, &other.keys)] {
            into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
        }
    }

    /// Takes in the weights of a block, panel by panel `[S][2·N]`, of codes with keys.
    #[inline(always)]
    pub(super) fn take_in<S: Lanes, const R: usize>(&mut self, s: S, weights: &[f32], counts: &[u32], block: &Leaving<'_>) {
        let (lanes, [dk, dv]) = (2 * S::N, self.widths);
        let length = block.rows.next_multiple_of(lanes);
        let mut whole = vec![0.0f32; R * length];
        let mut part = vec![0.0f32; R * length];
        for first in (0..self.codes).step_by(R) {
            if counts[first..first + R].iter().all(|&count| count == 0) {
                continue;
            }
            for (r, row) in whole.chunks_mut(length).enumerate() {
                for (i, row) in row.chunks_mut(lanes).enumerate() {
                    row.copy_from_slice(&weights[(i * self.codes + first + r) * lanes..][..lanes]);
                }
            }
            if !self.values.is_empty() {
                let acc = &mut self.values[first * dv..(first + R) * dv];
                add_product::<S, R>(s, (acc, dv), Along(Rows::new(&whole, length)), Rows::new(block.d_o, dv), block.rows);
            }
            for (d, keys) in self.keys.chunks_mut(self.codes * dk).enumerate() {
                for (whole, part) in whole.chunks(length).zip(part.chunks_mut(length)) {
                    for at in (0..length).step_by(S::N) {
                        let factor = if d < self.dv {
                            s.load(&block.d_ot[(at / lanes * self.dv + d) * lanes + at % lanes..])
                        } else {
                            s.sub(s.zero(), s.load(&block.delta[at..]))
                        };
                        s.store(&mut part[at..], s.mul(s.load(&whole[at..]), factor));
                    }
                }
                let acc = &mut keys[first * dk..(first + R) * dk];
                add_product::<S, R>(s, (acc, dk), Along(Rows::new(&part, length)), Rows::new(block.q, dk), block.rows);
            }
        }
    }

    /// Adds to the gradients of a key of a code, as far as they are wanted.
    #[inline(always)]
    pub(super) fn give(&self, code: usize, value: &[f32], (dk, scale): (Option<&mut [f32]>, f32), dv: Option<&mut [f32]>) {
        if let Some(into) = dv {
            let row = &self.values[code * self.widths[1]..];
            into.iter_mut().zip(row).for_each(|(into, x)| *into += x);
        }
        let Some(into) = dk else { return };
        // In f64: what is left of the two parts may be far less than they are.
        let width = self.widths[0];
        for at in (0..width).step_by(LANES) {
            let mut sums = [0.0f64; LANES];
            for (d, x) in value[..self.dv].iter().copied().chain([1.0]).enumerate() {
                let row = &self.keys[(d * self.codes + code) * width + at..][..LANES];
                for (sum, &y) in sums.iter_mut().zip(row) {
                    *sum += f64::from(x) * f64::from(y);
                }
            }
            into.iter_mut().skip(at).zip(sums).for_each(|(into, sum)| *into += (f64::from(scale) * sum) as f32);
        }
    }
}
