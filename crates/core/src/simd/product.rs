//! The register tile that every product of attention is made of:
//! `acc[r][c] += Σ_t a(r, t) · b[t·stride + c·N ..]`, `a` broadcast, `b` in the lanes.
//!
//! `Sᵀ = K·Qᵀ` reads a = rows of K, b = a panel of Qᵀ; `O += P·V` reads a = columns of Pᵀ, b = rows of V; the three
//! products of the backward pass are the same again. Bounds are checked once per tile. Steps are unrolled so that a sum over
//! 64 or 128 is a loop of few rounds, whose end the branch predictor foresees.

use super::Lanes;

/// Steps per round of the loop.
const UNROLL: usize = 8;

/// Rows of values, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `data`.
    #[inline(always)]
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        Rows { data, stride }
    }

    /// The rows from `first` on.
    #[inline(always)]
    pub fn from(self, first: usize) -> Self {
        Rows { data: &self.data[first * self.stride..], stride: self.stride }
    }
}

/// Rows of values in strips, as wide as a tile of two registers. Where the rows of a strip stand end to end it fills the cache's sets
/// evenly; side by side, at distances of a power of two, its lines meet in few of them and push each other out.
#[derive(Debug, Clone, Copy)]
pub struct Strips<'a> {
    rows: Rows<'a>,
    /// Distance between strips.
    step: usize,
}

impl<'a> Strips<'a> {
    /// Rows as they stand, with the strips of a level of `lanes` lanes side by side.
    #[inline(always)]
    pub fn side_by_side(rows: Rows<'a>, lanes: usize) -> Self {
        Strips { rows, step: 2 * lanes }
    }

    /// Strips of `count` rows, one strip behind the other.
    #[inline(always)]
    pub fn end_to_end(data: &'a [f32], count: usize, lanes: usize) -> Self {
        Strips { rows: Rows::new(data, 2 * lanes), step: count * 2 * lanes }
    }

    /// The rows of one strip; there may be none.
    #[inline(always)]
    pub fn strip(self, index: usize) -> Rows<'a> {
        let start = self.rows.data.len().min(index * self.step);
        Rows { data: &self.rows.data[start..], ..self.rows }
    }
}

/// The broadcast factor of a tile.
pub trait Left: Copy {
    /// The values.
    fn data(&self) -> &[f32];
    /// Where row `r` stands at step `t`.
    fn at(&self, r: usize, t: usize) -> usize;
    /// The tile whose first row is row `first` of this one.
    fn below(self, first: usize) -> Self;
    /// The tile whose first step is step `first` of this one.
    fn after(self, first: usize) -> Self;
    /// One step: `sum + a · b`.
    #[inline(always)]
    fn multiply_add<S: Lanes>(s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        s.mul_add(a, b, sum)
    }
}

/// Row `r` of the tile is a row: `a(r, t) = data[r·stride + t]`.
#[derive(Debug, Clone, Copy)]
pub struct Along<'a>(pub Rows<'a>);

/// Row `r` of the tile is a column: `a(r, t) = data[t·stride + r]`.
#[derive(Debug, Clone, Copy)]
pub struct Across<'a>(pub Rows<'a>);

impl Left for Along<'_> {
    #[inline(always)]
    fn data(&self) -> &[f32] {
        self.0.data
    }
    #[inline(always)]
    fn at(&self, r: usize, t: usize) -> usize {
        r * self.0.stride + t
    }
    #[inline(always)]
    fn below(self, first: usize) -> Self {
        Along(self.0.from(first))
    }
    #[inline(always)]
    fn after(self, first: usize) -> Self {
        Along(Rows { data: &self.0.data[first..], stride: self.0.stride })
    }
}

impl Left for Across<'_> {
    #[inline(always)]
    fn data(&self) -> &[f32] {
        self.0.data
    }
    #[inline(always)]
    fn at(&self, r: usize, t: usize) -> usize {
        t * self.0.stride + r
    }
    #[inline(always)]
    fn below(self, first: usize) -> Self {
        Across(Rows { data: &self.0.data[first..], stride: self.0.stride })
    }
    #[inline(always)]
    fn after(self, first: usize) -> Self {
        Across(self.0.from(first))
    }
}

/// Adds `steps` outer products to a tile of `R` rows and `C` registers.
///
/// # Panics
/// If a slice is too short.
#[inline(always)]
pub fn product<S: Lanes, A: Left, const R: usize, const C: usize>(
    s: S,
    mut acc: [[S::F; C]; R],
    a: A,
    b: Rows<'_>,
    steps: usize,
) -> [[S::F; C]; R] {
    if steps == 0 {
        return acc;
    }
    assert!(a.at(R - 1, steps - 1) < a.data().len(), "tile reads beyond its rows");
    assert!((steps - 1) * b.stride + C * S::N <= b.data.len(), "tile reads beyond its panel");
    let (mut left, mut right) = (a.data().as_ptr(), b.data.as_ptr());
    let next = a.at(0, 1);
    /// One outer product at step `$t` of a round.
    macro_rules! step {
        ($t:expr) => {
            // SAFETY: the assertions above bound every offset of every step by the lengths of the two slices.
            #[allow(unsafe_code)]
            unsafe {
                let mut columns = [s.zero(); C];
                for (c, column) in columns.iter_mut().enumerate() {
                    *column = s.load(std::slice::from_raw_parts(right.wrapping_add($t * b.stride + c * S::N), S::N));
                }
                for (r, row) in acc.iter_mut().enumerate() {
                    let x = s.splat(*left.wrapping_add(a.at(r, $t)));
                    for (sum, column) in row.iter_mut().zip(columns) {
                        *sum = A::multiply_add(s, x, column, *sum);
                    }
                }
            }
        };
    }
    let rest = if S::SPECIALISED {
        for _ in 0..steps / UNROLL {
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            step!(4);
            step!(5);
            step!(6);
            step!(7);
            left = left.wrapping_add(UNROLL * next);
            right = right.wrapping_add(UNROLL * b.stride);
        }
        steps % UNROLL
    } else {
        steps
    };
    for _ in 0..rest {
        step!(0);
        left = left.wrapping_add(next);
        right = right.wrapping_add(b.stride);
    }
    acc
}
