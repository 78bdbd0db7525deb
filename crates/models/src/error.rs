//! What can be wrong with a model, a name or a text, said with the file, the tensor and the numbers.

use std::fmt;
use std::path::{Path, PathBuf};

/// Everything that this crate refuses.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file is missing, damaged, or says what cannot be.
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// A tensor of a checkpoint is missing or does not fit the configuration.
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name in it.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// A name that neither a folder nor the hub has.
    Name {
        /// As it was given.
        name: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A text that cannot be made into tokens.
    Text(String),
    /// A mechanism that an encoder cannot have inside.
    Mechanism {
        /// As the list has it.
        name: &'static str,
        /// Why not.
        reason: String,
    },
    /// What the operations refuse.
    Operation(regard::Error),
}

impl Error {
    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Error::File { path: path.to_owned(), message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { path, message } => write!(f, "{}: {message}", path.display()),
            Error::Tensor { path, tensor, message } => write!(f, "{}: tensor \"{tensor}\" {message}", path.display()),
            Error::Name { name, message } => write!(f, "model {name}: {message}"),
            Error::Text(message) => f.write_str(message),
            Error::Mechanism { name, reason } => write!(f, "{name} does not fit into an encoder: {reason}"),
            Error::Operation(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Operation(error) => Some(error),
            _ => None,
        }
    }
}

impl From<regard::Error> for Error {
    fn from(error: regard::Error) -> Self {
        Error::Operation(error)
    }
}
