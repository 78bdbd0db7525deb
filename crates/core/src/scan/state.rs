//! A state in working form: `S [dk][dv]`, then `z [dk]`, then the product of all factors since it began, `[dk]`.

use super::tiles::{Multiply, Shape, add, multiply};
use crate::simd::{Across, Lanes, Rows};

/// Numbers of a state.
pub(super) fn size([dk, dv]: [usize; 2]) -> usize {
    dk * dv + 2 * dk
}

/// S, z and the product.
pub(super) fn parts(state: &mut [f32], [dk, dv]: [usize; 2]) -> [&mut [f32]; 3] {
    let (sums, rest) = state.split_at_mut(dk * dv);
    let (z, total) = rest.split_at_mut(dk);
    [sums, z, &mut total[..dk]]
}

/// The empty state.
pub(super) fn clear(state: &mut [f32], widths: [usize; 2]) {
    state.fill(0.0);
    let [_, _, total] = parts(state, widths);
    total.fill(1.0);
}

/// Multiplies row `d` of S by `factors[d]`.
#[inline(always)]
pub(super) fn decay<S: Lanes>(s: S, state: &mut [f32], [dk, dv]: [usize; 2], factors: &[f32]) {
    let [sums, _, total] = parts(state, [dk, dv]);
    multiply(s, total, factors);
    for (row, factor) in sums.chunks_exact_mut(dv).zip(factors) {
        super::tiles::scale(s, row, *factor);
    }
}

/// Adds `kᵀv` to S and the rows of k to z.
#[inline(always)]
pub(super) fn gather<S: Lanes>(s: S, state: &mut [f32], [dk, dv]: [usize; 2], (k, v): (&[f32], &[f32])) {
    let [sums, z, _] = parts(state, [dk, dv]);
    let steps = k.len() / dk;
    let (a, b) = (Across(Rows::new(k, dk)), Rows::new(v, dv));
    s.vectorize(Multiply { a, b, c: sums, stride: dv, steps, shape: Shape::Full, adds: true });
    super::block::add_rows(s, k, z);
}

/// Takes in one token: the old state decays, then `k vᵀ` is added.
#[inline(always)]
pub(super) fn take_in<S: Lanes>(s: S, state: &mut [f32], factors: Option<&[f32]>, (k, v): (&[f32], &[f32])) {
    let [dk, dv] = [k.len(), v.len()];
    let [sums, z, _] = parts(state, [dk, dv]);
    if let Some(factors) = factors {
        for (row, factor) in sums.chunks_exact_mut(dv).zip(factors) {
            super::tiles::scale(s, row, *factor);
        }
    }
    for (row, x) in sums.chunks_exact_mut(dv).zip(k) {
        add(s, row, v, *x);
    }
    add(s, z, k, 1.0);
}

/// What a query reads, not yet divided, into `o`; gives the denominator.
#[inline(always)]
pub(super) fn read<S: Lanes>(s: S, state: &mut [f32], q: &[f32], o: &mut [f32]) -> f32 {
    let [sums, z, _] = parts(state, [q.len(), o.len()]);
    o.fill(0.0);
    for (row, x) in sums.chunks_exact(o.len()).zip(q) {
        add(s, o, row, *x);
    }
    super::tiles::dot(s, z, q)
}
