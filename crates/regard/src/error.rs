//! What can be wrong with a call, said with its numbers.

use std::fmt;

/// Everything the library refuses, before any work is done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// What the kernels refuse: shapes, heads, numbers out of range, options that exclude one another.
    Core(regard_core::Error),
    /// Tensors of one call must be on one device.
    Device {
        /// Which tensor.
        tensor: &'static str,
        /// Where it is.
        found: String,
        /// Where it must be.
        expected: String,
    },
    /// Tensors of one call must share a strategy of gradient checkpointing.
    Checkpointing {
        /// Which tensor.
        tensor: &'static str,
    },
    /// A dtype that the operation does not take.
    Dtype {
        /// Which tensor.
        tensor: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Core(error) => error.fmt(f),
            Error::Device { tensor, found, expected } => write!(f, "{tensor} is on {found}, expected {expected}"),
            Error::Checkpointing { tensor } => {
                write!(f, "{tensor} has another strategy of gradient checkpointing than the tensors before it")
            }
            Error::Dtype { tensor, found, expected } => write!(f, "{tensor} is {found}, expected {expected}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Core(error) => Some(error),
            _ => None,
        }
    }
}

impl From<regard_core::Error> for Error {
    fn from(error: regard_core::Error) -> Self {
        Error::Core(error)
    }
}
