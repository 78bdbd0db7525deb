//! Tensors in memory: row-major values of the types that files hold, each buffer starting on a cache line.

use half::{bf16, f16};
use regard_core::simd::Aligned;
use regard_core::{Error, Strided, StridedMut, View, ViewMut};
use std::ops::{Deref, DerefMut};

/// Values that start on a cache line.
pub struct Values<T> {
    memory: Aligned<T>,
    length: usize,
}

impl<T: Copy + Default> Values<T> {
    /// So many default values.
    pub fn zeros(length: usize) -> Self {
        Values { memory: Aligned::zeros(length), length }
    }

    fn mapped<S: Copy>(from: &[S], map: impl Fn(S) -> T) -> Self {
        let mut values = Self::zeros(from.len());
        for (to, &from) in values.iter_mut().zip(from) {
            *to = map(from);
        }
        values
    }
}

impl<T: Copy + Default> Clone for Values<T> {
    fn clone(&self) -> Self {
        Self::mapped(self, |x| x)
    }
}

impl<T: Copy + Default> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.memory.get(self.length)
    }
}

impl<T: Copy + Default> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.memory.take(self.length)
    }
}

/// A type of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 32-bit.
    F32,
    /// 16-bit with the exponent of f32.
    Bf16,
    /// 16-bit IEEE.
    F16,
    /// 64-bit, for the definition.
    F64,
}

impl Float {
    /// By its name in a file.
    pub fn of_file(dtype: &str) -> Option<Self> {
        match dtype {
            "F32" => Some(Float::F32),
            "BF16" => Some(Float::Bf16),
            "F16" => Some(Float::F16),
            "F64" => Some(Float::F64),
            _ => None,
        }
    }

    /// Its name for people and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Float::F32 => "f32",
            Float::Bf16 => "bf16",
            Float::F16 => "f16",
            Float::F64 => "f64",
        }
    }

    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::Bf16 | Float::F16 => 2,
            Float::F64 => 8,
        }
    }
}

/// Values of any type.
#[derive(Clone)]
pub enum Data {
    /// 32-bit floats.
    F32(Values<f32>),
    /// 16-bit floats with the exponent of f32.
    Bf16(Values<bf16>),
    /// 16-bit IEEE floats.
    F16(Values<f16>),
    /// 64-bit floats.
    F64(Values<f64>),
    /// 32-bit integers.
    I32(Values<i32>),
    /// 64-bit integers.
    I64(Values<i64>),
    /// Bytes, or truths as 0 and 1.
    U8(Values<u8>),
}

/// Runs the same expression for every type of floats; integers give `$other`.
macro_rules! each_float {
    ($data:expr, $x:ident => $body:expr, $other:expr) => {
        match $data {
            Data::F32($x) => $body,
            Data::Bf16($x) => $body,
            Data::F16($x) => $body,
            Data::F64($x) => $body,
            Data::I32(_) | Data::I64(_) | Data::U8(_) => $other,
        }
    };
}

/// A row-major tensor.
#[derive(Clone)]
pub struct Tensor {
    /// Its sizes.
    pub shape: Vec<usize>,
    /// As many values as their product.
    pub data: Data,
}

impl Tensor {
    /// Zeros.
    pub fn zeros(float: Float, shape: &[usize]) -> Self {
        let length = shape.iter().product();
        let data = match float {
            Float::F32 => Data::F32(Values::zeros(length)),
            Float::Bf16 => Data::Bf16(Values::zeros(length)),
            Float::F16 => Data::F16(Values::zeros(length)),
            Float::F64 => Data::F64(Values::zeros(length)),
        };
        Tensor { shape: shape.to_vec(), data }
    }

    /// From f64, rounded.
    pub fn rounded(float: Float, shape: &[usize], values: &[f64]) -> Self {
        let data = match float {
            Float::F32 => Data::F32(Values::mapped(values, |x| x as f32)),
            Float::Bf16 => Data::Bf16(Values::mapped(values, bf16::from_f64)),
            Float::F16 => Data::F16(Values::mapped(values, f16::from_f64)),
            Float::F64 => Data::F64(Values::mapped(values, |x| x)),
        };
        Tensor { shape: shape.to_vec(), data }
    }

    /// Of integers.
    pub fn integers(shape: Vec<usize>, values: &[i64]) -> Self {
        Tensor { shape, data: Data::I64(Values::mapped(values, |x| x)) }
    }

    /// The same values in another type of floats.
    pub fn converted(self, float: Float) -> Self {
        if self.float() == Some(float) { self } else { Tensor::rounded(float, &self.shape, &self.to_f64()) }
    }

    /// The type of its floats, if it holds floats.
    pub fn float(&self) -> Option<Float> {
        match self.data {
            Data::F32(_) => Some(Float::F32),
            Data::Bf16(_) => Some(Float::Bf16),
            Data::F16(_) => Some(Float::F16),
            Data::F64(_) => Some(Float::F64),
            _ => None,
        }
    }

    /// Its floats, widened.
    pub fn to_f64(&self) -> Vec<f64> {
        each_float!(&self.data, x => widened(x).collect(), Vec::new())
    }

    /// Its integers, widened.
    pub fn to_i64(&self) -> Vec<i64> {
        match &self.data {
            Data::I32(x) => x.iter().map(|&x| i64::from(x)).collect(),
            Data::I64(x) => x.to_vec(),
            _ => Vec::new(),
        }
    }

    /// Its values if they are f32.
    pub fn as_f32(&self) -> &[f32] {
        match &self.data {
            Data::F32(x) => x,
            _ => &[],
        }
    }

    /// Its values if they are f32.
    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::F32(x) => x,
            _ => &mut [],
        }
    }

    /// The index of the first float that is neither finite nor, where that hides, -inf.
    pub fn first_irregular(&self, hides: bool) -> Option<(Vec<usize>, f64)> {
        let irregular = |x: f64| !(x.is_finite() || hides && x == f64::NEG_INFINITY);
        let found = each_float!(&self.data, x => widened(x).enumerate().find(|&(_, x)| irregular(x)), None);
        found.map(|(at, value)| (self.coordinates(at), value))
    }

    fn coordinates(&self, mut at: usize) -> Vec<usize> {
        let mut coordinates = vec![0; self.shape.len()];
        for (coordinate, size) in coordinates.iter_mut().zip(&self.shape).rev() {
            *coordinate = at % size;
            at /= size;
        }
        coordinates
    }

    /// Its sizes if there are four of them; what has passed a file's checks has.
    pub fn shape4(&self) -> [usize; 4] {
        self.shape.as_slice().try_into().expect("the rank was checked when the tensor was read")
    }

    /// All of it for the kernel.
    pub fn view(&self, name: &'static str) -> Result<View<'_>, Error> {
        self.part([0; 4], self.shape4(), name)
    }

    /// A box of it for the kernel: so many of each dimension from a start.
    pub fn part(&self, start: [usize; 4], shape: [usize; 4], name: &'static str) -> Result<View<'_>, Error> {
        let whole = self.shape4();
        match &self.data {
            Data::F32(x) => Ok(View::F32(part(x, whole, (start, shape), name)?)),
            Data::Bf16(x) => Ok(View::Bf16(part(x, whole, (start, shape), name)?)),
            Data::F16(x) => Ok(View::F16(part(x, whole, (start, shape), name)?)),
            _ => Err(Error::Dtype { tensor: name, found: "another type", expected: "f32, bf16 or f16" }),
        }
    }

    /// A box of a mask for the kernel.
    pub fn mask_part(&self, start: [usize; 4], shape: [usize; 4]) -> Result<Strided<'_, u8>, Error> {
        match &self.data {
            Data::U8(x) => part(x, self.shape4(), (start, shape), "mask"),
            _ => Err(Error::Dtype { tensor: "mask", found: "another type", expected: "bool" }),
        }
    }

    /// All of it as an output.
    pub fn view_mut(&mut self, name: &'static str) -> Result<ViewMut<'_>, Error> {
        let shape = self.shape4();
        self.row_mut([0, 0], shape, name)
    }

    /// A box `[B, H, N, D]` of an output from batch row and query `[b, n]` on.
    pub fn row_mut(&mut self, [b, n]: [usize; 2], shape: [usize; 4], name: &'static str) -> Result<ViewMut<'_>, Error> {
        let whole = self.shape4();
        let strides = row_major(whole);
        let start = b * strides[0] + n * strides[2];
        match &mut self.data {
            Data::F32(x) => Ok(ViewMut::F32(StridedMut::new(&mut x[start..], shape, strides, name)?)),
            Data::Bf16(x) => Ok(ViewMut::Bf16(StridedMut::new(&mut x[start..], shape, strides, name)?)),
            Data::F16(x) => Ok(ViewMut::F16(StridedMut::new(&mut x[start..], shape, strides, name)?)),
            _ => Err(Error::Dtype { tensor: name, found: "another type", expected: "f32, bf16 or f16" }),
        }
    }
}

fn widened<T: Copy + Into<f64>>(values: &[T]) -> impl Iterator<Item = f64> {
    values.iter().map(|&x| x.into())
}

fn part<'a, T>(
    values: &'a [T],
    whole: [usize; 4],
    (start, shape): ([usize; 4], [usize; 4]),
    name: &'static str,
) -> Result<Strided<'a, T>, Error> {
    let strides = row_major(whole);
    let offset = start.iter().zip(strides).map(|(&at, stride)| at * stride).sum();
    Strided::new(values, offset, shape, strides.map(|stride| stride as isize), name)
}

fn row_major(shape: [usize; 4]) -> [usize; 4] {
    let [_, h, n, d] = shape;
    [h * n * d, n * d, d, 1]
}
