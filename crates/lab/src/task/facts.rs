//! Facts as people read them, and what follows from how often labels occur.

use super::{Facts, Inputs, Metric, Targets};
use std::fmt;

impl Facts {
    /// The share of test examples that have the label which is most frequent in train; the first of those that tie.
    pub fn majority(&self) -> Option<f64> {
        let guess = self.balance.iter().rev().max_by_key(|label| label.counts[0])?;
        let all: u64 = self.balance.iter().map(|label| label.counts[2]).sum();
        (all > 0).then(|| guess.counts[2] as f64 / all as f64)
    }

    fn floor_name(&self) -> &'static str {
        match self.metric {
            Metric::Accuracy if self.balance.is_empty() => "accuracy of a guess",
            Metric::Accuracy => "accuracy of the majority",
            Metric::Loss => "loss of frequencies",
            Metric::BitsPerByte => "bits a byte of frequencies",
            Metric::SquaredError => "squared error of the mean",
        }
    }
}

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inputs::Tokens { vocabulary } => write!(f, "tokens below {vocabulary}"),
            Inputs::Rows { width } => write!(f, "rows of {width} features"),
        }
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Targets::Classes(count) => write!(f, "one of {count} classes"),
            Targets::Tokens(count) => write!(f, "one of {count} tokens a position"),
            Targets::Values(count) => write!(f, "{count} numbers a position"),
        }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} -> {}, at most {} positions", self.name, self.inputs, self.targets, self.longest)?;
        let size = |size: Option<u64>| size.map_or_else(|| "without end".to_owned(), |size| size.to_string());
        let [train, validation, test] = self.sizes.map(size);
        writeln!(f, "examples: train {train}, validation {validation}, test {test}")?;
        let totals = [0, 1, 2].map(|split| self.balance.iter().map(|label| label.counts[split]).sum::<u64>().max(1));
        for label in &self.balance {
            write!(f, "label {}:", label.name)?;
            for ((name, count), total) in ["train", "validation", "test"].iter().zip(label.counts).zip(totals) {
                write!(f, " {name} {count} ({:.1}%)", 100.0 * count as f64 / total as f64)?;
            }
            writeln!(f)?;
        }
        if let Some(floor) = self.floor {
            writeln!(f, "floor: {floor:.4} ({})", self.floor_name())?;
        }
        write!(f, "fingerprint: {}", self.fingerprint)
    }
}
