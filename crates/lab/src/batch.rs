//! Examples end to end, and which of them a step takes.
//!
//! A step's examples are a function of (seed, step): epochs are permutations of a finite set, endless tasks are counted through. So a
//! run needs no state of a reader, and configurations that are compared see the same examples in the same order.

use crate::Error;
use crate::draw::{Permutation, Stream};
use crate::task::{Example, Facts, Input, Inputs, Split, Target, Targets, Task};

/// Packed examples on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Tokens or features of all examples, one behind the other.
    pub input: Input,
    /// Tokens of each example.
    pub lengths: Vec<usize>,
    /// What is asked.
    pub asked: Asked,
}

/// What a model is to say of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// A class of each example.
    Classes(Vec<u32>),
    /// Tokens at some rows.
    Tokens {
        /// Rising rows of the packed batch.
        rows: Vec<usize>,
        /// What is to stand there.
        labels: Vec<u32>,
    },
    /// Numbers at some rows.
    Values {
        /// Rising rows of the packed batch.
        rows: Vec<usize>,
        /// `[rows, width]`.
        values: Vec<f32>,
    },
}

impl Asked {
    /// Answers that are counted.
    pub fn count(&self) -> usize {
        match self {
            Asked::Classes(classes) => classes.len(),
            Asked::Tokens { rows, .. } | Asked::Values { rows, .. } => rows.len(),
        }
    }
}

impl Batch {
    /// Examples of one task, one behind the other.
    ///
    /// # Panics
    /// If examples are of different kinds: a task that says so is broken.
    pub fn pack(examples: Vec<Example>, facts: &Facts) -> Self {
        let (features, numbers) = widths(facts);
        let mut batch = Batch { input: Input::Tokens(Vec::new()), lengths: Vec::new(), asked: Asked::Classes(Vec::new()) };
        for (at, Example { input, target }) in examples.into_iter().enumerate() {
            let first = batch.tokens();
            if at == 0 {
                (batch.input, batch.asked) = empty(&input, &target);
            }
            batch.lengths.push(match (&mut batch.input, input) {
                (Input::Tokens(all), Input::Tokens(more)) => extended(all, more),
                (Input::Rows(all), Input::Rows(more)) => extended(all, more) / features,
                _ => panic!("examples of one task have tokens or features, not both"),
            });
            batch.asked.ask(first, target, numbers);
        }
        batch
    }

    /// T, all tokens.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Features of a position, and numbers asked there.
pub(crate) fn widths(facts: &Facts) -> (usize, usize) {
    let features = if let Inputs::Rows { width } = facts.inputs { width } else { 1 };
    let numbers = if let Targets::Values(width) = facts.targets { width } else { 1 };
    (features, numbers)
}

fn empty(input: &Input, target: &Target) -> (Input, Asked) {
    let input = match input {
        Input::Tokens(_) => Input::Tokens(Vec::new()),
        Input::Rows(_) => Input::Rows(Vec::new()),
    };
    let asked = match target {
        Target::Class(_) => Asked::Classes(Vec::new()),
        Target::Tokens(_) => Asked::Tokens { rows: Vec::new(), labels: Vec::new() },
        Target::Values(_) => Asked::Values { rows: Vec::new(), values: Vec::new() },
    };
    (input, asked)
}

/// Appends and says how many.
fn extended<T>(all: &mut Vec<T>, more: Vec<T>) -> usize {
    let count = more.len();
    all.extend(more);
    count
}

impl Asked {
    /// Adds what is asked of the example whose first row is `first`.
    fn ask(&mut self, first: usize, target: Target, width: usize) {
        match (self, target) {
            (Asked::Classes(classes), Target::Class(class)) => classes.push(class),
            (Asked::Tokens { rows, labels }, Target::Tokens(tokens)) => {
                for (at, label) in tokens.into_iter().enumerate().filter_map(|(at, label)| label.map(|label| (at, label))) {
                    rows.push(first + at);
                    labels.push(label);
                }
            }
            (Asked::Values { rows, values }, Target::Values(new)) => {
                for (at, row) in new.chunks_exact(width).enumerate().filter(|(_, row)| !row.iter().any(|value| value.is_nan())) {
                    rows.push(first + at);
                    values.extend_from_slice(row);
                }
            }
            _ => panic!("examples of one task ask for one kind of answer"),
        }
    }
}

/// Which training examples a step takes.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    /// Of the run.
    pub seed: u64,
    /// Examples of a step.
    pub batch: u64,
}

impl Sampler {
    /// Numbers of the examples of a step, counted from 0, of a set of `size`, or of one without end.
    pub fn indices(&self, step: u64, size: Option<u64>) -> Vec<u64> {
        let first = step * self.batch;
        let index = |at: u64| match size {
            None => at,
            Some(size) => Permutation::new(size, Stream::of(&[self.seed, at / size])).of(at % size),
        };
        (first..first + self.batch).map(index).collect()
    }

    /// The examples of a step.
    ///
    /// # Errors
    /// If the task cannot give one.
    pub fn examples(&self, task: &dyn Task, step: u64) -> Result<Vec<Example>, Error> {
        let indices = self.indices(step, task.facts().sizes[0]);
        indices.into_iter().map(|index| task.example(Split::Train, index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_comes_once_an_epoch() {
        let sampler = Sampler { seed: 3, batch: 4 };
        let epoch = |from: u64| (from..from + 3).flat_map(|step| sampler.indices(step, Some(12))).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(3));
        assert_ne!(first, second);
        for mut indices in [first, second] {
            indices.sort_unstable();
            assert_eq!(indices, (0..12).collect::<Vec<_>>());
        }
        assert_eq!(sampler.indices(2, None), [8, 9, 10, 11]);
    }

    #[test]
    fn a_batch_knows_where_answers_are_asked() {
        let example = |tokens: &[u32], labels: &[Option<u32>]| Example {
            input: Input::Tokens(tokens.to_vec()),
            target: Target::Tokens(labels.to_vec()),
        };
        let facts = Facts {
            name: "copy",
            inputs: Inputs::Tokens { vocabulary: 10 },
            targets: Targets::Tokens(10),
            metric: crate::task::Metric::Accuracy,
            causal: true,
            longest: 3,
            sizes: [None; 3],
            balance: Vec::new(),
            floor: None,
            fingerprint: String::new(),
        };
        let batch = Batch::pack(vec![example(&[1, 2, 3], &[None, Some(9), None]), example(&[4, 5], &[None, Some(8)])], &facts);
        assert_eq!(batch.lengths, [3, 2]);
        assert_eq!(batch.input, Input::Tokens(vec![1, 2, 3, 4, 5]));
        assert_eq!(batch.asked, Asked::Tokens { rows: vec![1, 4], labels: vec![9, 8] });
        assert_eq!(batch.asked.count(), 2);
    }
}
