//! Bipartite matching: every source finds the target with the largest cosine, the lower one on ties. Bolya et al. 2023, arXiv 2210.09461.
//!
//! O(sources · targets · width); a zero vector matches nothing.

use super::pairs::{Fold, Meeting, Units, inverse_norms, meet};
use crate::Par;
use crate::rows::matrix::Matrix;
use crate::simd::Lanes;
use crate::view::Element;

/// The two sides of one sequence, ascending rows.
#[derive(Debug, Default)]
pub(super) struct Sides {
    pub(super) sources: Vec<usize>,
    pub(super) targets: Vec<usize>,
}

/// A source and its best target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Match {
    pub(super) source: usize,
    pub(super) target: usize,
    pub(super) cosine: f32,
}

/// The matches of every sequence, sources ascending; a source without a match is left out.
pub(super) fn matches<T: Element>(keys: &Matrix<'_, T>, mut sides: Vec<Sides>, par: Par) -> Vec<Vec<Match>> {
    let inverse = inverse_norms(keys, par);
    let (mut order, mut meetings) = (Vec::new(), Vec::new());
    for Sides { sources, targets } in &mut sides {
        sources.retain(|&row| inverse[row] != 0.0);
        targets.retain(|&row| inverse[row] != 0.0);
        let start = order.len();
        let middle = start + sources.len();
        order.extend(sources.iter().chain(&*targets));
        meetings.push(Meeting { lanes: start..middle, others: middle..order.len() });
    }
    let states = meet(&Units::new(keys, &inverse, &order, par), &meetings, &Largest, par);
    let of_sequence = |(sides, meeting): (&Sides, &Meeting)| {
        let found = sides.sources.iter().zip(&states[meeting.lanes.clone()]).filter(|(_, state)| state[0] > f32::NEG_INFINITY);
        found.map(|(&source, &[cosine, at])| Match { source, target: sides.targets[at as usize], cosine }).collect()
    };
    sides.iter().zip(&meetings).map(of_sequence).collect()
}

/// The largest cosine and the first row that has it, as f32: exact below 2^24.
struct Largest;

impl Fold for Largest {
    #[inline(always)]
    fn start<S: Lanes>(&self, s: S) -> [S::F; 2] {
        [s.splat(f32::NEG_INFINITY), s.zero()]
    }

    #[inline(always)]
    fn add<S: Lanes>(&self, s: S, [largest, at]: [S::F; 2], cosine: S::F, row: usize) -> [S::F; 2] {
        let better = s.greater(cosine, largest);
        [s.select(better, cosine, largest), s.select(better, s.splat(row as f32), at)]
    }
}
