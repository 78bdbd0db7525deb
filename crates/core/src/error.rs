//! What can be wrong with a problem, said with its numbers. Kernels cannot fail after [`crate::Problem::new`].

use std::fmt;

/// Everything the library refuses, before any work is done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A slice is too short for the shape and strides laid over it.
    OutOfBounds {
        /// Which tensor.
        tensor: &'static str,
        /// Elements the shape and strides reach.
        needed: usize,
        /// Elements that are there.
        available: usize,
    },
    /// Two shapes that must agree do not.
    Shape {
        /// Which tensor.
        tensor: &'static str,
        /// What it is.
        found: Vec<usize>,
        /// What it must be.
        expected: Vec<usize>,
    },
    /// Query heads must be a multiple of key/value heads, and both at least 1.
    Heads {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
    },
    /// q, k, v and o share one dtype.
    Dtype {
        /// Which tensor.
        tensor: &'static str,
        /// What it is.
        found: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A number out of its range.
    Value {
        /// Which option or tensor.
        name: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// Options that exclude one another.
    Combination(String),
    /// An output whose rows overlap or are not contiguous.
    Layout {
        /// Which tensor.
        tensor: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl Error {
    pub(crate) fn value(name: &'static str, message: impl Into<String>) -> Self {
        Error::Value { name, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::OutOfBounds { tensor, needed, available } => {
                write!(f, "{tensor}: shape and strides reach {needed} elements, the data has {available}")
            }
            Error::Shape { tensor, found, expected } => {
                write!(f, "{tensor} has shape {found:?}, expected {expected:?}")
            }
            Error::Heads { heads, kv_heads } => {
                write!(f, "{heads} query heads do not divide over {kv_heads} key/value heads")
            }
            Error::Dtype { tensor, found, expected } => {
                write!(f, "{tensor} is {found}, expected {expected}")
            }
            Error::Value { name, message } => write!(f, "{name}: {message}"),
            Error::Combination(message) => f.write_str(message),
            Error::Layout { tensor, message } => write!(f, "{tensor}: {message}"),
        }
    }
}

impl std::error::Error for Error {}
