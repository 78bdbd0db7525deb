//! How far one configuration is from another, with what is not known of it.
//!
//! Both answered the same examples with the same seeds, so their scores are compared in pairs: `d_si` for seed s and example i. The mean
//! of all is reported with a 95% interval whose variance is that of examples (`var_i(mean_s d) / n`) and that of seeds
//! (`var_s(mean_i d) / S`) together: which examples were drawn and which seeds were both chance. With one seed the second part is not known
//! and left out.

use serde::{Deserialize, Serialize};

/// Two-sided 95% of the normal distribution.
const NORMAL: f64 = 1.959_963_984_540_054;
/// Two-sided 95% of Student's t with 1, 2, … degrees of freedom.
const STUDENT: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];

/// A mean and a 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Mean of `one - other` over seeds and examples; each is `[seeds][examples]`. None where there is nothing to pair.
pub fn paired(one: &[Vec<f32>], other: &[Vec<f32>]) -> Option<Interval> {
    let seeds = one.len().min(other.len());
    let examples = one.iter().zip(other).map(|(one, other)| one.len().min(other.len())).min().filter(|&count| count > 0)?;
    let difference = |seed: usize, at: usize| f64::from(one[seed][at]) - f64::from(other[seed][at]);
    let of_seeds: Vec<f64> = (0..seeds).map(|seed| mean((0..examples).map(|at| difference(seed, at)))).collect();
    let of_examples: Vec<f64> = (0..examples).map(|at| mean((0..seeds).map(|seed| difference(seed, at)))).collect();
    let centre = mean(of_seeds.iter().copied());
    let half_examples = NORMAL * (variance(&of_examples) / examples as f64).sqrt();
    let half_seeds = if seeds < 2 { 0.0 } else { quantile(seeds - 1) * (variance(&of_seeds) / seeds as f64).sqrt() };
    let half = half_examples.hypot(half_seeds);
    Some(Interval { mean: centre, low: centre - half, high: centre + half })
}

fn quantile(freedom: usize) -> f64 {
    STUDENT.get(freedom - 1).copied().unwrap_or(NORMAL)
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let centre = mean(values.iter().copied());
    values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (values.len() - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Stream;

    #[test]
    fn one_seed_gives_the_interval_of_its_examples() {
        let one = vec![vec![1.0, 1.0, 0.0, 1.0]];
        let other = vec![vec![1.0, 0.0, 0.0, 0.0]];
        let found = paired(&one, &other).unwrap();
        // Differences 0, 1, 0, 1: mean 1/2, variance 1/3 over 4 examples.
        let half = NORMAL * (1.0f64 / 3.0 / 4.0).sqrt();
        assert!((found.mean - 0.5).abs() < 1e-12 && (found.high - 0.5 - half).abs() < 1e-12, "{found:?}");
        assert_eq!(paired(&[], &other), None);
        assert_eq!(paired(&one, &one).unwrap(), Interval { mean: 0.0, low: 0.0, high: 0.0 });
    }

    /// Of many experiments whose true difference is known, about 95 of 100 intervals hold it.
    #[test]
    fn intervals_hold_what_they_should() {
        let (seeds, examples, truth) = (5, 40, 0.3);
        let held = (0..1000u64).filter(|&trial| {
            let stream = Stream::of(&[trial]);
            let of_seed = |seed: usize| 0.2 * stream.normal(1000 + seed as u64);
            let of_example = |at: usize| 0.5 * stream.normal(2000 + at as u64);
            let noise = |seed: usize, at: usize| 0.3 * stream.normal((3000 + seed * examples + at) as u64);
            let one: Vec<Vec<f32>> = (0..seeds)
                .map(|seed| (0..examples).map(|at| (truth + of_seed(seed) + of_example(at) + noise(seed, at)) as f32).collect())
                .collect();
            let found = paired(&one, &vec![vec![0.0; examples]; seeds]).unwrap();
            found.low <= truth && truth <= found.high
        });
        let share = held.count() as f64 / 1000.0;
        assert!((0.93..=0.995).contains(&share), "{share}");
    }
}
