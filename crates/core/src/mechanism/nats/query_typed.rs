//! Types of queries: the rows of one type in one head are a problem of their own, gathered, with a window of its own.

use super::scopes;
use crate::mechanism::owned::Owned;
use crate::problem::check_flat;
use crate::{Error, Gradients, Output, Par, Problem, Saved, Scores, Sight, exact};

/// The rows of one type in one head of one sequence.
struct Part {
    b: usize,
    h: usize,
    g: usize,
    /// Query rows, ascending.
    rows: Vec<usize>,
    positions: Vec<i64>,
    /// Key rows.
    keys: Vec<usize>,
    /// How far back the queries look.
    reach: Option<usize>,
}

/// Everything that runs.
pub(super) struct Parts<'a> {
    base: Problem<'a>,
    parts: Vec<Part>,
    q: Owned,
    k: Owned,
    v: Owned,
}

/// What the problem of one part reads.
struct Gathered {
    q: Owned,
    k: Owned,
    v: Owned,
    key_positions: Vec<i64>,
}

impl Gathered {
    fn problem<'s>(&'s self, part: &'s Part, scale: f32) -> Result<Problem<'s>, Error> {
        let sight = Sight::causal().window(part.reach, None).positions(&part.positions, &self.key_positions);
        Problem::new(self.q.view(), self.k.view(), self.v.view(), sight, Scores::new().scale(scale))
    }
}

impl<'a> Parts<'a> {
    pub(super) fn new(base: &Problem<'a>, types: &[i64], window: usize) -> Result<Self, Error> {
        if base.dense_mask().is_some() {
            return Err(Error::Combination("query_typed takes no mask".into()));
        }
        let dims = &base.dims;
        let mut parts = Vec::new();
        for (row, scope) in scopes(base, true) {
            let h = row / dims.queries.max(1) % dims.heads;
            for (kind, reach) in [None, Some(0), Some(window)].into_iter().enumerate() {
                let rows: Vec<usize> = scope.queries.clone().filter(|&n| types[row + n] == kind as i64).collect();
                let positions = rows.iter().map(|&n| i64::from(scope.query_position(n))).collect();
                parts.push(Part { b: scope.batch, h, g: h / dims.group(), rows, positions, keys: scope.keys.clone().collect(), reach });
            }
        }
        let [q, k, v] = [&base.q, &base.k, &base.v].map(Owned::widened);
        Ok(Parts { base: base.clone(), parts, q, k, v })
    }

    fn gathered(&self, part: &Part) -> Gathered {
        Gathered {
            q: self.q.gathered([part.b, part.h], &part.rows),
            k: self.k.gathered([part.b, part.g], &part.keys),
            v: self.v.gathered([part.b, part.g], &part.keys),
            key_positions: (0..part.keys.len() as i64).collect(),
        }
    }

    /// Runs `each` on the problem of every part that has rows.
    fn walk(&self, mut each: impl FnMut(&Part, &Problem<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let filled = self.parts.iter().filter(|part| !part.rows.is_empty());
        filled.into_iter().try_for_each(|part| each(part, &self.gathered(part).problem(part, self.base.scale())?))
    }

    /// The place of a query row in `[B, H, N]`.
    fn place(&self, part: &Part, row: usize) -> usize {
        (part.b * self.base.dims.heads + part.h) * self.base.dims.queries + row
    }

    pub(super) fn pairs(&self) -> u64 {
        let mut pairs = 0;
        let counted = self.walk(|_, problem| {
            pairs += problem.visible_pairs();
            Ok(())
        });
        counted.expect("parts of a problem are problems");
        pairs
    }

    pub(super) fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        let dims = &self.base.dims;
        out.check(dims, self.base.q.dtype())?;
        let mut all = Owned::zeros(out.o.shape());
        let mut all_lse = vec![f32::NEG_INFINITY; dims.batch * dims.heads * dims.queries];
        self.walk(|part, problem| {
            let mut o = Owned::zeros([1, 1, part.rows.len(), dims.dv]);
            let mut lse = vec![0.0; part.rows.len()];
            exact::forward(problem, &mut Output { o: o.view_mut(), lse: Some(&mut lse) }, par)?;
            for (i, &row) in part.rows.iter().enumerate() {
                all.row_mut([part.b, part.h, row]).copy_from_slice(o.row([0, 0, i]));
                all_lse[self.place(part, row)] = lse[i];
            }
            Ok(())
        })?;
        if let Some(lse) = &mut out.lse {
            lse.copy_from_slice(&all_lse);
        }
        all.write(&mut out.o, par)
    }

    pub(super) fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        saved.check(&self.base.dims)?;
        gradients.check(&self.base.dims, None)?;
        let (o, d_o) = (Owned::widened(&saved.o), Owned::widened(&saved.d_o));
        let [mut dq, mut dk, mut dv] = [&self.q, &self.k, &self.v].map(|x| Owned::zeros(x.shape));
        self.walk(|part, problem| {
            let head = [part.b, part.h];
            let (o, d_o) = (o.gathered(head, &part.rows), d_o.gathered(head, &part.rows));
            let lse: Vec<f32> = part.rows.iter().map(|&row| saved.lse[self.place(part, row)]).collect();
            let saved = Saved { o: o.view(), lse: &lse, d_o: d_o.view() };
            let [mut q, mut k, mut v] = [&problem.q, &problem.k, &problem.v].map(|x| Owned::zeros(x.shape()));
            let parts = crate::Gradients { dq: Some(q.view_mut()), dk: Some(k.view_mut()), dv: Some(v.view_mut()), ..Gradients::default() };
            exact::backward(problem, &saved, &mut { parts }, par)?;
            let cache = [part.b, part.g];
            for (into, from, head, rows) in
                [(&mut dq, &q, head, &part.rows), (&mut dk, &k, cache, &part.keys), (&mut dv, &v, cache, &part.keys)]
            {
                for (i, &row) in rows.iter().enumerate() {
                    into.row_mut([head[0], head[1], row]).iter_mut().zip(from.row([0, 0, i])).for_each(|(x, y)| *x += y);
                }
            }
            Ok(())
        })?;
        for (from, into) in [(&dq, &mut gradients.dq), (&dk, &mut gradients.dk), (&dv, &mut gradients.dv)] {
            if let Some(into) = into {
                from.write(into, par)?;
            }
        }
        Ok(())
    }

    pub(super) fn received(&self, lse: &[f32], into: &mut [f32], par: Par) -> Result<(), Error> {
        let dims = &self.base.dims;
        check_flat("lse", Some(lse), dims.batch * dims.heads * dims.queries)?;
        check_flat("received", Some(into), dims.batch * dims.heads * dims.keys)?;
        into.fill(0.0);
        self.walk(|part, problem| {
            let own: Vec<f32> = part.rows.iter().map(|&row| lse[self.place(part, row)]).collect();
            let mut sums = vec![0.0; part.keys.len()];
            exact::received(problem, &own, &mut sums, par)?;
            let first = (part.b * dims.heads + part.h) * dims.keys;
            part.keys.iter().zip(sums).for_each(|(&key, sum)| into[first + key] += sum);
            Ok(())
        })
    }
}
