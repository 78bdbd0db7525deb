//! Means over seeds, and how far they can be trusted: `mean ± t(0.975, n - 1) s / √n`, with Student's t because seeds
//! are few. One seed has no interval.

/// A mean and half of its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width; none from one number.
    pub half: Option<f64>,
    /// How many numbers.
    pub count: usize,
}

impl Estimate {
    /// Of some numbers; none of none.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let count = numbers.len();
        let mean = mean(numbers)?;
        let squared: f64 = numbers.iter().map(|x| (x - mean) * (x - mean)).sum();
        let half = (count > 1).then(|| student(count - 1) * (squared / (count - 1) as f64 / count as f64).sqrt());
        Some(Estimate { mean, half, count })
    }
}

/// The mean; none of no numbers.
pub fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// The 97.5% quantile of Student's t: tabled up to ten degrees of freedom, beyond them the first terms of the
/// expansion around the normal quantile (Abramowitz and Stegun 26.7.5), which is right to four digits there.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
    if let Some(&tabled) = TABLE.get(freedom - 1) {
        return tabled;
    }
    let (z, n) = (1.959_963_985_f64, freedom as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    let fourth = (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z) / 92160.0;
    z + first / n + second / n.powi(2) + third / n.powi(3) + fourth / n.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [(1, 12.7062), (4, 2.7764), (11, 2.20099), (30, 2.0423), (120, 1.9799)] {
            assert!((student(freedom) - expected).abs() < 1e-4, "{freedom}: {}", student(freedom));
        }
    }

    #[test]
    fn an_interval_needs_two_numbers() {
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[0.5]), Some(Estimate { mean: 0.5, half: None, count: 1 }));
        let three = Estimate::of(&[1.0, 2.0, 3.0]).unwrap();
        assert!((three.half.unwrap() - 4.3027 / 3.0_f64.sqrt()).abs() < 1e-12, "{three:?}");
    }
}
