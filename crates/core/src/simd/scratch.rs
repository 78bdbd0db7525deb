//! Working memory that starts on a cache line.

/// A growable buffer of f32 or i32 whose slices start at a multiple of 64 bytes.
#[derive(Debug, Default)]
pub struct Aligned<T> {
    values: Vec<T>,
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let length = self.values.len().saturating_sub(64 / size_of::<T>());
        let mut copy = Self::zeros(length);
        copy.take(length).copy_from_slice(self.get(length));
        copy
    }
}

impl<T: Copy + Default> Aligned<T> {
    /// An empty buffer.
    pub const fn new() -> Self {
        Aligned { values: Vec::new() }
    }

    /// A buffer of `length` default values.
    pub fn zeros(length: usize) -> Self {
        let mut buffer = Self::new();
        buffer.take(length);
        buffer
    }

    /// The first `length` values, whatever they hold.
    pub fn take(&mut self, length: usize) -> &mut [T] {
        let spare = 64 / size_of::<T>();
        if self.values.len() < length + spare {
            self.values.resize(length + spare, T::default());
        }
        let start = self.values.as_ptr().align_offset(64);
        &mut self.values[start..start + length]
    }

    /// The first `length` values for reading.
    ///
    /// # Panics
    /// If so many have never been taken.
    pub fn get(&self, length: usize) -> &[T] {
        let start = self.values.as_ptr().align_offset(64);
        &self.values[start..start + length]
    }
}
