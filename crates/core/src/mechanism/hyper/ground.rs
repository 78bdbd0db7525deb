//! Inputs that passed the door.

use super::Hyper;
use crate::hash::MOST_BITS;
use crate::mechanism::Inputs;
use crate::mechanism::cache::Rule;
use crate::problem::expect;
use crate::view::View;
use crate::{Alignment, Error, Problem};
use std::ops::Range;

/// A sequence: rows of a batch row. Query `i` of it stands at position `i + keys - queries`.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub(super) batch: usize,
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Sequence {
    /// The query rows that stand at some positions.
    pub(super) fn queries_at(&self, positions: &Range<usize>) -> Range<usize> {
        let row = |position: usize| self.queries.end - (self.keys.len() - position).min(self.queries.len());
        row(positions.start)..row(positions.end)
    }
}

/// Inputs of a call.
#[derive(Debug, Clone)]
pub(super) struct Ground<'a> {
    pub(super) config: Hyper,
    /// Exact attention of them.
    pub(super) problem: Problem<'a>,
    pub(super) hyperplanes: Option<View<'a>>,
    pub(super) causal: bool,
    pub(super) sequences: Vec<Sequence>,
}

impl<'a> Ground<'a> {
    pub(super) fn new(config: &Hyper, inputs: &Inputs<'a>) -> Result<Self, Error> {
        config.check()?;
        let sight = &inputs.sight;
        let problem = config.problem(inputs, crate::mechanism::Pass::default())?;
        let windowed = sight.left.is_some() || sight.right.is_some() || sight.until.is_some();
        if windowed || sight.mask.is_some() || sight.spans.is_some() || sight.positions.is_some() {
            return Err(Error::Combination("hyper takes no mask, window, until, key_spans or key_positions".into()));
        }
        if sight.alignment != Alignment::BottomRight {
            return Err(Error::Combination("hyper is aligned bottom_right".into()));
        }
        let dims = &problem.dims;
        if let Some(planes) = inputs.hyperplanes {
            let bits = planes.shape()[3];
            expect("hyperplanes", planes.shape(), [1, 1, dims.dk, bits])?;
            if !(1..=MOST_BITS).contains(&bits) {
                return Err(Error::value("hyperplanes", format!("{bits} columns: expected 1 to {MOST_BITS}")));
            }
        }
        let sequence = |at| {
            let scope = problem.sight.scope(dims, at, 0);
            Sequence { batch: scope.batch, queries: scope.queries, keys: scope.keys }
        };
        let sequences = (0..problem.sight.sequences(dims)).map(sequence).collect();
        let (config, causal) = (config.clone(), sight.is_causal());
        Ok(Ground { config, problem, hyperplanes: inputs.hyperplanes, causal, sequences })
    }
}
