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
use regard_core::rows::{Matrix, MatrixMut};
use regard_core::{Element, Strided, StridedMut, View, ViewMut};
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

/// Shape and strides of a tensor of four dimensions.
pub(crate) fn layout(x: &FlexTensor, tensor: &'static str) -> Result<([usize; 4], [isize; 4]), Error> {
    Ok((four(x.layout().shape(), tensor)?, four(x.layout().strides(), tensor)?))
}

/// A tensor `[B, H, N, D]` where it stands.
pub(crate) fn view<'a>(x: &'a FlexTensor, tensor: &'static str) -> Result<View<'a>, Error> {
    let (at, (shape, strides)) = (x.layout().start_offset(), layout(x, tensor)?);
    Ok(match x.dtype() {
        DType::F32 => Strided::new(x.storage::<f32>(), at, shape, strides, tensor)?.into(),
        DType::BF16 => Strided::new(x.storage::<bf16>(), at, shape, strides, tensor)?.into(),
        DType::F16 => Strided::new(x.storage::<f16>(), at, shape, strides, tensor)?.into(),
        other => return Err(Error::Dtype { tensor, found: name(other), expected: "f32, bf16 or f16".to_owned() }),
    })
}

/// A mask `[B|1, H|1, N, M]` where it stands, one byte per element.
pub(crate) fn mask<'a>(x: &'a FlexTensor) -> Result<Strided<'a, u8>, Error> {
    let (shape, strides) = layout(x, "mask")?;
    Ok(Strided::new(x.storage::<u8>(), x.layout().start_offset(), shape, strides, "mask")?)
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

/// Memory for a result `[B, H, N, D]`, in the order in which another tensor lies: heads of a layer are columns of its tokens, and
/// so are then the heads of the result, which join without a copy.
#[derive(Debug)]
pub(crate) struct Fresh {
    shape: [usize; 4],
    /// Whether memory is `[B, N, H, D]`.
    tokens_first: bool,
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Fresh {
    /// Of the dtype and order of `x`, a tensor that the kernels take; zeros until it is written.
    pub(crate) fn like(x: &FlexTensor, shape: [usize; 4]) -> Self {
        let strides = x.layout().strides();
        let tokens_first = shape[1] > 1 && strides[2] > strides[1];
        let values = match x.dtype() {
            DType::BF16 => Values::Bf16(Vec::new()),
            DType::F16 => Values::F16(Vec::new()),
            _ => Values::F32(Vec::new()),
        };
        Fresh { shape, tokens_first, values }
    }

    /// To write to.
    pub(crate) fn view_mut(&mut self, tensor: &'static str) -> Result<ViewMut<'_>, Error> {
        let (shape @ [_, h, n, d], first) = (self.shape, self.tokens_first);
        let strides = if first { [n * h * d, d, h * d, 1] } else { [h * n * d, n * d, d, 1] };
        Ok(match &mut self.values {
            Values::F32(x) => ViewMut::F32(StridedMut::fresh(x, shape, strides, tensor)?),
            Values::Bf16(x) => ViewMut::Bf16(StridedMut::fresh(x, shape, strides, tensor)?),
            Values::F16(x) => ViewMut::F16(StridedMut::fresh(x, shape, strides, tensor)?),
        })
    }

    /// As a tensor, without a copy.
    pub(crate) fn into_tensor(self) -> FlexTensor {
        let [b, h, n, d] = self.shape;
        let stored = if self.tokens_first { [b, n, h, d] } else { self.shape };
        let tensor = match self.values {
            Values::F32(x) => whole(x, &stored),
            Values::Bf16(x) => whole(x, &stored),
            Values::F16(x) => whole(x, &stored),
        };
        if self.tokens_first { tensor.transpose(1, 2) } else { tensor }
    }
}

/// Values as a tensor, zeros where nothing was written.
fn whole<T: Stored>(values: Vec<T>, shape: &[usize]) -> FlexTensor {
    Rows { values, shape: shape.to_vec() }.into_tensor()
}

/// A storage type of the kernels, as this device has it.
pub(crate) trait Stored: Element {
    /// The whole buffer of a tensor of this type.
    fn storage(x: &FlexTensor) -> &[Self];
    /// Values as a tensor, without a copy.
    fn tensor(values: Vec<Self>, shape: &[usize]) -> FlexTensor;
}

macro_rules! stored {
    ($($T:ty),+) => {
        $(impl Stored for $T {
            fn storage(x: &FlexTensor) -> &[Self] {
                x.storage::<$T>()
            }
            fn tensor(values: Vec<Self>, shape: &[usize]) -> FlexTensor {
                FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
            }
        })+
    };
}

stored!(f32, bf16, f16);

/// Runs an expression that gives a `Result` with `$T` the storage type of a tensor.
macro_rules! typed {
    ($x:expr, $T:ident => $body:expr) => {
        match $x.dtype() {
            burn::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            burn::tensor::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            burn::tensor::DType::F16 => {
                type $T = half::f16;
                $body
            }
            other => Err($crate::Error::Dtype { tensor: "x", found: $crate::flex::name(other), expected: "f32, bf16 or f16".to_owned() }),
        }
    };
}
pub(crate) use typed;

/// Rows, columns, and elements from one row to the next, where the last dimension is contiguous and the others are one.
fn rows(x: &FlexTensor) -> Option<([usize; 2], isize)> {
    let (shape, strides) = (x.layout().shape(), x.layout().strides());
    let (&columns, leading) = shape.split_last()?;
    let neighbours = columns <= 1 || strides[leading.len()] == 1;
    let mut dims = leading.iter().zip(strides).filter(|(n, _)| **n != 1).map(|(n, stride)| (*n, *stride)).rev();
    let (mut count, step) = dims.next().unwrap_or((1, columns as isize));
    for (n, stride) in dims {
        if stride != step * count as isize {
            return None;
        }
        count *= n;
    }
    neighbours.then_some(([leading.iter().product(), columns], step))
}

/// The tensor itself if the elements of its last dimension are neighbours; else a copy.
pub(crate) fn with_rows(x: &FlexTensor) -> FlexTensor {
    if x.layout().strides().last() == Some(&1) {
        return x.clone();
    }
    Tally::add(|tally| tally.copies += 1);
    x.to_contiguous()
}

/// The tensor itself if it is rows of neighbours, evenly spaced; else a copy.
pub(crate) fn as_rows(x: &FlexTensor) -> FlexTensor {
    if x.layout().num_elements() == 0 || rows(x).is_some() {
        return x.clone();
    }
    Tally::add(|tally| tally.copies += 1);
    x.to_contiguous()
}

/// A tensor of [`as_rows`] as `[rows, columns]`, all dimensions but the last taken together.
pub(crate) fn matrix<'a, T: Stored>(x: &'a FlexTensor, tensor: &'static str) -> Result<Matrix<'a, T>, Error> {
    let columns = x.layout().shape().last().copied().unwrap_or(1);
    let empty = || ([x.layout().num_elements() / columns.max(1), columns], columns as isize);
    let (shape, stride) = rows(x).unwrap_or_else(empty);
    Ok(Matrix::strided(T::storage(x), x.layout().start_offset(), shape, [stride, 1], tensor)?)
}

/// A tensor of [`as_rows`] with one dimension.
pub(crate) fn vector<T: Stored>(x: &FlexTensor) -> &[T] {
    let start = x.layout().start_offset();
    &T::storage(x)[start..start + x.layout().num_elements()]
}

/// Memory for a result in rows, written where an operation's threads take it up.
#[derive(Debug)]
pub(crate) struct Rows<T> {
    values: Vec<T>,
    shape: Vec<usize>,
}

impl<T: Stored> Rows<T> {
    pub(crate) fn new(shape: &[usize]) -> Self {
        Rows { values: Vec::new(), shape: shape.to_vec() }
    }

    /// Of the shape of another tensor.
    pub(crate) fn like(x: &FlexTensor) -> Self {
        Self::new(x.layout().shape())
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn matrix(&mut self, tensor: &'static str) -> Result<MatrixMut<'_, T>, Error> {
        let columns = self.shape.last().copied().unwrap_or(1);
        let rows = self.count() / columns.max(1);
        Ok(MatrixMut::fresh(&mut self.values, [rows, columns], tensor)?)
    }

    pub(crate) fn slice(&mut self) -> &mut [T] {
        self.values.resize(self.count(), T::default());
        &mut self.values
    }

    pub(crate) fn into_tensor(mut self) -> FlexTensor {
        self.slice();
        T::tensor(self.values, &self.shape)
    }
}
