//! Why a record is not taken.

use std::error::Error;
use std::fmt::{self, Display, Formatter};

/// What is wrong with a record, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The file is not JSON.
    Json {
        /// The file.
        file: String,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A record of a kind or version that is not known here.
    Version {
        /// The file.
        file: String,
        /// What `schema` says.
        found: String,
    },
    /// A value that the schema does not allow.
    Value {
        /// The file.
        file: String,
        /// Where in the record, as `results[3].median_s`.
        path: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Json { file, reason } => write!(f, "{file} is not JSON: {reason}"),
            Refusal::Version { file, found } => {
                write!(f, "{file}: schema: found {found:?}, expected one of {}", super::SCHEMAS.join(", "))
            }
            Refusal::Value { file, path, found, expected } => write!(f, "{file}: {path}: found {found}, expected {expected}"),
        }
    }
}

impl Error for Refusal {}
