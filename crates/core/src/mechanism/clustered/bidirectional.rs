//! Clusters attend to clusters, and tokens take the results.
//!
//! Clusters of all sequences and sets stand end to end as packed sequences, so that one exact problem does them all. Backward, by
//! the chain `token → blend and gate → cluster → mean`: the results of clusters are computed again, since it is m² instead of N².

use super::choose::Chosen;
use super::ground::Ground;
use super::rows::{Wide, add, add_to_mean, fill};
use super::similarity::{Compared, directions};
use super::{Metric, Representative};
use crate::cluster::{Directions, dot};
use crate::mechanism::Gradients;
use crate::mechanism::owned::Owned;
use crate::problem::check_flat;
use crate::view::View;
use crate::{Error, Output, Par, Problem, Saved, Scores, Sight, exact};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Rows that one thread writes at a time.
const PIECE: usize = 512;

/// The bidirectional plan.
pub struct Merged<'a> {
    ground: Ground<'a>,
    chosen: &'a Chosen,
    /// Where the clusters of each sequence and set begin and end among all.
    clusters: Vec<usize>,
    /// Where its tokens do, where each set has its own.
    tokens: Vec<usize>,
    /// The sequence of every row `[B, N]`; none is padding.
    owners: Vec<Option<usize>>,
}

/// A tensor `[1, heads of a set, T, D]` of clusters, or of the tokens of every set.
struct Attended {
    o: Owned,
    lse: Vec<f32>,
}

/// Clusters as keys and as queries.
struct Reduced {
    q: Owned,
    k: Owned,
    v: Owned,
    bias: Option<Vec<f32>>,
}

fn ends(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let next = |end: &mut usize, length: usize| {
        *end += length;
        Some(*end)
    };
    std::iter::once(0).chain(lengths.scan(0, next)).collect()
}

/// All rows of a head at a time.
fn whole(rows: usize) -> Vec<Range<usize>> {
    windows(&[0, rows])
}

fn windows(ends: &[usize]) -> Vec<Range<usize>> {
    ends.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

impl<'a> Merged<'a> {
    pub(super) fn new(ground: Ground<'a>, chosen: &'a Chosen) -> Self {
        let mut owners = vec![None; ground.dims.batch * ground.dims.keys];
        for (at, sequence) in ground.sequences.iter().enumerate() {
            let first = sequence.batch * ground.dims.keys;
            owners[first + sequence.rows.start..first + sequence.rows.end].fill(Some(at));
        }
        let clusters = ends(chosen.sets.iter().map(|clusters| clusters.len()));
        let tokens = ends(chosen.sets.iter().map(|clusters| clusters.assignment.len()));
        Merged { ground, chosen, clusters, tokens, owners }
    }

    pub(super) fn parts(&self) -> (&Ground<'a>, &'a Chosen) {
        (&self.ground, self.chosen)
    }

    pub(super) fn pairs(&self) -> u64 {
        let per_set = (self.ground.dims.heads / self.ground.sharing.sets) as u64;
        let of = |clusters: usize, tokens: usize| (clusters * (clusters + if self.ground.gated { tokens } else { 0 })) as u64;
        per_set * self.chosen.sets.iter().map(|clusters| of(clusters.len(), clusters.assignment.len())).sum::<u64>()
    }

    /// Query heads in a set.
    fn per_set(&self) -> usize {
        self.ground.dims.heads / self.ground.sharing.sets
    }

    /// The index among all sets, and the token in the sequence, of a row that is not padding.
    fn place(&self, [b, h, n]: [usize; 3]) -> Option<(usize, usize)> {
        let sequence = self.owners[b * self.ground.dims.keys + n]?;
        Some((sequence * self.ground.sharing.sets + h / self.per_set(), n - self.ground.sequences[sequence].rows.start))
    }

    /// The row of a token's own cluster among all.
    fn own_row(&self, at: usize, token: usize) -> usize {
        self.clusters[at] + self.chosen.sets[at].assignment[token] as usize
    }

    /// Rows of clusters from rows of tokens: means, or the leaders' own.
    fn merge(&self, from: &Wide<'_>, heads: &[usize], mean: bool, par: Par) -> Owned {
        let sets = self.ground.sharing.sets;
        let (per_set, width) = (heads.len() / sets, from.view().shape()[3]);
        let mut into = Owned::zeros([1, per_set, self.clusters[self.chosen.sets.len()], width]);
        fill(&mut into, &windows(&self.clusters), par, |[_, j, at], rows| {
            let (sequence, clusters) = (&self.ground.sequences[at / sets], &self.chosen.sets[at]);
            let token = |token: usize| from.row([sequence.batch, heads[at % sets * per_set + j], sequence.rows.start + token]);
            if !mean {
                clusters.leaders.iter().enumerate().for_each(|(i, &leader)| rows.row(i).copy_from_slice(token(leader as usize)));
                return;
            }
            let mut counts = vec![0; clusters.len()];
            for (i, &cluster) in clusters.assignment.iter().enumerate() {
                let cluster = cluster as usize;
                counts[cluster] += 1;
                add_to_mean(rows.row(cluster), token(i), counts[cluster]);
            }
        });
        into
    }

    /// Backward of [`Merged::merge`]: adds what each token has of its clusters' gradients.
    fn spread(&self, from: &Owned, heads: &[usize], mean: bool, (into, par): (&mut Owned, Par)) {
        let sets = self.ground.sharing.sets;
        let per_set = heads.len() / sets;
        fill(into, &whole(self.ground.dims.keys), par, |[b, head, _], rows| {
            let own = |at: &usize| self.ground.sequences[at / sets].batch == b;
            for at in (0..self.chosen.sets.len()).filter(own) {
                let (start, clusters) = (self.ground.sequences[at / sets].rows.start, &self.chosen.sets[at]);
                for j in (0..per_set).filter(|j| heads[at % sets * per_set + j] == head) {
                    for (i, &cluster) in clusters.assignment.iter().enumerate().filter(|(i, _)| mean || clusters.leads(*i)) {
                        let share = if mean { 1.0 / clusters.sizes[cluster as usize] as f32 } else { 1.0 };
                        add(rows.row(start + i), from.row([0, j, self.clusters[at] + cluster as usize]), share);
                    }
                }
            }
        });
    }

    fn means_of_keys(&self) -> bool {
        self.ground.config.representative == Representative::Mean
    }

    fn reduce(&self, par: Par) -> Reduced {
        let sharing = &self.ground.sharing;
        let mean = self.means_of_keys();
        let [q, k, v] = [self.ground.q, self.ground.k, self.ground.v].map(Wide::of);
        let sizes = self.chosen.sets.iter().flat_map(|clusters| &clusters.sizes);
        let bias: Vec<f32> = sizes.map(|&size| (size as f32).ln()).collect();
        Reduced {
            q: self.merge(&q, &sharing.query_heads(), mean, par),
            k: self.merge(&k, &sharing.key_heads(), mean, par),
            v: self.merge(&v, &sharing.key_heads(), true, par),
            bias: self.ground.config.log_size.then(|| bias.repeat(sharing.kv / sharing.sets)),
        }
    }

    /// Rows of queries over clusters; `ends` is where those of each sequence and set end.
    fn problem<'s>(&'s self, q: &'s Owned, ends: &'s [usize], reduced: &'s Reduced) -> Result<Problem<'s>, Error> {
        let mut scores = Scores::new().scale(self.ground.scale);
        if let Some(bias) = &reduced.bias {
            scores = scores.key_bias(bias);
        }
        Problem::new(q.view(), reduced.k.view(), reduced.v.view(), Sight::full().offsets(ends, &self.clusters), scores)
    }

    /// Every token's own query, sets side by side.
    fn own_queries(&self, par: Par) -> Owned {
        let q = Wide::of(self.ground.q);
        let (sets, per_set) = (self.ground.sharing.sets, self.per_set());
        let mut into = Owned::zeros([1, per_set, self.tokens[self.chosen.sets.len()], self.ground.dims.dk]);
        fill(&mut into, &windows(&self.tokens), par, |[_, j, at], rows| {
            let sequence = &self.ground.sequences[at / sets];
            for (i, n) in sequence.rows.clone().enumerate() {
                rows.row(i).copy_from_slice(q.row([sequence.batch, at % sets * per_set + j, n]));
            }
        });
        into
    }

    pub(super) fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        let dims = &self.ground.dims;
        out.check(dims, self.ground.q.dtype())?;
        let reduced = self.reduce(par);
        let of_clusters = attend(&self.problem(&reduced.q, &self.clusters, &reduced)?, par)?;
        if let Some(lse) = &mut out.lse {
            for (at, lse) in lse.iter_mut().enumerate() {
                let [b, h, n] = [at / dims.keys / dims.heads, at / dims.keys % dims.heads, at % dims.keys];
                let row =
                    |(at, token)| of_clusters.lse[h % self.per_set() * self.clusters[self.chosen.sets.len()] + self.own_row(at, token)];
                *lse = self.place([b, h, n]).map_or(f32::NEG_INFINITY, row);
            }
        }
        if !self.ground.is_soft() {
            return self.broadcast(&of_clusters.o, out, par);
        }
        let own = match self.ground.gated {
            true => Some(attend(&self.problem(&self.own_queries(par), &self.tokens, &reduced)?, par)?),
            false => None,
        };
        self.blend(&of_clusters.o, own.as_ref().map(|own| &own.o), par).write(&mut out.o, par)
    }

    /// Every token takes the row of its cluster.
    fn broadcast(&self, of_clusters: &Owned, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        let [batch, heads, tokens, width] = out.o.shape();
        let padding = vec![0.0; width];
        let pieces: Vec<Range<usize>> = (0..tokens).step_by(PIECE).map(|at| at..tokens.min(at + PIECE)).collect();
        let shared = out.o.share(&pieces);
        par.run(batch * heads * pieces.len(), (batch * heads * tokens * width) as f64, |jobs| {
            while let Some(job) = jobs.take() {
                let [b, h, piece] = [job / pieces.len() / heads, job / pieces.len() % heads, job % pieces.len()];
                let row = |(at, token)| of_clusters.row([0, h % self.per_set(), self.own_row(at, token)]);
                shared.write(b, h, piece, |i| self.place([b, h, pieces[piece].start + i]).map_or(&padding[..], row));
            }
        });
        Ok(())
    }

    /// Every token's blend, past its gate.
    fn blend(&self, of_clusters: &Owned, own: Option<&Owned>, par: Par) -> Owned {
        let dims = &self.ground.dims;
        let directions = directions(&self.ground, par);
        let mut all = Owned::zeros([dims.batch, dims.heads, dims.keys, dims.dv]);
        fill(&mut all, &whole(dims.keys), par, |[b, h, _], rows| {
            for n in 0..dims.keys {
                let Some((at, token)) = self.place([b, h, n]) else { continue };
                let (compared, j) = (Compared::new(&self.ground, self.chosen, &directions, at), h % self.per_set());
                let gate = self.gate(&compared, at, token);
                for (&cluster, weight) in compared.sources(token).iter().zip(compared.weights(token)) {
                    add(rows.row(n), of_clusters.row([0, j, self.clusters[at] + cluster as usize]), (gate * weight) as f32);
                }
                if let Some(own) = own {
                    add(rows.row(n), own.row([0, j, self.tokens[at] + token]), (1.0 - gate) as f32);
                }
            }
        });
        all
    }

    /// 1 where there is none.
    fn gate(&self, compared: &Compared<'_>, at: usize, token: usize) -> f64 {
        if self.ground.gated { compared.gate(token, self.ground.threshold(at % self.ground.sharing.sets)) } else { 1.0 }
    }

    pub(super) fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        self.check(saved, gradients)?;
        let reduced = self.reduce(par);
        let problem = self.problem(&reduced.q, &self.clusters, &reduced)?;
        let of_clusters = attend(&problem, par)?;
        let queries = if self.ground.gated { self.own_queries(par) } else { Owned::zeros([1, self.per_set(), 0, self.ground.dims.dk]) };
        let own = match self.ground.gated {
            true => Some((self.problem(&queries, &self.tokens, &reduced)?, attend(&self.problem(&queries, &self.tokens, &reduced)?, par)?)),
            false => None,
        };
        let directions = if self.ground.is_soft() { directions(&self.ground, par) } else { Vec::new() };
        let upstream = Upstream { merged: self, directions: &directions, d_o: Wide::of(saved.d_o), of_clusters: &of_clusters.o };
        let (d_clusters, d_own, slopes) = upstream.walk(own.as_ref().map(|(_, own)| &own.o), par);

        let [d_q, mut d_k, mut d_v] = differentiate(&problem, &of_clusters, &d_clusters, par)?;
        let dims = &self.ground.dims;
        let [mut dq, mut dk, mut dv] = [&self.ground.q, &self.ground.k, &self.ground.v].map(|x| Owned::zeros(x.shape()));
        if let Some((problem, own)) = &own {
            let [own_q, own_k, own_v] = differentiate(problem, own, &d_own, par)?;
            add(&mut d_k.data, &own_k.data, 1.0);
            add(&mut d_v.data, &own_v.data, 1.0);
            fill(&mut dq, &whole(dims.keys), par, |[b, h, _], rows| {
                for n in 0..dims.keys {
                    let Some((at, token)) = self.place([b, h, n]) else { continue };
                    add(rows.row(n), own_q.row([0, h % self.per_set(), self.tokens[at] + token]), 1.0);
                }
            });
        }
        let (sharing, mean) = (&self.ground.sharing, self.means_of_keys());
        self.spread(&d_q, &sharing.query_heads(), mean, (&mut dq, par));
        self.spread(&d_k, &sharing.key_heads(), mean, (&mut dk, par));
        self.spread(&d_v, &sharing.key_heads(), true, (&mut dv, par));
        self.pull(&directions, &slopes, (gradients, &mut dk), par)?;
        for (from, into) in [(&dq, &mut gradients.heads.dq), (&dk, &mut gradients.heads.dk), (&dv, &mut gradients.heads.dv)] {
            into.as_mut().map_or(Ok(()), |into| from.write(into, par))?;
        }
        Ok(())
    }

    fn check(&self, saved: &Saved<'_>, gradients: &Gradients<'_>) -> Result<(), Error> {
        saved.check(&self.ground.dims)?;
        gradients.heads.check(&self.ground.dims, None)?;
        let dependent = self.ground.is_soft() && self.ground.config.metric == Metric::Hidden;
        if gradients.heads.dkey_bias.is_some() || gradients.heads.dbias.is_some() {
            return Err(Error::Combination("clustered reads no biases and has no gradients of them".into()));
        }
        if gradients.dx.is_some() && !dependent {
            return Err(Error::Combination("x has a gradient with metric=hidden and soft above 0 or gates of thresholds".into()));
        }
        if gradients.dthreshold.is_some() && !self.ground.gated {
            return Err(Error::Combination("thresholds have a gradient in training, of the bidirectional form".into()));
        }
        check_flat("dthreshold", gradients.dthreshold.as_deref(), self.ground.dims.heads)
    }

    /// From slopes by cosines to those by thresholds and by what tokens are compared by.
    fn pull(&self, directions: &[Directions], slopes: &[Slopes], into: (&mut Gradients<'_>, &mut Owned), par: Par) -> Result<(), Error> {
        let (gradients, dk) = into;
        let sharing = &self.ground.sharing;
        if let Some(into) = &mut gradients.dthreshold {
            let of = |head: usize| slopes.iter().skip(head).step_by(sharing.sets).map(|slopes| slopes.gates.iter().sum::<f64>());
            into.iter_mut().enumerate().for_each(|(head, into)| *into = -of(head).sum::<f64>() as f32);
        }
        if directions.is_empty() {
            return Ok(());
        }
        let mut sums: Vec<Vec<f64>> = directions.iter().map(|rows| vec![0.0; rows.count() * rows.width()]).collect();
        for (at, slopes) in slopes.iter().enumerate() {
            let compared = Compared::new(&self.ground, self.chosen, directions, at);
            let sums = &mut sums[at / sharing.sets * sharing.metric + sharing.metric_of(at % sharing.sets)];
            for (token, gate) in slopes.gates.iter().enumerate() {
                compared.pull([token, compared.clusters.assignment[token] as usize], *gate, sums);
            }
            let most = compared.most();
            for (at, slope) in slopes.blends.iter().enumerate().filter(|(_, slope)| **slope != 0.0) {
                compared.pull([at / most, compared.blend[at] as usize], *slope, sums);
            }
        }
        let mut dx = Owned::zeros(self.ground.compared.shape());
        let into = if self.ground.config.metric == Metric::Keys { dk } else { &mut dx };
        for (at, (sums, rows)) in sums.iter().zip(directions).enumerate() {
            let (sequence, head) = (&self.ground.sequences[at / sharing.metric], at % sharing.metric);
            for (n, sums) in sequence.rows.clone().zip(sums.chunks(rows.width().max(1))) {
                into.row_mut([sequence.batch, head, n]).iter_mut().zip(sums).for_each(|(into, sum)| *into += *sum as f32);
            }
        }
        gradients.dx.as_mut().map_or(Ok(()), |into| dx.write(into, par))
    }
}

fn attend(problem: &Problem<'_>, par: Par) -> Result<Attended, Error> {
    let dims = &problem.dims;
    let mut attended =
        Attended { o: Owned::zeros([1, dims.heads, dims.queries, dims.dv]), lse: vec![f32::NEG_INFINITY; dims.heads * dims.queries] };
    exact::forward(problem, &mut Output { o: attended.o.view_mut(), lse: Some(&mut attended.lse) }, par)?;
    Ok(attended)
}

/// Gradients of q, k and v.
fn differentiate(problem: &Problem<'_>, attended: &Attended, d_o: &Owned, par: Par) -> Result<[Owned; 3], Error> {
    let [mut dq, mut dk, mut dv] = [&problem.q, &problem.k, &problem.v].map(|x: &View<'_>| Owned::zeros(x.shape()));
    let saved = Saved { o: attended.o.view(), lse: &attended.lse, d_o: d_o.view() };
    let mut into =
        crate::Gradients { dq: Some(dq.view_mut()), dk: Some(dk.view_mut()), dv: Some(dv.view_mut()), ..crate::Gradients::default() };
    exact::backward(problem, &saved, &mut into, par)?;
    Ok([dq, dk, dv])
}

/// Slopes by cosines of one set: of each token's gate, and of each entry of its blend.
#[derive(Debug, Default)]
struct Slopes {
    gates: Vec<f64>,
    blends: Vec<f64>,
}

/// The gradient of the output on its way to clusters, own attention and cosines.
struct Upstream<'s, 'a> {
    merged: &'s Merged<'a>,
    directions: &'s [Directions],
    d_o: Wide<'s>,
    of_clusters: &'s Owned,
}

impl Upstream<'_, '_> {
    /// Gradients of the results of clusters and of own attention, and slopes by cosines, set by set.
    fn walk(&self, own: Option<&Owned>, par: Par) -> (Owned, Owned, Vec<Slopes>) {
        let merged = self.merged;
        let (dims, per_set) = (&merged.ground.dims, merged.per_set());
        let mut d_own = Owned::zeros(own.map_or([1, per_set, 0, dims.dv], |own| own.shape));
        let slopes: Vec<Mutex<Vec<Slopes>>> = merged.chosen.sets.iter().map(|_| Mutex::default()).collect();
        let mut d_clusters = Owned::zeros(self.of_clusters.shape);
        fill(&mut d_clusters, &windows(&merged.clusters), par, |[_, j, at], rows| {
            let found = self.head([j, at], own, |cluster, d, factor| add(rows.row(cluster), d, factor));
            let mut all = slopes[at].lock().unwrap_or_else(PoisonError::into_inner);
            all.resize_with(per_set, Slopes::default);
            all[j] = found;
        });
        if own.is_some() {
            fill(&mut d_own, &windows(&merged.tokens), par, |[_, j, at], rows| {
                let compared = Compared::new(&merged.ground, merged.chosen, self.directions, at);
                for token in 0..compared.clusters.assignment.len() {
                    let share = 1.0 - merged.gate(&compared, at, token);
                    add(rows.row(token), self.d_o([j, at, token]), share as f32);
                }
            });
        }
        let sum = |heads: Mutex<Vec<Slopes>>| {
            let heads = heads.into_inner().unwrap_or_else(PoisonError::into_inner);
            heads.into_iter().reduce(Slopes::plus).unwrap_or_default()
        };
        (d_clusters, d_own, slopes.into_iter().map(sum).collect())
    }

    fn d_o(&self, [j, at, token]: [usize; 3]) -> &[f32] {
        let sets = self.merged.ground.sharing.sets;
        let sequence = &self.merged.ground.sequences[at / sets];
        self.d_o.row([sequence.batch, at % sets * self.merged.per_set() + j, sequence.rows.start + token])
    }

    /// One head of one set: hands out the gradients of its clusters, and gives the slopes.
    fn head(&self, [j, at]: [usize; 2], own: Option<&Owned>, mut give: impl FnMut(usize, &[f32], f32)) -> Slopes {
        let merged = self.merged;
        let clusters = &merged.chosen.sets[at];
        if self.directions.is_empty() {
            clusters.assignment.iter().enumerate().for_each(|(token, &cluster)| give(cluster as usize, self.d_o([j, at, token]), 1.0));
            return Slopes::default();
        }
        let compared = Compared::new(&merged.ground, merged.chosen, self.directions, at);
        let most = compared.most();
        let mut slopes = Slopes { gates: Vec::new(), blends: vec![0.0; clusters.assignment.len() * most] };
        for token in 0..clusters.assignment.len() {
            let (gate, d_o) = (merged.gate(&compared, at, token), self.d_o([j, at, token]));
            let (sources, weights) = (compared.sources(token), compared.weights(token));
            let products: Vec<f64> =
                sources.iter().map(|&cluster| dot(d_o, self.of_clusters.row([0, j, merged.clusters[at] + cluster as usize]))).collect();
            let blended: f64 = products.iter().zip(&weights).map(|(product, weight)| product * weight).sum();
            for (i, (&cluster, &weight)) in sources.iter().zip(&weights).enumerate() {
                give(cluster as usize, d_o, (gate * weight) as f32);
                if most > 0 {
                    slopes.blends[token * most + i] = gate * weight * (products[i] - blended) / compared.temperature;
                }
            }
            if let Some(own) = own {
                let own = dot(d_o, own.row([0, j, merged.tokens[at] + token]));
                slopes.gates.push((blended - own) * gate * (1.0 - gate) / compared.temperature);
            }
        }
        slopes
    }
}

impl Slopes {
    fn plus(mut self, other: Slopes) -> Slopes {
        self.gates.iter_mut().zip(&other.gates).for_each(|(x, y)| *x += y);
        self.blends.iter_mut().zip(&other.blends).for_each(|(x, y)| *x += y);
        self
    }
}
