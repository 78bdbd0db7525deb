//! The definition: clusters frozen, everything else by its formula, boundary by boundary.

use super::choose::{Chosen, NOBODY};
use super::ground::{Ground, Sequence, Sharing};
use super::{Clustered, Metric, Representative};
use crate::Dims;
use crate::mechanism::owned::widened;
use crate::oracle::{Formula, ForwardRow, Judged, Leaves, Oracle, Real};

/// Choices and sizes.
#[derive(Clone)]
struct Definition {
    config: Clustered,
    dims: Dims,
    sequences: Vec<Sequence>,
    sharing: Sharing,
    chosen: Chosen,
    causal: bool,
    gated: bool,
    scale: f64,
    temperature: f64,
    /// Width of what tokens are compared by.
    width: usize,
}

pub(super) fn oracle(ground: &Ground<'_>, chosen: &Chosen, causal: bool) -> Box<dyn Oracle> {
    let mut leaves = vec![("q", widened(&ground.q)), ("k", widened(&ground.k)), ("v", widened(&ground.v))];
    if ground.is_soft() && ground.config.metric == Metric::Hidden {
        leaves.push(("x", widened(&ground.compared)));
    }
    if let Some(thresholds) = ground.thresholds.filter(|_| ground.gated) {
        leaves.push(("threshold", thresholds.iter().map(|&x| f64::from(x)).collect()));
    }
    let definition = Definition {
        config: ground.config.clone(),
        dims: ground.dims,
        sequences: ground.sequences.clone(),
        sharing: ground.sharing,
        chosen: chosen.clone(),
        causal,
        gated: ground.gated,
        scale: ground.config.scale.map_or_else(|| 1.0 / (ground.dims.dk as f64).sqrt(), f64::from),
        temperature: f64::from(ground.config.temperature),
        width: ground.compared.shape()[3],
    };
    Box::new(Judged::new(definition, leaves))
}

/// A key or value, and how many it stands for.
struct Merged<T> {
    k: Vec<T>,
    v: Vec<T>,
    count: usize,
}

fn product<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::from_f64(0.0), |sum, (&x, &y)| sum + x * y)
}

fn mean<T: Real>(rows: &[&[T]]) -> Vec<T> {
    let sum = |d: usize| rows.iter().fold(T::from_f64(0.0), |sum, row| sum + row[d]);
    (0..rows[0].len()).map(|d| sum(d) / T::from_f64(rows.len() as f64)).collect()
}

impl Definition {
    fn row<'l, T>(&self, leaf: &'l [T], [heads, width]: [usize; 2], [b, h, n]: [usize; 3]) -> &'l [T] {
        &leaf[((b * heads + h) * self.dims.keys + n) * width..][..width]
    }

    fn key<'l, T>(&self, leaves: &'l Leaves<T>, at: [usize; 3]) -> &'l [T] {
        self.row(leaves.get("k"), [self.dims.kv_heads, self.dims.dk], at)
    }

    fn value<'l, T>(&self, leaves: &'l Leaves<T>, at: [usize; 3]) -> &'l [T] {
        self.row(leaves.get("v"), [self.dims.kv_heads, self.dims.dv], at)
    }

    fn query<'l, T>(&self, leaves: &'l Leaves<T>, at: [usize; 3]) -> &'l [T] {
        self.row(leaves.get("q"), [self.dims.heads, self.dims.dk], at)
    }

    /// Members of every cluster that the first tokens of a sequence form.
    fn members(&self, at: usize, tokens: usize) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new(); self.chosen.sets[at].len()];
        self.chosen.sets[at].assignment[..tokens].iter().enumerate().for_each(|(token, &cluster)| all[cluster as usize].push(token));
        all.retain(|members| !members.is_empty());
        all
    }

    /// The key or the query of a cluster; its leader is not its first member where clusters were matched.
    fn represent<'l, T: Real + 'l>(&self, leader: usize, members: &[usize], row: impl Fn(usize) -> &'l [T]) -> Vec<T> {
        match self.config.representative {
            Representative::Mean => mean(&members.iter().map(|&token| row(token)).collect::<Vec<_>>()),
            Representative::Leader => row(leader).to_vec(),
        }
    }

    fn merged<T: Real>(&self, leaves: &Leaves<T>, [at, kv, tokens]: [usize; 3]) -> Vec<Merged<T>> {
        let sequence = &self.sequences[at / self.sharing.sets];
        let place = |token: usize| [sequence.batch, self.sharing.key_heads()[kv], sequence.rows.start + token];
        let members = self.members(at, tokens);
        let of = |(members, &leader): (&Vec<usize>, &u32)| Merged {
            k: self.represent(leader as usize, members, |token| self.key(leaves, place(token))),
            v: mean(&members.iter().map(|&token| self.value(leaves, place(token))).collect::<Vec<_>>()),
            count: members.len(),
        };
        members.iter().zip(&self.chosen.sets[at].leaders).map(of).collect()
    }

    /// Attention of one query: weighted values and weights, summed, and the log-sum-exp.
    fn attend<T: Real>(&self, q: &[T], keys: &[&Merged<T>]) -> (Vec<T>, T, T) {
        let size = |key: &Merged<T>| T::from_f64(if self.config.log_size { (key.count as f64).ln() } else { 0.0 });
        let scores: Vec<T> = keys.iter().map(|key| T::from_f64(self.scale) * product(q, &key.k) + size(key)).collect();
        let largest = scores.iter().fold(T::from_f64(f64::NEG_INFINITY), |max, &s| if s > max { s } else { max }).constant();
        let weights: Vec<T> = scores.iter().map(|&s| (s - largest).exp()).collect();
        let sum = weights.iter().fold(T::from_f64(0.0), |sum, &weight| sum + weight);
        let of = |d: usize| keys.iter().zip(&weights).fold(T::from_f64(0.0), |total, (key, &weight)| total + weight * key.v[d]);
        ((0..self.dims.dv).map(of).collect(), sum, largest + sum.ln())
    }

    /// Of two tokens of a set; 0 where one is a zero vector.
    fn cosine<T: Real>(&self, leaves: &Leaves<T>, at: usize, tokens: [usize; 2]) -> T {
        let sequence = &self.sequences[at / self.sharing.sets];
        let head = self.sharing.metric_of(at % self.sharing.sets);
        let leaf = leaves.get(if self.config.metric == Metric::Keys { "k" } else { "x" });
        let [a, b] =
            tokens.map(|token| self.row(leaf, [self.sharing.metric, self.width], [sequence.batch, head, sequence.rows.start + token]));
        let squares = [product(a, a), product(b, b)];
        if tokens[0] == tokens[1] || squares.iter().any(|square| square.to_f64() == 0.0) {
            return T::from_f64(f64::from(u8::from(tokens[0] == tokens[1])));
        }
        product(a, b) / (squares[0].sqrt() * squares[1].sqrt())
    }

    /// The clusters that a token's output is made of, and their shares.
    fn shares<T: Real>(&self, leaves: &Leaves<T>, [at, token]: [usize; 2]) -> Vec<(usize, T)> {
        let clusters = &self.chosen.sets[at];
        let most = self.chosen.blends[at].len() / clusters.assignment.len();
        if most == 0 {
            return vec![(clusters.assignment[token] as usize, T::from_f64(1.0))];
        }
        let sources = self.chosen.blends[at][token * most..][..most].iter().filter(|&&cluster| cluster != NOBODY);
        let weigh = |&cluster: &u32| {
            let cosine = self.cosine(leaves, at, [token, clusters.leaders[cluster as usize] as usize]);
            (cluster as usize, ((cosine - T::from_f64(1.0)) / T::from_f64(self.temperature)).exp())
        };
        let weights: Vec<(usize, T)> = sources.map(weigh).collect();
        let sum = weights.iter().fold(T::from_f64(0.0), |sum, &(_, weight)| sum + weight);
        weights.into_iter().map(|(cluster, weight)| (cluster, weight / sum)).collect()
    }

    /// Some tokens of one query head of one sequence.
    fn bidirectional<T: Real>(&self, leaves: &Leaves<T>, [s, h]: [usize; 2], rows: &[usize]) -> Vec<(Vec<T>, T)> {
        let (sequence, sharing) = (&self.sequences[s], &self.sharing);
        let at = s * sharing.sets + h * sharing.sets / self.dims.heads;
        let clusters = &self.chosen.sets[at];
        let tokens = clusters.assignment.len();
        let merged = self.merged(leaves, [at, h * sharing.kv / self.dims.heads, tokens]);
        let keys: Vec<&Merged<T>> = merged.iter().collect();
        let query = |token: usize| self.query(leaves, [sequence.batch, h, sequence.rows.start + token]);
        let members = self.members(at, tokens);
        // Kept in f32 by whoever spreads them, so not rounded as outputs are.
        let attend = |q: &[T]| {
            let (totals, sum, lse) = self.attend(q, &keys);
            (totals.into_iter().map(|total| total / sum).collect::<Vec<T>>(), lse)
        };
        let mut results: Vec<Option<(Vec<T>, T)>> = vec![None; members.len()];
        let mut of = |token: usize| {
            let mut result = |cluster: usize| {
                let query = || self.represent(clusters.leaders[cluster] as usize, &members[cluster], query);
                results[cluster].get_or_insert_with(|| attend(&query())).clone()
            };
            let mut o = vec![T::from_f64(0.0); self.dims.dv];
            for (cluster, share) in self.shares(leaves, [at, token]) {
                o.iter_mut().zip(&result(cluster).0).for_each(|(o, &x)| *o = *o + share * x);
            }
            let own = clusters.assignment[token] as usize;
            if self.gated && !clusters.leads(token) {
                let cosine = self.cosine(leaves, at, [token, clusters.leaders[own] as usize]);
                let over = (cosine - leaves.get("threshold")[h]) / T::from_f64(self.temperature);
                let one = T::from_f64(1.0);
                let gate = one / (one + (-over).exp());
                let alone = attend(query(token)).0;
                o.iter_mut().zip(alone).for_each(|(o, x)| *o = gate * *o + (one - gate) * x);
            }
            (o.into_iter().map(|o| o.over(T::from_f64(1.0))).collect(), result(own).1)
        };
        rows.iter().map(|&token| of(token)).collect()
    }

    /// The same, causal; rows rise.
    fn prefixes<T: Real>(&self, leaves: &Leaves<T>, [s, h]: [usize; 2], rows: &[usize]) -> Vec<(Vec<T>, T)> {
        let (sequence, sharing) = (&self.sequences[s], &self.sharing);
        let (at, kv) = (s * sharing.sets + h * sharing.sets / self.dims.heads, h * sharing.kv / self.dims.heads);
        let head = sharing.key_heads()[kv];
        let tokens = sequence.rows.len();
        let mut all = Vec::with_capacity(rows.len());
        for start in (0..tokens).step_by(self.config.block) {
            let end = tokens.min(start.saturating_add(self.config.block));
            let rows: Vec<usize> = rows.iter().copied().filter(|row| (start..end).contains(row)).collect();
            if rows.is_empty() {
                continue;
            }
            let mut merged = self.merged(leaves, [at, kv, start]);
            let clusters = merged.len();
            let single = |token: usize| {
                let place = [sequence.batch, head, sequence.rows.start + token];
                Merged { k: self.key(leaves, place).to_vec(), v: self.value(leaves, place).to_vec(), count: 1 }
            };
            merged.extend((start..end).map(single));
            for token in rows {
                let keys: Vec<&Merged<T>> = merged[..clusters + token - start + 1].iter().collect();
                let (totals, sum, lse) = self.attend(self.query(leaves, [sequence.batch, h, sequence.rows.start + token]), &keys);
                all.push((totals.into_iter().map(|total| total.over(sum)).collect(), lse));
            }
        }
        all
    }
}

impl Definition {
    fn some<T: Real>(&self, leaves: &Leaves<T>, at: [usize; 2], rows: &[usize]) -> Vec<(Vec<T>, T)> {
        if self.causal { self.prefixes(leaves, at, rows) } else { self.bidirectional(leaves, at, rows) }
    }
}

impl Formula for Definition {
    fn evaluate<T: Real>(&self, leaves: &Leaves<T>) -> (Vec<T>, Option<Vec<T>>) {
        let Dims { batch, heads, queries, dv, .. } = self.dims;
        let mut o = vec![T::from_f64(0.0); batch * heads * queries * dv];
        let mut lse = vec![T::from_f64(f64::NEG_INFINITY); batch * heads * queries];
        for (s, sequence) in self.sequences.iter().enumerate() {
            for h in 0..heads {
                let all: Vec<usize> = (0..sequence.rows.len()).collect();
                for (n, (row, log_sum)) in sequence.rows.clone().zip(self.some(leaves, [s, h], &all)) {
                    let at = (sequence.batch * heads + h) * queries + n;
                    o[at * dv..(at + 1) * dv].copy_from_slice(&row);
                    lse[at] = log_sum;
                }
            }
        }
        (o, Some(lse))
    }

    fn rows(&self, leaves: &Leaves<f64>, [b, h]: [usize; 2], rows: &[usize]) -> Option<Vec<ForwardRow>> {
        let nothing = || ForwardRow { o: vec![0.0; self.dims.dv], lse: f64::NEG_INFINITY, largest_term_o: vec![0.0; self.dims.dv] };
        let mut all: Vec<ForwardRow> = rows.iter().map(|_| nothing()).collect();
        for (s, sequence) in self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.batch == b) {
            let own: Vec<usize> = (0..rows.len()).filter(|&i| sequence.rows.contains(&rows[i])).collect();
            let inside: Vec<usize> = own.iter().map(|&i| rows[i] - sequence.rows.start).collect();
            if !inside.is_sorted() {
                return None;
            }
            for (i, (o, lse)) in own.into_iter().zip(self.some(leaves, [s, h], &inside)) {
                all[i] = ForwardRow { largest_term_o: o.iter().map(|x| x.abs()).collect(), o, lse };
            }
        }
        Some(all)
    }

    fn refine(&mut self, option: &str, value: f64) {
        match option {
            "scale" => self.scale = value,
            "temperature" => self.temperature = value,
            _ => {}
        }
    }
}
