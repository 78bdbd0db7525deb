//! What depends on how similar tokens are: weights of blends and gates, their slopes, and the penalty on the number of clusters.
//!
//! `cos = x·l / (|x||l|)`, so `d cos / dx = (l/|l| - cos x/|x|) / |x|`, and the same with the leader's part exchanged.

use super::choose::{Chosen, NOBODY};
use super::ground::Ground;
use crate::cluster::{Clusters, Directions, dot};
use crate::{Error, Par};

/// Of every sequence and head that tokens are compared in.
pub(super) fn directions(ground: &Ground<'_>, par: Par) -> Vec<Directions> {
    let heads = ground.sequences.iter().flat_map(|sequence| (0..ground.sharing.metric).map(move |head| (sequence, head)));
    heads.map(|(sequence, head)| Directions::of(&ground.compared, [sequence.batch, head], sequence.rows.clone(), par)).collect()
}

/// One set of clusters and what its tokens are compared by.
#[derive(Clone, Copy)]
pub(super) struct Compared<'a> {
    pub(super) rows: &'a Directions,
    pub(super) clusters: &'a Clusters,
    /// Clusters that each token blends.
    pub(super) blend: &'a [u32],
    pub(super) temperature: f64,
}

impl<'a> Compared<'a> {
    pub(super) fn new(ground: &Ground<'_>, chosen: &'a Chosen, directions: &'a [Directions], at: usize) -> Self {
        let (sequence, set) = (at / ground.sharing.sets, at % ground.sharing.sets);
        Compared {
            rows: &directions[sequence * ground.sharing.metric + ground.sharing.metric_of(set)],
            clusters: &chosen.sets[at],
            blend: &chosen.blends[at],
            temperature: f64::from(ground.config.temperature),
        }
    }

    /// How many clusters a token blends; 0 where it takes its own.
    pub(super) fn most(&self) -> usize {
        self.blend.len() / self.clusters.assignment.len().max(1)
    }

    /// The clusters that a token's output is made of.
    pub(super) fn sources(&self, token: usize) -> &'a [u32] {
        let most = self.most();
        if most == 0 {
            return &self.clusters.assignment[token..=token];
        }
        let all = &self.blend[token * most..][..most];
        &all[..all.iter().position(|&cluster| cluster == NOBODY).unwrap_or(most)]
    }

    /// To the leader of a cluster, finer than what choices compare: it is divided by temperatures.
    fn cosine(&self, token: usize, cluster: u32) -> f64 {
        let [a, b] = [token, self.clusters.leaders[cluster as usize] as usize].map(|row| self.rows.row(row));
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    /// Their shares of it.
    pub(super) fn weights(&self, token: usize) -> Vec<f64> {
        let sources = self.sources(token);
        if sources.len() == 1 {
            return vec![1.0];
        }
        let scores: Vec<f64> = sources.iter().map(|&cluster| self.cosine(token, cluster) / self.temperature).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exponentials: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        exponentials.into_iter().map(|x| x / sum).collect()
    }

    /// How far a token's gate is open to its cluster: 1 for a leader.
    pub(super) fn gate(&self, token: usize, threshold: f32) -> f64 {
        if self.clusters.leads(token) {
            return 1.0;
        }
        let cosine = self.cosine(token, self.clusters.assignment[token]);
        1.0 / (1.0 + (-(cosine - f64::from(threshold)) / self.temperature).exp())
    }

    /// Adds what a slope by the cosine of a token and a cluster's leader is by their rows, `[tokens, width]`.
    pub(super) fn pull(&self, [token, cluster]: [usize; 2], slope: f64, into: &mut [f64]) {
        let leader = self.clusters.leaders[cluster] as usize;
        if slope == 0.0 || leader == token || !self.rows.has_direction(token) || !self.rows.has_direction(leader) {
            return;
        }
        let cosine = self.cosine(token, cluster as u32);
        let width = self.rows.width();
        for [one, other] in [[token, leader], [leader, token]] {
            let factor = slope / self.rows.length(one);
            let (a, b) = (self.rows.row(one), self.rows.row(other));
            for ((into, &a), &b) in into[one * width..][..width].iter_mut().zip(a).zip(b) {
                *into += factor * (f64::from(b) - cosine * f64::from(a));
            }
        }
    }
}

/// See [`super::Clustered::penalty`].
pub(super) fn penalty(ground: &Ground<'_>, chosen: &Chosen, weight: f32, par: Par) -> Result<(f32, Vec<f32>), Error> {
    let (Some(target), Some(thresholds)) = (ground.config.target, ground.thresholds) else {
        return Err(Error::Combination("the penalty needs a target and thresholds of the heads".into()));
    };
    let directions = directions(ground, par);
    let filled: Vec<usize> = (0..chosen.sets.len()).filter(|&at| !chosen.sets[at].assignment.is_empty()).collect();
    let share_of_all = f64::from(weight) / filled.len().max(1) as f64;
    let (mut loss, mut gradient) = (0.0, vec![0.0f64; thresholds.len()]);
    for at in filled {
        let head = at % thresholds.len();
        let compared = Compared::new(ground, chosen, &directions, at);
        let count = compared.clusters.assignment.len() as f64;
        let wanted = if target < 1.0 { f64::from(target) } else { f64::from(target) / count };
        let beyond = compared.clusters.len() as f64 / count - wanted;
        let slope = |token: usize| {
            let gate = compared.gate(token, thresholds[head]);
            gate * (1.0 - gate) / compared.temperature / count
        };
        let slope: f64 = (0..compared.clusters.assignment.len()).map(slope).sum();
        loss += share_of_all * beyond * beyond;
        gradient[head] += share_of_all * 2.0 * beyond * slope;
    }
    Ok((loss as f32, gradient.into_iter().map(|x| x as f32).collect()))
}
