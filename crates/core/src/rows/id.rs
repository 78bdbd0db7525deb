//! Whole numbers as callers store them: token ids, labels, positions.

/// A stored whole number.
pub trait Id: Copy + Send + Sync + 'static {
    /// Widened.
    fn to_i64(self) -> i64;
}

impl Id for u32 {
    #[inline(always)]
    fn to_i64(self) -> i64 {
        self.into()
    }
}

impl Id for i32 {
    #[inline(always)]
    fn to_i64(self) -> i64 {
        self.into()
    }
}

impl Id for i64 {
    #[inline(always)]
    fn to_i64(self) -> i64 {
        self
    }
}
