//! Matrices `[rows, columns]` over borrowed slices: what every row operation reads and writes.

use crate::Error;
use crate::view::{DisjointRows, Element, Strided, StridedMut};
use half::bf16;
use std::ops::Range;

/// A matrix to read. Strides count elements: a transposed, repeated or flipped matrix is a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T>(Strided<'a, T>);

impl<'a, T: Copy> Matrix<'a, T> {
    /// Rows that follow one another from the front of `data`.
    ///
    /// # Errors
    /// If the slice is shorter than `rows · columns`.
    pub fn new(data: &'a [T], shape: [usize; 2], tensor: &'static str) -> Result<Self, Error> {
        Ok(Matrix(Strided::contiguous(data, [1, 1, shape[0], shape[1]], tensor)?))
    }

    /// Lays `shape` and `strides` over `data`, the first element at `offset`.
    ///
    /// # Errors
    /// If some element would lie outside the slice.
    pub fn strided(data: &'a [T], offset: usize, shape: [usize; 2], strides: [isize; 2], tensor: &'static str) -> Result<Self, Error> {
        Ok(Matrix(Strided::new(data, offset, [1, 1, shape[0], shape[1]], [0, 0, strides[0], strides[1]], tensor)?))
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        let [.., rows, columns] = self.0.shape();
        [rows, columns]
    }

    /// The matrix with rows and columns exchanged; no element moves.
    #[must_use]
    pub fn transposed(self) -> Self {
        Matrix(self.0.permuted([0, 1, 3, 2]))
    }

    /// One element.
    #[inline(always)]
    pub fn at(&self, row: usize, column: usize) -> T {
        self.0.at([0, 0, row, column])
    }

    /// Elements from one row to the next, and from one column to the next.
    pub(crate) fn strides(&self) -> [isize; 2] {
        let [.., rows, columns] = self.0.strides();
        [rows, columns]
    }

    /// The elements from `row`, `column` on, to the end of the slice.
    #[inline(always)]
    pub(crate) fn tail(&self, row: usize, column: usize) -> &'a [T] {
        self.0.tail([0, 0, row, column])
    }

    /// One row of a matrix that passed [`Matrix::check`].
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        self.0.row(0, 0, row).expect("rows were checked to be contiguous")
    }

    /// Rows as one slice, where they follow one another.
    #[inline(always)]
    pub(crate) fn together(&self, rows: Range<usize>) -> Option<&'a [T]> {
        self.0.rows(0, 0, rows).filter(|(_, stride)| *stride == self.shape()[1]).map(|(slice, _)| slice)
    }

    /// Refuses another shape, and rows whose elements are not neighbours.
    pub(crate) fn check(&self, shape: [usize; 2], tensor: &'static str) -> Result<(), Error> {
        same(self.shape(), shape, tensor)?;
        if shape.contains(&0) || shape[1] == 1 || self.strides()[1] == 1 {
            return Ok(());
        }
        let message = format!("the elements of a row must be neighbours, they are {} apart", self.strides()[1]);
        Err(Error::Layout { tensor, message })
    }
}

impl<'a> Matrix<'a, bf16> {
    /// Neighbours along rows of even length in pairs, where they stand.
    pub(crate) fn as_pairs(&self) -> Option<Matrix<'a, f32>> {
        self.0.as_pairs().map(Matrix)
    }
}

impl<'a, T: Element> Matrix<'a, T> {
    /// The matrix itself, where it is of bf16.
    pub(crate) fn as_bf16(&self) -> Option<Matrix<'a, bf16>> {
        T::as_bf16(self.0).map(Matrix)
    }
}

/// A matrix to write. The elements of a row are neighbours, and no two rows overlap.
#[derive(Debug)]
pub struct MatrixMut<'a, T>(StridedMut<'a, T>);

impl<'a, T: Copy + Default> MatrixMut<'a, T> {
    /// Memory of its own: see [`StridedMut::fresh`].
    ///
    /// # Errors
    /// None: rows that follow one another neither overlap nor leave gaps.
    pub fn fresh(values: &'a mut Vec<T>, [rows, columns]: [usize; 2], tensor: &'static str) -> Result<Self, Error> {
        let size = rows * columns;
        Ok(MatrixMut(StridedMut::fresh(values, [1, 1, rows, columns], [size, size, columns, 1], tensor)?))
    }
}

impl<'a, T> MatrixMut<'a, T> {
    /// Rows that follow one another from the front of `data`.
    ///
    /// # Errors
    /// If the slice is shorter than `rows · columns`.
    pub fn new(data: &'a mut [T], shape: [usize; 2], tensor: &'static str) -> Result<Self, Error> {
        Ok(MatrixMut(StridedMut::contiguous(data, [1, 1, shape[0], shape[1]], tensor)?))
    }

    /// Rows that start `stride` elements apart.
    ///
    /// # Errors
    /// If some element would lie outside the slice, or rows overlap.
    pub fn strided(data: &'a mut [T], shape: [usize; 2], stride: usize, tensor: &'static str) -> Result<Self, Error> {
        Ok(MatrixMut(StridedMut::new(data, [1, 1, shape[0], shape[1]], [0, 0, stride, 1], tensor)?))
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        let [.., rows, columns] = self.0.shape();
        [rows, columns]
    }

    pub(crate) fn check(&self, shape: [usize; 2], tensor: &'static str) -> Result<(), Error> {
        same(self.shape(), shape, tensor)
    }

    pub(crate) fn share<'s>(&'s mut self, pieces: &'s [Range<usize>]) -> DisjointRows<'s, T> {
        DisjointRows::new(&mut self.0, pieces)
    }

    pub(crate) fn tiles<'s>(&'s mut self, rows: &'s [Range<usize>], columns: &'s [Range<usize>]) -> DisjointRows<'s, T> {
        DisjointRows::tiles(&mut self.0, rows, columns)
    }
}

fn same(found: [usize; 2], expected: [usize; 2], tensor: &'static str) -> Result<(), Error> {
    if found != expected {
        return Err(Error::Shape { tensor, found: found.to_vec(), expected: expected.to_vec() });
    }
    Ok(())
}

/// Refuses a vector of another length.
pub(crate) fn check_length(found: usize, expected: usize, tensor: &'static str) -> Result<(), Error> {
    if found != expected {
        return Err(Error::Shape { tensor, found: vec![found], expected: vec![expected] });
    }
    Ok(())
}
