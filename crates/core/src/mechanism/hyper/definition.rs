//! The definition: ranks, norms and the seed of the draws frozen, everything else by its rules, query by query.

use super::Hyper;
use super::choose::Hashed;
use super::draw::Pool;
use super::ground::{Ground, Sequence};
use crate::Dims;
use crate::oracle::{Formula, ForwardRow, Judged, Leaves, Oracle, Real};
use crate::view::View;
use std::ops::Range;

/// Choices and sizes.
#[derive(Clone)]
struct Definition {
    config: Hyper,
    dims: Dims,
    sequences: Vec<Sequence>,
    causal: bool,
    hashed: Hashed,
    scale: f64,
    /// Whether weights are exp(s - lse).
    by_lse: bool,
}

pub(super) fn oracle(ground: &Ground<'_>, hashed: &Hashed) -> Box<dyn Oracle> {
    let problem = &ground.problem;
    let definition = Definition {
        config: ground.config.clone(),
        dims: problem.dims,
        sequences: ground.sequences.clone(),
        causal: ground.causal,
        hashed: hashed.clone(),
        scale: ground.config.scale.map_or_else(|| 1.0 / (problem.dims.dk as f64).sqrt(), f64::from),
        by_lse: false,
    };
    let leaves = [("q", &problem.q), ("k", &problem.k), ("v", &problem.v)].map(|(name, view)| (name, widened(view)));
    Box::new(Judged::new(definition, leaves.into()))
}

fn widened(view: &View<'_>) -> Vec<f64> {
    let [batch, heads, rows, width] = view.shape();
    let place = |at: usize| [at / width / rows / heads, at / width / rows % heads, at / width % rows, at % width];
    (0..batch * heads * rows * width).map(|at| f64::from(view.at(place(at)))).collect()
}

/// A key that a query sees, and what is added to its logit.
#[derive(Clone, Copy)]
struct Seen {
    key: usize,
    weight: f64,
}

/// A key and its rank, in order.
type Ranked = (u32, usize);

impl Definition {
    /// What query row `n` of head `h` sees, `sorted` being the keys of its sequence in order.
    fn seen(&self, sequence: &Sequence, [h, n]: [usize; 2], sorted: &[Ranked]) -> Vec<Seen> {
        let shift = sequence.keys.len() as i64 - sequence.queries.len() as i64;
        let position = (n - sequence.queries.start) as i64 + shift;
        let all = 0..sequence.keys.len();
        if !self.causal {
            return self.square(sequence, [h, n], (all, 0), sorted);
        }
        let Ok(position) = usize::try_from(position) else { return Vec::new() };
        let (mut seen, mut part, mut number) = (Vec::new(), all, 1);
        while part.len() > self.config.min_len.max(1) {
            let middle = part.start + part.len() / 2;
            if position >= middle {
                seen.extend(self.square(sequence, [h, n], (part.start..middle, number), sorted));
                (part, number) = (middle..part.end, 2 * number + 1);
            } else {
                (part, number) = (part.start..middle, 2 * number);
            }
        }
        seen.extend((part.start..=position).map(|key| Seen { key: sequence.keys.start + key, weight: 0.0 }));
        seen
    }

    /// What the query sees of a square of some positions.
    fn square(&self, sequence: &Sequence, [h, n]: [usize; 2], (part, number): (Range<usize>, u64), sorted: &[Ranked]) -> Vec<Seen> {
        let rows = sequence.keys.start + part.start..sequence.keys.start + part.end;
        let keys: Vec<Ranked> = sorted.iter().copied().filter(|(_, key)| rows.contains(key)).collect();
        if keys.is_empty() {
            return Vec::new();
        }
        let own = self.hashed.ranks_q[(sequence.batch * self.dims.heads + h) * self.dims.queries + n];
        let below = keys.iter().filter(|(rank, _)| *rank < own).count();
        let block = below.min(keys.len() - 1) / self.config.block;
        let places: Vec<usize> = (0..keys.len()).filter(|place| place / self.config.block == block).collect();
        let range = places[0]..places[places.len() - 1] + 1;
        let mut seen: Vec<Seen> = places.into_iter().map(|place| Seen { key: keys[place].1, weight: 0.0 }).collect();
        let sums = self.sums(sequence, h, &keys);
        let mut drawn = Vec::new();
        let stream = self.hashed.stream([sequence.batch, h, block], number);
        Pool { block: range, keys: keys.len(), sums: &sums }.draw(self.config.samples, stream, &mut drawn);
        seen.extend(drawn.iter().map(|drawn| Seen { key: keys[drawn.place as usize].1, weight: drawn.weight }));
        seen
    }

    /// Running sums of norms of sorted keys.
    fn sums(&self, sequence: &Sequence, h: usize, keys: &[Ranked]) -> Vec<f64> {
        if !self.config.by_norm {
            return Vec::new();
        }
        let first = self.cache_row(sequence, h);
        let norms = keys.iter().map(|&(_, key)| f64::from(self.hashed.norms[first + key]));
        let mut sums = vec![0.0];
        norms.for_each(|norm| sums.push(sums[sums.len() - 1] + norm));
        sums
    }

    /// The first row of the kv head of query head `h` among all.
    fn cache_row(&self, sequence: &Sequence, h: usize) -> usize {
        (sequence.batch * self.dims.kv_heads + h / self.dims.group()) * self.dims.keys
    }

    /// The keys of a sequence for a query head, by rank.
    fn sorted(&self, sequence: &Sequence, h: usize) -> Vec<Ranked> {
        let first = self.cache_row(sequence, h);
        let mut keys: Vec<Ranked> = sequence.keys.clone().map(|key| (self.hashed.ranks_k[first + key], key)).collect();
        keys.sort_by_key(|(rank, _)| *rank);
        keys
    }

    /// Weights of what one query sees, their sum, and the log-sum-exp.
    fn weigh<T: Real>(&self, leaves: &Leaves<T>, sequence: &Sequence, [h, n]: [usize; 2], seen: &[Seen]) -> (Vec<T>, T, T) {
        let Dims { heads, queries, dk, .. } = self.dims;
        let first = self.cache_row(sequence, h);
        let q = &leaves.get("q")[((sequence.batch * heads + h) * queries + n) * dk..][..dk];
        let score = |seen: &Seen| {
            let k = &leaves.get("k")[(first + seen.key) * dk..][..dk];
            let product = q.iter().zip(k).fold(T::from_f64(0.0), |sum, (&x, &y)| sum + x * y);
            T::from_f64(self.scale) * product + T::from_f64(seen.weight)
        };
        let scores: Vec<T> = seen.iter().map(score).collect();
        let largest = scores.iter().fold(T::from_f64(f64::NEG_INFINITY), |max, &s| if s > max { s } else { max }).constant();
        let weights: Vec<T> = scores.iter().map(|&s| (s - largest).exp()).collect();
        let sum = weights.iter().fold(T::from_f64(0.0), |sum, &weight| sum + weight);
        let lse = largest + sum.ln();
        if self.by_lse {
            return (scores.iter().map(|&s| (s - lse).exp()).collect(), T::from_f64(1.0), lse);
        }
        (weights, sum, lse)
    }

    /// Channel `d` of the values of what is seen.
    fn channel<'l, T: Copy>(
        &self,
        leaves: &'l Leaves<T>,
        first: usize,
        seen: &'l [Seen],
        d: usize,
    ) -> impl Iterator<Item = T> + use<'l, T> {
        let (v, width) = (leaves.get("v"), self.dims.dv);
        seen.iter().map(move |seen| v[(first + seen.key) * width + d])
    }
}

impl Formula for Definition {
    fn evaluate<T: Real>(&self, leaves: &Leaves<T>) -> (Vec<T>, Option<Vec<T>>) {
        let Dims { batch, heads, queries, dv, .. } = self.dims;
        let mut o = vec![T::from_f64(0.0); batch * heads * queries * dv];
        let mut lse = vec![T::from_f64(f64::NEG_INFINITY); batch * heads * queries];
        for sequence in &self.sequences {
            for h in 0..heads {
                let sorted = self.sorted(sequence, h);
                for n in sequence.queries.clone() {
                    let seen = self.seen(sequence, [h, n], &sorted);
                    if seen.is_empty() {
                        continue;
                    }
                    let at = (sequence.batch * heads + h) * queries + n;
                    let (weights, sum, log_sum) = self.weigh(leaves, sequence, [h, n], &seen);
                    lse[at] = log_sum;
                    for (d, o) in o[at * dv..(at + 1) * dv].iter_mut().enumerate() {
                        let terms = self.channel(leaves, self.cache_row(sequence, h), &seen, d).zip(&weights);
                        *o = terms.fold(T::from_f64(0.0), |total, (v, &weight)| total + weight * v).over(sum);
                    }
                }
            }
        }
        (o, Some(lse))
    }

    fn by_lse(&self) -> Option<Self> {
        Some(Definition { by_lse: true, ..self.clone() })
    }

    fn refine(&mut self, option: &str, value: f64) {
        if option == "scale" {
            self.scale = value;
        }
    }

    fn rows(&self, leaves: &Leaves<f64>, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        let nothing = || ForwardRow { o: vec![0.0; self.dims.dv], lse: f64::NEG_INFINITY, largest_term_o: vec![0.0; self.dims.dv] };
        let sequences: Vec<_> =
            self.sequences.iter().filter(|own| own.batch == b).map(|sequence| (sequence, self.sorted(sequence, h))).collect();
        let row = |&n: &usize| {
            let Some((sequence, sorted)) = sequences.iter().find(|(own, _)| own.queries.contains(&n)) else { return nothing() };
            let seen = self.seen(sequence, [h, n], sorted);
            if seen.is_empty() {
                return nothing();
            }
            let (weights, sum, lse) = self.weigh(leaves, sequence, [h, n], &seen);
            let terms = |d: usize| {
                let values = self.channel(leaves, self.cache_row(sequence, h), &seen, d);
                values.zip(&weights).map(|(v, weight)| v * weight / sum).collect::<Vec<f64>>()
            };
            let all: Vec<Vec<f64>> = (0..self.dims.dv).map(terms).collect();
            let largest = |terms: &Vec<f64>| terms.iter().fold(0.0f64, |most, term| most.max(term.abs()));
            ForwardRow { o: all.iter().map(|terms| terms.iter().sum()).collect(), lse, largest_term_o: all.iter().map(largest).collect() }
        };
        Some(rows.iter().map(row).collect())
    }
}
