//! Dense row-major tensors whose first value lies on a 64-byte line, as PyTorch allocates its own.

use std::ops::{Deref, DerefMut};

use half::bf16;

const LINE: usize = 64;

/// `len` values that start on a 64-byte line.
pub struct Aligned<T> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// All zeros. The memory is not touched before the first write.
    pub fn zeros(len: usize) -> Self {
        let buffer = vec![T::default(); len + LINE / size_of::<T>()];
        let start = buffer.as_ptr().align_offset(LINE);
        assert!(start + len <= buffer.len(), "the allocator returned memory that cannot be aligned");
        Self { buffer, start, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

/// The values, by storage type.
pub enum Data {
    F32(Aligned<f32>),
    Bf16(Aligned<bf16>),
}

/// Four dimensions `[batch, heads, rows, columns]`, without gaps.
pub struct Tensor {
    pub shape: [usize; 4],
    pub data: Data,
}

impl Tensor {
    /// Zeros of this shape in the storage type of `like`.
    pub fn zeros_like(shape: [usize; 4], like: &Data) -> Self {
        let len = shape.iter().product();
        let data = match like {
            Data::F32(_) => Data::F32(Aligned::zeros(len)),
            Data::Bf16(_) => Data::Bf16(Aligned::zeros(len)),
        };
        Self { shape, data }
    }

    /// From plain f32 values, which are copied to aligned memory.
    pub fn from_f32(shape: [usize; 4], values: &[f32]) -> Self {
        let mut data = Aligned::zeros(values.len());
        data.copy_from_slice(values);
        Self { shape, data: Data::F32(data) }
    }

    /// The values, if they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) => Some(values),
            Data::Bf16(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_starts_on_a_line() {
        for len in [0, 1, 15, 16, 17, 1000, 100_000] {
            let values = Aligned::<f32>::zeros(len);
            assert_eq!(values.len(), len);
            assert_eq!(values.as_ptr().align_offset(LINE), 0, "{len} values");
            let halves = Aligned::<bf16>::zeros(len);
            assert_eq!(halves.len(), len);
            assert_eq!(halves.as_ptr().align_offset(LINE), 0, "{len} values");
        }
    }
}
