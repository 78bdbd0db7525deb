//! Products of working forms: `c += a·b` in register tiles, of which some are left out where a triangle of a or of c is zero.

use crate::simd::{Lanes, Left, Rows, Task, product};

/// Registers in a row of a tile.
const C: usize = 2;

/// What a product leaves out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// Nothing.
    Full,
    /// Tiles of c wholly to the right of its diagonal.
    LowerResult,
    /// Steps behind the diagonal of a: `a(r, t) = 0` for t > r.
    Lower,
    /// Steps before the diagonal of a: `a(r, t) = 0` for t < r.
    Upper,
}

/// `c += a·b`, or `c = a·b`, for c of whole tiles.
pub(super) struct Multiply<'a, A> {
    pub(super) a: A,
    pub(super) b: Rows<'a>,
    pub(super) c: &'a mut [f32],
    /// Distance between rows of c, and how many of them there are columns in each.
    pub(super) stride: usize,
    pub(super) steps: usize,
    pub(super) shape: Shape,
    /// Whether c is added to.
    pub(super) adds: bool,
}

impl<A: Left> Task for Multiply<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Multiply { a, b, c, stride, steps, shape, adds } = self;
        let (panel, rows) = (C * S::N, c.len() / stride);
        for column in (0..stride).step_by(panel) {
            for row in (0..rows).step_by(R) {
                if shape == Shape::LowerResult && column >= row + R {
                    continue;
                }
                let (from, to) = match shape {
                    Shape::Lower => (0, steps.min(row + R)),
                    Shape::Upper => (row.min(steps), steps),
                    Shape::Full | Shape::LowerResult => (0, steps),
                };
                let tile = &mut c[row * stride + column..];
                let mut acc = [[s.zero(); C]; R];
                if adds {
                    for (r, sums) in acc.iter_mut().enumerate() {
                        for (i, x) in sums.iter_mut().enumerate() {
                            *x = s.load(&tile[r * stride + i * S::N..]);
                        }
                    }
                }
                if from < to {
                    let b = Rows::new(&b.data[from * b.stride + column..], b.stride);
                    acc = product::<S, _, R, C>(s, acc, a.below(row).after(from), b, to - from);
                }
                for (r, sums) in acc.iter().enumerate() {
                    for (i, x) in sums.iter().enumerate() {
                        s.store(&mut tile[r * stride + i * S::N..], *x);
                    }
                }
            }
        }
    }
}

/// `[rows, columns]` as `[columns, rows]`, both multiples of a register.
pub(super) struct Turn<'a> {
    pub(super) from: &'a [f32],
    pub(super) into: &'a mut [f32],
    /// Rows, columns.
    pub(super) size: [usize; 2],
}

impl Task for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Turn { from, into, size: [rows, columns] } = self;
        for row in (0..rows).step_by(S::N) {
            for column in (0..columns).step_by(S::N) {
                s.transpose(&from[row * columns + column..], columns, &mut into[column * rows + row..], rows, None);
            }
        }
    }
}

/// `into += factor · x`.
#[inline(always)]
pub(super) fn add<S: Lanes>(s: S, into: &mut [f32], x: &[f32], factor: f32) {
    let factor = s.splat(factor);
    for (to, x) in into.chunks_exact_mut(S::N).zip(x.chunks_exact(S::N)) {
        s.store(to, s.mul_add(factor, s.load(x), s.load(to)));
    }
}

/// `into = into ∘ x`.
#[inline(always)]
pub(super) fn multiply<S: Lanes>(s: S, into: &mut [f32], x: &[f32]) {
    for (to, x) in into.chunks_exact_mut(S::N).zip(x.chunks_exact(S::N)) {
        s.store(to, s.mul(s.load(to), s.load(x)));
    }
}

/// `into = factor · into`.
#[inline(always)]
pub(super) fn scale<S: Lanes>(s: S, into: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for to in into.chunks_exact_mut(S::N) {
        s.store(to, s.mul(s.load(to), factor));
    }
}

#[inline(always)]
pub(super) fn dot<S: Lanes>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.zero();
    for (a, b) in a.chunks_exact(S::N).zip(b.chunks_exact(S::N)) {
        sum = s.mul_add(s.load(a), s.load(b), sum);
    }
    s.sum(sum)
}

/// Clears what row `i` of `a` holds outside `seen(i)`.
#[inline(always)]
pub(super) fn clear_above(a: &mut [f32], stride: usize) {
    for (i, row) in a.chunks_exact_mut(stride).enumerate() {
        if i + 1 < stride {
            row[i + 1..].fill(0.0);
        }
    }
}
