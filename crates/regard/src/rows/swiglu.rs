//! SwiGLU, `y = silu(gate) · up`. Saved: gate and up. Shazeer 2020.

use super::present;
use crate::autodiff::{self, Operation, Parents, Step};
use crate::flex::{self, Rows, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use regard_core::Par;
use regard_core::rows::swiglu as kernel;

/// `silu(gate) · up`; both may be views of one wider tensor.
///
/// # Errors
/// If shapes, dtypes or devices differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Result<Tensor<D>, Error> {
    door::plain_float(&gate, "gate")?;
    door::same_device(&gate, "up", &up)?;
    door::same_dtype(&gate, ("gate", "up"), &up)?;
    door::expect("up", &up.dims(), &gate.dims())?;
    if door::has_kernels(&gate) {
        return autodiff::run(Swiglu, [Some(gate.into()), Some(up.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(activation::silu(gate) * up)
}

#[derive(Debug, Clone)]
struct Swiglu;

impl Operation<2> for Swiglu {
    type Saved = ();

    fn reads(&self, _tracked: [bool; 2]) -> [bool; 2] {
        [true; 2]
    }

    fn forward(&self, parents: &Parents<2>, _keep: bool) -> Result<(FlexTensor, ()), Error> {
        let [gate, up] = [0, 1].map(|at| flex::as_rows(present(parents, at)));
        let y = typed!(gate, T => {
            let mut y = Rows::<T>::like(&gate);
            kernel::forward(&flex::matrix(&gate, "gate")?, &flex::matrix(&up, "up")?, &mut y.matrix("y")?, Par::default())?;
            Ok(y.into_tensor())
        })?;
        Ok((y, ()))
    }

    fn backward(&self, step: Step<Self, 2>, wanted: [bool; 2]) -> Result<Parents<2>, Error> {
        let [gate, up] = [0, 1].map(|at| flex::as_rows(present(&step.parents, at)));
        let dy = flex::as_rows(&step.gradient);
        let [dgate, dup] = typed!(gate, T => {
            let (mut dgate, mut dup) = (Rows::<T>::like(&gate), Rows::<T>::like(&up));
            let from = [&flex::matrix(&gate, "gate")?, &flex::matrix(&up, "up")?];
            kernel::backward(from, &flex::matrix(&dy, "dy")?, [&mut dgate.matrix("dgate")?, &mut dup.matrix("dup")?], Par::default())?;
            Ok::<_, Error>([dgate.into_tensor(), dup.into_tensor()])
        })?;
        Ok([wanted[0].then_some(dgate), wanted[1].then_some(dup)])
    }
}
