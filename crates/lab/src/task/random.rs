//! Numbers drawn for an example, from its task, seed, split and index alone.
//!
//! SplitMix64 (Steele, Lea and Flood 2014): draw n of a key is mix(key + n·γ), so nothing depends on what was drawn before, nor on
//! the release of a library. The key is mix over (task, seed, split, index) in turn.

use super::Split;
use super::digest::Digest;
use crate::draw::mix;
use std::collections::HashMap;

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The draws of one example.
pub struct Draws {
    state: u64,
}

impl Draws {
    /// Of example `index` of a split of a task.
    pub fn new(task: &str, seed: u64, (split, index): (Split, u64)) -> Self {
        let key = [seed, split as u64, index].iter().fold(Digest::of(task.as_bytes()), |key, part| mix(key.wrapping_add(GAMMA) ^ part));
        Draws { state: key }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }

    /// True with a probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// A number in `0..bound`, each as likely as any other (Lemire 2019: the high half of a product, unfair low halves refused).
    pub fn below(&mut self, bound: u64) -> u64 {
        let unfair = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= unfair {
                return (product >> 64) as u64;
            }
        }
    }

    /// A token in `first..end`.
    pub fn token(&mut self, first: u64, end: u64) -> u32 {
        (first + self.below(end - first)) as u32
    }

    /// `count` different numbers in `0..bound`, in any order: the head of a shuffle of which only the places touched are kept.
    pub fn distinct(&mut self, count: usize, bound: u64) -> Vec<u64> {
        let mut moved = HashMap::new();
        let mut draw = |at: u64| {
            let chosen = at + self.below(bound - at);
            let first = moved.get(&at).copied().unwrap_or(at);
            moved.insert(chosen, first).unwrap_or(chosen)
        };
        (0..count as u64).map(&mut draw).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(seed: u64) -> Draws {
        Draws::new("test", seed, (Split::Train, 0))
    }

    #[test]
    fn mixing_is_that_of_the_paper() {
        // The first outputs of SplitMix64 from state 0.
        let mut zero = Draws { state: 0 };
        assert_eq!([zero.next(), zero.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn every_number_is_as_likely() {
        let mut draws = draws(1);
        let mut counts = [0u32; 7];
        (0..70_000).for_each(|_| counts[draws.below(7) as usize] += 1);
        // Five standard deviations of a count of 10,000.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 464), "{counts:?}");
    }

    #[test]
    fn distinct_numbers_are_distinct_and_all_of_them_in_the_end() {
        for seed in 0..100 {
            let mut found = draws(seed).distinct(9, 9);
            found.sort_unstable();
            assert_eq!(found, (0..9).collect::<Vec<_>>(), "seed={seed}");
        }
        let first: Vec<u64> = (0..9000).map(|seed| draws(seed).distinct(3, 9)[1]).collect();
        let counts: Vec<usize> = (0..9).map(|number| first.iter().filter(|found| **found == number).count()).collect();
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 150), "{counts:?}");
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |task, seed, place| Draws::new(task, seed, place).next();
        let mut found = vec![first("a", 0, (Split::Train, 0)), first("b", 0, (Split::Train, 0)), first("a", 1, (Split::Train, 0))];
        found.extend([first("a", 0, (Split::Test, 0)), first("a", 0, (Split::Train, 1)), first("a", 0, (Split::Validation, 0))]);
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 6);
    }
}
