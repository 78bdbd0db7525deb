//! Values as a file stores them: little-endian.

use crate::tensor::Values;
use half::{bf16, f16};
use std::io::{self, Read, Write};

/// Bytes that pass through memory at a time.
const CHUNK: usize = 1 << 16;

/// A type of values that files hold.
pub trait Stored: Copy + Default {
    /// Bytes of one value.
    const SIZE: usize;
    /// From little-endian bytes.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// Appends little-endian bytes.
    fn append_to(self, bytes: &mut Vec<u8>);
}

macro_rules! stored {
    ($($type:ty),+) => {$(
        impl Stored for $type {
            const SIZE: usize = size_of::<$type>();

            fn from_bytes(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$type>()];
                own.copy_from_slice(bytes);
                <$type>::from_le_bytes(own)
            }

            fn append_to(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
    )+};
}

stored!(f32, bf16, f16, f64, i32, i64, u8);

/// The next `count` values.
pub fn read_values<T: Stored>(mut from: impl Read, count: usize) -> io::Result<Values<T>> {
    let mut values = Values::zeros(count);
    let mut bytes = vec![0; CHUNK.min(count * T::SIZE)];
    for chunk in values.chunks_mut(CHUNK / T::SIZE) {
        let bytes = &mut bytes[..chunk.len() * T::SIZE];
        from.read_exact(bytes)?;
        for (value, bytes) in chunk.iter_mut().zip(bytes.chunks_exact(T::SIZE)) {
            *value = T::from_bytes(bytes);
        }
    }
    Ok(values)
}

/// Writes values.
pub fn write_values<T: Stored>(values: &[T], mut into: impl Write) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK.min(values.len() * T::SIZE));
    for chunk in values.chunks(CHUNK / T::SIZE) {
        bytes.clear();
        chunk.iter().for_each(|value| value.append_to(&mut bytes));
        into.write_all(&bytes)?;
    }
    Ok(())
}
