//! Tasks and data, training, evaluation, comparison: everything that makes a record.

pub mod batch;
pub mod compare;
pub mod draw;
pub mod error;
pub mod experiment;
pub mod model;
pub mod names;
pub mod record;
pub mod section;
pub mod task;
pub mod train;

pub use error::Error;
