//! What can be wrong with data, configurations and runs.

use std::path::{Path, PathBuf};

/// Refusals; each message names the file, the line, the column or the key, and what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What a file says is not what it should be: a place in it, and the reason.
    Data {
        /// Which file.
        path: PathBuf,
        /// Line, row, column or field, as people count them: `line 7`, `row 7, column label`.
        place: String,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// A key of a configuration: unknown, missing, out of range or not possible together with another.
    Key {
        /// As written, with dots: `task.label`.
        key: String,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// A model, a mechanism or a task that do not fit one another.
    Model(regard::Error),
    /// A checkpoint that a model starts from.
    Checkpoint(regard_models::Error),
}

impl From<regard_models::Error> for Error {
    fn from(error: regard_models::Error) -> Self {
        match error {
            regard_models::Error::Operation(error) => Error::Model(error),
            other => Error::Checkpoint(other),
        }
    }
}

impl From<regard::Error> for Error {
    fn from(error: regard::Error) -> Self {
        Error::Model(error)
    }
}

impl Error {
    /// A place in a file and what is wrong there.
    pub fn data(path: impl AsRef<Path>, place: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().into(), place: place.into(), message: message.into() }
    }

    /// A file and what the system says of it.
    pub fn file(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::File { path: path.as_ref().into(), source }
    }

    /// A key and what is wrong with it.
    pub fn key(key: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Key { key: key.into(), message: message.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::File { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Data { path, place, message } => write!(f, "{}: {place}: {message}", path.display()),
            Error::Key { key, message } => write!(f, "{key}: {message}"),
            Error::Model(error) => error.fmt(f),
            Error::Checkpoint(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File { source, .. } => Some(source),
            Error::Model(error) => Some(error),
            Error::Checkpoint(error) => Some(error),
            _ => None,
        }
    }
}
