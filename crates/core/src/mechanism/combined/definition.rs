//! The definition of a split or a sum by the definitions of its parts: outputs and gradients of each on its heads, times its share, rounded where
//! an honest implementation of the parts stores them. (A merge is defined as one softmax: [`Plan::completed`].)

use super::Join;
use super::cut::{Heads, of_heads};
use super::plan::{Together, flat};
use crate::Dims;
use crate::mechanism::Plan;
use crate::mechanism::owned::widened;
use crate::oracle::{Defined, ForwardRow, Oracle, Storage, gradient_of};
use std::sync::{Mutex, MutexGuard, PoisonError};

const MIX: &str = "mix";

type Named = (&'static str, Vec<f64>);

struct Definition {
    join: Join,
    dims: Dims,
    heads: [Heads; 2],
    names: [&'static str; 2],
    leaves: Vec<Named>,
    /// They take the leaves that are theirs before each use.
    parts: Mutex<[Box<dyn Oracle>; 2]>,
}

pub(super) fn oracle(plan: &Together<'_>) -> Box<dyn Oracle> {
    let mut parts = plan.parts.each_ref().map(|part| part.oracle());
    let mut leaves: Vec<Named> = Vec::new();
    let inputs = &plan.inputs;
    let view = |view: &Option<crate::View<'_>>| view.as_ref().map(widened);
    for (name, _) in parts.iter_mut().flat_map(|part| part.leaves()) {
        let values = match name {
            "q" => Some(widened(&inputs.q)),
            "k" => Some(widened(&inputs.k)),
            "v" => Some(widened(&inputs.v)),
            "x" => view(&inputs.x),
            "gates" => view(&inputs.gates),
            "type_logits" => inputs.type_logits.map(flat),
            "threshold" => inputs.threshold.map(flat),
            _ => None,
        };
        if leaves.iter().all(|(known, _)| *known != name) {
            leaves.push((name, values.unwrap_or_else(|| panic!("{name} is no leaf of two mechanisms together"))));
        }
    }
    if plan.join == Join::Sum {
        leaves.push((MIX, flat(plan.mix)));
    }
    let (first, second) = plan.name.split_once(['/', '~']).unwrap_or_default();
    let (dims, heads) = (plan.dims, plan.heads.clone());
    Box::new(Definition { join: plan.join, dims, heads, names: [first, second], leaves, parts: Mutex::new(parts) })
}

impl Definition {
    /// The parts with the leaves as they are now.
    fn parts(&self) -> MutexGuard<'_, [Box<dyn Oracle>; 2]> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for (part, heads) in parts.iter_mut().zip(&self.heads) {
            for (name, leaf) in part.leaves() {
                let Some((_, all)) = self.leaves.iter().find(|(known, _)| *known == name) else { continue };
                *leaf = match self.axis(name, heads, all.len()) {
                    Some((batch, count, range)) => of_heads(all, [batch, count], range),
                    None => all.clone(),
                };
            }
        }
        parts
    }

    /// Batch rows, heads of all, and heads of a part, of a tensor that has heads.
    fn axis<'h>(&self, name: &str, heads: &'h Heads, elements: usize) -> Option<(usize, usize, &'h std::ops::Range<usize>)> {
        let batch = if name == "threshold" { 1 } else { self.dims.batch };
        let of_keys = 3 * self.dims.batch * self.dims.kv_heads * self.dims.keys;
        let axis = if name == "type_logits" { Some(heads.side(elements, of_keys)) } else { heads.axis(name) };
        axis.map(|(count, range)| (batch, count, range))
    }

    /// The share of a part in the output of a query head.
    fn share(&self, at: usize, h: usize) -> f64 {
        let mix = self.leaves.iter().find(|(name, _)| *name == MIX).map(|(_, mix)| mix[h]);
        mix.map_or(1.0, |mix| 1.0 / (1.0 + (if at == 0 { -mix } else { mix }).exp()))
    }

    /// What `of` gives of every part, for gradients of the output in its share; joined, and rounded as `round` does.
    fn join(
        &self,
        d_o: Option<&[f64]>,
        of: impl Fn(&dyn Oracle, Option<&[f64]>) -> Vec<Defined>,
        round: impl Fn(f64) -> f64,
    ) -> Vec<Defined> {
        let Dims { batch, heads, queries, dv, .. } = self.dims;
        let row = queries * dv;
        let parts = self.parts();
        let found = [0, 1].map(|at| {
            let own = d_o.map(|d_o| {
                let weighted: Vec<f64> = d_o.iter().enumerate().map(|(i, d)| round(self.share(at, i / row.max(1) % heads) * d)).collect();
                of_heads(&weighted, [batch, heads], &self.heads[at].queries)
            });
            of(parts[at].as_ref(), own.as_deref())
        });
        drop(parts);
        let empty = |name, count| Defined { name, values: vec![0.0; count], sizes: vec![0.0; count] };
        let mut all = vec![empty("o", batch * heads * row)];
        if self.join == Join::Heads && found.iter().all(|part| part.iter().any(|defined| defined.name == "lse")) {
            all.push(Defined { sizes: vec![1.0; batch * heads * queries], ..empty("lse", batch * heads * queries) });
        }
        if d_o.is_some() {
            all.extend(self.leaves.iter().map(|(name, leaf)| empty(gradient_of(name), leaf.len())));
        }
        for defined in all.iter_mut().filter(|defined| defined.name != "dmix") {
            for (at, part) in found.iter().enumerate() {
                if let Some(own) = part.iter().find(|own| own.name == defined.name) {
                    self.add(defined, own, at);
                }
            }
            defined.values.iter_mut().for_each(|x| *x = round(*x));
        }
        if let (Some(d_o), Some(dmix)) = (d_o, all.iter_mut().find(|defined| defined.name == "dmix")) {
            self.mix_slopes(d_o, [&found[0][0].values, &found[1][0].values], dmix);
        }
        all
    }

    fn add(&self, into: &mut Defined, own: &Defined, at: usize) {
        let heads = &self.heads[at];
        let name = match into.name {
            "o" | "lse" => "q",
            gradient => &gradient[1..],
        };
        let (batch, count, range) = self.axis(name, heads, into.values.len()).unwrap_or((1, 1, &(0..1)));
        let rest = into.values.len() / (batch * count).max(1);
        for (i, (value, size)) in own.values.iter().zip(&own.sizes).enumerate() {
            let head = i / rest.max(1);
            let h = range.start + head % range.len();
            let place = (head / range.len() * count + h) * rest + i % rest.max(1);
            let share = if into.name == "o" { self.share(at, h) } else { 1.0 };
            into.values[place] += share * value;
            into.sizes[place] = into.sizes[place].max((share * size).abs());
        }
    }

    /// `Σ dO·(o_a - o_b) w (1 - w)`.
    fn mix_slopes(&self, d_o: &[f64], [a, b]: [&[f64]; 2], into: &mut Defined) {
        let Dims { heads, queries, dv, .. } = self.dims;
        for (i, d) in d_o.iter().enumerate() {
            let h = i / (queries * dv) % heads;
            let slope = self.share(0, h) * self.share(1, h);
            into.values[h] += slope * d * (a[i] - b[i]);
            into.sizes[h] = into.sizes[h].max((slope * d * a[i]).abs()).max((slope * d * b[i]).abs());
        }
    }
}

impl Oracle for Definition {
    fn leaves(&mut self) -> Vec<(&'static str, &mut Vec<f64>)> {
        self.leaves.iter_mut().map(|(name, leaf)| (*name, leaf)).collect()
    }

    fn truth(&self, d_o: Option<&[f64]>) -> Vec<Defined> {
        self.join(d_o, |part, d_o| part.truth(d_o), |x| x)
    }

    fn plain(&self, d_o: Option<&[f64]>, storage: Storage) -> Vec<Vec<Defined>> {
        let round = |x: f64| f64::from(storage.rounding()(x as f32));
        let variants = self.parts().iter().map(|part| part.plain(None, storage).len()).max().unwrap_or(1);
        let nth = |part: &dyn Oracle, d_o: Option<&[f64]>, n: usize| {
            let mut all = part.plain(d_o, storage);
            all.swap_remove(n.min(all.len() - 1))
        };
        (0..variants).map(|n| self.join(d_o, |part, d_o| nth(part, d_o, n), round)).collect()
    }

    fn refine(&mut self, option: &str, value: f64) {
        let Some((name, inner)) = option.split_once('.') else { return };
        let parts = self.parts.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (part, _) in parts.iter_mut().zip(&self.names).filter(|(_, known)| **known == name) {
            part.refine(inner, value);
        }
    }

    fn rows(&self, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        let parts = self.parts();
        let nothing = || ForwardRow { o: vec![0.0; self.dims.dv], lse: f64::NEG_INFINITY, largest_term_o: vec![0.0; self.dims.dv] };
        let mut all: Vec<ForwardRow> = rows.iter().map(|_| nothing()).collect();
        for (at, (part, heads)) in parts.iter().zip(&self.heads).enumerate().filter(|(_, (_, heads))| heads.queries.contains(&h)) {
            let share = self.share(at, h);
            for (sum, row) in all.iter_mut().zip(part.rows([b, h - heads.queries.start], rows)?) {
                sum.o.iter_mut().zip(&row.o).for_each(|(sum, x)| *sum += share * x);
                sum.largest_term_o.iter_mut().zip(&row.largest_term_o).for_each(|(most, x)| *most = most.max(share * x));
                if self.join == Join::Heads {
                    sum.lse = row.lse;
                }
            }
        }
        Some(all)
    }
}
