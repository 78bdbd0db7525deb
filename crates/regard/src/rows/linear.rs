//! Linear map with what follows it: `y = f(x W + b)`, x `[.., in]`, W `[in, out]` as Burn stores it, b `[out]`, y `[.., out]`.
//! Saved: x and W, and with an activation what it was applied to.

use super::{activation, present};
use crate::autodiff::{self, Operation, Parent, Parents, Step};
use crate::flex::{self, Rows, Stored, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use regard_core::Par;
use regard_core::rows::linear::{Gradients, WeightGradient};
use regard_core::rows::{Activation, Linear};

/// `f(x W + b)`.
///
/// # Errors
/// If shapes, dtypes or devices do not fit.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>, f: Activation) -> Result<Tensor<D>, Error> {
    door::plain_float(&x, "x")?;
    door::same_device(&x, "weight", &weight)?;
    door::same_dtype(&x, ("x", "weight"), &weight)?;
    let [_, out] = weight.dims();
    door::expect("weight", &weight.dims(), &[x.dims()[D - 1], out])?;
    if let Some(bias) = &bias {
        door::same_device(&x, "bias", bias)?;
        door::same_dtype(&x, ("x", "bias"), bias)?;
        door::expect("bias", &bias.dims(), &[out])?;
    }
    if door::has_kernels(&x) {
        return autodiff::run(Map(f), [Some(x.into()), Some(weight.into()), bias.map(Parent::from)]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(activation::composed(burn::tensor::module::linear(x, weight, bias), f))
}

#[derive(Debug, Clone)]
struct Map(Activation);

impl Map {
    fn kernel<'a, T: Stored>(&self, weight: &'a FlexTensor, bias: Option<&'a FlexTensor>) -> Result<Linear<'a, T>, Error> {
        Ok(Linear::new(flex::matrix(weight, "weight")?.transposed(), bias.map(flex::vector)).activation(self.0))
    }
}

impl Operation<3> for Map {
    /// What the activation was applied to, where there is one.
    type Saved = Option<FlexTensor>;

    fn reads(&self, _tracked: [bool; 3]) -> [bool; 3] {
        [true, true, false]
    }

    fn forward(&self, parents: &Parents<3>, keep: bool) -> Result<(FlexTensor, Option<FlexTensor>), Error> {
        let [x, weight] = [0, 1].map(|at| flex::as_rows(present(parents, at)));
        let bias = parents[2].as_ref().map(flex::as_rows);
        let mut shape = x.layout().shape().to_vec();
        *shape.last_mut().expect("a tensor has dimensions") = weight.layout().shape()[1];
        typed!(x, T => {
            let mut y = Rows::<T>::new(&shape);
            let mut z = (keep && self.0 != Activation::None).then(|| Rows::<T>::new(&shape));
            let mut into = z.as_mut().map(|z| z.matrix("z")).transpose()?;
            self.kernel::<T>(&weight, bias.as_ref())?.forward(&flex::matrix::<T>(&x, "x")?, &mut y.matrix("y")?, into.as_mut(), Par::default())?;
            Ok((y.into_tensor(), z.map(Rows::into_tensor)))
        })
    }

    fn backward(&self, step: Step<Self, 3>, wanted: [bool; 3]) -> Result<Parents<3>, Error> {
        let [x, weight] = [0, 1].map(|at| flex::as_rows(present(&step.parents, at)));
        let dy = flex::as_rows(&step.gradient);
        typed!(x, T => {
            let mut dx = wanted[0].then(|| Rows::<T>::like(&x));
            let [_, out] = flex::matrix::<T>(&weight, "weight")?.shape();
            let mut dweight = wanted[1].then(|| Rows::<T>::like(&weight));
            let mut dbias = wanted[2].then(|| Rows::<T>::new(&[out]));
            let (mut of_x, mut of_weight) =
                (dx.as_mut().map(|dx| dx.matrix("dx")).transpose()?, dweight.as_mut().map(|dweight| dweight.matrix("dweight")).transpose()?);
            let mut gradients = Gradients { dx: of_x.as_mut(), dweight: of_weight.as_mut().map(WeightGradient::Transposed), dbias: dbias.as_mut().map(Rows::slice) };
            let z = step.saved.as_ref().map(|z| flex::matrix(z, "z")).transpose()?;
            let from = (&flex::matrix(&dy, "dy")?, z.as_ref());
            self.kernel::<T>(&weight, None)?.backward(&flex::matrix::<T>(&x, "x")?, from, &mut gradients, Par::default())?;
            Ok([dx.map(Rows::into_tensor), dweight.map(Rows::into_tensor), dbias.map(Rows::into_tensor)])
        })
    }
}
