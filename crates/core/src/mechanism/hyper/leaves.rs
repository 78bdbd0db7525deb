//! Rows that attend to each other exactly: leaves that follow one another are the packed sequences of one problem.

use super::blocks::Heads;
use super::gather::Floats;
use super::ground::Ground;
use super::running::Running;
use super::squares::Leaf;
use super::visits::Slopes;
use crate::view::View;
use crate::{Error, Gradients, Output, Par, Problem, Saved, Scores, Sight, exact};
use std::ops::Range;

/// Most keys of a run, unless one leaf has more: every job of the exact backward pass looks at all blocks of its queries.
const MOST: usize = 16_384;

/// Leaves of one batch row that follow one another.
pub(super) struct Run {
    queries: Range<usize>,
    keys: Range<usize>,
    offsets: [Vec<usize>; 2],
}

/// The leaves of a batch row in runs.
pub(super) fn runs(leaves: &[Leaf], batch: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for leaf in leaves.iter().filter(|leaf| leaf.batch == batch) {
        match runs.last_mut().filter(|run| run.is_followed_by(leaf)) {
            Some(run) => run.extend(leaf),
            None => {
                let lengths = [leaf.queries.len(), leaf.keys.len()];
                runs.push(Run { queries: leaf.queries.clone(), keys: leaf.keys.clone(), offsets: lengths.map(|length| vec![0, length]) });
            }
        }
    }
    runs
}

impl Run {
    fn is_followed_by(&self, leaf: &Leaf) -> bool {
        let adjoins = [self.queries.end, self.keys.end] == [leaf.queries.start, leaf.keys.start];
        adjoins && leaf.keys.end - self.keys.start <= MOST
    }

    fn extend(&mut self, leaf: &Leaf) {
        (self.queries.end, self.keys.end) = (leaf.queries.end, leaf.keys.end);
        let [queries, keys] = &mut self.offsets;
        queries.push(leaf.queries.end - self.queries.start);
        keys.push(leaf.keys.end - self.keys.start);
    }

    /// Its rows of some heads of q, k and v.
    fn rows<'a>(&self, ground: &Ground<'a>, heads: &Heads, par: Par) -> Result<[Floats<'a>; 3], Error> {
        let Problem { q, k, v, .. } = &ground.problem;
        let part =
            |view: &View<'a>, heads_of: Range<usize>, rows: &Range<usize>| Ok(Floats::of(some(view, (heads.batch, heads_of), rows)?, par));
        Ok([part(q, heads.query(), &self.queries)?, part(k, heads.kv.clone(), &self.keys)?, part(v, heads.kv.clone(), &self.keys)?])
    }

    fn problem<'r>(&'r self, ground: &Ground<'_>, [q, k, v]: &'r [Floats<'_>; 3]) -> Result<Problem<'r>, Error> {
        let sight = if ground.causal { Sight::causal() } else { Sight::full() };
        let [queries, keys] = &self.offsets;
        Problem::new(q.view(), k.view(), v.view(), sight.offsets(queries, keys), Scores::new().scale(ground.problem.scale()))
    }

    pub(super) fn forward(&self, ground: &Ground<'_>, heads: &Heads, into: &mut Running, par: Par) -> Result<(), Error> {
        let rows = self.rows(ground, heads, par)?;
        let mut lse = vec![0.0; heads.query().len() * self.queries.len()];
        let o = into.o.part_mut(0, self.queries.clone());
        exact::forward(&self.problem(ground, &rows)?, &mut Output { o, lse: Some(&mut lse) }, par)?;
        into.set(&self.queries, &lse);
        Ok(())
    }

    pub(super) fn backward(
        &self,
        ground: &Ground<'_>,
        (heads, saved): (&Heads, &Saved<'_>),
        into: &mut Slopes,
        par: Par,
    ) -> Result<(), Error> {
        let rows = self.rows(ground, heads, par)?;
        let all = ground.problem.dims.queries;
        let first = heads.batch * ground.problem.dims.heads;
        let lse: Vec<f32> = heads.query().flat_map(|h| &saved.lse[(first + h) * all..][self.queries.clone()]).copied().collect();
        let part = |view| some(view, (heads.batch, heads.query()), &self.queries);
        let saved = Saved { o: part(&saved.o)?, lse: &lse, d_o: part(&saved.d_o)? };
        let Slopes { dq, dk, dv } = into;
        let mut gradients = Gradients {
            dq: Some(dq.part_mut(0, self.queries.clone())),
            dk: Some(dk.part_mut(0, self.keys.clone())),
            dv: Some(dv.part_mut(0, self.keys.clone())),
            ..Gradients::default()
        };
        exact::backward(&self.problem(ground, &rows)?, &saved, &mut gradients, par)
    }
}

/// Some rows of some heads of one batch row.
fn some<'a>(view: &View<'a>, (batch, heads): (usize, Range<usize>), rows: &Range<usize>) -> Result<View<'a>, Error> {
    view.part([batch, heads.start, rows.start, 0], [1, heads.len(), rows.len(), view.shape()[3]])
}
