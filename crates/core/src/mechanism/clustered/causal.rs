//! Block after block: recent keys as they are, earlier ones as clusters of the prefix at the block's beginning.
//!
//! Backward, from the last block to the first: a member's key was part of its cluster's mean at every later boundary, so its
//! gradient is `Σ_boundaries dmean / count`, a sum that each cluster carries on and that a member reads at its own block.

use super::Representative;
use super::choose::Chosen;
use super::fold::{Fold, Undo};
use super::ground::{Ground, Sequence};
use super::rows::{Wide, add};
use crate::mechanism::Gradients;
use crate::mechanism::owned::Owned;
use crate::{Error, Output, Par, Saved, exact};
use std::ops::Range;

/// The causal plan.
pub struct Prefixes<'a> {
    ground: Ground<'a>,
    chosen: &'a Chosen,
}

impl<'a> Prefixes<'a> {
    pub(super) fn new(ground: Ground<'a>, chosen: &'a Chosen) -> Self {
        Prefixes { ground, chosen }
    }

    pub(super) fn parts(&self) -> (&Ground<'a>, &'a Chosen) {
        (&self.ground, self.chosen)
    }

    /// Blocks of a sequence, as tokens of it.
    fn blocks(&self, sequence: &Sequence) -> Vec<Range<usize>> {
        let (tokens, block) = (sequence.rows.len(), self.ground.config.block);
        (0..tokens).step_by(block).map(|at| at..tokens.min(at.saturating_add(block))).collect()
    }

    pub(super) fn pairs(&self) -> u64 {
        let per_set = (self.ground.dims.heads / self.ground.sharing.sets) as u64;
        let of_set = |(at, (sequence, _)): (usize, (&Sequence, usize))| -> u64 {
            let assignment = &self.chosen.sets[at].assignment;
            let mut clusters = 0;
            let mut pairs = 0;
            for block in self.blocks(sequence) {
                pairs += block.len() * clusters + block.len() * (block.len() + 1) / 2;
                clusters = assignment[block].iter().fold(clusters, |most, &cluster| most.max(cluster as usize + 1));
            }
            pairs as u64
        };
        per_set * self.ground.sets().enumerate().map(of_set).sum::<u64>()
    }

    fn walk(&self, at: usize) -> Walk<'_, 'a> {
        let ground = &self.ground;
        Walk {
            plan: self,
            sequence: &ground.sequences[at],
            first_set: at * ground.sharing.sets,
            k: Wide::of(ground.k),
            v: Wide::of(ground.v),
            fold: Fold::new(&ground.config, ground.sharing, [ground.dims.dk, ground.dims.dv]),
        }
    }

    pub(super) fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        let dims = &self.ground.dims;
        out.check(dims, self.ground.q.dtype())?;
        let q = Wide::of(self.ground.q);
        let mut all = Owned::zeros([dims.batch, dims.heads, dims.queries, dims.dv]);
        let mut all_lse = vec![f32::NEG_INFINITY; dims.batch * dims.heads * dims.queries];
        for at in 0..self.ground.sequences.len() {
            let mut walk = self.walk(at);
            for block in self.blocks(walk.sequence) {
                walk.append(&block);
                let rows = walk.rows(&block);
                let mut lse = vec![0.0; dims.heads * block.len()];
                let held = walk.fold.held();
                let problem = walk.fold.problem(q.view().tokens(walk.sequence.batch, rows.clone())?, &held, Some(self.ground.scale))?;
                let o = all.part_mut(walk.sequence.batch, rows.clone());
                exact::forward(&problem, &mut Output { o, lse: Some(&mut lse) }, par)?;
                for (h, lse) in lse.chunks(block.len()).enumerate() {
                    all_lse[(walk.sequence.batch * dims.heads + h) * dims.queries + rows.start..][..lse.len()].copy_from_slice(lse);
                }
                walk.close(&block, None);
            }
        }
        if let Some(lse) = &mut out.lse {
            lse.copy_from_slice(&all_lse);
        }
        all.write(&mut out.o, par)
    }

    pub(super) fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        let dims = &self.ground.dims;
        saved.check(dims)?;
        gradients.heads.check(dims, None)?;
        if gradients.dx.is_some() || gradients.dthreshold.is_some() {
            return Err(Error::Combination("causal clustered attention has gradients of q, k and v only".into()));
        }
        if gradients.heads.dkey_bias.is_some() || gradients.heads.dbias.is_some() {
            return Err(Error::Combination("clustered reads no biases and has no gradients of them".into()));
        }
        let mut into = Into {
            plan: self,
            q: Wide::of(self.ground.q),
            o: Wide::of(saved.o),
            d_o: Wide::of(saved.d_o),
            lse: saved.lse,
            gradients: [&self.ground.q, &self.ground.k, &self.ground.v].map(|x| Owned::zeros(x.shape())),
        };
        for at in 0..self.ground.sequences.len() {
            into.sequence(self.walk(at), par)?;
        }
        let [dq, dk, dv] = &into.gradients;
        for (from, into) in [(dq, &mut gradients.heads.dq), (dk, &mut gradients.heads.dk), (dv, &mut gradients.heads.dv)] {
            into.as_mut().map_or(Ok(()), |into| from.write(into, par))?;
        }
        Ok(())
    }
}

/// One sequence at one of its blocks.
struct Walk<'w, 'a> {
    plan: &'w Prefixes<'a>,
    sequence: &'w Sequence,
    first_set: usize,
    k: Wide<'a>,
    v: Wide<'a>,
    fold: Fold,
}

impl<'w> Walk<'w, '_> {
    fn rows(&self, block: &Range<usize>) -> Range<usize> {
        self.sequence.rows.start + block.start..self.sequence.rows.start + block.end
    }

    fn append(&mut self, block: &Range<usize>) {
        let (batch, first) = (self.sequence.batch, self.sequence.rows.start + block.start);
        let from = [&self.k, &self.v];
        self.fold.append(block.len(), |[which, head, token], into| into.copy_from_slice(from[which].row([batch, head, first + token])));
    }

    fn assignment(&self, set: usize, block: &Range<usize>) -> &'w [u32] {
        &self.plan.chosen.sets[self.first_set + set].assignment[block.clone()]
    }

    fn close(&mut self, block: &Range<usize>, undo: Option<&mut Undo>) {
        let (sets, first) = (&self.plan.chosen.sets, self.first_set);
        self.fold.close(|set| &sets[first + set].assignment[block.clone()], undo);
    }
}

/// Gradients in the making.
struct Into<'s, 'a> {
    plan: &'s Prefixes<'a>,
    q: Wide<'s>,
    o: Wide<'s>,
    d_o: Wide<'s>,
    lse: &'s [f32],
    gradients: [Owned; 3],
}

impl Into<'_, '_> {
    fn sequence(&mut self, mut walk: Walk<'_, '_>, par: Par) -> Result<(), Error> {
        let blocks = self.plan.blocks(walk.sequence);
        let mut undos = Vec::new();
        for block in blocks.iter().take(blocks.len().saturating_sub(1)) {
            let mut undo = Undo::default();
            walk.append(block);
            walk.close(block, Some(&mut undo));
            undos.push(undo);
        }
        let (kv, dims) = (self.plan.ground.sharing.kv, &self.plan.ground.dims);
        let most = (0..kv).map(|head| walk.fold.counts(head).len()).max().unwrap_or(0);
        let mut carried = [dims.dk, dims.dv].map(|width| Owned::zeros([1, kv, most, width]));
        for (at, block) in blocks.iter().enumerate().rev() {
            if let Some(undo) = undos.get(at) {
                walk.fold.reopen(undo);
            }
            walk.append(block);
            self.block(&walk, block, &mut carried, par)?;
        }
        Ok(())
    }

    /// One block: its own gradients, what its tokens have of later boundaries, and what clusters carry on to earlier tokens.
    fn block(&mut self, walk: &Walk<'_, '_>, block: &Range<usize>, carried: &mut [Owned; 2], par: Par) -> Result<(), Error> {
        let (batch, rows, sharing) = (walk.sequence.batch, walk.rows(block), &self.plan.ground.sharing);
        let held = walk.fold.held();
        let problem = walk.fold.problem(self.q.view().tokens(batch, rows.clone())?, &held, Some(self.plan.ground.scale))?;
        let dims = problem.dims;
        let lse: Vec<f32> = (0..dims.heads)
            .flat_map(|h| &self.lse[(batch * dims.heads + h) * self.plan.ground.dims.queries..][rows.clone()])
            .copied()
            .collect();
        let saved = Saved { o: self.o.view().tokens(batch, rows.clone())?, lse: &lse, d_o: self.d_o.view().tokens(batch, rows.clone())? };
        let mut found = [dims.dk, dims.dv].map(|width| Owned::zeros([1, sharing.kv, held.rows, width]));
        let [dk, dv] = &mut found;
        let [dq, own @ ..] = &mut self.gradients;
        let mut into = crate::Gradients {
            dq: Some(dq.part_mut(batch, rows.clone())),
            dk: Some(dk.view_mut()),
            dv: Some(dv.view_mut()),
            ..crate::Gradients::default()
        };
        exact::backward(&problem, &saved, &mut into, par)?;
        let keep_leader = [self.plan.ground.config.representative == Representative::Leader, false];
        for ((own, found), (carried, keep_leader)) in own.iter_mut().zip(&found).zip(carried.iter_mut().zip(keep_leader)) {
            for (head, source) in sharing.key_heads().into_iter().enumerate() {
                let counts = walk.fold.counts(head);
                let leaders = &self.plan.chosen.sets[walk.first_set + sharing.set_of(head)].leaders;
                for (token, &cluster) in walk.assignment(sharing.set_of(head), block).iter().enumerate() {
                    let into = own.row_mut([batch, source, rows.start + token]);
                    add(into, found.row([0, head, counts.len() + token]), 1.0);
                    let stands = !keep_leader || leaders[cluster as usize] as usize == block.start + token;
                    if stands && (cluster as usize) < carried.shape[2] {
                        add(into, carried.row([0, head, cluster as usize]), 1.0);
                    }
                }
                for (cluster, &count) in counts.iter().enumerate() {
                    let share = if keep_leader { 1.0 } else { 1.0 / count as f32 };
                    add(carried.row_mut([0, head, cluster]), found.row([0, head, cluster]), share);
                }
            }
        }
        Ok(())
    }
}
