//! Dense row-major tensors whose first value lies on a 64-byte line, as PyTorch allocates its own.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use half::bf16;
use memmap2::MmapMut;

/// `len` values in pages of their own, and so on a 64-byte line. On huge pages, if the measuring program asks for those.
pub struct Aligned<T> {
    pages: MmapMut,
    len: usize,
    value: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// All zeros. The memory is not touched before the first write.
    pub fn zeros(len: usize) -> Self {
        let pages = MmapMut::map_anon(len.max(1) * size_of::<T>()).expect("there is memory for a tensor");
        #[cfg(target_os = "linux")]
        if huge_pages() {
            pages.advise(memmap2::Advice::HugePage).expect("this system has no huge pages");
        }
        Self { pages, len, value: PhantomData }
    }
}

/// Whether `--huge-pages` was given: the C library heeds this variable for what it allocates itself.
#[cfg(target_os = "linux")]
fn huge_pages() -> bool {
    std::env::var("GLIBC_TUNABLES").is_ok_and(|tunables| tunables.split(':').any(|tunable| tunable == "glibc.malloc.hugetlb=1"))
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.pages)[..self.len]
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.len]
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

    const LINE: usize = 64;

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
