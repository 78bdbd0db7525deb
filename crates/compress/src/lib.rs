//! Fewer tokens, same meaning: the words of a text that matter, in order, none of them split.
//!
//! What a word is worth says a model: how much an encoder's last layers look at it (received attention), or how little a causal model expected it
//! (self-information, Li et al. 2023, "Selective Context"). Sentences can be weighed first, by how near they are to the passage as a whole or to a
//! question. Numbers, code, negations and whatever a user's patterns match stay.
//!
//! ```
//! use regard_compress::{Compressor, Options};
//!
//! let mut compressor = Compressor::embedded(Options::default())?; // half of the tokens
//! let passage = compressor.passage("The ship, which was very old, had not been painted for 12 years or so.")?;
//! assert!(passage.compressed().contains("not") && passage.compressed().contains("12"));
//! assert!(passage.tokens_kept() < passage.tokens());
//! # Ok::<(), regard_compress::Error>(())
//! ```
//!
//! Texts of any length go through [`text::Passages`]; memory does not grow with them.

mod choose;
mod compressor;
mod error;
pub mod evaluate;
pub mod read;
mod score;
pub mod text;

pub use choose::Amount;
pub use compressor::{Compressor, Method, Options, Passage, Stages};
pub use error::Error;
pub use score::Frequencies;
