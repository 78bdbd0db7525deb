//! Recall of many pairs (multi-query associative recall, MQAR; Arora et al. 2023, "Zoology").
//!
//! A sequence of `length` N is D pairs `k v k v …`, then queries among filler. With vocabulary C: D different keys of 1..C/2, D
//! different values of C/2..C. The (N − 2D)/2 places for queries are two tokens apart, the first right after the pairs; place g, the
//! first being 1, is drawn with weight g^(α−1), α = `power`, D different places, one for every key. At a query's position its value is
//! asked, nowhere else; the value itself is not shown again. Every other position behind the pairs is a token drawn from the whole
//! vocabulary (the filler of the paper's experiments; another choice would be zeros): a key may occur there by chance, and nothing
//! is asked of it.

use super::open::{LONGEST, Source, generated, open, within};
use super::random::Draws;
use super::{Example, Input, Split, Target, Task};
use crate::Error;
use serde::{Deserialize, Serialize};

/// Keys of `recall`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recall {
    /// Tokens of a sequence, even, at least 4 a pair. The paper pairs 64 with 4, 128 with 8, 256 with 16, 512 with 64.
    pub length: usize,
    /// Pairs of a key and its value, each asked for once.
    pub pairs: usize,
    /// Tokens there are, more than `length`; the lower half keys, the upper half values.
    pub vocabulary: usize,
    /// The exponent α of distances between pairs and queries; small values put most queries near.
    pub power: f64,
    /// Examples of train, validation and test; null for no end.
    pub sizes: [Option<u64>; 3],
    /// Another seed, other examples.
    pub seed: u64,
}

impl Default for Recall {
    fn default() -> Self {
        Recall { length: 64, pairs: 4, vocabulary: 8192, power: 0.01, sizes: [None, Some(1000), Some(1000)], seed: 0 }
    }
}

struct Sequences {
    config: Recall,
    /// Sums of the places' weights, in parts of 2^-40: whole numbers, so that the last bit of a power does not matter.
    sums: Vec<u64>,
}

impl Recall {
    pub(super) fn open(&self) -> Result<Box<dyn Task>, Error> {
        self.check()?;
        let weight = |place: usize| ((place as f64).powf(self.power - 1.0) * (1u64 << 40) as f64).round().max(1.0) as u64;
        let places = self.length / 2 - self.pairs;
        let sums = (1..=places).scan(0, |sum, place| {
            *sum += weight(place);
            Some(*sum)
        });
        let facts = generated("recall", [self.vocabulary, self.length], self.sizes, self.vocabulary - self.vocabulary / 2);
        open(Sequences { config: self.clone(), sums: sums.collect() }, facts, Vec::new())
    }

    fn check(&self) -> Result<(), Error> {
        let Recall { length, pairs, vocabulary, power, .. } = *self;
        within("length", length, 4..=LONGEST)?;
        within("pairs", pairs, 1..=length / 4)?;
        within("vocabulary", vocabulary, length + 1..=1 << 31)?;
        if length % 2 == 1 {
            return Err(Error::key("task.length", format!("is {length}; it is even")));
        }
        if !(0.0..=10.0).contains(&power) {
            return Err(Error::key("task.power", format!("is {power}; it lies between 0 and 10")));
        }
        Ok(())
    }
}

impl Sequences {
    /// Different places, each drawn by weight among those not yet taken.
    fn places(&self, draws: &mut Draws) -> Vec<usize> {
        let all = self.sums.last().copied().unwrap_or(0);
        let mut taken = vec![false; self.sums.len()];
        let mut draw = || loop {
            let drawn = draws.below(all);
            let place = self.sums.partition_point(|sum| *sum <= drawn);
            if !std::mem::replace(&mut taken[place], true) {
                return place;
            }
        };
        (0..self.config.pairs).map(|_| draw()).collect()
    }
}

impl Source for Sequences {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let Recall { length, pairs, vocabulary, seed, .. } = self.config;
        let (half, all) = (vocabulary as u64 / 2, vocabulary as u64);
        let mut draws = Draws::new("recall", seed, (split, index));
        let mut tokens: Vec<u32> = (0..length).map(|_| draws.token(0, all)).collect();
        let mut target = vec![None; length];
        let keys = draws.distinct(pairs, half - 1).into_iter().map(|key| key as u32 + 1);
        let values = draws.distinct(pairs, all - half).into_iter().map(|value| (value + half) as u32);
        let places = self.places(&mut draws);
        for (pair, ((key, value), place)) in keys.zip(values).zip(places).enumerate() {
            (tokens[2 * pair], tokens[2 * pair + 1]) = (key, value);
            let query = 2 * (pairs + place);
            (tokens[query], target[query]) = (key, Some(value));
        }
        Ok(Example { input: Input::Tokens(tokens), target: Target::Tokens(target) })
    }
}
