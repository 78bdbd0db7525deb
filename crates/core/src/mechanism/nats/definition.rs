//! The definition: weights `M_ij` made of one-hot types, on top of exact attention without lifetimes.

use super::{GLOBAL, LOCAL, Runs, TYPES, Typed, WINDOW};
use crate::oracle::{self, Formula, ForwardRow, Leaves, Real, Row};

/// Types frozen.
#[derive(Clone)]
pub(super) struct Definition {
    /// Exact attention without lifetimes; its leaves are emptied.
    base: oracle::Definition,
    /// With lifetimes, for single rows.
    alive: Option<oracle::Definition>,
    types: Vec<i64>,
    free: Vec<bool>,
    window: i64,
    query_typed: bool,
}

impl Definition {
    pub(super) fn new(plan: &Typed<'_>) -> Self {
        let (alive, query_typed) = match &plan.runs {
            Runs::ByKey(problem) => (Some(problem.definition()), false),
            Runs::ByQuery(_) => (None, true),
        };
        Definition {
            base: plan.base.definition(),
            alive,
            types: plan.choices.types.clone(),
            free: plan.choices.free.clone(),
            window: i64::try_from(plan.window).unwrap_or(i64::MAX / 2),
            query_typed,
        }
    }

    pub(super) fn leaves(&self, logits: Option<&[f32]>) -> Vec<(&'static str, Vec<f64>)> {
        let mut leaves = vec![("q", self.base.q.clone()), ("k", self.base.k.clone()), ("v", self.base.v.clone())];
        let logits = logits.filter(|_| !self.query_typed);
        leaves.extend(logits.map(|logits| ("type_logits", logits.iter().map(|&x| f64::from(x)).collect())));
        leaves
    }

    /// One-hot types, straight through to the softmax of the logits.
    fn one_hot<T: Real>(&self, logits: Option<&[T]>) -> Vec<[T; TYPES]> {
        let hard = |kind: i64| [GLOBAL, LOCAL, WINDOW].map(|of| T::from_f64(f64::from(u8::from(of == kind))));
        let Some(logits) = logits else { return self.types.iter().map(|&kind| hard(kind)).collect() };
        let tokens = self.types.iter().zip(&self.free).zip(logits.as_chunks().0);
        let through = |((&kind, &free), logits): ((&i64, &bool), &[T; TYPES])| {
            if !free {
                return hard(kind);
            }
            let exponentials = logits.map(Real::exp);
            let sum = exponentials[0] + exponentials[1] + exponentials[2];
            let (hard, soft) = (hard(kind), exponentials.map(|x| x / sum));
            std::array::from_fn(|of| hard[of] + (soft[of] - soft[of].constant()))
        };
        tokens.map(through).collect()
    }

    /// `M_ij` of one row for the keys it may see, from the last to the first.
    fn multiplicities<T: Real>(&self, row: &Row<'_>, types: &[[T; TYPES]]) -> Vec<(usize, T)> {
        let mut survives = T::from_f64(1.0);
        let mut all = Vec::new();
        for j in row.sequence.keys.clone().rev().filter(|&j| row.key_position(j) <= row.position()) {
            let behind = row.position() - row.key_position(j);
            let weight = if self.query_typed {
                let reach = [i64::MAX, 0, self.window][self.types[row.query_index()] as usize];
                T::from_f64(f64::from(u8::from(behind <= reach)))
            } else {
                let [global, local, window] = types[row.key_index(j)];
                if behind > 0 {
                    survives = survives * (T::from_f64(1.0) - global);
                }
                let near = T::from_f64(f64::from(u8::from(behind <= self.window)));
                global + local * survives + window * near
            };
            if row.sees(j) {
                all.push((j, weight));
            }
        }
        all
    }
}

/// The most that the attention of a hidden key counts for the slope by its type.
const HIGHEST: f64 = 1e4;

/// `M e^(s - largest)` of every key; that of a hidden one has no slope by its score.
fn weigh<T: Real>(scored: &[(usize, T, T)], largest: T) -> Vec<(usize, T)> {
    let exponential = |s: T| (s - largest).exp();
    let visible = scored.iter().filter(|(_, weight, _)| weight.to_f64() != 0.0);
    let highest = HIGHEST * visible.map(|&(_, _, s)| exponential(s).to_f64()).sum::<f64>();
    let weight = |&(j, weight, s): &(usize, T, T)| {
        let hidden = weight.to_f64() == 0.0;
        let e = exponential(s);
        (j, weight * if hidden { T::from_f64(e.to_f64().min(highest)) } else { e })
    };
    scored.iter().map(weight).collect()
}

impl Formula for Definition {
    fn evaluate<T: Real>(&self, leaves: &Leaves<T>) -> (Vec<T>, Option<Vec<T>>) {
        let base = &self.base;
        let [q, k, v] = ["q", "k", "v"].map(|name| leaves.get(name));
        let types = self.one_hot(leaves.find("type_logits"));
        let scale = T::from_f64(base.scale.unwrap_or(1.0 / (base.dk as f64).sqrt()));
        let nothing = T::from_f64(0.0);
        let (mut o, mut lse) = (Vec::new(), Vec::new());
        for [b, h, i] in base.every_row() {
            let row = base.row(b, h, i);
            let weights = row.as_ref().map_or_else(Vec::new, |row| self.multiplicities(row, &types));
            let Some(row) = row.filter(|_| weights.iter().any(|(_, weight)| weight.to_f64() != 0.0)) else {
                o.extend(vec![nothing; base.dv]);
                lse.push(T::from_f64(f64::NEG_INFINITY));
                continue;
            };
            let query = &q[row.query_index() * base.dk..][..base.dk];
            let score = |j: usize| {
                let key = &k[row.key_index(j) * base.dk..][..base.dk];
                scale * query.iter().zip(key).fold(nothing, |sum, (&x, &y)| sum + x * y)
            };
            let scored: Vec<(usize, T, T)> = weights.into_iter().map(|(j, weight)| (j, weight, score(j))).collect();
            let visible = scored.iter().filter(|(_, weight, _)| weight.to_f64() != 0.0);
            let largest = visible.fold(T::from_f64(f64::NEG_INFINITY), |max, &(_, _, s)| if s > max { s } else { max }).constant();
            let weighed = weigh(&scored, largest);
            let sum = weighed.iter().fold(nothing, |sum, &(_, weight)| sum + weight);
            for d in 0..base.dv {
                let total = weighed.iter().fold(nothing, |total, &(j, weight)| total + weight * v[row.key_index(j) * base.dv + d]);
                o.push(total.over(sum));
            }
            lse.push(largest + sum.ln());
        }
        (o, Some(lse))
    }

    fn received(&self, leaves: &Leaves<f64>) -> Option<Vec<f64>> {
        let [q, k, v] = ["q", "k", "v"].map(|name| leaves.get(name).to_vec());
        let alive = self.alive.clone()?;
        Some(oracle::Definition { q, k, v, ..alive }.forward().received)
    }

    fn refine(&mut self, option: &str, value: f64) {
        for definition in std::iter::once(&mut self.base).chain(&mut self.alive).filter(|_| option == "scale") {
            definition.scale = Some(value);
        }
    }

    fn rows(&self, _leaves: &Leaves<f64>, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        Some(self.alive.as_ref()?.forward_rows(b, h, rows))
    }
}
