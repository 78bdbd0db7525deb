//! SwiGLU: `y = silu(gate) · up`, all `[rows, columns]`; gate and up may be halves of one wider matrix, as strided views.
//! Backward: `d gate = dy · up · silu'(gate)`, `d up = dy · silu(gate)`. Nothing is saved but gate and up.
//! Results in bf16 nearer to 0 than 2^-126 may be 0.
//!
//! Source: Shazeer 2020, arXiv 2002.05202.

use super::curve::{Curve, Silu};
use super::matrix::{Matrix, MatrixMut};
use super::sweep::{Each, each};
use crate::simd::Lanes;
use crate::view::Element;
use crate::{Error, Par};

/// `y = silu(gate) · up`.
///
/// # Errors
/// If the shapes differ, or the elements of a row are not neighbours.
pub fn forward<T: Element>(gate: &Matrix<'_, T>, up: &Matrix<'_, T>, y: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    each(Gated, [("gate", gate), ("up", up)], [("y", y)], par)
}

/// The gradients of gate and up.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(
    [gate, up]: [&Matrix<'_, T>; 2],
    dy: &Matrix<'_, T>,
    [dgate, dup]: [&mut MatrixMut<'_, T>; 2],
    par: Par,
) -> Result<(), Error> {
    each(Gated, [("gate", gate), ("up", up), ("dy", dy)], [("dgate", dgate), ("dup", dup)], par)
}

#[derive(Clone, Copy)]
struct Gated;

impl Each<2, 1> for Gated {
    #[inline(always)]
    fn apply<S: Lanes>(self, s: S, [gate, up]: [S::F; 2]) -> [S::F; 1] {
        [s.mul(Silu.value(s, gate), up)]
    }
}

impl Each<3, 2> for Gated {
    #[inline(always)]
    fn apply<S: Lanes>(self, s: S, [gate, up, dy]: [S::F; 3]) -> [S::F; 2] {
        [s.mul(s.mul(dy, up), Silu.slope(s, gate)), s.mul(dy, Silu.value(s, gate))]
    }
}
