//! Clusters as integers, for devices without a kernel of ours.

use super::Clustered;
use super::choose::{Chosen, NOBODY};
use super::ground::Ground;
use crate::cluster::Clusters;
use std::ops::Range;

/// The clusters of one sequence that some query heads share.
#[derive(Debug)]
pub struct Set<'p> {
    /// The batch row.
    pub batch: usize,
    /// Rows of the sequence along N.
    pub rows: Range<usize>,
    /// Query heads.
    pub heads: Range<usize>,
    /// The kv heads that they read.
    pub kv_heads: Range<usize>,
    /// The head of x, or the kv head, that tokens are compared in.
    pub compared: usize,
    clusters: &'p Clusters,
    blends: &'p [u32],
}

impl Set<'_> {
    /// The cluster of every token, in order of founding.
    pub fn assignment(&self) -> &[u32] {
        &self.clusters.assignment
    }

    /// The token that leads each cluster.
    pub fn leaders(&self) -> &[u32] {
        &self.clusters.leaders
    }

    /// The clusters that every token blends, equally many for each, none where there are fewer; empty where nothing is blended.
    pub fn blends(&self) -> impl Iterator<Item = Option<u32>> {
        self.blends.iter().map(|&cluster| (cluster != NOBODY).then_some(cluster))
    }

    /// How many clusters a token blends at most; 0 where its output is that of its own.
    pub fn most(&self) -> usize {
        self.blends.len() / self.clusters.assignment.len().max(1)
    }
}

/// Clusters as they came out.
#[derive(Debug)]
pub struct Merging<'p> {
    /// Options.
    pub config: &'p Clustered,
    /// Every set of every sequence, heads ascending in each sequence.
    pub sets: Vec<Set<'p>>,
    /// Factor on `q·k`.
    pub scale: f32,
    /// Whether clusters are those of the prefix before a query's block, and queries stay single.
    pub causal: bool,
    /// Whether tokens pass gates.
    pub gated: bool,
}

impl<'p> Merging<'p> {
    pub(super) fn new(ground: &'p Ground<'_>, chosen: &'p Chosen) -> Self {
        let (sharing, dims) = (&ground.sharing, &ground.dims);
        let per_set = dims.heads / sharing.sets;
        let of = |(at, (sequence, set)): (usize, (&super::ground::Sequence, usize))| Set {
            batch: sequence.batch,
            rows: sequence.rows.clone(),
            heads: set * per_set..(set + 1) * per_set,
            kv_heads: set * per_set / dims.group()..((set + 1) * per_set).div_ceil(dims.group()),
            compared: sharing.metric_of(set),
            clusters: &chosen.sets[at],
            blends: &chosen.blends[at],
        };
        let sets = ground.sets().enumerate().map(of).collect();
        Merging { config: &ground.config, sets, scale: ground.scale, causal: ground.causal, gated: ground.gated }
    }
}
