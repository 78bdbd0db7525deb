//! Rows divided by their Euclidean length.

use crate::Par;
use crate::simd::{Lanes, Task, dispatch};
use crate::view::{DisjointRows, StridedMut, View};
use std::ops::Range;

/// Rows that one thread normalises at a time.
const PIECE: usize = 128;

/// Rows of length 1, or of zeros where a row is similar to nothing.
#[derive(Debug, Clone)]
pub(crate) struct Directions {
    width: usize,
    data: Vec<f32>,
    lengths: Vec<f64>,
}

impl Directions {
    pub(crate) fn new(width: usize) -> Self {
        Directions { width, data: Vec::new(), lengths: Vec::new() }
    }

    /// Of some rows of head `[b, h]`.
    pub(crate) fn of(view: &View<'_>, head: [usize; 2], rows: Range<usize>, par: Par) -> Self {
        let width = view.shape()[3];
        let mut all = Directions { width, data: vec![0.0; rows.len() * width], lengths: vec![0.0; rows.len()] };
        let pieces: Vec<Range<usize>> = (0..rows.len()).step_by(PIECE).map(|at| at..rows.len().min(at + PIECE)).collect();
        let mut data = StridedMut::contiguous(&mut all.data, [1, 1, rows.len(), width], "rows").expect("its own shape");
        let mut lengths = StridedMut::contiguous(&mut all.lengths, [1, 1, rows.len(), 1], "lengths").expect("its own shape");
        let (data, lengths) = (DisjointRows::new(&mut data, &pieces), DisjointRows::new(&mut lengths, &pieces));
        par.run(pieces.len(), 8.0 * (rows.len() * width) as f64, |jobs| {
            while let Some(piece) = jobs.take() {
                let (mut data, mut lengths) = (data.claim(0, 0, piece), lengths.claim(0, 0, piece));
                for i in 0..pieces[piece].len() {
                    let at = [head[0], head[1], rows.start + pieces[piece].start + i];
                    lengths.row(i)[0] = dispatch(par.level_in_use(), Normalise { view, at, into: data.row(i) });
                }
            }
        });
        drop((data, lengths));
        all
    }

    /// Rows.
    pub(crate) fn count(&self) -> usize {
        self.lengths.len()
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..][..self.width]
    }

    /// What a row was divided by; 0 where it is similar to nothing.
    pub(crate) fn length(&self, row: usize) -> f64 {
        self.lengths[row]
    }

    /// Whether a row can be similar to others.
    pub(crate) fn has_direction(&self, row: usize) -> bool {
        self.lengths[row] > 0.0
    }

    pub(super) fn push(&mut self, from: &Directions, row: usize) {
        self.data.extend_from_slice(from.row(row));
        self.lengths.push(from.lengths[row]);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.capacity() * size_of::<f32>() + self.lengths.capacity() * size_of::<f64>()
    }
}

/// Writes a row divided by its length, and gives that.
struct Normalise<'a> {
    view: &'a View<'a>,
    at: [usize; 3],
    into: &'a mut [f32],
}

impl Task for Normalise<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) -> f64 {
        self.view.widen_row(s, self.at, self.into);
        let length = dot(self.into, self.into).sqrt();
        if length as f32 == 0.0 || !length.is_finite() {
            self.into.fill(0.0);
            return 0.0;
        }
        let factor = 1.0 / length;
        self.into.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        length
    }
}

/// The sum of products in f64, in eight interleaved parts.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const PARTS: usize = 8;
    let mut sums = [0.0f64; PARTS];
    let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<PARTS>(), b.as_chunks::<PARTS>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, &x), &y) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(x) * f64::from(y);
        }
    }
    for ((sum, &x), &y) in sums.iter_mut().zip(rest_of_a).zip(rest_of_b) {
        *sum += f64::from(x) * f64::from(y);
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Of two directions.
#[inline(always)]
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let sum = dot(a, b) as f32;
    if sum > 0.999 && a == b { 1.0 } else { sum.clamp(-1.0, 1.0) }
}
