//! How much is visible: `weight · Σ M_ij / Σ_{j ≤ i} 1`, a mean over kv heads and sequences with any pair, and its gradient by the logits.
//!
//! All slopes by `M_ij` are one number, so that a sum of slopes over an interval of query positions is the number of queries in it; the
//! rest is that of every gradient of types. Time is O(N + M). Windows and masks of the caller do not change what is counted.

use super::gradient::{ALIVE, ALL, CROSSING, NEAR, NOTHING, by_type, lay_intervals, through_softmax};
use super::{GLOBAL, LOCAL, Runs, TYPES, Typed, scopes};
use crate::Error;
use crate::exact::multiplicity::INTERVALS;
use crate::mechanism::Penalty;
use crate::sight::Scope;
use std::ops::Range;

/// The queries of one sequence over one kv head's keys, counted.
struct Counts {
    keys: Vec<[f64; INTERVALS]>,
    queries: Vec<f64>,
}

impl Counts {
    fn new(types: &[i64], positions: Range<i32>, window: usize) -> Self {
        let mut intervals = vec![[NOTHING; INTERVALS]; types.len()];
        lay_intervals(types, window, &mut intervals);
        let within = |[first, last]: [i32; 2]| (last.min(positions.end - 1) - first.max(positions.start) + 1).max(0);
        let keys = intervals.iter().map(|all| all.map(|interval| f64::from(within(interval)))).collect();
        // Of every position, the keys whose last interval holds it: where intervals begin less where they ended.
        let mut changes = vec![0.0; types.len() + 1];
        for [first, last] in intervals.iter().map(|all| all[CROSSING]).filter(|[first, last]| first <= last) {
            changes[(first as usize).min(types.len())] += 1.0;
            changes[(last.saturating_add(1) as usize).min(types.len())] -= 1.0;
        }
        let mut holding = 0.0;
        let mut count = |position: usize| {
            holding += changes[position];
            if positions.contains(&(position as i32)) { holding } else { 0.0 }
        };
        let queries = (0..types.len()).map(&mut count).collect();
        Counts { keys, queries }
    }

    /// Pairs with `j ≤ i`, and those that are visible.
    fn pairs(&self, types: &[i64]) -> [f64; 2] {
        let shown = |kind| match kind {
            GLOBAL => ALL,
            LOCAL => ALIVE,
            _ => NEAR,
        };
        let visible = types.iter().zip(&self.keys).map(|(&kind, key)| key[shown(kind)]).sum();
        [self.keys.iter().map(|key| key[ALL]).sum(), visible]
    }
}

fn positions(scope: &Scope<'_>) -> Range<i32> {
    let first = scope.query_position(scope.queries.start);
    first..first + scope.queries.len() as i32
}

impl Typed<'_> {
    /// See [`crate::mechanism::Plan::penalty`].
    pub(super) fn sparsity(&self, weight: f32) -> Result<Penalty, Error> {
        if matches!(self.runs, Runs::ByQuery(_)) {
            return Err(Error::Combination("types of queries are not learned: query_typed has no penalty".into()));
        }
        let types = &self.choices.types;
        let counted = |(row, scope): &(usize, Scope<'_>)| {
            let keys = row + scope.keys.start..row + scope.keys.end;
            let counts = Counts::new(&types[keys.clone()], positions(scope), self.window);
            let [all, visible] = counts.pairs(&types[keys.clone()]);
            (all > 0.0).then_some((keys, counts, [all, visible]))
        };
        let sequences: Vec<_> = scopes(&self.base, false).iter().filter_map(counted).collect();
        let share = f64::from(weight) / sequences.len().max(1) as f64;
        let value = sequences.iter().map(|(_, _, [all, visible])| share * visible / all).sum::<f64>() as f32;
        let gradient = |logits: &[f32]| {
            let mut into = vec![0.0; logits.len()];
            for (keys, counts, [all, _]) in &sequences {
                let by_type = by_type(&types[keys.clone()], &counts.keys, &counts.queries);
                for (token, slopes) in keys.clone().zip(by_type).filter(|(token, _)| self.choices.free[*token]) {
                    let slopes = slopes.map(|slope| share * slope / all);
                    through_softmax(&logits[token * TYPES..][..TYPES], slopes, &mut into[token * TYPES..][..TYPES]);
                }
            }
            into
        };
        Ok(Penalty { value, dtype_logits: self.logits.map(gradient), dthreshold: None })
    }
}
