//! What can be wrong, said with the file, the line and the numbers.

use std::fmt;

/// Everything that this crate refuses.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An input that cannot be read.
    Read {
        /// Which.
        name: String,
        /// Why.
        message: String,
    },
    /// An input that is no text.
    Text {
        /// Which.
        name: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what to do.
        message: String,
    },
    /// An input without a word.
    Empty {
        /// Which.
        name: String,
    },
    /// A regular expression that does not parse.
    Pattern {
        /// As it was given.
        pattern: String,
        /// Where and why.
        message: String,
    },
    /// An option outside its range, or one that does not go with another.
    Option {
        /// Its name.
        name: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// A model that cannot be opened, or does not fit.
    Model(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Read { name, message } => write!(f, "cannot read {name}: {message}"),
            Error::Text { name, line, message } => write!(f, "{name}, line {line}: {message}"),
            Error::Empty { name } => write!(f, "{name} has no words; there is nothing to compress"),
            Error::Pattern { pattern, message } => write!(f, "the pattern \"{pattern}\" does not parse: {message}"),
            Error::Option { name, message } => write!(f, "{name}: {message}"),
            Error::Model(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

impl From<regard_models::Error> for Error {
    fn from(error: regard_models::Error) -> Self {
        Error::Model(error.to_string())
    }
}

impl From<regard_lab::Error> for Error {
    fn from(error: regard_lab::Error) -> Self {
        Error::Model(error.to_string())
    }
}
