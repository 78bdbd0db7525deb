//! Tensors of Burn's CPU device as views of the kernels, and results of kernels as tensors.
//!
//! A view keeps the tensor's strides: 0 for expanded dimensions, negative ones for flipped; `storage()` is the whole
//! buffer, which may be larger than the view, so the layout's offset is part of it. Nothing is copied.

use crate::{Error, Tally};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use regard_core::{Strided, StridedMut, View, ViewMut};
use std::borrow::Cow;

/// Whether the kernels take tensors of this dtype.
pub(crate) fn takes(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// A dtype as the kernels name it.
pub(crate) fn name(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

fn four<T: Copy>(dims: &[T], tensor: &'static str) -> Result<[T; 4], Error> {
    let wrong = |_| regard_core::Error::Value { name: tensor, message: format!("{} dimensions, expected 4", dims.len()) };
    Ok(dims.try_into().map_err(wrong)?)
}

/// A tensor `[B, H, N, D]` where it stands.
pub(crate) fn view<'a>(x: &'a FlexTensor, tensor: &'static str) -> Result<View<'a>, Error> {
    let layout = x.layout();
    let (at, shape, strides) = (layout.start_offset(), four(layout.shape(), tensor)?, four(layout.strides(), tensor)?);
    Ok(match x.dtype() {
        DType::F32 => Strided::new(x.storage::<f32>(), at, shape, strides, tensor)?.into(),
        DType::BF16 => Strided::new(x.storage::<bf16>(), at, shape, strides, tensor)?.into(),
        DType::F16 => Strided::new(x.storage::<f16>(), at, shape, strides, tensor)?.into(),
        other => return Err(Error::Dtype { tensor, found: name(other), expected: "f32, bf16 or f16" }),
    })
}

/// A mask `[B|1, H|1, N, M]` where it stands, one byte per element.
pub(crate) fn mask<'a>(x: &'a FlexTensor) -> Result<Strided<'a, u8>, Error> {
    let layout = x.layout();
    let (shape, strides) = (four(layout.shape(), "mask")?, four(layout.strides(), "mask")?);
    Ok(Strided::new(x.storage::<u8>(), layout.start_offset(), shape, strides, "mask")?)
}

/// All elements in row-major order as f32; borrowed where they stand so.
pub(crate) fn flat(x: &FlexTensor) -> Cow<'_, [f32]> {
    if let (DType::F32, Some((start, end))) = (x.dtype(), x.layout().contiguous_offsets()) {
        return Cow::Borrowed(&x.storage::<f32>()[start..end]);
    }
    Tally::add(|tally| tally.copies += 1);
    let wide = cast(x.clone(), DType::F32).to_contiguous();
    Cow::Owned(wide.storage::<f32>().to_vec())
}

/// The same values in another dtype.
pub(crate) fn cast(x: FlexTensor, dtype: DType) -> FlexTensor {
    if x.dtype() == dtype { x } else { Flex::float_cast(x, dtype.into()) }
}

/// Values as a tensor of `dtype`.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize], dtype: DType) -> FlexTensor {
    cast(FlexTensor::from_data(TensorData::new(values, shape.to_vec())), dtype)
}

/// Memory for a result `[B, H, N, D]`.
#[derive(Debug)]
pub(crate) struct Fresh {
    shape: [usize; 4],
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Fresh {
    /// Zeros; `dtype` is one that the kernels take.
    pub(crate) fn new(shape: [usize; 4], dtype: DType) -> Self {
        let count = shape.iter().product();
        let values = match dtype {
            DType::BF16 => Values::Bf16(vec![bf16::ZERO; count]),
            DType::F16 => Values::F16(vec![f16::ZERO; count]),
            _ => Values::F32(vec![0.0; count]),
        };
        Fresh { shape, values }
    }

    /// To write to.
    pub(crate) fn view_mut(&mut self, tensor: &'static str) -> Result<ViewMut<'_>, Error> {
        Ok(match &mut self.values {
            Values::F32(x) => ViewMut::F32(StridedMut::contiguous(x, self.shape, tensor)?),
            Values::Bf16(x) => ViewMut::Bf16(StridedMut::contiguous(x, self.shape, tensor)?),
            Values::F16(x) => ViewMut::F16(StridedMut::contiguous(x, self.shape, tensor)?),
        })
    }

    /// As a tensor, without a copy.
    pub(crate) fn into_tensor(self) -> FlexTensor {
        FlexTensor::from_data(match self.values {
            Values::F32(x) => TensorData::new(x, self.shape),
            Values::Bf16(x) => TensorData::new(x, self.shape),
            Values::F16(x) => TensorData::new(x, self.shape),
        })
    }
}
