//! How one source is divided into train, validation and test.

use super::Split;
use crate::Error;
use std::ops::Range;

/// Shares of train, validation and test, which sum to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares([f64; 3]);

/// What is said where a task has no test split of its own.
pub const TEST_IS_VALIDATION: &str = "the test split is the validation split: results on it are of the data that choices were made by";

impl Shares {
    /// As written, or by default what files of their own leave over; `own`: whether validation and test have such files.
    pub fn choose(written: Option<[f64; 3]>, own: [bool; 2]) -> Result<Self, Error> {
        let left = match own {
            [false, false] => [0.8, 0.1, 0.1],
            [false, true] => [0.9, 0.1, 0.0],
            [true, false] => [0.9, 0.0, 0.1],
            [true, true] => [1.0, 0.0, 0.0],
        };
        let shares = Shares::new(written.unwrap_or(left))?;
        for (at, name) in [(0, "validation"), (1, "test")] {
            if own[at] && shares.0[at + 1] > 0.0 {
                return Err(refuse(format!("gives {name} a share, which has a file of its own; write 0 there")));
            }
        }
        if !own[0] && !own[1] && shares.0[1] == 0.0 && shares.0[2] == 0.0 {
            return Err(refuse("leaves nothing to test on, such as [0.9, 0.1, 0]".into()));
        }
        Ok(shares)
    }

    /// Three shares as written.
    pub fn new(shares: [f64; 3]) -> Result<Self, Error> {
        let sound = shares.iter().all(|share| (0.0..=1.0).contains(share)) && shares[0] > 0.0;
        if !sound || (shares.iter().sum::<f64>() - 1.0).abs() > 1e-9 {
            return Err(refuse(format!("is {shares:?}; shares of train (above 0), validation and test sum to 1, such as [0.8, 0.1, 0.1]")));
        }
        Ok(Shares(shares))
    }

    /// Whether there is a test split that is not the validation split.
    pub fn tests(&self) -> bool {
        self.0[2] > 0.0
    }

    /// Where something belongs whose hash is spread over all of 64 bits.
    pub fn of(&self, hash: u64) -> Split {
        let place = (hash >> 11) as f64 / (1u64 << 53) as f64;
        match place {
            place if place < self.0[0] => Split::Train,
            place if place < self.0[0] + self.0[1] || self.0[2] == 0.0 => Split::Validation,
            _ => Split::Test,
        }
    }

    /// `0..count` cut in their order; where test has no share it is validation's.
    pub fn cut(&self, count: u64) -> [Range<u64>; 3] {
        let first = (count as f64 * self.0[0]) as u64;
        let second = if self.tests() { (count as f64 * (self.0[0] + self.0[1])) as u64 } else { count };
        [0..first, first..second, if self.tests() { second..count } else { first..second }]
    }
}

fn refuse(message: String) -> Error {
    Error::key("task.splits", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_that_of_the_shares() {
        let shares = Shares::new([0.9, 0.1, 0.0]).expect("sound shares");
        assert_eq!(shares.cut(1_115_394), [0..1_003_854, 1_003_854..1_115_394, 1_003_854..1_115_394]);
        assert_eq!(Shares::new([0.5, 0.25, 0.25]).expect("sound shares").cut(8), [0..4, 4..6, 6..8]);
    }

    #[test]
    fn hashes_are_shared_out_as_the_shares_say() {
        let shares = Shares::new([0.7, 0.2, 0.1]).expect("sound shares");
        let mut counts = [0u32; 3];
        (0..100_000u64).for_each(|word| counts[shares.of(crate::draw::mix(word)) as usize] += 1);
        assert!(counts.iter().zip([70_000u32, 20_000, 10_000]).all(|(found, due)| found.abs_diff(due) < 800), "{counts:?}");
        assert_eq!(Shares::new([0.5, 0.5, 0.0]).expect("sound shares").of(u64::MAX), Split::Validation);
    }

    #[test]
    fn shares_that_make_no_sense_are_refused() {
        for written in [[0.5, 0.4, 0.2], [0.0, 0.5, 0.5], [1.2, -0.1, -0.1], [f64::NAN, 0.5, 0.5]] {
            assert!(Shares::choose(Some(written), [false, false]).is_err(), "{written:?}");
        }
        assert!(Shares::choose(Some([1.0, 0.0, 0.0]), [false, false]).is_err());
        assert!(Shares::choose(Some([0.8, 0.1, 0.1]), [false, true]).is_err());
    }
}
