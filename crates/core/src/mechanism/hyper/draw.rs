//! Keys drawn outside of a block.
//!
//! Without replacement: Floyd's sample of n places of N (Bentley & Floyd 1987) takes n numbers and a table of 2n entries. By norm: a
//! number between 0 and the sum of norms is looked up in the running sums of the sorted keys.

use crate::hash::Stream;
use std::ops::Range;

/// Stands in the table where nothing does.
const FREE: u32 = u32::MAX;

/// The sorted keys of a square for one block.
#[derive(Debug, Clone)]
pub(super) struct Pool<'a> {
    /// Places of the block.
    pub(super) block: Range<usize>,
    /// Keys of the square.
    pub(super) keys: usize,
    /// Sums of norms before each place and at the end; empty where norms do not matter.
    pub(super) sums: &'a [f64],
}

/// A key that was drawn: where it stands in order, and what is added to its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Drawn {
    pub(super) place: u32,
    pub(super) weight: f64,
}

impl Pool<'_> {
    fn eligible(&self) -> usize {
        self.keys - self.block.len()
    }

    /// How many are drawn at most.
    pub(super) fn drawn(&self, samples: usize) -> usize {
        samples.min(self.eligible())
    }

    /// The place of the eligible key number `at`.
    fn place(&self, at: usize) -> u32 {
        (if at < self.block.start { at } else { at + self.block.len() }) as u32
    }

    /// Draws for one query head and block.
    pub(super) fn draw(&self, samples: usize, stream: Stream, into: &mut Vec<Drawn>) {
        into.clear();
        let (eligible, count) = (self.eligible(), self.drawn(samples));
        let even = (eligible as f64 / count as f64).ln();
        if !self.sums.is_empty() {
            return self.draw_by_norm(count, stream, into);
        }
        if count == eligible {
            into.extend((0..count).map(|at| Drawn { place: self.place(at), weight: 0.0 }));
            return;
        }
        let mut table = vec![FREE; (2 * count).next_power_of_two()];
        for (index, last) in (eligible - count..eligible).enumerate() {
            let at = stream.below(index as u64, last + 1);
            let taken = if insert(&mut table, at as u32) { at } else { last };
            if taken != at {
                insert(&mut table, last as u32);
            }
            into.push(Drawn { place: self.place(taken), weight: even });
        }
    }

    fn draw_by_norm(&self, count: usize, stream: Stream, into: &mut Vec<Drawn>) {
        let Range { start, end } = self.block.clone();
        let (before, within) = (self.sums[start], self.sums[end] - self.sums[start]);
        let total = before + (self.sums[self.keys] - self.sums[end]);
        for index in 0..count as u64 {
            if total <= 0.0 {
                let at = stream.below(index, self.eligible());
                into.push(Drawn { place: self.place(at), weight: (self.eligible() as f64 / count as f64).ln() });
                continue;
            }
            let at = stream.unit(index) * total;
            let place = if at < before { self.holding(0..start, at) } else { self.holding(end..self.keys, at + within) };
            let norm = self.sums[place + 1] - self.sums[place];
            into.push(Drawn { place: place as u32, weight: -(count as f64 * norm / total).ln() });
        }
    }

    /// The key of a range whose part of the sums holds a number; one with a norm, should rounding point beside all of them.
    fn holding(&self, range: Range<usize>, at: f64) -> usize {
        let found = range.start + self.sums[range.start + 1..=range.end].partition_point(|&sum| sum <= at);
        if found < range.end {
            return found;
        }
        range.rev().find(|&place| self.sums[place + 1] > self.sums[place]).unwrap_or(found - 1)
    }
}

/// Puts a number into an open table; whether it was not there.
fn insert(table: &mut [u32], number: u32) -> bool {
    let mask = table.len() - 1;
    let mut at = number.wrapping_mul(0x9e37_79b1) as usize >> 7 & mask;
    while table[at] != FREE {
        if table[at] == number {
            return false;
        }
        at = (at + 1) & mask;
    }
    table[at] = number;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(pool: &Pool<'_>, samples: usize, seed: u64) -> Vec<Drawn> {
        let mut all = Vec::new();
        pool.draw(samples, Stream::new(&[seed]), &mut all);
        all
    }

    #[test]
    fn every_eligible_key_is_as_likely_and_none_comes_twice() {
        let pool = Pool { block: 3..7, keys: 20, sums: &[] };
        let (mut counts, rounds) = ([0usize; 20], 20_000);
        for seed in 0..rounds {
            let all = drawn(&pool, 5, seed);
            let mut places: Vec<u32> = all.iter().map(|drawn| drawn.place).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 5);
            places.iter().for_each(|&place| counts[place as usize] += 1);
            assert!(all.iter().all(|drawn| drawn.weight == (16f64 / 5.0).ln()));
        }
        let (p, n) = (5.0 / 16.0, rounds as f64);
        let spread = 5.0 * (n * p * (1.0 - p)).sqrt();
        for (place, &count) in counts.iter().enumerate() {
            let expected = if (3..7).contains(&place) { 0.0 } else { n * p };
            assert!((count as f64 - expected).abs() <= if expected == 0.0 { 0.0 } else { spread }, "{place}: {count}");
        }
    }

    #[test]
    fn norms_are_likelihoods() {
        let norms = [1.0, 0.0, 5.0, 2.0, 9.0, 0.0, 3.0];
        let sums: Vec<f64> = (0..=norms.len()).map(|end| norms[..end].iter().sum()).collect();
        let pool = Pool { block: 2..4, keys: 7, sums: &sums };
        let (mut counts, rounds) = ([0usize; 7], 8000);
        for seed in 0..rounds {
            for Drawn { place, weight } in drawn(&pool, 3, seed) {
                counts[place as usize] += 1;
                assert!((weight + (3.0 * norms[place as usize] / 13.0).ln()).abs() < 1e-12);
            }
        }
        for (place, &count) in counts.iter().enumerate() {
            let p = if (2..4).contains(&place) { 0.0 } else { norms[place] / 13.0 };
            let n = 3.0 * rounds as f64;
            assert!((count as f64 - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt(), "{place}: {count} of {n}");
        }
    }

    #[test]
    fn keys_without_norms_are_drawn_evenly() {
        let pool = Pool { block: 0..1, keys: 4, sums: &[0.0, 7.0, 7.0, 7.0, 7.0] };
        let all = drawn(&pool, 2, 1);
        assert!(all.len() == 2 && all.iter().all(|drawn| drawn.place >= 1 && drawn.weight == 1.5f64.ln()));
    }
}
