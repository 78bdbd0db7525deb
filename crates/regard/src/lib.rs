//! Attention for long sequences on Burn tensors.
//!
//! [`attention`] takes `q [B,H,N,Dk]`, `k [B,G,M,Dk]`, `v [B,G,M,Dv]` and gives `o [B,H,N,Dv]`. On Burn's CPU device
//! (`flex`) it runs the fused kernels of `regard-core`, forward and backward, on the tensors where they stand; nothing of
//! size N×M is stored. On every other device it is made of tensor operations in blocks of queries.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use regard::{Attention, attention};
//!
//! let device = Device::flex().autodiff();
//! let normal = || Tensor::<4>::random([1, 8, 100, 64], Distribution::Normal(0.0, 1.0), &device).require_grad();
//! let (q, k, v) = (normal(), normal(), normal());
//! let o = attention(q.clone(), k, v, &Attention::causal().window(32))?;
//! let gradients = o.sum().backward();
//! assert_eq!(q.grad(&gradients).unwrap().dims(), [1, 8, 100, 64]);
//! # Ok::<(), regard::Error>(())
//! ```

mod attention;
mod autodiff;
mod door;
mod error;
mod flex;
mod layer;
pub mod modules;
pub mod optim;
mod packed;
pub mod reduce;
pub mod rows;
mod tally;

pub use attention::{Attention, attention, attention_scored, attention_traced, penalty};
pub use error::Error;
pub use layer::{Aside, AttentionLayer, AttentionLayerConfig, Codes, LayerInput, Passage, Passed};
pub use packed::Packed;
pub use regard_core::mechanism::{Mechanism, Pass};
pub use regard_core::{Alignment, Dropout, mechanism, on_pool};
pub use tally::Tally;
