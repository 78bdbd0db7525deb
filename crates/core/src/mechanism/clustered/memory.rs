//! Decoding: clusters of the closed blocks and the keys of the present one. What a closed block leaves is its share of the means.

use super::fold::Fold;
use super::ground::{Sharing, check_thresholds, threshold};
use super::{Clustered, Metric};
use crate::cluster::{Directions, Scan};
use crate::mechanism::memory::{Memory, Token, Tokens, widen};
use crate::problem::expect;
use crate::view::{Strided, View};
use crate::{Error, Output, Par, exact};
use std::ops::Range;

/// Clusters and a block of one sequence.
#[derive(Debug, Clone)]
pub struct Folded {
    config: Clustered,
    tokens: usize,
    held: Option<Holding>,
}

/// What the first token decides the shape of.
#[derive(Debug, Clone)]
struct Holding {
    /// Kv heads, width of keys, width of values, width of what tokens are compared by.
    shape: [usize; 4],
    thresholds: Option<Vec<f32>>,
    sharing: Sharing,
    fold: Fold,
    /// One for each set.
    scans: Vec<Scan>,
    /// The clusters of the block's tokens, set by set.
    block: Vec<Vec<u32>>,
}

impl Folded {
    pub(super) fn new(config: Clustered) -> Self {
        Folded { config, tokens: 0, held: None }
    }

    /// Clusters of each set.
    pub fn clusters(&self) -> Vec<usize> {
        self.held.iter().flat_map(|held| &held.scans).map(|scan| scan.clusters().len()).collect()
    }

    /// What tokens are compared by.
    fn compared<'t>(&self, tokens: &Tokens<'t>) -> Result<View<'t>, Error> {
        match (self.config.metric, tokens.x) {
            (Metric::Keys, _) => Ok(tokens.k),
            (Metric::Hidden, Some(x)) => Ok(x),
            (Metric::Hidden, None) => Err(Error::Combination("clustered needs the hidden states x, or metric=keys".into())),
        }
    }

    /// The state that these tokens fit, made by the first of them.
    fn hold(&mut self, tokens: &Tokens<'_>, heads: Option<usize>) -> Result<&mut Holding, Error> {
        tokens.check()?;
        if tokens.key_bias.is_some() || tokens.until.is_some() || tokens.types.is_some() || tokens.type_logits.is_some() {
            return Err(Error::Combination("steps of clustered read k, v, x and threshold only".into()));
        }
        let shape = [tokens.k.shape()[1], tokens.k.shape()[3], tokens.v.shape()[3], self.compared(tokens)?.shape()[3]];
        let heads = heads.or(tokens.threshold.map(<[_]>::len)).unwrap_or(shape[0]);
        if shape[0] == 0 || !heads.is_multiple_of(shape[0]) {
            return Err(Error::Heads { heads, kv_heads: shape[0] });
        }
        check_thresholds(tokens.threshold, heads)?;
        if self.tokens == 0 {
            let thresholds = tokens.threshold.map(<[_]>::to_vec);
            let sharing = Sharing::new(&self.config, [heads, shape[0]], thresholds.is_some());
            let threshold = |set: usize| threshold(&self.config, tokens.threshold, set);
            let scans = (0..sharing.sets).map(|set| Scan::new(threshold(set), shape[3])).collect();
            let fold = Fold::new(&self.config, sharing, [shape[1], shape[2]]);
            self.held = Some(Holding { shape, thresholds, sharing, fold, scans, block: vec![Vec::new(); sharing.sets] });
        }
        let held = self.held.as_mut().expect("made by the first token");
        if held.shape != shape {
            return Err(Error::Shape { tensor: "heads, Dk, Dv, E", found: shape.to_vec(), expected: held.shape.to_vec() });
        }
        if held.thresholds.as_deref() != tokens.threshold {
            return Err(Error::Combination("threshold is the same with every token of a sequence".into()));
        }
        Ok(held)
    }

    fn take_in(&mut self, tokens: &Tokens<'_>, heads: Option<usize>, par: Par) -> Result<(), Error> {
        let (block, compared) = (self.config.block, self.compared(tokens)?);
        let held = self.hold(tokens, heads)?;
        let count = tokens.count();
        let mut first = 0;
        while first < count {
            held.make_room(block);
            let end = count.min(first.saturating_add(block - held.fold.recent()));
            held.append(tokens, &compared, first..end, par);
            first = end;
        }
        self.tokens += count;
        Ok(())
    }
}

impl Holding {
    /// Closes a full block.
    fn make_room(&mut self, block: usize) {
        if self.fold.recent() < block {
            return;
        }
        let assignment = &self.block;
        self.fold.close(|set| &assignment[set], None);
        self.block.iter_mut().for_each(Vec::clear);
    }

    fn append(&mut self, tokens: &Tokens<'_>, compared: &View<'_>, range: Range<usize>, par: Par) {
        let heads: Vec<Directions> = (0..self.sharing.metric).map(|head| Directions::of(compared, [0, head], range.clone(), par)).collect();
        for (set, (scan, block)) in self.scans.iter_mut().zip(&mut self.block).enumerate() {
            scan.absorb(&heads[self.sharing.metric_of(set)], par);
            block.extend(scan.take_assignment());
        }
        self.fold.append(range.len(), |[which, head, token], into| {
            let from = [&tokens.k, &tokens.v][which];
            into.iter_mut().enumerate().for_each(|(d, x)| *x = from.at([0, head, range.start + token, d]));
        });
    }
}

impl Memory for Folded {
    fn bytes(&self) -> usize {
        let of = |held: &Holding| {
            let blocks: usize = held.block.iter().map(Vec::capacity).sum();
            held.fold.bytes() + held.scans.iter().map(Scan::bytes).sum::<usize>() + blocks * size_of::<u32>()
        };
        self.held.as_ref().map_or(0, of)
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error> {
        self.take_in(tokens, None, Par::default())
    }

    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        token.check(out)?;
        if token.bias.is_some() || token.mask.is_some() {
            return Err(Error::Combination("steps of clustered take no bias and no mask: keys merge".into()));
        }
        let [_, heads, _, dk] = token.q.shape();
        expect("k", token.kept.k.shape(), [1, token.kept.k.shape()[1], 1, dk])?;
        self.take_in(&token.kept, Some(heads), par)?;
        let holding = self.held.as_ref().expect("a token was taken in");
        let q = widen(&token.q);
        let held = holding.fold.held();
        let q = Strided::contiguous(&q, [1, heads, 1, dk], "q")?;
        exact::forward(&holding.fold.problem(q.into(), &held, self.config.scale)?, out, par)
    }
}
