//! Linear map with what follows it: `z = x Wᵀ + b`, `y = f(z)`; x `[rows, in]`, W `[out, in]`, b `[out]`, y and z `[rows, out]`.
//! Weights stored `[in, out]` are passed [`Matrix::transposed`]. x and W may differ in type; sums are f32.
//!
//! Backward, from `dz = f'(z) dy`: `dx = dz W`, `dW = dzᵀ x`, `db = Σ dz`. With an activation z must have been written by the
//! forward pass, and `dz` is the one array that is made, of x's type; without one it is `dy`.

use super::curve::{Activation, Curve, Line, each_curve};
use super::matrix::{Matrix, MatrixMut, check_length};
use super::multiply::{Block, Finish, Grid, TILE, WIDTH, multiply};
use super::sweep::{Sweep, blocks, load, pieces, store, sweep};
use crate::simd::{Aligned, Lanes, Rows};
use crate::view::{DisjointRows, Element, Parts, Sheet};
use crate::{Error, Par};
use std::ops::Range;

/// Rows that go into sums together.
const TOGETHER: usize = 4;
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
        let weight = self.weight.transposed();
        let grid = Grid::new(x, &weight, par);
        let y = y.tiles(&grid.rows, &grid.columns);
        let z = match z {
            Some(z) => {
                z.check(shape, "z")?;
                Some(z.tiles(&grid.rows, &grid.columns))
            }
            None => None,
        };
        each_curve!(self.activation, curve => {
            multiply(x, &weight, &grid, &Activate { curve, bias: self.bias, y, z }, par);
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
        dweight.as_ref().map_or(Ok(()), |dweight| dweight.check(self.weight.shape()))?;
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
            self.products(x, dy, (dx.as_deref_mut(), dweight.as_mut()), par);
            return Ok(());
        }
        let mut dz = Vec::new();
        self.pull((dy, z), Some(&mut MatrixMut::fresh(&mut dz, shape, "dz")?), dbias.as_deref_mut(), par)?;
        self.products(x, &Matrix::new(&dz, shape, "dz")?, (dx.as_deref_mut(), dweight.as_mut()), par);
        Ok(())
    }

    /// `dx = dz W` and `dW = dzᵀ x`.
    fn products<X: Element>(
        &self,
        x: &Matrix<'_, X>,
        dz: &Matrix<'_, X>,
        (dx, dweight): (Option<&mut MatrixMut<'_, X>>, Option<&mut WeightGradient<'_, '_, W>>),
        par: Par,
    ) {
        if let Some(dx) = dx {
            plain(dz, &self.weight, dx, par);
        }
        match dweight {
            Some(WeightGradient::Straight(dweight)) => plain(&dz.transposed(), x, dweight, par),
            Some(WeightGradient::Transposed(dweight)) => plain(&x.transposed(), dz, dweight, par),
            None => {}
        }
    }

    /// `dz = f'(z) dy` and its column sums.
    fn pull<X: Element>(
        &self,
        (dy, z): (&Matrix<'_, X>, &Matrix<'_, X>),
        dz: Option<&mut MatrixMut<'_, X>>,
        dbias: Option<&mut [W]>,
        par: Par,
    ) -> Result<(), Error> {
        let shape @ [rows, out] = dy.shape();
        let smallest = blocks(shape).first().map_or(1, Range::len);
        let blocks = pieces(rows, smallest.max(rows.div_ceil(PARTS)));
        let ones = pieces(blocks.len(), 1);
        let mut memory = Vec::new();
        let mut parts = MatrixMut::fresh(&mut memory, [blocks.len(), out], "sums")?;
        let sums = parts.share(&ones);
        match dz {
            None => sweep(&Sum { of: dy, sums }, &blocks, rows * out, par),
            Some(dz) => each_curve!(self.activation, curve => {
                sweep(&Pull { curve, dy, z, dz: dz.share(&blocks), sums }, &blocks, rows * out, par);
            }),
        }
        if let Some(dbias) = dbias {
            super::norm::sum_parts(&memory, out, 0, dbias);
        }
        Ok(())
    }
}

/// What [`Linear::backward`] fills; what is absent is not computed.
#[derive(Debug)]
pub struct Gradients<'a, 'd, X, W> {
    /// `[rows, in]`.
    pub dx: Option<&'a mut MatrixMut<'d, X>>,
    /// Of W.
    pub dweight: Option<WeightGradient<'a, 'd, W>>,
    /// `[out]`.
    pub dbias: Option<&'a mut [W]>,
}

/// Where dW is written, in one or the other order of its dimensions.
#[derive(Debug)]
pub enum WeightGradient<'a, 'd, W> {
    /// `[out, in]`.
    Straight(&'a mut MatrixMut<'d, W>),
    /// `[in, out]`, for weights that are stored so.
    Transposed(&'a mut MatrixMut<'d, W>),
}

impl<W> WeightGradient<'_, '_, W> {
    fn check(&self, [out, inputs]: [usize; 2]) -> Result<(), Error> {
        match self {
            WeightGradient::Straight(dweight) => dweight.check([out, inputs], "dweight"),
            WeightGradient::Transposed(dweight) => dweight.check([inputs, out], "dweight"),
        }
    }
}

/// `c = a · b` and nothing else.
fn plain<A: Element, B: Element, T: Element>(a: &Matrix<'_, A>, b: &Matrix<'_, B>, c: &mut MatrixMut<'_, T>, par: Par) {
    let grid = Grid::new(a, b, par);
    let y = c.tiles(&grid.rows, &grid.columns);
    multiply(a, b, &grid, &Activate::<_, T, T> { curve: Line, bias: None, y, z: None }, par);
}

struct Activate<'a, F, X, W> {
    curve: F,
    bias: Option<&'a [W]>,
    y: DisjointRows<'a, X>,
    z: Option<DisjointRows<'a, X>>,
}

/// A block of what [`Activate`] writes.
struct Open<'a, X> {
    y: Sheet<'a, X>,
    z: Option<Sheet<'a, X>>,
    /// Zeros where there is none.
    bias: [f32; WIDTH],
}

impl<F: Curve, X: Element, W: Element> Finish for Activate<'_, F, X, W> {
    type Open<'a>
        = Open<'a, X>
    where
        Self: 'a;

    fn open(&self, block: &Block) -> Open<'_, X> {
        let [row, column] = block.at;
        let mut bias = [0.0; WIDTH];
        for (to, from) in bias.iter_mut().zip(self.bias.map_or(&[][..], |bias| &bias[block.columns.clone()])) {
            *to = from.to_f32();
        }
        Open { y: self.y.sheet(0, column, row), z: self.z.as_ref().map(|z| z.sheet(0, column, row)), bias }
    }

    #[inline(always)]
    fn ahead<S: Lanes>(&self, s: S, open: &Open<'_, X>, [rows, columns]: [Range<usize>; 2]) {
        open.y.ahead::<S, TILE>(s, rows.clone(), columns.start);
        if let Some(z) = &open.z {
            z.ahead::<S, TILE>(s, rows, columns.start);
        }
    }

    #[inline(always)]
    fn finish<S: Lanes>(&self, s: S, open: &mut Open<'_, X>, [rows, columns]: [Range<usize>; 2], values: Rows<'_>) {
        let bias = &open.bias[columns.clone()];
        if let Some(z) = &mut open.z {
            add_rows(s, Line, (values, bias), z.parts(rows.clone(), columns.clone()));
        }
        add_rows(s, self.curve, (values, bias), open.y.parts(rows, columns));
    }
}

/// `into = f(values + bias)`, row by row; those of two registers hold the bias meanwhile.
#[inline(always)]
fn add_rows<S: Lanes, F: Curve, X: Element>(s: S, curve: F, (values, bias): (Rows<'_>, &[f32]), into: Parts<'_, X>) {
    let rows = values.data.chunks_exact(values.stride).zip(into);
    if bias.len() != 2 * S::N {
        for (values, into) in rows {
            add(s, curve, [&values[..bias.len()], bias], into);
        }
        return;
    }
    let (lower, upper) = (s.load(bias), s.load(&bias[S::N..]));
    for (values, into) in rows {
        let (low, high) = (s.add(s.load(values), lower), s.add(s.load(&values[S::N..]), upper));
        X::store(s, into, curve.result::<S, X>(s, low));
        X::store(s, &mut into[S::N..], curve.result::<S, X>(s, high));
    }
}

/// `into = f(a + b)`, of one length.
#[inline(always)]
fn add<S: Lanes, F: Curve, X: Element>(s: S, curve: F, [a, b]: [&[f32]; 2], into: &mut [X]) {
    let whole = into.len() / S::N * S::N;
    let (lanes, rest) = into.split_at_mut(whole);
    for ((a, b), into) in a.chunks_exact(S::N).zip(b.chunks_exact(S::N)).zip(lanes.chunks_exact_mut(S::N)) {
        X::store(s, into, curve.result::<S, X>(s, s.add(s.load(a), s.load(b))));
    }
    if !rest.is_empty() {
        let sum = s.add(load(s, &a[whole..], 0, 0.0), load(s, &b[whole..], 0, 0.0));
        store(s, rest, 0, curve.result::<S, X>(s, sum));
    }
}

struct Pull<'a, F, X> {
    curve: F,
    dy: &'a Matrix<'a, X>,
    z: &'a Matrix<'a, X>,
    dz: DisjointRows<'a, X>,
    /// Column sums of each block.
    sums: DisjointRows<'a, f32>,
}

impl<F: Curve, X: Element> Sweep for Pull<'_, F, X> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let (mut sheet, mut sums) = (self.dz.sheet(0, 0, block), self.sums.claim(0, 0, block));
        let sums = sums.row(0);
        for (i, row) in rows.enumerate() {
            let (dy, z) = (self.dy.row(row), self.z.row(row));
            let dz = sheet.part(i, 0..dy.len());
            for at in (0..dy.len()).step_by(S::N) {
                let slope = s.mul(self.curve.slope(s, load(s, z, at, 0.0)), load(s, dy, at, 0.0));
                store(s, dz, at, slope);
                store(s, sums, at, s.add(load(s, sums, at, 0.0), slope));
            }
        }
    }
}

struct Sum<'a, X> {
    of: &'a Matrix<'a, X>,
    /// Column sums of each block.
    sums: DisjointRows<'a, f32>,
}

impl<X: Element> Sweep for Sum<'_, X> {
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, mut rows: Range<usize>, _: &mut Aligned<f32>) {
        let mut sums = self.sums.claim(0, 0, block);
        let sums = sums.row(0);
        while rows.len() >= TOGETHER {
            add_columns(s, std::array::from_fn::<_, TOGETHER, _>(|i| self.of.row(rows.start + i)), sums);
            rows.start += TOGETHER;
        }
        for row in rows {
            add_columns(s, [self.of.row(row)], sums);
        }
    }
}

/// Adds rows, one after the other, to sums of their columns.
#[inline(always)]
fn add_columns<S: Lanes, X: Element, const N: usize>(s: S, rows: [&[X]; N], sums: &mut [f32]) {
    let rows = rows.map(|row| &row[..sums.len()]);
    for at in (0..sums.len()).step_by(S::N) {
        let mut sum = load(s, sums, at, 0.0);
        for row in rows {
            sum = s.add(sum, load(s, row, at, 0.0));
        }
        store(s, sums, at, sum);
    }
}
