//! Token merging: `r` tokens of every sequence merge into their best match. Bolya et al. 2023, arXiv 2210.09461.
//!
//! Metric: cosine of keys averaged over heads. Tokens at even positions of a sequence are sources, those at odd ones targets; each
//! source finds its best target, and the `r` sources with the largest cosines merge. The merged token stands at its target's position
//! and is the mean weighted by size; later layers add [`super::Reduction::log_sizes`] to its keys. Protected tokens are neither source nor
//! target, a zero vector has no match, ties go to the lower position, `r` is clamped to the sources that have a match.
//! O(N²·Dk/4) in blocks. The output stays in position order, which the paper's does not.

use super::matching::{Match, Sides, matches};
use super::options::{PerLayer, check_count, check_keep, count_of, per_layer, set_keep, set_protect, sort_descending, unknown};
use super::tokens::need;
use super::{About, Config, Tokens};
use crate::mechanism::{OptionAbout, OptionError, SetOption};
use crate::oracle::reduce::{self as oracle, Fate, Sequence};
use crate::view::Element;
use crate::{Error, Par};
use std::ops::Range;

/// Options of token merging.
#[derive(Debug, Clone, PartialEq)]
pub struct Tome {
    /// Tokens that merge away in each layer; 8 if neither this nor `keep` is set.
    pub r: Option<PerLayer<usize>>,
    /// The number of layers over which `r` falls linearly, from twice itself in the first to 0 in the last: the same total.
    pub decrease: Option<usize>,
    /// The fraction that stays in each layer, in place of `r`.
    pub keep: Option<PerLayer<f64>>,
    /// Leading tokens of each sequence that are protected.
    pub protect: usize,
}

impl Default for Tome {
    fn default() -> Self {
        Tome { r: None, decrease: None, keep: None, protect: 1 }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "r", kind: "integers", default: "8", samples: &[] },
    OptionAbout { name: "decrease", kind: "integer", default: "", samples: &[] },
    OptionAbout { name: "keep", kind: "numbers", default: "", samples: &[] },
    OptionAbout { name: "protect", kind: "integer", default: "1", samples: &[] },
];
/// Tokens that merge away where nothing else is said.
const R: usize = 8;

impl Tome {
    /// Tokens of a sequence of this length that may merge away in a layer.
    pub fn count(&self, layer: usize, length: usize) -> usize {
        if let Some(keep) = &self.keep {
            return length - count_of(keep.at(layer), length);
        }
        let r = self.r.as_ref().map_or(R, |r| r.at(layer));
        match self.decrease {
            None => r,
            Some(0 | 1) => {
                if layer == 0 {
                    r
                } else {
                    0
                }
            }
            // The nearest integer to 2 r (1 - layer / (layers - 1)), halves up.
            Some(layers) => (r.saturating_mul(4 * (layers - 1).saturating_sub(layer)).saturating_add(layers - 1)) / (2 * (layers - 1)),
        }
    }
}

impl Config for Tome {
    const ABOUT: About = About {
        name: "tome",
        about: "Merges the most similar tokens, one of two in each pair at an even position (ToMe)",
        options: OPTIONS,
        tensors: &["keys"],
        exact: &[&[("keep", "1")], &[("r", "0")]],
    };

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "r" => {
                self.r = Some(per_layer(("r", "an integer of at least 0, or one per layer"), value)?);
                Ok(())
            }
            "decrease" => self.decrease.set_option(("decrease", "a number of layers"), value),
            "keep" => set_keep(&mut self.keep, value),
            "protect" => set_protect(&mut self.protect, value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.keep.is_some() && (self.r.is_some() || self.decrease.is_some()) {
            return Err(Error::Combination("tome takes keep or r (with decrease), not both".into()));
        }
        check_keep(&self.keep)
    }

    fn acts(&self, layer: usize) -> bool {
        self.keep.as_ref().map_or_else(|| self.count(layer, usize::MAX) > 0, |keep| keep.at(layer) < 1.0)
    }

    fn parents<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, par: Par) -> Result<Vec<Option<usize>>, Error> {
        let keys = need(tokens.keys, "tome", "keys")?;
        let protected = tokens.protected(self.protect);
        if self.keep.is_some() {
            for rows in tokens.sequences() {
                check_count(rows.len() - self.count(layer, rows.len()), &rows, &protected)?;
            }
        }
        let sides = tokens.sequences().map(|rows| sides(rows, &protected)).collect();
        let mut parents: Vec<Option<usize>> = (0..tokens.rows()).map(Some).collect();
        for (rows, found) in tokens.sequences().zip(matches(&keys, sides, par)) {
            merge_best(&found, self.count(layer, rows.len()), &mut parents);
        }
        Ok(parents)
    }

    fn define(&self, sequence: &Sequence, layer: usize) -> Option<Fate> {
        let sequence = sequence.protecting(self.protect);
        match &self.keep {
            Some(keep) => oracle::tome(&sequence, oracle::Amount::Keep(keep.at(layer))),
            None => oracle::tome(&sequence, oracle::Amount::Merge(self.count(layer, sequence.length))),
        }
    }
}

/// Even positions against odd ones.
fn sides(rows: Range<usize>, protected: &[bool]) -> Sides {
    let free = |first: usize| (rows.start + first..rows.end).step_by(2).filter(|&row| !protected[row]).collect();
    Sides { sources: free(0), targets: free(1) }
}

/// Sends the sources with the largest cosines to their targets.
fn merge_best(found: &[Match], count: usize, parents: &mut [Option<usize>]) {
    let mut order: Vec<usize> = (0..found.len()).collect();
    sort_descending(&mut order, |at| found[at].cosine);
    order.truncate(count);
    for &at in &order {
        let Match { source, target, .. } = found[at];
        parents[source] = Some(target);
    }
}
