//! Tensors in f32 that a plan makes for itself, and their way back into the caller's.

use crate::view::{Strided, StridedMut, View, ViewMut};
use crate::{Error, Par};
use std::ops::Range;

/// The values of a view for a definition.
pub(super) fn widened(view: &View<'_>) -> Vec<f64> {
    let [batch, heads, rows, width] = view.shape();
    let place = |at: usize| [at / width / rows / heads, at / width / rows % heads, at / width % rows, at % width];
    (0..batch * heads * rows * width).map(|at| f64::from(view.at(place(at)))).collect()
}

/// A contiguous tensor `[B, H, N, D]`.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    pub(super) shape: [usize; 4],
    pub(super) data: Vec<f32>,
}

impl Owned {
    pub(super) fn zeros(shape: [usize; 4]) -> Self {
        Owned { shape, data: vec![0.0; shape.iter().product()] }
    }

    /// Zeros that were written, for sums of many threads: where fresh memory is read before it is written, every page is mapped
    /// twice, and the second time interrupts all cores.
    pub(super) fn sums(shape: [usize; 4]) -> Self {
        let count = shape.iter().product();
        let mut data = Vec::with_capacity(count);
        data.resize(count, 0.0);
        Owned { shape, data }
    }

    /// The values of a view.
    pub(super) fn widened(from: &View<'_>) -> Self {
        let shape @ [batch, heads, rows, width] = from.shape();
        let mut owned = Owned::zeros(shape);
        for (at, row) in owned.data.chunks_mut(width.max(1)).enumerate() {
            let [b, h, n] = [at / rows / heads, at / rows % heads, at % rows];
            match from.rows(b, h, n..n + 1) {
                Some((values, _)) => row.copy_from_slice(&values[..width]),
                None => row.iter_mut().enumerate().for_each(|(d, x)| *x = from.at([b, h, n, d])),
            }
        }
        debug_assert_eq!(owned.data.len(), batch * heads * rows * width);
        owned
    }

    pub(super) fn row(&self, [b, h, n]: [usize; 3]) -> &[f32] {
        let [_, heads, rows, width] = self.shape;
        &self.data[((b * heads + h) * rows + n) * width..][..width]
    }

    pub(super) fn row_mut(&mut self, [b, h, n]: [usize; 3]) -> &mut [f32] {
        let [_, heads, rows, width] = self.shape;
        &mut self.data[((b * heads + h) * rows + n) * width..][..width]
    }

    /// Some rows of a head, gathered.
    pub(super) fn gathered(&self, [b, h]: [usize; 2], rows: &[usize]) -> Self {
        let data = rows.iter().flat_map(|&n| self.row([b, h, n])).copied().collect();
        Owned { shape: [1, 1, rows.len(), self.shape[3]], data }
    }

    pub(super) fn view(&self) -> View<'_> {
        Strided::contiguous(&self.data, self.shape, "rows").expect("its own shape").into()
    }

    pub(super) fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut::F32(StridedMut::contiguous(&mut self.data, self.shape, "rows").expect("its own shape"))
    }

    /// Some rows of every head of one batch row.
    pub(super) fn part_mut(&mut self, b: usize, rows: Range<usize>) -> ViewMut<'_> {
        let [_, heads, all, width] = self.shape;
        let start = (b * heads * all + rows.start) * width;
        let strides = [heads * all * width, all * width, width, 1];
        ViewMut::F32(StridedMut::new(&mut self.data[start..], [1, heads, rows.len(), width], strides, "rows").expect("rows of its own"))
    }

    /// Rounds every row into an output of the same shape.
    pub(super) fn write(&self, into: &mut ViewMut<'_>, par: Par) -> Result<(), Error> {
        crate::problem::expect("output", into.shape(), self.shape)?;
        into.round(&self.data, par);
        Ok(())
    }
}
