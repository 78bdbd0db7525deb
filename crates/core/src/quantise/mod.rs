//! Vectors replaced by the nearest of a few codewords, and codebooks that learn them by moving averages.
//!
//! ```
//! use regard_core::quantise::{Codebook, Statistics};
//! use regard_core::{Par, Strided, View};
//!
//! let keys: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
//! let view = View::from(Strided::contiguous(&keys, [1, 1, 16, 4], "k")?);
//! let mut codebook = Codebook::drawn(&view, 8, 1)?;
//! let codes = codebook.codes(&view, Par::default())?;
//! let statistics = Statistics::of(&view, &codes, 8, 1)?;
//! codebook.after_step(&statistics)?;
//! assert!(statistics.perplexity(0) <= 8.0);
//! # Ok::<(), regard_core::Error>(())
//! ```

mod average;
mod codewords;

pub use average::{Codebook, Statistics};
pub(crate) use codewords::{Codewords, PAD, squared_distance};
