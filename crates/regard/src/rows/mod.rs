//! Row operations: what stands between two attentions, with gradients.
//!
//! On Burn's CPU device, in f32, bf16 and f16, each is one operation with the fused kernels of `regard-core`; on other devices
//! and in f64 it is made of tensor operations. All dimensions but the last are rows.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use regard::rows::{Activation, linear};
//!
//! let x = Tensor::<2>::from_floats([[1.0, -2.0]], &Device::flex());
//! let weight = Tensor::<2>::from_floats([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], &Device::flex()); // [in, out]
//! let y = linear(x, weight, None, Activation::Relu)?;
//! assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [1.0, 0.0, 0.0]);
//! # Ok::<(), regard::Error>(())
//! ```

mod activation;
mod cross_entropy;
mod embedding;
mod linear;
mod norm;
mod rotary;
mod softmax;
mod swiglu;

pub use activation::{activation, gelu, silu};
pub use cross_entropy::{Labels, cross_entropy};
pub use embedding::embedding;
pub use linear::linear;
pub use norm::{layer_norm, layer_norm_added, rms_norm, rms_norm_added};
pub use regard_core::rows::{Activation, Frequencies, Pairing, Rotary, Scaling, Yarn};
pub use rotary::{Turns, rotary};
pub use softmax::{log_softmax, softmax};
pub use swiglu::swiglu;

use crate::autodiff::Parents;
use burn::backend::flex::FlexTensor;

/// A parent that is always there.
pub(crate) fn present<const N: usize>(parents: &Parents<N>, at: usize) -> &FlexTensor {
    parents[at].as_ref().expect("this parent is never absent")
}
