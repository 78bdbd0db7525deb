//! The gradient of type logits, from slopes by `M_ij`.
//!
//! Of a key's own type: its slopes over the rows that the type would show it to. A global also cuts off the locals before
//! it: `dg_j` loses the slopes of pairs (local m, row i) with `m ≤ j < i` that no other global cuts off. Between two globals
//! those are the pairs that cross j, a running sum; at a global, the pairs of the locals before it and the rows behind it.

use super::{GLOBAL, LOCAL, Runs, TYPES, Typed, WINDOW, scopes};
use crate::exact::multiplicity::{self, INTERVALS, Intervals, Slopes};
use crate::problem::check_flat;
use crate::{Error, Par, Saved};

pub(super) const NOTHING: [i32; 2] = [1, 0];
const END: i32 = i32::MAX / 2;

/// Which sum is which.
pub(super) const ALL: usize = 0;
pub(super) const ALIVE: usize = 1;
const AFTER: usize = 2;
pub(super) const NEAR: usize = 3;
pub(super) const CROSSING: usize = 4;

impl Typed<'_> {
    pub(super) fn logit_gradient(&self, saved: &Saved<'_>, into: &mut [f32], par: Par) -> Result<(), Error> {
        let dims = &self.base.dims;
        let Some(logits) = self.logits else {
            return Err(Error::Combination("there is no gradient of type_logits where types are given".into()));
        };
        if matches!(self.runs, Runs::ByQuery(_)) {
            return Err(Error::Combination("types of queries are chosen without a gradient: query_typed has none of type_logits".into()));
        }
        check_flat("dtype_logits", Some(into), logits.len())?;
        saved.check(dims)?;
        let sequences = scopes(&self.base, false);
        let mut intervals = vec![[NOTHING; INTERVALS]; dims.batch * dims.kv_heads * dims.keys];
        for (row, scope) in &sequences {
            let keys = row + scope.keys.start..row + scope.keys.end;
            lay_intervals(&self.choices.types[keys.clone()], self.window, &mut intervals[keys]);
        }
        let delta = delta(saved);
        let slopes = multiplicity::slopes(&self.base, saved, (&delta, &intervals), par);
        into.fill(0.0);
        for (row, scope) in &sequences {
            let g = row / dims.keys.max(1) % dims.kv_heads;
            let first = scope.batch * dims.heads + g * dims.group();
            let positions: Vec<i32> = scope.queries.clone().map(|n| scope.query_position(n)).collect();
            let shifted = positions.first().copied().unwrap_or(0);
            let (mut keys, mut queries) = (vec![[0.0; INTERVALS]; scope.keys.len()], vec![0.0; scope.keys.len()]);
            for Slopes { keys: of_keys, queries: of_queries } in &slopes[first..first + dims.group()] {
                add_keys(&mut keys, &of_keys[scope.keys.clone()]);
                for (i, slope) in of_queries[scope.queries.clone()].iter().enumerate() {
                    if let Some(sum) = usize::try_from(shifted + i as i32).ok().and_then(|position| queries.get_mut(position)) {
                        *sum += slope;
                    }
                }
            }
            let tokens = row + scope.keys.start..row + scope.keys.end;
            let types = &self.choices.types[tokens.clone()];
            let by_type = by_type(types, &keys, &queries);
            for (token, slopes) in tokens.zip(by_type).filter(|(token, _)| self.choices.free[*token]) {
                through_softmax(&logits[token * TYPES..][..TYPES], slopes, &mut into[token * TYPES..][..TYPES]);
            }
        }
        Ok(())
    }
}

/// `D_i = dO_i·O_i`, `[B, H, N]`.
fn delta(saved: &Saved<'_>) -> Vec<f32> {
    let [batch, heads, queries, width] = saved.o.shape();
    let rows = (0..batch * heads * queries).map(|at| [at / queries / heads, at / queries % heads, at % queries]);
    let product = |[b, h, n]: [usize; 3], d| f64::from(saved.o.at([b, h, n, d])) * f64::from(saved.d_o.at([b, h, n, d]));
    rows.map(|row| (0..width).map(|d| product(row, d)).sum::<f64>() as f32).collect()
}

fn add_keys(sums: &mut [[f64; INTERVALS]], slopes: &[[f64; INTERVALS]]) {
    for (sum, slope) in sums.iter_mut().flatten().zip(slopes.iter().flatten()) {
        *sum += slope;
    }
}

/// The intervals of query positions that matter to each key of a sequence.
pub(super) fn lay_intervals(types: &[i64], window: usize, into: &mut [Intervals]) {
    let window = i32::try_from(window).unwrap_or(END).min(END);
    // The first global after the present key, and the one after that.
    let (mut next, mut second) = (END, END);
    for (j, (&kind, intervals)) in types.iter().zip(into).enumerate().rev() {
        let j = j as i32;
        intervals[ALL] = [j, END];
        intervals[ALIVE] = if kind == GLOBAL { [j, j] } else { [j, next] };
        intervals[NEAR] = [j, j.saturating_add(window)];
        if kind == LOCAL {
            intervals[AFTER] = if next == END { NOTHING } else { [next + 1, second] };
            intervals[CROSSING] = [j + 1, next];
        }
        if kind == GLOBAL {
            (next, second) = (j, next);
        }
    }
}

/// The slopes by each of the three types of every key of a sequence.
pub(super) fn by_type(types: &[i64], keys: &[[f64; INTERVALS]], queries: &[f64]) -> Vec<[f64; TYPES]> {
    let (mut crossing, mut behind) = (0.0, 0.0);
    let of = |(j, (&kind, sums)): (usize, (&i64, &[f64; INTERVALS]))| {
        crossing += sums[CROSSING] - queries[j];
        behind += sums[AFTER];
        let cut_off = if kind == GLOBAL { behind } else { crossing };
        if kind == GLOBAL {
            (crossing, behind) = (0.0, 0.0);
        }
        let mut slopes = [0.0; TYPES];
        slopes[GLOBAL as usize] = sums[ALL] - cut_off;
        slopes[LOCAL as usize] = sums[ALIVE];
        slopes[WINDOW as usize] = sums[NEAR];
        slopes
    };
    types.iter().zip(keys).enumerate().map(of).collect()
}

/// Through `softmax(logits)`.
pub(super) fn through_softmax(logits: &[f32], slopes: [f64; TYPES], into: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&x| f64::from(x - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    let mean: f64 = exponentials.iter().zip(slopes).map(|(e, slope)| e / sum * slope).sum();
    for ((into, e), slope) in into.iter_mut().zip(&exponentials).zip(slopes) {
        *into = (e / sum * (slope - mean)) as f32;
    }
}
