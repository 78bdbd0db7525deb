//! Inputs that passed the door, and which heads share which clusters.

use super::{Clustered, Metric};
use crate::mechanism::memory::check_count;
use crate::mechanism::{Inputs, Pass};
use crate::problem::expect;
use crate::view::View;
use crate::{Dims, Error, Problem, Scores};
use std::ops::Range;

/// A sequence: rows of a batch row.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub(super) batch: usize,
    pub(super) rows: Range<usize>,
}

/// Which heads share clusters. There are `sets` of clusters; merged keys have `kv` heads, which is more than there are kv heads where
/// each query head has clusters of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sharing {
    /// C.
    pub(super) sets: usize,
    /// Heads of merged keys.
    pub(super) kv: usize,
    heads: usize,
    kv_heads: usize,
    /// Heads that tokens are compared in.
    pub(super) metric: usize,
}

impl Sharing {
    pub(super) fn new(config: &Clustered, [heads, kv_heads]: [usize; 2], thresholds: bool) -> Self {
        let metric = if config.metric == Metric::Keys { kv_heads } else { 1 };
        let (sets, kv) = if thresholds { (heads, heads) } else { (metric, kv_heads) };
        Sharing { sets, kv, heads, kv_heads, metric }
    }

    /// The query heads, set by set.
    pub(super) fn query_heads(&self) -> Vec<usize> {
        (0..self.heads).collect()
    }

    /// The kv head that each head of merged keys is made of, set by set.
    pub(super) fn key_heads(&self) -> Vec<usize> {
        (0..self.kv).map(|head| head * self.kv_heads / self.kv).collect()
    }

    /// The set of a head of merged keys.
    pub(super) fn set_of(&self, kv: usize) -> usize {
        kv * self.sets / self.kv
    }

    /// The head that the tokens of a set are compared in.
    pub(super) fn metric_of(&self, set: usize) -> usize {
        set * self.metric / self.sets
    }
}

/// Inputs of a call.
#[derive(Debug, Clone)]
pub(super) struct Ground<'a> {
    pub(super) config: Clustered,
    pub(super) q: View<'a>,
    pub(super) k: View<'a>,
    pub(super) v: View<'a>,
    /// What tokens are compared by.
    pub(super) compared: View<'a>,
    pub(super) thresholds: Option<&'a [f32]>,
    pub(super) dims: Dims,
    pub(super) sequences: Vec<Sequence>,
    pub(super) sharing: Sharing,
    pub(super) causal: bool,
    /// Whether tokens pass gates.
    pub(super) gated: bool,
    pub(super) scale: f32,
}

impl<'a> Ground<'a> {
    pub(super) fn new(config: &Clustered, inputs: &Inputs<'a>, pass: Pass) -> Result<Self, Error> {
        let sight = &inputs.sight;
        let causal = sight.is_causal();
        config.check(causal)?;
        let scores = config.scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
        let problem = Problem::new(inputs.q, inputs.k, inputs.v, inputs.sight, scores)?;
        let dims = problem.dims;
        if dims.queries != dims.keys {
            return Err(Error::Combination(format!("clustered needs N = M, found {} queries and {} keys", dims.queries, dims.keys)));
        }
        let windowed = sight.left.is_some() || sight.right.is_some() || sight.until.is_some();
        if windowed || sight.mask.is_some() || sight.spans.is_some() || sight.positions.is_some() {
            return Err(Error::Combination("clustered takes no mask, window, until, key_spans or key_positions".into()));
        }
        let sequences = sequences(&problem)?;
        let compared = match (config.metric, inputs.x) {
            (Metric::Keys, _) => inputs.k,
            (Metric::Hidden, Some(x)) => x,
            (Metric::Hidden, None) => {
                return Err(Error::Combination("clustered needs the hidden states x, or metric=keys".into()));
            }
        };
        if config.metric == Metric::Hidden {
            expect("x", compared.shape(), [dims.batch, 1, dims.keys, compared.shape()[3]])?;
        }
        check_thresholds(inputs.threshold, dims.heads)?;
        let sharing = Sharing::new(config, [dims.heads, dims.kv_heads], inputs.threshold.is_some());
        Ok(Ground {
            config: config.clone(),
            q: inputs.q,
            k: inputs.k,
            v: inputs.v,
            compared,
            thresholds: inputs.threshold,
            dims,
            sequences,
            sharing,
            causal,
            gated: pass.training && inputs.threshold.is_some() && !causal,
            scale: problem.scale(),
        })
    }

    /// The threshold of a set.
    pub(super) fn threshold(&self, set: usize) -> f32 {
        threshold(&self.config, self.thresholds, set)
    }

    /// Every set of every sequence, in the order of choices.
    pub(super) fn sets(&self) -> impl Iterator<Item = (&Sequence, usize)> {
        self.sequences.iter().flat_map(|sequence| (0..self.sharing.sets).map(move |set| (sequence, set)))
    }

    /// Whether outputs depend on how similar tokens are, given the clusters.
    pub(super) fn is_soft(&self) -> bool {
        !self.causal && (self.config.soft > 0 || self.gated)
    }
}

/// The threshold of a set: its head's own, unless the option says that nothing merges.
pub(super) fn threshold(config: &Clustered, thresholds: Option<&[f32]>, set: usize) -> f32 {
    thresholds.filter(|_| config.threshold <= 1.0).map_or(config.threshold, |thresholds| thresholds[set])
}

/// Refuses thresholds of another number than that of query heads, or below -1.
pub(super) fn check_thresholds(thresholds: Option<&[f32]>, heads: usize) -> Result<(), Error> {
    check_count("threshold", thresholds.map(<[_]>::len), heads)?;
    match thresholds.unwrap_or_default().iter().find(|threshold| !(threshold.is_finite() && **threshold >= -1.0)) {
        Some(threshold) => Err(Error::value("threshold", format!("{threshold}: expected numbers of at least -1"))),
        None => Ok(()),
    }
}

fn sequences(problem: &Problem<'_>) -> Result<Vec<Sequence>, Error> {
    let of = |sequence| {
        let scope = problem.sight.scope(&problem.dims, sequence, 0);
        if scope.queries != scope.keys {
            let message = format!("clustered needs N = M, found query rows {:?} and key rows {:?}", scope.queries, scope.keys);
            return Err(Error::Combination(message));
        }
        Ok(Sequence { batch: scope.batch, rows: scope.keys })
    };
    (0..problem.sight.sequences(&problem.dims)).map(of).collect()
}
