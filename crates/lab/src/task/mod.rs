//! Tasks: what is learned, as examples that can be asked for by number.
//!
//! An example is a function of the task, the split and its number alone, so a run that stopped goes on from its step, and any
//! two configurations see the same data. A task never packs, shuffles or counts epochs: that is training.
//!
//! What there is stands in [`ABOUT`]; a configuration in YAML or JSON is read into a [`TaskConfig`], which opens the task:
//! ```
//! use regard_lab::task::{Split, TaskConfig};
//! let config: TaskConfig = serde_json::from_str(r#"{"name": "recall", "pairs": 8}"#).unwrap();
//! let task = config.open(std::path::Path::new(".")).unwrap();
//! println!("{}", task.facts());
//! assert_eq!(task.example(Split::Train, 7).unwrap(), task.example(Split::Train, 7).unwrap());
//! ```

pub mod classify;
mod config;
pub mod copy;
mod delimited;
mod digest;
mod facts;
mod file;
pub mod forecast;
pub mod images;
pub mod induction;
pub mod language;
mod lines;
pub mod listops;
pub mod needle;
mod open;
mod random;
pub mod recall;
mod shares;
pub mod tokens;

pub use config::{ABOUT, About, TaskConfig};

use crate::Error;

/// Which part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What choices are made by: early stopping, the best checkpoint.
    Validation,
    /// What is reported, and never used for a choice.
    Test,
}

impl Split {
    /// In the order of [`Facts::sizes`] and [`Label::counts`].
    pub const ALL: [Split; 3] = [Split::Train, Split::Validation, Split::Test];
}

/// What a sequence is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Numbers of tokens, `[N]`.
    Tokens(Vec<u32>),
    /// Features, `[N, width]`, row-major.
    Rows(Vec<f32>),
}

/// What is to be said of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// One class.
    Class(u32),
    /// A token at every position `[N]`, none where nothing is asked.
    Tokens(Vec<Option<u32>>),
    /// Numbers at every position, `[N, width]`, row-major; NaN where nothing is asked.
    Values(Vec<f32>),
}

/// One sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// What is shown.
    pub input: Input,
    /// What is asked.
    pub target: Target,
}

/// What inputs of a task look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// Tokens below a number.
    Tokens {
        /// Of them.
        vocabulary: usize,
    },
    /// Rows of features.
    Rows {
        /// Features of a position.
        width: usize,
    },
}

/// What targets of a task look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Targets {
    /// One of so many classes a sequence.
    Classes(usize),
    /// One of so many tokens at every labelled position.
    Tokens(usize),
    /// So many numbers at every labelled position.
    Values(usize),
}

impl Targets {
    /// Numbers of one answer.
    pub fn count(self) -> usize {
        let (Targets::Classes(count) | Targets::Tokens(count) | Targets::Values(count)) = self;
        count
    }
}

/// What counts as quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Share of right answers: of sequences, or of labelled positions.
    Accuracy,
    /// Mean cross-entropy at labelled positions, nats a token.
    Loss,
    /// Mean cross-entropy in bits a byte of text.
    BitsPerByte,
    /// Mean squared error of labelled values.
    SquaredError,
}

/// How often a label occurs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// As the data writes it.
    pub name: String,
    /// In train, validation and test.
    pub counts: [u64; 3],
}

/// What is known of a task before anything is learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Its name in the list.
    pub name: &'static str,
    /// What it is told.
    pub inputs: Inputs,
    /// What it is asked.
    pub targets: Targets,
    /// What counts as quality.
    pub metric: Metric,
    /// Whether a position must not see later ones.
    pub causal: bool,
    /// Tokens of the longest example.
    pub longest: usize,
    /// Examples of train, validation and test; `None` where examples are made as they are asked for, without end.
    pub sizes: [Option<u64>; 3],
    /// Labels and how often each occurs, where there are classes and they were counted.
    pub balance: Vec<Label>,
    /// The metric of a model that knows how often labels occur and nothing else, on the test split, where that is known.
    pub floor: Option<f64>,
    /// A hash of the first examples of every split: two machines that print the same one have the same data.
    pub fingerprint: String,
}

/// A task, opened.
pub trait Task: Send + Sync {
    /// What is known of it.
    fn facts(&self) -> &Facts;

    /// Example `index` of a split, below its size.
    ///
    /// # Errors
    /// If the data cannot be read, or says something that it should not.
    fn example(&self, split: Split, index: u64) -> Result<Example, Error>;

    /// The text that an example was made of, where it was one.
    ///
    /// # Errors
    /// As [`Task::example`].
    fn text(&self, _split: Split, _index: u64) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// An example with another text in place of its own, where it was made of one.
    ///
    /// # Errors
    /// As [`Task::example`].
    fn retold(&self, _split: Split, _index: u64, _text: &str) -> Result<Option<Example>, Error> {
        Ok(None)
    }

    /// What somebody who reads results should know besides the facts, a sentence each: a test split that is the validation
    /// split, rows that were left out.
    fn notes(&self) -> &[String] {
        &[]
    }
}
