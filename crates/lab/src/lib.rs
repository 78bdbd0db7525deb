//! Tasks and data, training, evaluation, comparison: everything that makes a record.

pub mod error;
pub mod names;
pub mod task;

pub use error::Error;
