//! Layer norm and RMS norm over the last dimension: `y = w (x - μ) r + b`, `r = 1 / √(mean (x - μ)² + ε)`; RMS norm has μ = 0
//! and no b. Saved: x, nothing else. Ba et al. 2016; Zhang, Sennrich 2019.

use super::present;
use crate::autodiff::{self, Operation, Parent, Parents, Step};
use crate::flex::{self, Rows, Stored, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use regard_core::Par;
use regard_core::rows::norm as kernel;
use regard_core::rows::norm::{Gradients, Norm};

/// Layer norm of x `[.., E]` with weight `[E]` and bias `[E]`.
///
/// # Errors
/// If shapes, dtypes or devices do not fit, or ε is negative.
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Option<Tensor<1>>, epsilon: f32) -> Result<Tensor<D>, Error> {
    check(&x, "weight", &weight)?;
    if let Some(bias) = &bias {
        check(&x, "bias", bias)?;
    }
    if door::has_kernels(&x) {
        let operation = Normalise { centred: true, epsilon };
        return autodiff::run(operation, [Some(x.into()), Some(weight.into()), bias.map(Parent::from)]);
    }
    Tally::add(|tally| tally.composed += 1);
    let middle = x.clone() - x.mean_dim(D - 1);
    let y = unit(middle, epsilon) * weight.unsqueeze();
    Ok(match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    })
}

/// Layer norm of the sum x + residual, both `[.., E]`: one pass over memory on the CPU. Saved: the sum.
///
/// # Errors
/// If shapes, dtypes or devices do not fit, or ε is negative.
pub fn layer_norm_added<const D: usize>(
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    epsilon: f32,
) -> Result<Tensor<D>, Error> {
    check_sum(&x, &residual)?;
    check(&x, "weight", &weight)?;
    if !door::has_kernels(&x) {
        return layer_norm(x + residual, weight, bias, epsilon);
    }
    if let Some(bias) = &bias {
        check(&x, "bias", bias)?;
    }
    let operation = NormaliseSum(Normalise { centred: true, epsilon });
    autodiff::run(operation, [Some(x.into()), Some(residual.into()), Some(weight.into()), bias.map(Parent::from)])
}

/// RMS norm of x `[.., E]` with weight `[E]`.
///
/// # Errors
/// If shapes, dtypes or devices do not fit, or ε is negative.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Result<Tensor<D>, Error> {
    check(&x, "weight", &weight)?;
    if door::has_kernels(&x) {
        let operation = Normalise { centred: false, epsilon };
        return autodiff::run(operation, [Some(x.into()), Some(weight.into()), None]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(unit(x, epsilon) * weight.unsqueeze())
}

/// RMS norm of the sum x + residual, both `[.., E]`: one pass over memory on the CPU. Saved: the sum.
///
/// # Errors
/// If shapes, dtypes or devices do not fit, or ε is negative.
pub fn rms_norm_added<const D: usize>(x: Tensor<D>, residual: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Result<Tensor<D>, Error> {
    check_sum(&x, &residual)?;
    check(&x, "weight", &weight)?;
    if !door::has_kernels(&x) {
        return rms_norm(x + residual, weight, epsilon);
    }
    let operation = NormaliseSum(Normalise { centred: false, epsilon });
    autodiff::run(operation, [Some(x.into()), Some(residual.into()), Some(weight.into()), None])
}

/// `x / √(mean x² + ε)`.
fn unit<const D: usize>(x: Tensor<D>, epsilon: f32) -> Tensor<D> {
    let square = (x.clone() * x.clone()).mean_dim(D - 1);
    x / (square + epsilon).sqrt()
}

fn check_sum<const D: usize>(x: &Tensor<D>, residual: &Tensor<D>) -> Result<(), Error> {
    door::same_device(x, "residual", residual)?;
    door::same_dtype(x, ("x", "residual"), residual)?;
    door::expect("residual", &residual.dims(), &x.dims())
}

fn check<const D: usize>(x: &Tensor<D>, tensor: &'static str, vector: &Tensor<1>) -> Result<(), Error> {
    door::plain_float(x, "x")?;
    door::same_device(x, tensor, vector)?;
    door::same_dtype(x, ("x", tensor), vector)?;
    door::expect(tensor, &vector.dims(), &[x.dims()[D - 1]])
}

#[derive(Debug, Clone)]
struct Normalise {
    centred: bool,
    epsilon: f32,
}

impl Normalise {
    fn kernel<'a, T: Stored>(&self, weight: &'a FlexTensor, bias: Option<&'a FlexTensor>) -> Norm<'a, T> {
        if self.centred {
            Norm::layer(flex::vector(weight), bias.map(flex::vector), self.epsilon)
        } else {
            Norm::rms(flex::vector(weight), self.epsilon)
        }
    }
}

impl Operation<3> for Normalise {
    type Saved = ();

    fn reads(&self, _tracked: [bool; 3]) -> [bool; 3] {
        [true, true, false]
    }

    fn forward(&self, parents: &Parents<3>, _keep: bool) -> Result<(FlexTensor, ()), Error> {
        let [x, weight] = [0, 1].map(|at| flex::as_rows(present(parents, at)));
        let bias = parents[2].as_ref().map(flex::as_rows);
        let y = typed!(x, T => {
            let mut y = Rows::<T>::like(&x);
            let norm = self.kernel::<T>(&weight, bias.as_ref());
            kernel::forward(&norm, &flex::matrix(&x, "x")?, &mut y.matrix("y")?, Par::default())?;
            Ok(y.into_tensor())
        })?;
        Ok((y, ()))
    }

    fn backward(&self, step: Step<Self, 3>, wanted: [bool; 3]) -> Result<Parents<3>, Error> {
        let [x, weight] = [0, 1].map(|at| flex::as_rows(present(&step.parents, at)));
        let dy = flex::as_rows(&step.gradient);
        typed!(x, T => {
            let mut dx = Rows::<T>::like(&x);
            let [mut dweight, mut dbias] = [wanted[1], wanted[2]].map(|wanted| wanted.then(|| Rows::<T>::like(&weight)));
            let mut matrix = dx.matrix("dx")?;
            let mut gradients =
                Gradients { dx: &mut matrix, dweight: dweight.as_mut().map(Rows::slice), dbias: dbias.as_mut().map(Rows::slice) };
            let from = (&flex::matrix(&dy, "dy")?, None);
            kernel::backward(&self.kernel::<T>(&weight, None), &flex::matrix(&x, "x")?, from, &mut gradients, Par::default())?;
            Ok([wanted[0].then(|| dx.into_tensor()), dweight.map(Rows::into_tensor), dbias.map(Rows::into_tensor)])
        })
    }
}

#[derive(Debug, Clone)]
struct NormaliseSum(Normalise);

impl Operation<4> for NormaliseSum {
    /// The sum, where a backward pass may follow.
    type Saved = Option<FlexTensor>;

    fn reads(&self, _tracked: [bool; 4]) -> [bool; 4] {
        [false, false, true, false]
    }

    fn forward(&self, parents: &Parents<4>, keep: bool) -> Result<(FlexTensor, Self::Saved), Error> {
        let [x, residual, weight] = [0, 1, 2].map(|at| flex::as_rows(present(parents, at)));
        let bias = parents[3].as_ref().map(flex::as_rows);
        typed!(x, T => {
            let (mut sum, mut y) = (Rows::<T>::like(&x), Rows::<T>::like(&x));
            let norm = self.0.kernel::<T>(&weight, bias.as_ref());
            let from = [&flex::matrix(&x, "x")?, &flex::matrix(&residual, "residual")?];
            kernel::forward_added(&norm, from, [&mut sum.matrix("sum")?, &mut y.matrix("y")?], Par::default())?;
            Ok((y.into_tensor(), keep.then(|| sum.into_tensor())))
        })
    }

    fn backward(&self, step: Step<Self, 4>, wanted: [bool; 4]) -> Result<Parents<4>, Error> {
        let sum = step.saved.expect("it was kept");
        let parents = [Some(sum), step.parents[2].clone(), None];
        let norm = Step::<Normalise, 3> { parents, saved: (), gradient: step.gradient };
        let [dsum, dweight, dbias] = self.0.backward(norm, [wanted[0] || wanted[1], wanted[2], wanted[3]])?;
        Ok([dsum.clone().filter(|_| wanted[0]), dsum.filter(|_| wanted[1]), dweight, dbias])
    }
}
