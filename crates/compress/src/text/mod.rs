//! Texts as words and sentences, and which words must stay.

mod passages;
mod protect;
mod words;

pub use passages::Passages;
pub use protect::{Fences, Protect, is_negation};
pub use words::{Word, joined, words};
