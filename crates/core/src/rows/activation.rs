//! An activation applied to every element: `y = f(x)`, `dx = f'(x) dy`, all `[rows, columns]`. Nothing is saved but x.
//! Results in bf16 nearer to 0 than 2^-126 may be 0.

use super::curve::{Activation, Curve, each_curve};
use super::matrix::{Matrix, MatrixMut};
use super::sweep::{Each, each};
use crate::simd::Lanes;
use crate::view::Element;
use crate::{Error, Par};
use std::marker::PhantomData;

/// `y = f(x)`.
///
/// # Errors
/// If the shapes differ, or the elements of a row of x are not neighbours.
pub fn forward<T: Element>(f: Activation, x: &Matrix<'_, T>, y: &mut MatrixMut<'_, T>, par: Par) -> Result<(), Error> {
    each_curve!(f, curve => each(Value::<_, T>(curve, PhantomData), [("x", x)], [("y", y)], par))
}

/// `dx = f'(x) dy`.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(
    f: Activation,
    x: &Matrix<'_, T>,
    dy: &Matrix<'_, T>,
    dx: &mut MatrixMut<'_, T>,
    par: Par,
) -> Result<(), Error> {
    each_curve!(f, curve => each(Slope(curve), [("x", x), ("dy", dy)], [("dx", dx)], par))
}

#[derive(Clone, Copy)]
struct Value<C, T>(C, PhantomData<T>);

impl<C: Curve, T: Element> Each<1, 1> for Value<C, T> {
    #[inline(always)]
    fn apply<S: Lanes>(self, s: S, [x]: [S::F; 1]) -> [S::F; 1] {
        [self.0.result::<S, T>(s, x)]
    }
}

#[derive(Clone, Copy)]
struct Slope<C>(C);

impl<C: Curve> Each<2, 1> for Slope<C> {
    #[inline(always)]
    fn apply<S: Lanes>(self, s: S, [x, dy]: [S::F; 2]) -> [S::F; 1] {
        [s.mul(self.0.slope(s, x), dy)]
    }
}
