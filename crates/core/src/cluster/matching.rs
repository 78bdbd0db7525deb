//! Bipartite soft matching down to a number of clusters. Bolya et al. 2023, "Token Merging: Your ViT But Faster".
//!
//! A round: rows at even places are sources, those at odd places targets; each source's best target is the most similar one, the
//! earlier of equals; the best-scoring sources, the earlier of equals first, merge into their targets, as many as are too many. A
//! cluster stands at its target's place, and is represented and compared by that row. A round merges at most half of the rows, so
//! rounds follow until the number is reached or nothing is similar to anything.

use super::index::{Found, NOBODY};
use super::{Clusters, Directions};
use crate::Par;

/// Groups of rows, `target` of them where there are more and enough of them can be compared.
pub(crate) fn matching(rows: &Directions, target: usize, par: Par) -> Clusters {
    let mut standing: Vec<u32> = (0..rows.count() as u32).collect();
    // Where each row went last.
    let mut into = standing.clone();
    while standing.len() > target {
        let merges = round(rows, &standing, standing.len() - target, par);
        if merges.is_empty() {
            break;
        }
        merges.iter().for_each(|&[source, target]| into[source as usize] = target);
        standing.retain(|&row| into[row as usize] == row);
    }
    let mut clusters = Clusters { sizes: vec![0; standing.len()], leaders: standing, assignment: Vec::with_capacity(into.len()) };
    for row in 0..into.len() {
        let mut at = into[row];
        while into[at as usize] != at {
            at = into[at as usize];
        }
        let cluster = clusters.leaders.partition_point(|&leader| leader < at);
        clusters.assignment.push(cluster as u32);
        clusters.sizes[cluster] += 1;
    }
    clusters
}

/// Pairs of a source and its target, at most `most`.
fn round(rows: &Directions, standing: &[u32], most: usize, par: Par) -> Vec<[u32; 2]> {
    let mut sources = Directions::new(rows.width());
    standing.iter().step_by(2).for_each(|&row| sources.push(rows, row as usize));
    let count = sources.count();
    let targets: Vec<u32> = standing.iter().skip(1).step_by(2).copied().collect();
    targets.iter().for_each(|&row| sources.push(rows, row as usize));
    let among: Vec<u32> = (count as u32..sources.count() as u32).collect();
    let best: Vec<Found> = super::closest(&sources, &among, 1, par);
    let mut matched: Vec<usize> = (0..count).filter(|&source| best[source].entry != NOBODY).collect();
    matched.sort_by(|&a, &b| best[b].cosine.total_cmp(&best[a].cosine));
    matched.truncate(most);
    matched.into_iter().map(|source| [standing[2 * source], targets[best[source].entry as usize]]).collect()
}
