//! A plan as lists of rows, for devices without a kernel of ours.

use super::attend::Squares;
use super::blocks::Visit;
use crate::{Par, Problem};
use std::ops::Range;

/// Parts of a call. Rows of queries are in one leaf at most and in one meeting of each level at most; what a query sees is the sum of all of
/// them, merged by the log-sum-exp.
#[derive(Debug)]
pub struct Sorted<'p> {
    /// q, k, v and the scale.
    pub problem: &'p Problem<'p>,
    /// Whether a query sees no later key of its leaf.
    pub causal: bool,
    /// Rows that attend to each other in every head.
    pub leaves: Vec<Rows>,
    /// Level by level, what meets there.
    pub levels: Vec<Vec<Meeting>>,
}

/// Rows of one batch row. The last query stands where the last key does.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Batch row.
    pub batch: usize,
    /// Along N.
    pub queries: Range<usize>,
    /// Along M.
    pub keys: Range<usize>,
}

/// Queries of one head over keys that all of them see.
#[derive(Debug, Clone)]
pub struct Meeting {
    /// Batch row.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Rows along N.
    pub queries: Vec<u32>,
    /// Rows along M; one may come twice.
    pub keys: Vec<u32>,
    /// What is added to the logits of each.
    pub weights: Vec<f32>,
}

impl Squares<'_> {
    pub(super) fn listed(&self) -> Sorted<'_> {
        let leaves = self.parts.leaves.iter();
        let rows = leaves.map(|leaf| Rows { batch: leaf.batch, queries: leaf.queries.clone(), keys: leaf.keys.clone() });
        let (leaves, heads) = (rows.collect(), self.heads(0));
        let level = |level: &Vec<_>| {
            let of_heads = |heads| {
                let arranged = self.arrange(heads, level, Par::default());
                let mut drawn = Vec::new();
                let mut meeting = |visit: &Visit| {
                    let (mut keys, mut weights) = (Vec::new(), Vec::new());
                    arranged.keys(visit, &mut drawn, (&mut keys, &mut weights));
                    Meeting { batch: heads.batch, head: visit.head, queries: arranged.queries(visit).to_vec(), keys, weights }
                };
                arranged.visits.iter().map(&mut meeting).collect::<Vec<_>>()
            };
            heads.iter().flat_map(of_heads).collect()
        };
        Sorted { problem: &self.ground.problem, causal: self.ground.causal, leaves, levels: self.parts.levels.iter().map(level).collect() }
    }
}
