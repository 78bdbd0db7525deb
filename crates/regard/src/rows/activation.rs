//! Activations of every element: `y = f(x)`. Saved: x.

use super::present;
use crate::autodiff::{self, Operation, Parents, Step};
use crate::flex::{self, Rows, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation as burn_activation};
use regard_core::Par;
use regard_core::rows::{Activation, activation as kernel};

/// `f(x)`, of x's shape and dtype.
///
/// # Errors
/// If the dtype is not a plain float.
pub fn activation<const D: usize>(x: Tensor<D>, f: Activation) -> Result<Tensor<D>, Error> {
    door::plain_float(&x, "x")?;
    if door::has_kernels(&x) {
        return autodiff::run(Activate(f), [Some(x.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(composed(x, f))
}

/// `x Φ(x)`, of x's shape and dtype.
///
/// # Errors
/// If the dtype is not a plain float.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Error> {
    activation(x, Activation::Gelu)
}

/// `x / (1 + e^-x)`, of x's shape and dtype.
///
/// # Errors
/// If the dtype is not a plain float.
pub fn silu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Error> {
    activation(x, Activation::Silu)
}

pub(super) fn composed<const D: usize>(x: Tensor<D>, f: Activation) -> Tensor<D> {
    match f {
        Activation::None => x,
        // Not Burn's function: on some devices its gradient is that of the tanh form.
        Activation::Gelu => x.clone() * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5,
        Activation::GeluTanh => burn_activation::gelu_approximate(x),
        Activation::Silu => burn_activation::silu(x),
        Activation::Relu => burn_activation::relu(x),
        Activation::Tanh => x.tanh(),
    }
}

#[derive(Debug, Clone)]
struct Activate(Activation);

impl Operation<1> for Activate {
    type Saved = ();

    fn reads(&self, _tracked: [bool; 1]) -> [bool; 1] {
        [true]
    }

    fn forward(&self, parents: &Parents<1>, _keep: bool) -> Result<(FlexTensor, ()), Error> {
        let x = flex::as_rows(present(parents, 0));
        let y = typed!(x, T => {
            let mut y = Rows::<T>::like(&x);
            kernel::forward(self.0, &flex::matrix(&x, "x")?, &mut y.matrix("y")?, Par::default())?;
            Ok(y.into_tensor())
        })?;
        Ok((y, ()))
    }

    fn backward(&self, step: Step<Self, 1>, _wanted: [bool; 1]) -> Result<Parents<1>, Error> {
        let (x, dy) = (flex::as_rows(present(&step.parents, 0)), flex::as_rows(&step.gradient));
        let dx = typed!(x, T => {
            let mut dx = Rows::<T>::like(&x);
            kernel::backward(self.0, &flex::matrix(&x, "x")?, &flex::matrix(&dy, "dy")?, &mut dx.matrix("dx")?, Par::default())?;
            Ok(dx.into_tensor())
        })?;
        Ok([Some(dx)])
    }
}
