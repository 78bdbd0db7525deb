//! Forward and backward: leaves in runs of exact attention, then level after level of squares.
//!
//! A few heads at a time bound what is in the making. What is saved are the merged `o` and `lse`.

use super::blocks::{Arranged, Heads};
use super::choose::Hashed;
use super::gather::{pieces, single};
use super::ground::Ground;
use super::leaves::runs;
use super::running::{Running, write};
use super::squares::{Leaf, Parts, Square};
use super::visits::{Slopes, Visits};
use crate::{Error, Gradients, Output, Par, Saved};

/// Bytes of results in the making, unless one kv head takes more.
const MOST_BYTES: usize = 160 << 20;

/// The plan: parts of inputs by what was hashed.
pub(super) struct Squares<'a> {
    pub(super) ground: Ground<'a>,
    pub(super) chosen: &'a Hashed,
    pub(super) parts: Parts,
}

impl<'a> Squares<'a> {
    pub(super) fn new(ground: Ground<'a>, chosen: &'a Hashed) -> Self {
        let parts = Parts::of(&ground);
        Squares { ground, chosen, parts }
    }

    /// Whether nothing is sorted.
    pub(super) fn is_exact(&self) -> bool {
        self.parts.levels.is_empty()
    }

    pub(super) fn pairs(&self) -> u64 {
        let of_leaf = |leaf: &Leaf| {
            let (n, m) = (leaf.queries.len(), leaf.keys.len());
            (if self.ground.causal { n * m - n * (n - 1) / 2 } else { n * m }) as u64
        };
        let leaves: u64 = self.parts.leaves.iter().map(of_leaf).sum();
        let of_level = |(heads, level)| self.arrange(heads, level, Par::default()).pairs();
        let heads = self.heads(0);
        let levels = heads.iter().flat_map(|heads| self.parts.levels.iter().map(move |level| (heads, &level[..])));
        leaves * self.ground.problem.dims.heads as u64 + levels.map(of_level).sum::<u64>()
    }

    /// All heads, as many at a time as fit where a kv head takes so many bytes.
    pub(super) fn heads(&self, bytes: usize) -> Vec<Heads> {
        let dims = &self.ground.problem.dims;
        let rounds = (dims.kv_heads * bytes).div_ceil(MOST_BYTES).clamp(1, dims.kv_heads);
        let together = dims.kv_heads.div_ceil(rounds);
        let of_batch = |batch| (0..dims.kv_heads).step_by(together).map(move |start| (batch, start));
        let some = |(batch, start)| Heads { batch, kv: start..dims.kv_heads.min(start + together), group: dims.group() };
        (0..dims.batch).flat_map(of_batch).map(some).collect()
    }

    pub(super) fn arrange<'s>(&'s self, heads: &'s Heads, level: &'s [Square], par: Par) -> Arranged<'s> {
        Arranged::new((&self.ground, self.chosen), level, heads, par)
    }

    fn visits<'s>(&'s self, heads: &'s Heads, level: &'s [Square], par: Par) -> Visits<'s> {
        Visits { problem: &self.ground.problem, arranged: self.arrange(heads, level, par), heads, par }
    }

    pub(super) fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        let dims = self.ground.problem.dims;
        out.check(&dims, self.ground.problem.q.dtype())?;
        let (pieces, single) = (pieces(dims.queries), single(dims.queries));
        let into = out.o.share(&pieces);
        for heads in self.heads(dims.group() * dims.queries * (dims.dv * size_of::<f32>() + size_of::<f64>())) {
            let mut running = Running::new([heads.query().len(), dims.queries, dims.dv]);
            for run in runs(&self.parts.leaves, heads.batch) {
                run.forward(&self.ground, &heads, &mut running, par)?;
            }
            for level in &self.parts.levels {
                running.share(&single, |shared| self.visits(&heads, level, par).forward(shared));
            }
            let first = heads.batch * dims.heads + heads.query().start;
            let lse = out.lse.as_deref_mut().map(|lse| &mut lse[first * dims.queries..][..heads.query().len() * dims.queries]);
            running.write([heads.batch, heads.query().start], &into, lse, par);
        }
        Ok(())
    }

    pub(super) fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        let dims = self.ground.problem.dims;
        saved.check(&dims)?;
        gradients.check(&dims, None)?;
        let (of_queries, of_keys, single) = (pieces(dims.queries), pieces(dims.keys), single(dims.queries));
        let Gradients { dq, dk, dv, .. } = gradients;
        let dq = dq.as_mut().map(|dq| dq.share(&of_queries));
        let [dk, dv] = [dk, dv].map(|into| into.as_mut().map(|into| into.share(&of_keys)));
        let per_head = dims.group() * dims.queries * dims.dk + dims.keys * (dims.dk + dims.dv);
        for heads in self.heads(per_head * size_of::<f32>()) {
            let mut slopes = Slopes::new(&heads, &dims, !self.parts.leaves.is_empty());
            for run in runs(&self.parts.leaves, heads.batch) {
                run.backward(&self.ground, (&heads, saved), &mut slopes, par)?;
            }
            for level in &self.parts.levels {
                self.visits(&heads, level, par).backward(saved, &mut slopes, &single);
            }
            let Slopes { dq: of_queries, dk: of_keys, dv: of_values } = &slopes;
            let starts = [heads.query().start, heads.kv.start, heads.kv.start];
            for ((from, first), into) in [of_queries, of_keys, of_values].into_iter().zip(starts).zip([&dq, &dk, &dv]) {
                into.iter().for_each(|into| write(from, [heads.batch, first], into, par));
            }
        }
        Ok(())
    }
}
