//! What is drawn of each kind of record.

pub mod bench;
pub mod compression;
mod lines;
pub mod training;

/// A part of the page: a heading and its figures.
pub struct Section {
    /// The heading.
    pub title: String,
    /// Its figures.
    pub figures: Vec<crate::chart::Figure>,
}
