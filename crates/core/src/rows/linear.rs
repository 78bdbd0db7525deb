//! Linear map with what follows it: `z = x Wᵀ + b`, `y = f(z)`; x `[rows, in]`, W `[out, in]`, b `[out]`, y and z `[rows, out]`.
//! Weights stored `[in, out]` are passed [`Matrix::transposed`]. x and W may differ in type; sums are f32.
//!
//! Backward, from `dz = f'(z) dy`: `dx = dz W`, `dW = dzᵀ x`, `db = Σ dz`. With an activation z must have been written by the
//! forward pass, and `dz` is the one array that is made, in f32; without one it is `dy`.

use super::curve::{Activation, Curve, each_curve};
use super::matrix::{Matrix, MatrixMut, check_length};
use super::multiply::{Block, Finish, Grid, multiply};
use super::sweep::{Sweep, blocks, load, pieces, store, sweep};
use crate::simd::{Aligned, Lanes, Rows};
use crate::view::{Claim, DisjointRows, Element};
use crate::{Error, Par};
use std::ops::Range;

/// The most blocks of rows whose sums make db.
const PARTS: usize = 64;

/// The map: W `[out, in]`, b `[out]`, and what is applied to the result.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a, W> {
    /// `[out, in]`, of any strides.
    pub weight: Matrix<'a, W>,
    /// `[out]`.
    pub bias: Option<&'a [W]>,
    /// f.
    pub activation: Activation,
}

impl<'a, W: Element> Linear<'a, W> {
    /// Without an activation.
    pub fn new(weight: Matrix<'a, W>, bias: Option<&'a [W]>) -> Self {
        Linear { weight, bias, activation: Activation::None }
    }

    /// With an activation.
    #[must_use]
    pub fn activation(self, activation: Activation) -> Self {
        Linear { activation, ..self }
    }

    fn check<X: Element>(&self, x: &Matrix<'_, X>) -> Result<[usize; 2], Error> {
        let ([rows, inputs], [out, expected]) = (x.shape(), self.weight.shape());
        if inputs != expected {
            return Err(Error::Shape { tensor: "weight", found: vec![out, expected], expected: vec![out, inputs] });
        }
        if let Some(bias) = self.bias {
            check_length(bias.len(), out, "bias")?;
        }
        Ok([rows, out])
    }

    /// `y = f(x Wᵀ + b)`; writes z, too, where it is asked for.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward<X: Element>(
        &self,
        x: &Matrix<'_, X>,
        y: &mut MatrixMut<'_, X>,
        z: Option<&mut MatrixMut<'_, X>>,
        par: Par,
    ) -> Result<(), Error> {
        let shape = self.check(x)?;
        y.check(shape, "y")?;
        let grid = Grid::new(shape, x.shape()[1]);
        let y = y.tiles(&grid.rows, &grid.columns);
        let z = match z {
            Some(z) => {
                z.check(shape, "z")?;
                Some(z.tiles(&grid.rows, &grid.columns))
            }
            None => None,
        };
        each_curve!(self.activation, curve => {
            multiply(x, &self.weight.transposed(), &grid, &Activate { curve, bias: self.bias, y, z }, par);
        });
        Ok(())
    }

    /// Gradients from x, `dy`, and z where there is an activation.
    ///
    /// # Errors
    /// If shapes do not fit, or z is missing.
    pub fn backward<X: Element>(
        &self,
        x: &Matrix<'_, X>,
        (dy, z): (&Matrix<'_, X>, Option<&Matrix<'_, X>>),
        gradients: &mut Gradients<'_, '_, X, W>,
        par: Par,
    ) -> Result<(), Error> {
        let shape = self.check(x)?;
        let Gradients { dx, dweight, dbias } = gradients;
        dy.check(shape, "dy")?;
        dx.as_ref().map_or(Ok(()), |dx| dx.check(x.shape(), "dx"))?;
        dweight.as_ref().map_or(Ok(()), |dweight| dweight.check(self.weight.shape(), "dweight"))?;
        dbias.as_ref().map_or(Ok(()), |dbias| check_length(dbias.len(), shape[1], "dbias"))?;
        let z = match (self.activation, z) {
            (Activation::None, _) => dy,
            (_, Some(z)) => z,
            (f, None) => return Err(Error::Combination(format!("the gradient of {} needs z", f.name()))),
        };
        z.check(shape, "z")?;
        if self.activation == Activation::None {
            if let Some(dbias) = dbias {
                self.pull((dy, z), None, Some(dbias), par)?;
            }
            return self.products(x, dy, (dx.as_deref_mut(), dweight.as_deref_mut()), par);
        }
        let mut dz = Vec::new();
        self.pull((dy, z), Some(&mut MatrixMut::fresh(&mut dz, shape, "dz")?), dbias.as_deref_mut(), par)?;
        self.products(x, &Matrix::new(&dz, shape, "dz")?, (dx.as_deref_mut(), dweight.as_deref_mut()), par)
    }

    /// `dx = dz W` and `dW = dzᵀ x`.
    fn products<X: Element, Z: Element>(
        &self,
        x: &Matrix<'_, X>,
        dz: &Matrix<'_, Z>,
        (dx, dweight): (Option<&mut MatrixMut<'_, X>>, Option<&mut MatrixMut<'_, W>>),
        par: Par,
    ) -> Result<(), Error> {
        if let Some(dx) = dx {
            plain(dz, &self.weight, dx, par);
        }
        if let Some(dweight) = dweight {
            plain(&dz.transposed(), x, dweight, par);
        }
        Ok(())
    }

    /// `dz = f'(z) dy` and its column sums.
    fn pull<X: Element>(
        &self,
        (dy, z): (&Matrix<'_, X>, &Matrix<'_, X>),
        dz: Option<&mut MatrixMut<'_, f32>>,
        dbias: Option<&mut [W]>,
        par: Par,
    ) -> Result<(), Error> {
        let shape @ [rows, out] = dy.shape();
        let smallest = blocks(shape).first().map_or(1, Range::len);
        let blocks = pieces(rows, smallest.max(rows.div_ceil(PARTS)));
        let ones = pieces(blocks.len(), 1);
        let mut sums = Vec::new();
        let mut parts = MatrixMut::fresh(&mut sums, [blocks.len(), out], "sums")?;
        let dz = dz.map(|dz| dz.share(&blocks));
        each_curve!(self.activation, curve => {
            sweep(&Pull { curve, dy, z, dz, sums: parts.share(&ones) }, &blocks, rows * out, par);
        });
        if let Some(dbias) = dbias {
            super::norm::sum_parts(&sums, out, 0, dbias);
        }
        Ok(())
    }
}

/// What [`Linear::backward`] fills; what is absent is not computed.
#[derive(Debug)]
pub struct Gradients<'a, 'd, X, W> {
    /// `[rows, in]`.
    pub dx: Option<&'a mut MatrixMut<'d, X>>,
    /// `[out, in]`.
    pub dweight: Option<&'a mut MatrixMut<'d, W>>,
    /// `[out]`.
    pub dbias: Option<&'a mut [W]>,
}

/// `c = a · b` and nothing else.
fn plain<A: Element, B: Element, T: Element>(a: &Matrix<'_, A>, b: &Matrix<'_, B>, c: &mut MatrixMut<'_, T>, par: Par) {
    let grid = Grid::new(c.shape(), a.shape()[1]);
    let y = c.tiles(&grid.rows, &grid.columns);
    multiply(a, b, &grid, &Activate::<_, T, T> { curve: super::curve::Line, bias: None, y, z: None }, par);
}

struct Activate<'a, F, X, W> {
    curve: F,
    bias: Option<&'a [W]>,
    y: DisjointRows<'a, X>,
    z: Option<DisjointRows<'a, X>>,
}

/// A block of what [`Activate`] writes.
struct Open<'a, X, W> {
    y: Claim<'a, X>,
    z: Option<Claim<'a, X>>,
    bias: &'a [W],
}

impl<F: Curve, X: Element, W: Element> Finish for Activate<'_, F, X, W> {
    type Open<'a>
        = Open<'a, X, W>
    where
        Self: 'a;

    fn open(&self, block: &Block) -> Open<'_, X, W> {
        let [row, column] = block.at;
        let bias = self.bias.map_or(&[][..], |bias| &bias[block.columns.clone()]);
        Open { y: self.y.claim(0, column, row), z: self.z.as_ref().map(|z| z.claim(0, column, row)), bias }
    }

    #[inline(always)]
    fn finish<S: Lanes>(&self, s: S, open: &mut Open<'_, X, W>, [rows, columns]: [Range<usize>; 2], values: Rows<'_>) {
        let bias = if open.bias.is_empty() { open.bias } else { &open.bias[columns.clone()] };
        for (i, row) in rows.enumerate() {
            let (values, y) = (values.from(i).data, &mut open.y.row(row)[columns.clone()]);
            for at in (0..y.len()).step_by(S::N) {
                let sum = load(s, values, at, 0.0);
                let sum = if bias.is_empty() { sum } else { s.add(sum, load(s, bias, at, 0.0)) };
                if let Some(z) = &mut open.z {
                    store(s, &mut z.row(row)[columns.clone()], at, sum);
                }
                store(s, y, at, self.curve.value(s, sum));
            }
        }
    }
}

struct Pull<'a, F, X> {
    curve: F,
    dy: &'a Matrix<'a, X>,
    z: &'a Matrix<'a, X>,
    /// Absent where it is dy.
    dz: Option<DisjointRows<'a, f32>>,
    /// Column sums of each block.
    sums: DisjointRows<'a, f32>,
}

impl<F: Curve, X: Element> Sweep for Pull<'_, F, X> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let (mut claim, mut sums) = (self.dz.as_ref().map(|dz| dz.claim(0, 0, block)), self.sums.claim(0, 0, block));
        let sums = sums.row(0);
        for (i, row) in rows.enumerate() {
            let (dy, z) = (self.dy.row(row), self.z.row(row));
            let mut dz = claim.as_mut().map(|dz| dz.row(i));
            for at in (0..dy.len()).step_by(S::N) {
                let slope = s.mul(self.curve.slope(s, load(s, z, at, 0.0)), load(s, dy, at, 0.0));
                if let Some(dz) = &mut dz {
                    store(s, dz, at, slope);
                }
                store(s, sums, at, s.add(load(s, sums, at, 0.0), slope));
            }
        }
    }
}
