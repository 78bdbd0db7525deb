//! Softmax over the last dimension, and its logarithm. A row of nothing but -inf gives zeros (-inf in the logarithm) on the
//! CPU; on other devices, what Burn makes of it.

use super::present;
use crate::autodiff::{self, Operation, Parents, Step};
use crate::flex::{self, Rows, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use regard_core::Par;
use regard_core::rows::softmax as kernel;

/// `y_j = e^(x_j) / Σ e^x` over the last dimension, of x's shape and dtype.
///
/// # Errors
/// If the dtype is not a plain float.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Error> {
    door::plain_float(&x, "x")?;
    if door::has_kernels(&x) {
        return autodiff::run(Softmax { logarithm: false }, [Some(x.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(activation::softmax(x, D - 1))
}

/// `ln softmax(x)` over the last dimension, of x's shape and dtype.
///
/// # Errors
/// If the dtype is not a plain float.
pub fn log_softmax<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Error> {
    door::plain_float(&x, "x")?;
    if door::has_kernels(&x) {
        return autodiff::run(Softmax { logarithm: true }, [Some(x.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(activation::log_softmax(x, D - 1))
}

#[derive(Debug, Clone)]
struct Softmax {
    logarithm: bool,
}

impl Operation<1> for Softmax {
    type Saved = FlexTensor;

    fn reads(&self, _tracked: [bool; 1]) -> [bool; 1] {
        [false]
    }

    fn forward(&self, parents: &Parents<1>, _keep: bool) -> Result<(FlexTensor, FlexTensor), Error> {
        let x = flex::as_rows(present(parents, 0));
        let y = typed!(x, T => {
            let mut y = Rows::<T>::like(&x);
            let run = if self.logarithm { kernel::log_forward } else { kernel::forward };
            run(&flex::matrix(&x, "x")?, &mut y.matrix("y")?, Par::default())?;
            Ok(y.into_tensor())
        })?;
        Ok((y.clone(), y))
    }

    fn backward(&self, step: Step<Self, 1>, _wanted: [bool; 1]) -> Result<Parents<1>, Error> {
        let (y, dy) = (step.saved, flex::as_rows(&step.gradient));
        let dx = typed!(y, T => {
            let mut dx = Rows::<T>::like(&y);
            let run = if self.logarithm { kernel::log_backward } else { kernel::backward };
            run(&flex::matrix(&y, "y")?, &flex::matrix(&dy, "dy")?, &mut dx.matrix("dx")?, Par::default())?;
            Ok(dx.into_tensor())
        })?;
        Ok([Some(dx)])
    }
}
