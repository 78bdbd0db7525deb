//! The register tile that every product of attention is made of:
//! `acc[r][c] += Σ_t a[r·row + t·step] · b[t·step + c·N ..]`, `a` broadcast, `b` in the lanes.
//!
//! `Sᵀ = K·Qᵀ` reads a = rows of K, b = a panel of Qᵀ; `O += P·V` reads a = columns of Pᵀ, b = rows of V; the three
//! products of the backward pass are the same with other strides. Bounds are checked once per tile.

use super::Lanes;

/// A matrix in a slice: element `(r, t)` stands at `r·row + t·step`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Distance between the rows of the tile.
    pub row: usize,
    /// Distance between the steps of the sum.
    pub step: usize,
}

impl<'a> Rows<'a> {
    /// A matrix view.
    #[inline(always)]
    pub fn new(data: &'a [f32], row: usize, step: usize) -> Self {
        Rows { data, row, step }
    }
}

/// Adds `steps` outer products to a tile of `R` rows and `C` registers.
///
/// # Panics
/// If a slice is too short.
#[inline(always)]
pub fn product<S: Lanes, const R: usize, const C: usize>(
    s: S,
    mut acc: [[S::F; C]; R],
    a: Rows<'_>,
    b: Rows<'_>,
    steps: usize,
) -> [[S::F; C]; R] {
    if steps == 0 {
        return acc;
    }
    assert!((R - 1) * a.row + (steps - 1) * a.step < a.data.len(), "tile reads beyond its rows");
    assert!((steps - 1) * b.step + C * S::N <= b.data.len(), "tile reads beyond its panel");
    let mut left = a.data.as_ptr();
    let mut right = b.data.as_ptr();
    for _ in 0..steps {
        // SAFETY: the assertions above bound every offset of this loop by the lengths of the two slices.
        #[allow(unsafe_code)]
        unsafe {
            let mut columns = [s.zero(); C];
            for (c, column) in columns.iter_mut().enumerate() {
                *column = s.load(std::slice::from_raw_parts(right.add(c * S::N), S::N));
            }
            for (r, row) in acc.iter_mut().enumerate() {
                let x = s.splat(*left.add(r * a.row));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = s.mul_add(x, column, *sum);
                }
            }
            left = left.wrapping_add(a.step);
            right = right.wrapping_add(b.step);
        }
    }
    acc
}
