//! Forward and backward of two plans, each on its heads, in f32 until they are joined.

use super::Join;
use super::cut::Heads;
use super::definition;
use crate::mechanism::owned::Owned;
use crate::mechanism::{Coded, Composition, Gradients, Inputs, Joined, Penalty, Plan, Planned, Trace};
use crate::oracle::Oracle;
use crate::problem::check_flat;
use crate::view::View;
use crate::{Dims, Error, Output, Par, Saved};

/// Two plans and how they are joined.
pub struct Together<'a> {
    pub(super) join: Join,
    pub(super) name: &'static str,
    pub(super) parts: [Planned<'a>; 2],
    pub(super) heads: [Heads; 2],
    pub(super) dims: Dims,
    /// `[H]`, of a sum.
    pub(super) mix: &'a [f32],
    pub(super) inputs: Inputs<'a>,
}

/// What a part gave: its output and log-sum-exp.
struct Part {
    o: Owned,
    lse: Vec<f32>,
}

/// What two rows count, of their log-sum-exp or a logit of the first one's share; and their log-sum-exp together.
pub(super) fn shares(join: Join, [a, b]: [f32; 2], mix: f32) -> ([f32; 2], f32) {
    if join == Join::Sum {
        return ([1.0 / (1.0 + (-mix).exp()), 1.0 / (1.0 + mix.exp())], f32::NEG_INFINITY);
    }
    let largest = a.max(b);
    if largest == f32::NEG_INFINITY {
        return ([0.0; 2], largest);
    }
    let [a, b] = [(a - largest).exp(), (b - largest).exp()];
    ([a / (a + b), b / (a + b)], largest + (a + b).ln())
}

/// Adds rows to some heads of others, from head `first` on, each times a factor of its head and row.
fn add(into: &mut Owned, from: &Owned, first: usize, factor: impl Fn([usize; 3]) -> f32) {
    let [batch, heads, rows, _] = from.shape;
    for b in 0..batch {
        for h in 0..heads {
            for n in 0..rows {
                let factor = factor([b, first + h, n]);
                into.row_mut([b, first + h, n]).iter_mut().zip(from.row([b, h, n])).for_each(|(sum, x)| *sum += factor * x);
            }
        }
    }
}

/// A flat tensor `[batch, heads, rest]` of a part, at its place in one of all heads.
fn add_flat(into: &mut [f32], from: &[f32], batch: usize, (heads, first): (usize, usize)) {
    let rest = into.len() / (batch * heads).max(1);
    let own = from.len() / batch.max(1);
    for b in 0..batch {
        let place = (b * heads + first) * rest;
        into[place..place + own].iter_mut().zip(&from[b * own..(b + 1) * own]).for_each(|(sum, x)| *sum += x);
    }
}

impl Together<'_> {
    fn row(&self, [b, h, n]: [usize; 3]) -> usize {
        (b * self.dims.heads + h) * self.dims.queries + n
    }

    fn run(&self, at: usize, par: Par) -> Result<Part, Error> {
        let Dims { batch, heads, queries, dv, .. } = self.parts[at].dims();
        let mut part = Part { o: Owned::zeros([batch, heads, queries, dv]), lse: vec![f32::NEG_INFINITY; batch * heads * queries] };
        self.parts[at].forward(&mut Output { o: part.o.view_mut(), lse: Some(&mut part.lse) }, par)?;
        Ok(part)
    }

    /// The factor of part `at` in every row, and the log-sum-exp of the rows, `[B, H, N]`.
    fn weigh(&self, parts: &[Part; 2]) -> ([Vec<f32>; 2], Vec<f32>) {
        let Dims { batch, heads, queries, .. } = self.dims;
        let count = batch * heads * queries;
        let (mut weights, mut lse) = ([vec![1.0; count], vec![1.0; count]], vec![f32::NEG_INFINITY; count]);
        if self.join == Join::Heads {
            for (part, own) in parts.iter().zip(&self.heads) {
                lse_of_heads(&mut lse, &part.lse, [batch, heads, queries], own);
            }
            return (weights, lse);
        }
        for row in 0..count {
            let mix = self.mix.get(row / queries % heads).copied().unwrap_or(0.0);
            let ([a, b], sum) = shares(self.join, [parts[0].lse[row], parts[1].lse[row]], mix);
            (weights[0][row], weights[1][row], lse[row]) = (a, b, sum);
        }
        (weights, lse)
    }
}

fn lse_of_heads(into: &mut [f32], from: &[f32], [batch, heads, queries]: [usize; 3], own: &Heads) {
    let count = own.queries.len() * queries;
    for b in 0..batch {
        let place = (b * heads + own.queries.start) * queries;
        into[place..place + count].copy_from_slice(&from[b * count..(b + 1) * count]);
    }
}

/// Gradients of the inputs of one part, or of all.
#[derive(Default)]
struct Slopes {
    tensors: [Option<Owned>; 5],
    dtype_logits: Option<Vec<f32>>,
    dthreshold: Option<Vec<f32>>,
}

const NAMES: [&str; 5] = ["q", "k", "v", "x", "gates"];

impl Slopes {
    /// Those that a caller asks for, zero.
    fn like(asked: &Gradients<'_>) -> Self {
        let heads = &asked.heads;
        let views = [&heads.dq, &heads.dk, &heads.dv, &asked.dx, &asked.dgates];
        let zeros = |flat: &Option<&mut [f32]>| flat.as_ref().map(|flat| vec![0.0; flat.len()]);
        Slopes {
            tensors: views.map(|view| view.as_ref().map(|view| Owned::zeros(view.shape()))),
            dtype_logits: zeros(&asked.dtype_logits),
            dthreshold: zeros(&asked.dthreshold),
        }
    }

    /// Those of a part that are wanted and that its plan has.
    fn of_part(&self, plan: &Planned<'_>, heads: &Heads, batch: usize) -> Self {
        let has = plan.gradients();
        let there = |name: &str| has.iter().any(|gradient| gradient[1..] == *name);
        let mut part = Slopes::default();
        for (at, (name, all)) in NAMES.into_iter().zip(&self.tensors).enumerate() {
            let own = |all: &Owned| {
                let [batch, count, rows, width] = all.shape;
                Owned::zeros([batch, heads.axis(name).map_or(count, |(_, range)| range.len()), rows, width])
            };
            part.tensors[at] = all.as_ref().filter(|_| at < 3 || there(name)).map(own);
        }
        let share = |flat: &Vec<f32>, (count, range): (usize, &std::ops::Range<usize>)| vec![0.0; flat.len() / count.max(1) * range.len()];
        let logits = self.dtype_logits.as_ref().filter(|_| there("type_logits"));
        part.dtype_logits = logits.map(|flat| share(flat, heads.side(flat.len(), 3 * batch * plan_keys(plan, heads))));
        part.dthreshold = self.dthreshold.as_ref().filter(|_| there("threshold")).map(|_| vec![0.0; heads.queries.len()]);
        part
    }

    fn gradients(&mut self) -> Gradients<'_> {
        let [dq, dk, dv, dx, dgates] = self.tensors.each_mut().map(|owned| owned.as_mut().map(Owned::view_mut));
        Gradients {
            heads: crate::Gradients { dq, dk, dv, dkey_bias: None, dbias: None },
            dx,
            dgates,
            dtype_logits: self.dtype_logits.as_deref_mut(),
            dthreshold: self.dthreshold.as_deref_mut(),
            dmix: None,
        }
    }

    fn take(&mut self, part: &Slopes, plan: &Planned<'_>, heads: &Heads, batch: usize) {
        for (name, (all, own)) in NAMES.into_iter().zip(self.tensors.iter_mut().zip(&part.tensors)) {
            if let (Some(all), Some(own)) = (all, own) {
                add(all, own, heads.axis(name).map_or(0, |(_, range)| range.start), |_| 1.0);
            }
        }
        if let (Some(all), Some(own)) = (&mut self.dtype_logits, &part.dtype_logits) {
            let (count, range) = heads.side(all.len(), 3 * batch * plan_keys(plan, heads));
            add_flat(all, own, batch, (count, range.start));
        }
        if let (Some(all), Some(own)) = (&mut self.dthreshold, &part.dthreshold) {
            let count = all.len();
            add_flat(all, own, 1, (count, heads.queries.start));
        }
    }

    fn write(&self, into: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        let heads = &mut into.heads;
        let views = [&mut heads.dq, &mut heads.dk, &mut heads.dv, &mut into.dx, &mut into.dgates];
        for (owned, view) in self.tensors.iter().zip(views) {
            if let (Some(owned), Some(view)) = (owned, view) {
                owned.write(view, par)?;
            }
        }
        for (flat, slice) in [(&self.dtype_logits, &mut into.dtype_logits), (&self.dthreshold, &mut into.dthreshold)] {
            if let (Some(flat), Some(slice)) = (flat, slice) {
                slice.copy_from_slice(flat);
            }
        }
        Ok(())
    }
}

/// Keys of all kv heads of a batch row.
fn plan_keys(plan: &Planned<'_>, heads: &Heads) -> usize {
    heads.axis("k").map_or(0, |(count, _)| count) * plan.dims().keys
}

impl Plan for Together<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        let Dims { batch, heads, queries, dv, .. } = self.dims;
        out.check(&self.dims, self.inputs.q.dtype())?;
        let parts = [self.run(0, par)?, self.run(1, par)?];
        let (weights, lse) = self.weigh(&parts);
        let mut o = Owned::zeros([batch, heads, queries, dv]);
        for ((part, own), weights) in parts.iter().zip(&self.heads).zip(&weights) {
            add(&mut o, &part.o, own.queries.start, |at| weights[self.row(at)]);
        }
        if let Some(sums) = out.lse.as_deref_mut().filter(|_| self.join != Join::Sum) {
            sums.copy_from_slice(&lse);
        }
        o.write(&mut out.o, par)
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        saved.check(&self.dims)?;
        self.check(gradients)?;
        let mut all = Slopes::like(gradients);
        let batch = self.dims.batch;
        let d_o = Owned::widened(&saved.d_o);
        let again = if self.join == Join::Sum { Some([self.run(0, par)?, self.run(1, par)?]) } else { None };
        if let (Some(dmix), Some(parts)) = (gradients.dmix.as_deref_mut(), &again) {
            self.mix_slopes(&d_o, parts, dmix);
        }
        for (at, heads) in self.heads.iter().enumerate() {
            let mut own = all.of_part(&self.parts[at], heads, batch);
            match &again {
                None => self.part_back(at, saved, &mut own, par)?,
                Some(parts) => {
                    let mut weighted = Owned::zeros(d_o.shape);
                    add(&mut weighted, &d_o, 0, |[_, h, _]| shares(self.join, [0.0; 2], self.mix[h]).0[at]);
                    let saved = Saved { o: parts[at].o.view(), lse: &parts[at].lse, d_o: weighted.view() };
                    self.parts[at].backward(&saved, &mut own.gradients(), par)?;
                }
            }
            all.take(&own, &self.parts[at], heads, batch);
        }
        all.write(gradients, par)
    }

    fn traces(&self) -> Vec<Trace> {
        let mut all: Vec<Trace> = Vec::new();
        for (plan, heads) in self.parts.iter().zip(&self.heads) {
            for trace in plan.traces() {
                let whole = self.whole(trace, &plan.dims(), heads);
                match all.iter_mut().find(|known| known.name == whole.name && known.shape == whole.shape) {
                    Some(known) => known.values.iter_mut().zip(whole.values).for_each(|(known, value)| *known = value.max(*known)),
                    None => all.push(whole),
                }
            }
        }
        all
    }

    fn gradients(&self) -> Vec<&'static str> {
        let mut all = self.parts[0].gradients();
        all.extend(self.parts[1].gradients().into_iter().filter(|name| !self.parts[0].gradients().contains(name)));
        all.extend((self.join == Join::Sum).then_some("dmix"));
        all
    }

    fn loss(&self) -> Option<f64> {
        self.parts.iter().filter_map(Plan::loss).reduce(|a, b| a + b)
    }

    fn penalty(&self, weight: f32, par: Par) -> Result<Penalty, Error> {
        let batch = self.dims.batch;
        let mut all = Penalty {
            value: 0.0,
            dtype_logits: self.inputs.type_logits.map(|logits| vec![0.0; logits.len()]),
            dthreshold: self.inputs.threshold.map(|threshold| vec![0.0; threshold.len()]),
        };
        let found = self.parts.each_ref().map(|plan| plan.penalty(weight, par));
        if let [Err(first), Err(_)] = &found {
            return Err(first.clone());
        }
        for (at, part) in found.into_iter().enumerate() {
            let (Ok(part), heads) = (part, &self.heads[at]) else { continue };
            all.value += part.value;
            if let (Some(all), Some(own)) = (&mut all.dtype_logits, &part.dtype_logits) {
                let (count, range) = heads.side(all.len(), 3 * batch * plan_keys(&self.parts[at], heads));
                add_flat(all, own, batch, (count, range.start));
            }
            if let (Some(all), Some(own)) = (&mut all.dthreshold, &part.dthreshold) {
                let count = all.len();
                add_flat(all, own, 1, (count, heads.queries.start));
            }
        }
        Ok(all)
    }

    fn dims(&self) -> Dims {
        self.dims
    }

    fn pairs(&self) -> u64 {
        self.parts.iter().map(Plan::pairs).sum()
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        let whole = self.parts.iter().find_map(|plan| plan.completed().filter(|_| self.join == Join::Merge));
        whole.unwrap_or_else(|| definition::oracle(self))
    }

    fn composition(&self) -> Option<Composition<'_>> {
        let [a, b] = &self.parts;
        if self.join == Join::Merge {
            return self.parts.iter().find_map(|plan| match plan.composition() {
                Some(Composition::Coded(coded)) => Some(Composition::Coded(Coded { near_is_read: true, ..coded })),
                _ => None,
            });
        }
        let parts = [(a.composition()?, a.traces()), (b.composition()?, b.traces())];
        let heads = self.heads.each_ref().map(|heads| [heads.queries.clone(), heads.keys.clone()]);
        Some(Composition::Joined(Box::new(Joined { join: self.join, parts, heads })))
    }
}

impl Together<'_> {
    fn check(&self, gradients: &Gradients<'_>) -> Result<(), Error> {
        if gradients.heads.dkey_bias.is_some() || gradients.heads.dbias.is_some() {
            return Err(Error::Combination(format!("{} reads no biases and has no gradients of them", self.name)));
        }
        let has = self.gradients();
        if let Some(name) = gradients.beside_heads().find(|name| !has.contains(name)) {
            return Err(Error::Combination(format!("{} has no gradient {name}", self.name)));
        }
        let Dims { batch, heads, kv_heads, queries, keys, dk, dv } = self.dims;
        let Gradients { heads: of_heads, dgates, .. } = gradients;
        for (tensor, view, shape) in [
            ("dq", &of_heads.dq, [batch, heads, queries, dk]),
            ("dk", &of_heads.dk, [batch, kv_heads, keys, dk]),
            ("dv", &of_heads.dv, [batch, kv_heads, keys, dv]),
            ("dgates", dgates, [batch, heads, queries, dk]),
        ] {
            view.as_ref().map_or(Ok(()), |view| crate::problem::expect(tensor, view.shape(), shape))?;
        }
        check_flat("dtype_logits", gradients.dtype_logits.as_deref(), self.inputs.type_logits.map_or(0, <[f32]>::len))?;
        check_flat("dthreshold", gradients.dthreshold.as_deref(), heads)?;
        check_flat("dmix", gradients.dmix.as_deref(), heads)
    }

    /// A part's gradients from the output that was saved: all of it in a merge, that of its heads else.
    fn part_back(&self, at: usize, saved: &Saved<'_>, own: &mut Slopes, par: Par) -> Result<(), Error> {
        let heads = &self.heads[at];
        if heads.is_all() {
            return self.parts[at].backward(saved, &mut own.gradients(), par);
        }
        let cut = |view: &View<'_>| -> Result<Owned, Error> {
            let [batch, _, rows, width] = view.shape();
            Ok(Owned::widened(&view.part([0, heads.queries.start, 0, 0], [batch, heads.queries.len(), rows, width])?))
        };
        let (o, d_o) = (cut(&saved.o)?, cut(&saved.d_o)?);
        let lse = super::cut::of_heads(saved.lse, [self.dims.batch, self.dims.heads], &heads.queries);
        self.parts[at].backward(&Saved { o: o.view(), lse: &lse, d_o: d_o.view() }, &mut own.gradients(), par)
    }

    /// `dm_h = w (1 - w) Σ dO·(o_a - o_b)`.
    fn mix_slopes(&self, d_o: &Owned, [a, b]: &[Part; 2], dmix: &mut [f32]) {
        let Dims { batch, queries, .. } = self.dims;
        for (h, slope) in dmix.iter_mut().enumerate() {
            let mut sum = 0.0f64;
            for at in (0..batch).flat_map(|b| (0..queries).map(move |n| [b, h, n])) {
                let rows = d_o.row(at).iter().zip(a.o.row(at)).zip(b.o.row(at));
                sum += rows.map(|((d, a), b)| f64::from(*d) * f64::from(a - b)).sum::<f64>();
            }
            let [first, second] = shares(Join::Sum, [0.0; 2], self.mix[h]).0;
            *slope = (sum * f64::from(first * second)) as f32;
        }
    }

    /// A trace of some heads as one of all: -1 where heads are another part's.
    fn whole(&self, trace: Trace, dims: &Dims, heads: &Heads) -> Trace {
        let of = match trace.shape[..] {
            [batch, count, _] if batch == self.dims.batch && count == dims.kv_heads => heads.axis("k"),
            [batch, count, _] if batch == self.dims.batch && count == dims.heads => heads.axis("q"),
            _ => None,
        };
        let Some((all, range)) = of.filter(|_| !heads.is_all()) else { return trace };
        let [batch, count, rows] = [trace.shape[0], trace.shape[1], trace.shape[2]];
        let mut values = vec![-1; batch * all * rows];
        for (at, row) in trace.values.chunks(rows.max(1)).enumerate().filter(|_| rows > 0) {
            let place = (at / count * all + range.start + at % count) * rows;
            values[place..place + rows].copy_from_slice(row);
        }
        Trace { name: trace.name, shape: vec![batch, all, rows], values }
    }
}

/// The values of a slice as a view of one row; for definitions.
pub(super) fn flat(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}
