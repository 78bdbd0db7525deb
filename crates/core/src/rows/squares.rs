//! `Σ x²` over a matrix, in f64 over blocks of rows and in f32 within: the square of a gradient's length.

use super::matrix::{Matrix, MatrixMut};
use super::sweep::{Sweep, blocks, load, pieces, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{DisjointRows, Element};
use crate::{Error, Par};
use std::ops::Range;

/// The sum of the squares of all elements.
///
/// # Errors
/// If the elements of a row are not neighbours.
pub fn sum_of_squares<T: Element>(x: &Matrix<'_, T>, par: Par) -> Result<f64, Error> {
    let shape = x.shape();
    x.check(shape, "x")?;
    let blocks = blocks(shape);
    let ones = pieces(blocks.len(), 1);
    let mut sums = vec![0.0f32; blocks.len()];
    let mut parts = MatrixMut::new(&mut sums, [blocks.len(), 1], "sums")?;
    sweep(&Squares { x, sums: parts.share(&ones) }, &blocks, shape[0] * shape[1], par);
    Ok(sums.iter().copied().map(f64::from).sum())
}

struct Squares<'a, T> {
    x: &'a Matrix<'a, T>,
    sums: DisjointRows<'a, f32>,
}

impl<T: Element> Sweep for Squares<'_, T> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut sum = s.zero();
        for row in rows {
            let row = self.x.row(row);
            for at in (0..row.len()).step_by(S::N) {
                let x = load(s, row, at, 0.0);
                sum = s.mul_add(x, x, sum);
            }
        }
        self.sums.claim(0, 0, block).row(0)[0] = s.sum(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    #[test]
    fn squares_are_summed_at_every_level() {
        for (rows, columns) in [(0, 5), (1, 1), (3, 17), (700, 130)] {
            let x: Vec<f32> = (0..rows * columns).map(|i| ((i as f32 * 0.37).sin() + 0.1) * 3.0).collect();
            let wanted: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let at = |threads| {
                    let par = Par::default().level(level).threads(threads);
                    sum_of_squares(&Matrix::new(&x, [rows, columns], "x").unwrap(), par).unwrap()
                };
                assert!((at(1) - wanted).abs() <= 1e-5 * wanted, "{level}, {rows} x {columns}: {} instead of {wanted}", at(1));
                assert_eq!(at(1).to_bits(), at(2).to_bits());
            }
        }
    }

    #[test]
    fn columns_apart_are_refused() {
        let x = [0.0f32; 6];
        let turned = Matrix::new(&x, [2, 3], "x").unwrap().transposed();
        assert!(sum_of_squares(&turned, Par::default()).is_err());
    }
}
