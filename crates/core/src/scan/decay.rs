//! Pairs of one block whose weights decay: `a_ij = Σ_d q_id k_jd w_ijd` with `w_ij = Π_{j < m <= i} e_m`, channel by channel.
//!
//! Going down the rows, keys are kept as they have decayed by then, so that every weight is a product of factors up to 1.

use super::tiles::{add, dot, multiply};
use crate::simd::Lanes;

/// Rows of a block.
pub(super) struct Decayed<'a> {
    /// Queries; in the end as the state before the block is read by them, `q_i ∘ Π_{m <= i} e_m`.
    pub(super) q: &'a mut [f32],
    /// Keys; in the end as the state behind the block takes them, `k_j ∘ Π_{m > j} e_m`.
    pub(super) k: &'a mut [f32],
    /// Factors.
    pub(super) e: &'a [f32],
    /// In the end the product of all factors.
    pub(super) total: &'a mut [f32],
}

impl Decayed<'_> {
    /// What pairs weigh, `[rows, rows]`, zero above the diagonal.
    #[inline(always)]
    pub(super) fn meet<S: Lanes>(&mut self, s: S, a: &mut [f32]) {
        let (width, rows) = (self.total.len(), self.q.len() / self.total.len());
        a.fill(0.0);
        for i in 0..rows {
            let (earlier, own) = self.k.split_at_mut(i * width);
            let (q, e) = (&self.q[i * width..][..width], &self.e[i * width..][..width]);
            let a = &mut a[i * rows..][..rows];
            for j in (0..i).step_by(4) {
                let count = (i - j).min(4);
                let keys = &mut earlier[j * width..][..count * width];
                if count == 4 {
                    decay_four(s, [q, e], keys, &mut a[j..]);
                } else {
                    for (key, a) in keys.chunks_exact_mut(width).zip(&mut a[j..]) {
                        multiply(s, key, e);
                        *a = dot(s, q, key);
                    }
                }
            }
            a[i] = dot(s, q, &own[..width]);
        }
        self.decay_queries(s);
    }

    #[inline(always)]
    fn decay_queries<S: Lanes>(&mut self, s: S) {
        let width = self.total.len();
        self.total.fill(1.0);
        for (q, e) in self.q.chunks_exact_mut(width).zip(self.e.chunks_exact(width)) {
            multiply(s, self.total, e);
            multiply(s, q, self.total);
        }
    }

    /// [`Decayed::meet`], and of pairs that are not a token with itself the gradients of q and k for those of the weights, `da`.
    #[inline(always)]
    pub(super) fn meet_back<S: Lanes>(&mut self, s: S, [a, da]: [&mut [f32]; 2], [dq, dk]: [&mut [f32]; 2]) {
        let (width, rows) = (self.total.len(), self.q.len() / self.total.len());
        dq.fill(0.0);
        dk.fill(0.0);
        a.fill(0.0);
        for i in 0..rows {
            let (earlier, own) = self.k.split_at_mut(i * width);
            let (q, e) = (&self.q[i * width..][..width], &self.e[i * width..][..width]);
            let (a, da, dq) = (&mut a[i * rows..][..rows], &da[i * rows..][..rows], &mut dq[i * width..][..width]);
            for ((key, a), da) in earlier.chunks_exact_mut(width).zip(&mut *a).zip(da) {
                multiply(s, key, e);
                *a = dot(s, q, key);
                add(s, dq, key, *da);
            }
            a[i] = dot(s, q, &own[..width]);
        }
        for j in (0..rows).rev() {
            let (_, later) = self.q.split_at_mut((j + 1) * width);
            let dk = &mut dk[j * width..][..width];
            for (i, q) in (j + 1..rows).zip(later.chunks_exact_mut(width)) {
                multiply(s, q, &self.e[(j + 1) * width..][..width]);
                add(s, dk, q, da[i * rows + j]);
            }
        }
        for q in self.q.chunks_exact_mut(width) {
            multiply(s, q, &self.e[..width]);
        }
        self.total.fill(1.0);
        for e in self.e.chunks_exact(width) {
            multiply(s, self.total, e);
        }
    }
}

/// Multiplies four keys by `e` and gives their products with `q`.
#[inline(always)]
fn decay_four<S: Lanes>(s: S, [q, e]: [&[f32]; 2], keys: &mut [f32], into: &mut [f32]) {
    let (width, mut sums) = (q.len(), [s.zero(); 4]);
    for at in (0..width).step_by(S::N) {
        let (x, factor) = (s.load(&q[at..]), s.load(&e[at..]));
        for (r, sum) in sums.iter_mut().enumerate() {
            let key = s.mul(s.load(&keys[r * width + at..]), factor);
            s.store(&mut keys[r * width + at..], key);
            *sum = s.mul_add(x, key, *sum);
        }
    }
    s.sum_four(sums, into);
}
