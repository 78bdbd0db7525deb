//! Row operations: what stands between two attentions. Forward and backward, on matrices `[rows, columns]` of f32, bf16 or f16
//! with f32 arithmetic, with the same bits for any number of threads.
//!
//! [`activation`], [`swiglu`], [`softmax`], [`cross_entropy`], [`norm`] and [`embedding`] read each value about once and are bound by
//! memory; [`rotary`] turns heads; [`linear`] is the matrix product with bias and activation fused in.
//!
//! ```
//! use regard_core::Par;
//! use regard_core::rows::{Activation, Linear, Matrix, MatrixMut};
//!
//! let x = [1.0f32, -2.0, 0.5, 3.0]; // [2 rows, 2 inputs]
//! let weight = [1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0]; // [3 outputs, 2 inputs]
//! let mut y = [0.0f32; 6];
//! let linear = Linear::new(Matrix::new(&weight, [3, 2], "weight")?, None).activation(Activation::Relu);
//! linear.forward(&Matrix::new(&x, [2, 2], "x")?, &mut MatrixMut::new(&mut y, [2, 3], "y")?, None, Par::default())?;
//! assert_eq!(y, [1.0, 0.0, 0.0, 0.5, 3.0, 3.5]);
//! # Ok::<(), regard_core::Error>(())
//! ```

pub mod activation;
pub mod adamw;
#[cfg(not(test))]
mod compiled;
pub mod cross_entropy;
mod curve;
pub mod embedding;
pub mod frequencies;
mod id;
pub mod linear;
pub(crate) mod matrix;
mod multiply;
pub mod norm;
mod operand;
pub mod rotary;
pub mod softmax;
mod squares;
pub(crate) mod sweep;
pub mod swiglu;

pub use adamw::AdamW;
pub use cross_entropy::Labels;
pub use curve::Activation;
pub use frequencies::{Frequencies, Pairing, Rotary, Scaling, Yarn};
pub use id::Id;
pub use linear::Linear;
pub use matrix::{Matrix, MatrixMut};
pub use norm::Norm;
pub use rotary::Turns;
pub use squares::sum_of_squares;
