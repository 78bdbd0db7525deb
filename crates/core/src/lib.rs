//! Attention kernels and mechanisms: slices and strides in, slices out.
//!
//! [`exact`] is the fused softmax attention (forward, backward, decode) that most mechanisms ride on; [`mechanism`] is
//! the list of mechanisms; [`oracle`] defines all of it in plain f64.
//!
//! ```
//! use regard_core::{Output, Par, Problem, Scores, Sight, Strided, StridedMut, View, ViewMut, exact};
//!
//! let shape = [1, 2, 8, 16]; // batch, heads, tokens, width
//! let x: Vec<f32> = (0..2 * 8 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
//! let view = || Strided::contiguous(&x, shape, "x").map(View::from);
//! let problem = Problem::new(view()?, view()?, view()?, Sight::causal(), Scores::new())?;
//! let mut o = vec![0.0; x.len()];
//! let out = ViewMut::F32(StridedMut::contiguous(&mut o, shape, "o")?);
//! exact::forward(&problem, &mut Output { o: out, lse: None }, Par::default())?;
//! assert!((o[0] - x[0]).abs() < 1e-6); // the first token sees itself only
//! # Ok::<(), regard_core::Error>(())
//! ```

mod cluster;
mod coded;
mod definition;
mod error;
pub mod exact;
mod hash;
mod intervals;
pub mod mechanism;
pub mod oracle;
mod par;
mod problem;
pub mod quantise;
pub mod reduce;
pub mod rows;
mod scan;
mod sight;
pub mod simd;
mod view;

pub use error::Error;
pub use half::{bf16, f16};
pub use intervals::Intervals;
pub use par::{Par, on_pool};
pub use problem::{Dims, Dropout, Gradients, Output, Problem, Saved, Scores, alibi_slopes};
pub use sight::{Alignment, Sight};
pub use view::{Element, Strided, StridedMut, View, ViewMut};
