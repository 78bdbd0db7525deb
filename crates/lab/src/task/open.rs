//! What every opened task has in common: facts that are completed from its examples, and numbers of examples that are checked.

use super::digest::Digest;
use super::{Example, Facts, Inputs, Metric, Split, Targets, Task};
use crate::Error;
use std::ops::RangeInclusive;

/// So many examples of every split are in a fingerprint.
const FINGERPRINT: u64 = 16;

/// The most tokens of a sequence that is made or cut: a slip of the pen should not take all memory.
pub const LONGEST: usize = 1 << 28;

/// Refuses the value of a key that lies out of bounds.
pub fn within(key: &str, value: usize, bounds: RangeInclusive<usize>) -> Result<(), Error> {
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(Error::key(format!("task.{key}"), format!("is {value}; it lies between {} and {}", bounds.start(), bounds.end())))
}

/// Facts of a generator that asks for tokens: the vocabulary and the longest example, sizes, and how many tokens are as likely.
pub fn generated(name: &'static str, [vocabulary, longest]: [usize; 2], sizes: [Option<u64>; 3], likely: usize) -> Facts {
    Facts {
        name,
        inputs: Inputs::Tokens { vocabulary },
        targets: Targets::Tokens(vocabulary),
        metric: Metric::Accuracy,
        causal: true,
        longest,
        sizes,
        balance: Vec::new(),
        floor: Some(1.0 / likely as f64),
        fingerprint: String::new(),
    }
}

/// Where examples come from.
pub trait Source: Send + Sync {
    /// Example `index`, which is below the size of the split.
    fn example(&self, split: Split, index: u64) -> Result<Example, Error>;

    /// See [`Task::text`].
    fn text(&self, _split: Split, _index: u64) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// See [`Task::retold`].
    fn retold(&self, _split: Split, _index: u64, _text: &str) -> Result<Option<Example>, Error> {
        Ok(None)
    }
}

struct Opened<S> {
    facts: Facts,
    notes: Vec<String>,
    source: S,
}

impl<S> Opened<S> {
    fn within(&self, split: Split, index: u64) -> Result<(), Error> {
        match self.facts.sizes[split as usize] {
            Some(size) if index >= size => {
                Err(Error::key("example", format!("{index} of {split:?} was asked for, which has {size} (counted from 0)")))
            }
            _ => Ok(()),
        }
    }
}

impl<S: Source> Task for Opened<S> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        self.within(split, index)?;
        self.source.example(split, index)
    }

    fn text(&self, split: Split, index: u64) -> Result<Option<String>, Error> {
        self.within(split, index)?;
        self.source.text(split, index)
    }

    fn retold(&self, split: Split, index: u64, text: &str) -> Result<Option<Example>, Error> {
        self.within(split, index)?;
        self.source.retold(split, index, text)
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// A task of a source; `facts` lack a fingerprint, and may lack a floor that follows from the balance.
pub fn open<S: Source + 'static>(source: S, facts: Facts, mut notes: Vec<String>) -> Result<Box<dyn Task>, Error> {
    if facts.sizes[0] == Some(0) {
        return Err(Error::key("task", "there is nothing to learn from: the train split has no examples"));
    }
    for split in [Split::Validation, Split::Test] {
        if facts.sizes[split as usize] == Some(0) {
            notes.push(format!("the {} split has no examples", if split == Split::Test { "test" } else { "validation" }));
        }
    }
    let unseen: Vec<&str> = facts.balance.iter().filter(|label| label.counts[0] == 0).map(|label| label.name.as_str()).collect();
    if !unseen.is_empty() {
        notes.push(format!("the train split has no example of {}", unseen.join(", ")));
    }
    let floor = facts.floor.or_else(|| (facts.metric == Metric::Accuracy).then(|| facts.majority()).flatten());
    let mut task = Opened { facts: Facts { floor, ..facts }, notes, source };
    task.facts.fingerprint = fingerprint(&task)?;
    Ok(Box::new(task))
}

fn fingerprint(task: &dyn Task) -> Result<String, Error> {
    let mut digest = Digest::new();
    for split in Split::ALL {
        let size = task.facts().sizes[split as usize];
        for index in 0..size.map_or(FINGERPRINT, |size| size.min(FINGERPRINT)) {
            digest.bytes(&[split as u8]);
            digest.example(&task.example(split, index)?);
        }
    }
    Ok(format!("{:016x}", digest.value()))
}
