//! `model.safetensors`: its header is checked against its length, its tensors against the shapes that a model needs, and only then
//! are values widened to f32 and copied.

use crate::{Error, map};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

/// A mapped file of tensors.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    bytes: Mmap,
    /// Where the data begins.
    start: usize,
    metadata: Metadata,
}

impl Checkpoint {
    /// Maps a file and checks its header.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let bytes = map::open(path).map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
        let damaged = |error| {
            let length = bytes.len();
            Error::file(
                path,
                format!("not a whole safetensors file of {length} bytes ({error}); it is truncated or damaged, fetch it again"),
            )
        };
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let (data, expected) = (bytes.len() - 8 - header, metadata.data_len());
        if data != expected {
            let message =
                format!("its tensors take {expected} bytes, the file has {data} after its header; it is truncated, fetch it again");
            return Err(Error::file(path, message));
        }
        Ok(Checkpoint { path: path.to_owned(), start: 8 + header, metadata, bytes })
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// A tensor of floats that must have this shape. Nothing of its data is read.
    pub(crate) fn slot(&self, name: &str, shape: &[usize]) -> Result<Slot<'_>, Error> {
        let info = self.metadata.info(name).ok_or_else(|| self.refuse(name, "is missing".to_owned()))?;
        let &TensorInfo { dtype, shape: ref found, data_offsets: (from, to) } = info;
        if found != shape {
            return Err(self.refuse(name, format!("has shape {found:?}, the configuration asks for {shape:?}")));
        }
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(self.refuse(name, format!("is {dtype:?}, expected F32, F16 or BF16")));
        }
        let bytes = self.bytes.get(self.start + from..self.start + to);
        let bytes = bytes.ok_or_else(|| self.refuse(name, format!("has bytes {from}..{to}, past the end of the file")))?;
        Ok(Slot { dtype, bytes })
    }

    /// An error about one of its tensors.
    pub(crate) fn refuse(&self, name: &str, message: String) -> Error {
        Error::Tensor { path: self.path.clone(), tensor: name.to_owned(), message }
    }
}

/// A tensor that is there and has the right shape, not yet read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

impl Slot<'_> {
    /// Its values in f32. A file may start its data anywhere, so that nothing is known of their alignment.
    pub(crate) fn values(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F16 => widened(self.bytes, f16::from_le_bytes, |narrow, wide| narrow.convert_to_f32_slice(wide)),
            Dtype::BF16 => widened(self.bytes, bf16::from_le_bytes, |narrow, wide| narrow.convert_to_f32_slice(wide)),
            _ => self.bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        }
    }
}

/// Values of 16 bits in f32, some at a time.
fn widened<T: Copy + Default>(bytes: &[u8], read: impl Fn([u8; 2]) -> T, widen: impl Fn(&[T], &mut [f32])) -> Vec<f32> {
    const SOME: usize = 1024;
    let mut wide = vec![0.0; bytes.len() / 2];
    let mut narrow = [T::default(); SOME];
    for (bytes, wide) in bytes.chunks(2 * SOME).zip(wide.chunks_mut(SOME)) {
        for (value, &bytes) in narrow.iter_mut().zip(bytes.as_chunks().0) {
            *value = read(bytes);
        }
        widen(&narrow[..wide.len()], wide);
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        let values: Vec<f32> = (0..2500).map(|i| (i as f32 - 1200.0) * 0.25).collect();
        let half: Vec<u8> = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let brain: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let rounded: Vec<f32> = values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        assert_eq!(Slot { dtype: Dtype::F16, bytes: &half }.values(), values);
        assert_eq!(Slot { dtype: Dtype::BF16, bytes: &brain }.values(), rounded);
    }
}
