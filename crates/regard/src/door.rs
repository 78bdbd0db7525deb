//! What is checked before any work: devices, dtypes, shapes; and which route a tensor takes.

use crate::autodiff::on_flex;
use crate::{Error, flex};
use burn::tensor::kind::Basic;
use burn::tensor::{DType, Tensor};

/// Whether fused kernels take this tensor: on Burn's CPU device, in f32, bf16 or f16.
pub(crate) fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    flex::takes(x.dtype()) && on_flex(x)
}

pub(crate) fn plain_float<const D: usize>(x: &Tensor<D>, tensor: &'static str) -> Result<(), Error> {
    if flex::takes(x.dtype()) || x.dtype() == DType::F64 {
        return Ok(());
    }
    Err(Error::Dtype { tensor, found: flex::name(x.dtype()), expected: "f64, f32, bf16 or f16".to_owned() })
}

/// Refuses another dtype than that of the first tensor.
pub(crate) fn same_dtype<const A: usize, const B: usize>(
    first: &Tensor<A>,
    (name, tensor): (&'static str, &'static str),
    x: &Tensor<B>,
) -> Result<(), Error> {
    if x.dtype() == first.dtype() {
        return Ok(());
    }
    let expected = format!("{} as {name} is", flex::name(first.dtype()));
    Err(Error::Dtype { tensor, found: flex::name(x.dtype()), expected })
}

/// Refuses a tensor of any kind on another device.
pub(crate) fn same_place<const A: usize, const B: usize, K: Basic>(
    first: &Tensor<A>,
    tensor: &'static str,
    x: &Tensor<B, K>,
) -> Result<(), Error> {
    let (here, there) = (first.device(), x.device());
    if here == there { Ok(()) } else { Err(Error::Device { tensor, found: format!("{there:?}"), expected: format!("{here:?}") }) }
}

/// Refuses another device, and another strategy of gradient checkpointing.
pub(crate) fn same_device<const A: usize, const B: usize>(first: &Tensor<A>, tensor: &'static str, x: &Tensor<B>) -> Result<(), Error> {
    same_place(first, tensor, x)?;
    match (first.gradient_checkpointing_strategy(), x.gradient_checkpointing_strategy()) {
        (Some(a), Some(b)) if a != b => Err(Error::Checkpointing { tensor }),
        _ => Ok(()),
    }
}

pub(crate) fn expect(tensor: &'static str, found: &[usize], expected: &[usize]) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(regard_core::Error::Shape { tensor, found: found.to_vec(), expected: expected.to_vec() }.into())
}
