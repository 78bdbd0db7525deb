//! Which tokens form clusters, and which clusters a token blends.

use super::ground::Ground;
use super::similarity::directions;
use super::{Metric, Rule};
use crate::cluster::{Clusters, Found, Scanned, closest, matching, scan_all};
use crate::mechanism::Trace;
use crate::{Error, Par};

/// No cluster.
pub(super) const NOBODY: u32 = u32::MAX;

/// Clusters of every sequence and set of heads.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// `[S, C]`.
    pub(super) sets: Vec<Clusters>,
    /// Of each set the clusters that each token blends, equally many for each, [`NOBODY`] where there are fewer; empty where
    /// nothing is blended.
    pub(super) blends: Vec<Vec<u32>>,
}

impl Chosen {
    pub(super) fn choose(ground: &Ground<'_>, par: Par) -> Self {
        let directions = directions(ground, par);
        let compared = |at: usize| {
            let (sequence, set) = (at / ground.sharing.sets, at % ground.sharing.sets);
            (&directions[sequence * ground.sharing.metric + ground.sharing.metric_of(set)], ground.threshold(set))
        };
        let count = ground.sequences.len() * ground.sharing.sets;
        let sets: Vec<Clusters> = match ground.config.rule {
            Rule::Leader => {
                let scanned: Vec<_> = (0..count).map(compared).map(|(rows, threshold)| Scanned { rows, threshold }).collect();
                scan_all(&scanned, par)
            }
            Rule::Matching => {
                (0..count).map(compared).map(|(rows, _)| matching(rows, clusters_wanted(ground, rows.count()), par)).collect()
            }
        };
        let soft = if ground.causal { 0 } else { ground.config.soft };
        let blend = |(at, clusters): (usize, &Clusters)| {
            let most = soft.min(clusters.len());
            let rows = compared(at).0;
            let mut blend: Vec<u32> = closest(rows, &clusters.leaders, most, par).into_iter().map(|Found { entry, .. }| entry).collect();
            for (row, blend) in blend.chunks_mut(most.max(1)).enumerate().filter(|(row, _)| !rows.has_direction(*row)) {
                blend[0] = clusters.assignment[row];
            }
            blend
        };
        let blends = sets.iter().enumerate().map(blend).collect();
        Chosen { sets, blends }
    }

    /// Refuses choices made on other inputs.
    pub(super) fn check(&self, ground: &Ground<'_>) -> Result<(), Error> {
        let found: Vec<usize> = self.sets.iter().map(|clusters| clusters.assignment.len()).collect();
        let expected: Vec<usize> = ground.sets().map(|(sequence, _)| sequence.rows.len()).collect();
        let soft = if ground.causal { 0 } else { ground.config.soft };
        let blended = |(clusters, blend): (&Clusters, &Vec<u32>)| blend.len() == clusters.assignment.len() * soft.min(clusters.len());
        if found != expected {
            return Err(Error::Shape { tensor: "assignment", found, expected });
        }
        if !self.sets.iter().zip(&self.blends).all(blended) {
            return Err(Error::Combination(format!("these choices were not made for soft={soft}")));
        }
        Ok(())
    }

    pub(super) fn traces(&self, ground: &Ground<'_>) -> Vec<Trace> {
        let (batch, rows, sets) = (ground.dims.batch, ground.dims.keys, ground.sharing.sets);
        let mut counts = vec![0; batch * sets];
        let mut assignment = vec![-1; batch * sets * rows];
        for ((sequence, set), clusters) in ground.sets().zip(&self.sets) {
            let head = sequence.batch * sets + set;
            for (row, &cluster) in sequence.rows.clone().zip(&clusters.assignment) {
                assignment[head * rows + row] = (counts[head] + cluster as usize) as i64;
            }
            counts[head] += clusters.len();
        }
        let most = counts.iter().copied().max().unwrap_or(0);
        let (mut sizes, mut representatives) = (vec![0; counts.len() * most], vec![-1; counts.len() * most]);
        counts.fill(0);
        for ((sequence, set), clusters) in ground.sets().zip(&self.sets) {
            let head = sequence.batch * sets + set;
            for (at, (&size, &leader)) in clusters.sizes.iter().zip(&clusters.leaders).enumerate() {
                let at = head * most + counts[head] + at;
                (sizes[at], representatives[at]) = (i64::from(size), (sequence.rows.start + leader as usize) as i64);
            }
            counts[head] += clusters.len();
        }
        let shared = ground.config.metric == Metric::Hidden && ground.thresholds.is_none();
        let shape = |count: usize| if shared { vec![batch, count] } else { vec![batch, sets, count] };
        let trace = |name, count, values| Trace { name, shape: shape(count), values };
        vec![trace("assignment", rows, assignment), trace("sizes", most, sizes), trace("representatives", most, representatives)]
    }
}

/// The target of a sequence.
fn clusters_wanted(ground: &Ground<'_>, tokens: usize) -> usize {
    let target = ground.config.target.expect("checked at the door");
    if target < 1.0 { ((f64::from(target) * tokens as f64 - 1e-6).ceil() as usize).max(1) } else { target as usize }
}
