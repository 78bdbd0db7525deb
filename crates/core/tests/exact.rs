//! The exact kernel against its definition, over seeded draws of every option.

mod common;

use common::{Case, OPTIONS, Random, Wish, excluded, ways};
use std::collections::BTreeSet;

const LENGTHS: [usize; 11] = [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 1000];

/// Runs a case in every way on one and two threads; the results have the same bits for any number of threads.
fn check(case: &Case) -> f64 {
    let judge = case.judge();
    let mut worst = 0.0f64;
    for (way, par) in ways(case.storage) {
        let one = case.run(par.threads(1));
        let two = case.run(par.threads(2));
        assert_eq!(one.bits(), two.bits(), "threads change bits at {way} {:?} seed={}", case.wish, case.seed);
        worst = worst.max(judge.check(case, &one, way));
    }
    worst
}

/// What a run of draws saw.
#[derive(Default)]
struct Seen {
    pairs: BTreeSet<(&'static str, &'static str)>,
    worst: f64,
    worst_seed: u64,
}

impl Seen {
    fn add(&mut self, seed: u64, lengths: &[usize]) {
        let wish = Wish::draw(&mut Random::new(seed), lengths);
        for a in &wish.options {
            self.pairs.extend(wish.options.iter().filter(|b| a < b).map(|b| (*a, *b)));
        }
        let share = check(&Case::draw(wish, seed));
        if share > self.worst {
            (self.worst, self.worst_seed) = (share, seed);
        }
    }

    fn merge(mut self, other: Seen) -> Self {
        self.pairs.extend(other.pairs);
        if other.worst > self.worst { Seen { pairs: self.pairs, ..other } } else { self }
    }
}

/// Draws over every option, half of them on another thread.
fn draws(count: u64, first_seed: u64, lengths: &[usize]) -> Seen {
    let half = |offset: u64| {
        let mut seen = Seen::default();
        (first_seed + offset..first_seed + count).step_by(2).for_each(|seed| seen.add(seed, lengths));
        seen
    };
    let seen = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        half(0).merge(other.join().expect("the other half failed"))
    });
    let Seen { pairs, worst, worst_seed } = &seen;
    println!("{count} cases, {} pairs of options, worst error/budget {worst:.2} (seed {worst_seed})", pairs.len());
    seen
}

#[test]
fn draws_over_every_option_keep_the_budget() {
    let seen = draws(2000, 1, &LENGTHS[..10]);
    for (i, a) in OPTIONS.iter().enumerate() {
        for b in OPTIONS[i + 1..].iter().filter(|b| !excluded(a, b)) {
            let pair = if a < b { (*a, *b) } else { (*b, *a) };
            assert!(seen.pairs.contains(&pair), "{pair:?} never met");
        }
    }
}

#[test]
fn draws_at_a_thousand_tokens_keep_the_budget() {
    draws(12, 100_000, &LENGTHS[10..]);
}
