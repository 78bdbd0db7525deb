//! Borrowed four-dimensional tensors `[B, H, N, D]` with strides, and outputs whose rows threads claim in pieces.

use crate::par::Jobs;
use crate::simd::{LINE, Lanes, MOST_LANES, Task, as_pairs, dispatch, filled_up, write_part};
use crate::{Error, Par};
use half::{bf16, f16};
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

/// A stored float type. Arithmetic is f32 whatever the storage.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// Widened.
    fn to_f32(self) -> f32;
    /// Rounded to nearest even.
    fn from_f32(x: f32) -> Self;
    /// The first lanes of a slice, widened.
    fn load<S: Lanes>(s: S, from: &[Self]) -> S::F;
    /// Fills `into` from the front of `from`, rounded.
    fn narrow(from: &[f32], into: &mut [Self]) {
        for (to, from) in into.iter_mut().zip(from) {
            *to = Self::from_f32(*from);
        }
    }
    /// Writes all lanes to the front of a slice, rounded to nearest even.
    fn store<S: Lanes>(s: S, into: &mut [Self], x: S::F);
    /// The first lanes of a slice of fewer, widened; the others are `fill`.
    #[inline(always)]
    fn load_part<S: Lanes>(s: S, from: &[Self], fill: f32) -> S::F {
        Self::load(s, &filled_up(from, Self::from_f32(fill)))
    }
    /// Writes the first lanes to a slice of fewer, rounded to nearest even.
    #[inline(always)]
    fn store_part<S: Lanes>(s: S, into: &mut [Self], x: S::F) {
        let mut part = [Self::default(); MOST_LANES];
        Self::store(s, &mut part, x);
        write_part(into, &part);
    }
    /// The first `2N` elements of a slice, widened, in an order of the level's own.
    #[inline(always)]
    fn load_two<S: Lanes>(s: S, from: &[Self]) -> [S::F; 2] {
        [Self::load(s, from), Self::load(s, &from[S::N..])]
    }
    /// Writes `2N` elements in the order of [`Element::load_two`] to the front of a slice, rounded to nearest even.
    #[inline(always)]
    fn store_two<S: Lanes>(s: S, into: &mut [Self], x: [S::F; 2]) {
        Self::store(s, into, x[0]);
        Self::store(s, &mut into[S::N..], x[1]);
    }
    /// The values themselves, where the type is f32.
    fn as_f32(_values: &[Self]) -> Option<&[f32]> {
        None
    }
    /// As [`Element::store_two`], but numbers nearer to 0 than 2^-126 may become 0.
    #[inline(always)]
    fn store_two_normal<S: Lanes>(s: S, into: &mut [Self], x: [S::F; 2]) {
        Self::store_two(s, into, x);
    }
    /// Whether it is bf16, of which some processors multiply two at a time.
    const PAIRS: bool = false;
    /// The values themselves, where the type is bf16.
    fn halves(_values: &[Self]) -> Option<&[bf16]> {
        None
    }
    /// The tensor itself, where the type is bf16.
    fn as_bf16(_values: Strided<'_, Self>) -> Option<Strided<'_, bf16>> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn load<S: Lanes>(s: S, from: &[f32]) -> S::F {
        s.load(from)
    }
    fn narrow(from: &[f32], into: &mut [f32]) {
        into.copy_from_slice(&from[..into.len()]);
    }
    fn as_f32(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
    #[inline(always)]
    fn store<S: Lanes>(s: S, into: &mut [f32], x: S::F) {
        s.store(into, x);
    }
    #[inline(always)]
    fn load_part<S: Lanes>(s: S, from: &[f32], fill: f32) -> S::F {
        s.load_part(from, fill)
    }
    #[inline(always)]
    fn store_part<S: Lanes>(s: S, into: &mut [f32], x: S::F) {
        s.store_part(into, x);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn load<S: Lanes>(s: S, from: &[bf16]) -> S::F {
        s.load_bf16(from)
    }
    #[inline(always)]
    fn store<S: Lanes>(s: S, into: &mut [bf16], x: S::F) {
        s.store_bf16(into, x);
    }
    #[inline(always)]
    fn load_part<S: Lanes>(s: S, from: &[bf16], fill: f32) -> S::F {
        s.load_part_bf16(from, fill)
    }
    #[inline(always)]
    fn store_part<S: Lanes>(s: S, into: &mut [bf16], x: S::F) {
        s.store_part_bf16(into, x);
    }
    #[inline(always)]
    fn load_two<S: Lanes>(s: S, from: &[bf16]) -> [S::F; 2] {
        s.load_two_bf16(from)
    }
    #[inline(always)]
    fn store_two<S: Lanes>(s: S, into: &mut [bf16], x: [S::F; 2]) {
        s.store_two_bf16(into, x);
    }
    #[inline(always)]
    fn store_two_normal<S: Lanes>(s: S, into: &mut [bf16], x: [S::F; 2]) {
        s.store_two_normal_bf16(into, x);
    }
    const PAIRS: bool = true;
    #[inline(always)]
    fn halves(values: &[bf16]) -> Option<&[bf16]> {
        Some(values)
    }
    fn as_bf16(values: Strided<'_, bf16>) -> Option<Strided<'_, bf16>> {
        Some(values)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
    #[inline(always)]
    fn load<S: Lanes>(s: S, from: &[f16]) -> S::F {
        s.load_f16(from)
    }
    #[inline(always)]
    fn store<S: Lanes>(s: S, into: &mut [f16], x: S::F) {
        s.store_f16(into, x);
    }
}

/// A strided tensor of four dimensions over a slice. Strides count elements; 0 repeats, negative walks backwards.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a, T> {
    data: &'a [T],
    offset: usize,
    shape: [usize; 4],
    strides: [isize; 4],
}

impl<'a, T> Strided<'a, T> {
    /// Lays `shape` and `strides` over `data`, the first element at `offset`.
    ///
    /// # Errors
    /// If some element would lie outside the slice.
    pub fn new(data: &'a [T], offset: usize, shape: [usize; 4], strides: [isize; 4], tensor: &'static str) -> Result<Self, Error> {
        check_reach(data.len(), offset, shape, strides, tensor)?;
        Ok(Strided { data, offset, shape, strides })
    }

    /// Row-major over the whole slice.
    ///
    /// # Errors
    /// If the slice is shorter than the shape's product.
    pub fn contiguous(data: &'a [T], shape: [usize; 4], tensor: &'static str) -> Result<Self, Error> {
        Self::new(data, 0, shape, row_major(shape), tensor)
    }

    /// `[B, H, N, D]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The same elements with the dimensions in another order, as [`Strided::new`] would lay them.
    pub fn permuted(mut self, order: [usize; 4]) -> Self {
        self.shape = order.map(|d| self.shape[d]);
        self.strides = order.map(|d| self.strides[d]);
        self
    }

    /// Heads `first`, `first + step` and so on.
    #[must_use]
    pub(crate) fn every(mut self, first: usize, step: usize) -> Self {
        self.offset = self.index([0, first, 0, 0]);
        self.shape[1] = self.shape[1].saturating_sub(first).div_ceil(step);
        self.strides[1] *= step as isize;
        self
    }

    /// A box of it: so many of each dimension from a start.
    ///
    /// # Errors
    /// If it reaches outside.
    pub fn part(&self, start: [usize; 4], shape: [usize; 4]) -> Result<Self, Error> {
        if (0..4).any(|d| start[d] + shape[d] > self.shape[d]) {
            return Err(Error::value("part", format!("{shape:?} from {start:?} reach outside {:?}", self.shape)));
        }
        let moved: isize = (0..4).map(|d| start[d] as isize * self.strides[d]).sum();
        let offset = if shape.contains(&0) { 0 } else { self.offset.wrapping_add_signed(moved) };
        Ok(Strided { data: self.data, offset, shape, strides: self.strides })
    }

    /// Repeats dimensions of size 1 up to `shape`.
    ///
    /// # Errors
    /// If a dimension is neither 1 nor the wanted size.
    pub fn broadcast(mut self, shape: [usize; 4], tensor: &'static str) -> Result<Self, Error> {
        for d in 0..4 {
            if self.shape[d] == 1 && shape[d] != 1 {
                self.strides[d] = 0;
            } else if self.shape[d] != shape[d] {
                return Err(Error::Shape { tensor, found: self.shape.to_vec(), expected: shape.to_vec() });
            }
        }
        self.shape = shape;
        Ok(self)
    }

    /// Elements from one index to the next, per dimension.
    pub(crate) fn strides(&self) -> [isize; 4] {
        self.strides
    }

    /// The elements from `at` on, to the end of the slice.
    #[inline(always)]
    pub(crate) fn tail(&self, at: [usize; 4]) -> &'a [T] {
        &self.data[self.index(at)..]
    }

    #[inline(always)]
    fn index(&self, at: [usize; 4]) -> usize {
        let mut index = self.offset as isize;
        for (i, stride) in at.into_iter().zip(self.strides) {
            index += i as isize * stride;
        }
        index as usize
    }

    /// Row `n` of head `h`, where its elements are neighbours.
    #[inline(always)]
    pub(crate) fn row(&self, b: usize, h: usize, n: usize) -> Option<&'a [T]> {
        (self.strides[3] == 1 || self.shape[3] <= 1).then(|| &self.data[self.index([b, h, n, 0])..][..self.shape[3]])
    }

    /// Whether [`Strided::rows`] gives slices.
    #[inline(always)]
    pub(crate) fn has_rows(&self) -> bool {
        self.strides[3] == 1 && self.strides[2] >= self.shape[3] as isize
    }

    /// Rows `rows` of head `h` as one slice and the distance between them, where that is positive.
    #[inline(always)]
    pub(crate) fn rows(&self, b: usize, h: usize, rows: Range<usize>) -> Option<(&'a [T], usize)> {
        if rows.is_empty() || !self.has_rows() {
            return None;
        }
        let start = self.index([b, h, rows.start, 0]);
        let length = (rows.len() - 1) * self.strides[2] as usize + self.shape[3];
        Some((&self.data[start..start + length], self.strides[2] as usize))
    }
}

impl<'a> Strided<'a, bf16> {
    /// Neighbours along rows of even width in pairs, where they stand: see [`as_pairs`].
    pub(crate) fn as_pairs(&self) -> Option<Strided<'a, f32>> {
        let ([.., width], [.., one]) = (self.shape, self.strides);
        let even = |d: usize| self.shape[d] <= 1 || self.strides[d] % 2 == 0;
        if one != 1 || width % 2 != 0 || !self.offset.is_multiple_of(2) || !(0..3).all(even) {
            return None;
        }
        let (mut shape, mut strides) = (self.shape, self.strides.map(|stride| stride / 2));
        (shape[3], strides[3]) = (width / 2, 1);
        Some(Strided { data: as_pairs(self.data)?, offset: self.offset / 2, shape, strides })
    }
}

impl<T: Copy> Strided<'_, T> {
    /// One element.
    #[inline(always)]
    pub fn at(&self, at: [usize; 4]) -> T {
        debug_assert!(at.iter().zip(self.shape).all(|(&i, n)| i < n));
        self.data[self.index(at)]
    }
}

impl<T: Element> Strided<'_, T> {
    /// Writes row `n` of head `h` as f32 to the front of `into`.
    #[inline(always)]
    pub(crate) fn widen_row<S: Lanes>(&self, s: S, [b, h, n]: [usize; 3], into: &mut [f32]) {
        let length = self.shape[3];
        let Some(row) = self.row(b, h, n) else {
            for (d, x) in into[..length].iter_mut().enumerate() {
                *x = self.at([b, h, n, d]).to_f32();
            }
            return;
        };
        let whole = length / S::N * S::N;
        for d in (0..whole).step_by(S::N) {
            s.store(&mut into[d..], T::load(s, &row[d..]));
        }
        for d in whole..length {
            into[d] = row[d].to_f32();
        }
    }
}

/// A float tensor of any storage type.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    /// 32-bit.
    F32(Strided<'a, f32>),
    /// 16-bit with the exponent of f32.
    Bf16(Strided<'a, bf16>),
    /// 16-bit IEEE.
    F16(Strided<'a, f16>),
}

/// Runs the same expression for every storage type.
macro_rules! each_type {
    ($view:expr, $inner:ident => $body:expr) => {
        match $view {
            View::F32($inner) => $body,
            View::Bf16($inner) => $body,
            View::F16($inner) => $body,
        }
    };
}

impl<'a> From<Strided<'a, f32>> for View<'a> {
    fn from(x: Strided<'a, f32>) -> Self {
        View::F32(x)
    }
}
impl<'a> From<Strided<'a, bf16>> for View<'a> {
    fn from(x: Strided<'a, bf16>) -> Self {
        View::Bf16(x)
    }
}
impl<'a> From<Strided<'a, f16>> for View<'a> {
    fn from(x: Strided<'a, f16>) -> Self {
        View::F16(x)
    }
}

impl<'a> View<'a> {
    /// `[B, H, N, D]`.
    pub fn shape(&self) -> [usize; 4] {
        each_type!(self, x => x.shape())
    }

    /// `f32`, `bf16` or `f16`.
    pub fn dtype(&self) -> &'static str {
        match self {
            View::F32(_) => "f32",
            View::Bf16(_) => "bf16",
            View::F16(_) => "f16",
        }
    }

    /// One element, widened.
    pub fn at(&self, at: [usize; 4]) -> f32 {
        each_type!(self, x => x.at(at).to_f32())
    }

    /// Heads `first`, `first + step` and so on.
    #[must_use]
    pub(crate) fn every(self, first: usize, step: usize) -> Self {
        match self {
            View::F32(x) => View::F32(x.every(first, step)),
            View::Bf16(x) => View::Bf16(x.every(first, step)),
            View::F16(x) => View::F16(x.every(first, step)),
        }
    }

    /// Repeats dimensions of size 1 up to `shape`.
    ///
    /// # Errors
    /// If a dimension is neither 1 nor the wanted size.
    pub fn broadcast(self, shape: [usize; 4], tensor: &'static str) -> Result<Self, Error> {
        Ok(match self {
            View::F32(x) => View::F32(x.broadcast(shape, tensor)?),
            View::Bf16(x) => View::Bf16(x.broadcast(shape, tensor)?),
            View::F16(x) => View::F16(x.broadcast(shape, tensor)?),
        })
    }

    /// A box of it: so many of each dimension from a start.
    ///
    /// # Errors
    /// If it reaches outside.
    pub fn part(&self, start: [usize; 4], shape: [usize; 4]) -> Result<Self, Error> {
        Ok(match self {
            View::F32(x) => View::F32(x.part(start, shape)?),
            View::Bf16(x) => View::Bf16(x.part(start, shape)?),
            View::F16(x) => View::F16(x.part(start, shape)?),
        })
    }

    /// Some rows of every head of one batch row.
    pub(crate) fn tokens(&self, b: usize, rows: Range<usize>) -> Result<Self, Error> {
        let [_, heads, _, width] = self.shape();
        self.part([b, 0, rows.start, 0], [1, heads, rows.len(), width])
    }

    /// Rows of f32 that can be read where they stand.
    #[inline(always)]
    pub(crate) fn rows(&self, b: usize, h: usize, rows: Range<usize>) -> Option<(&'a [f32], usize)> {
        match self {
            View::F32(x) => x.rows(b, h, rows),
            _ => None,
        }
    }

    /// Writes row `at = [b, h, n]` as f32 to the front of `into`.
    #[inline(always)]
    pub(crate) fn widen_row<S: Lanes>(&self, s: S, at: [usize; 3], into: &mut [f32]) {
        each_type!(self, x => x.widen_row(s, at, into))
    }
}

/// A strided output of four dimensions. The last dimension is contiguous and no two rows overlap.
#[derive(Debug)]
pub struct StridedMut<'a, T> {
    memory: Memory<'a, T>,
    shape: [usize; 4],
    strides: [usize; 4],
}

/// Where an output is written.
#[derive(Debug)]
enum Memory<'a, T> {
    Slice(&'a mut [T]),
    /// A vector, empty until it holds the output, with room for it, and what fills a piece before it is handed out.
    Fresh(&'a mut Vec<T>, Fill<T>),
}

type Fill<T> = fn(&mut [MaybeUninit<T>]);

impl<'a, T: Copy + Default> StridedMut<'a, T> {
    /// Memory of its own: `values` is emptied, and holds the output once an operation has written it. Zeros are written where and
    /// when a thread takes up its piece, instead of by one thread to all of it beforehand.
    ///
    /// # Errors
    /// If the last stride is not 1, or elements would overlap or leave gaps.
    pub fn fresh(values: &'a mut Vec<T>, shape: [usize; 4], strides: [usize; 4], tensor: &'static str) -> Result<Self, Error> {
        let count = shape.iter().product();
        check_reach(count, 0, shape, strides.map(|s| s as isize), tensor)?;
        check_disjoint(shape, strides, tensor)?;
        values.clear();
        values.reserve_exact(count);
        let fill: Fill<T> = |piece| piece.fill(MaybeUninit::new(T::default()));
        Ok(StridedMut { memory: Memory::Fresh(values, fill), shape, strides })
    }
}

impl<'a, T> StridedMut<'a, T> {
    /// Lays `shape` and `strides` over `data`.
    ///
    /// # Errors
    /// If some element would lie outside, rows overlap, or the last stride is not 1.
    pub fn new(data: &'a mut [T], shape: [usize; 4], strides: [usize; 4], tensor: &'static str) -> Result<Self, Error> {
        check_reach(data.len(), 0, shape, strides.map(|s| s as isize), tensor)?;
        check_disjoint(shape, strides, tensor)?;
        Ok(StridedMut { memory: Memory::Slice(data), shape, strides })
    }

    /// Row-major over the whole slice.
    ///
    /// # Errors
    /// If the slice is shorter than the shape's product.
    pub fn contiguous(data: &'a mut [T], shape: [usize; 4], tensor: &'static str) -> Result<Self, Error> {
        Self::new(data, shape, row_major(shape).map(|s| s as usize), tensor)
    }

    /// `[B, H, N, D]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }
}

impl<T: Copy + Default> StridedMut<'_, T> {
    /// Heads `first`, `first + step` and so on. Fresh memory is filled with zeros first.
    pub(crate) fn every(&mut self, first: usize, step: usize) -> StridedMut<'_, T> {
        let [b, h, n, d] = self.shape;
        let [batch, head, row, element] = self.strides;
        let data: &mut [T] = match &mut self.memory {
            Memory::Slice(data) => data,
            Memory::Fresh(values, _) => {
                values.resize(b * h * n * d, T::default());
                values
            }
        };
        let start = (first * head).min(data.len());
        StridedMut {
            memory: Memory::Slice(&mut data[start..]),
            shape: [b, (h - first).div_ceil(step), n, d],
            strides: [batch, head * step, row, element],
        }
    }
}

/// An output of any storage type.
#[derive(Debug)]
pub enum ViewMut<'a> {
    /// 32-bit.
    F32(StridedMut<'a, f32>),
    /// 16-bit with the exponent of f32.
    Bf16(StridedMut<'a, bf16>),
    /// 16-bit IEEE.
    F16(StridedMut<'a, f16>),
}

impl ViewMut<'_> {
    /// `[B, H, N, D]`.
    pub fn shape(&self) -> [usize; 4] {
        match self {
            ViewMut::F32(x) => x.shape(),
            ViewMut::Bf16(x) => x.shape(),
            ViewMut::F16(x) => x.shape(),
        }
    }

    /// `f32`, `bf16` or `f16`.
    pub fn dtype(&self) -> &'static str {
        match self {
            ViewMut::F32(_) => "f32",
            ViewMut::Bf16(_) => "bf16",
            ViewMut::F16(_) => "f16",
        }
    }

    /// Heads `first`, `first + step` and so on.
    pub(crate) fn every(&mut self, first: usize, step: usize) -> ViewMut<'_> {
        match self {
            ViewMut::F32(x) => ViewMut::F32(x.every(first, step)),
            ViewMut::Bf16(x) => ViewMut::Bf16(x.every(first, step)),
            ViewMut::F16(x) => ViewMut::F16(x.every(first, step)),
        }
    }

    pub(crate) fn share<'s>(&'s mut self, pieces: &'s [Range<usize>]) -> SharedRows<'s> {
        match self {
            ViewMut::F32(x) => SharedRows::F32(DisjointRows::new(x, pieces)),
            ViewMut::Bf16(x) => SharedRows::Bf16(DisjointRows::new(x, pieces)),
            ViewMut::F16(x) => SharedRows::F16(DisjointRows::new(x, pieces)),
        }
    }
}

/// Rows that are rounded together.
const ROUNDED: usize = 256;

impl ViewMut<'_> {
    /// Rounds contiguous f32 of the same shape into the rows.
    pub(crate) fn round(&mut self, values: &[f32], par: Par) {
        let shape @ [batch, heads, rows, width] = self.shape();
        assert_eq!(values.len(), batch * heads * rows * width, "values of {shape:?}");
        let pieces: Vec<Range<usize>> = (0..rows).step_by(ROUNDED).map(|first| first..rows.min(first + ROUNDED)).collect();
        let into = self.share(&pieces);
        par.run(batch * heads * pieces.len(), 4.0 * values.len() as f64, |jobs| {
            dispatch(par.level_in_use(), Round { values, shape, pieces: &pieces, into: &into, jobs });
        });
    }
}

struct Round<'a> {
    values: &'a [f32],
    shape: [usize; 4],
    pieces: &'a [Range<usize>],
    into: &'a SharedRows<'a>,
    jobs: &'a Jobs<'a>,
}

impl Task for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let [_, heads, rows, width] = self.shape;
        while let Some(job) = self.jobs.take() {
            let (head, piece) = (job / self.pieces.len(), job % self.pieces.len());
            let first = head * rows + self.pieces[piece].start;
            self.into.write_lanes(s, [head / heads, head % heads, piece], |i| &self.values[(first + i) * width..][..width]);
        }
    }
}

/// Rows of any storage type that threads claim piece by piece.
#[derive(Debug)]
pub(crate) enum SharedRows<'a> {
    F32(DisjointRows<'a, f32>),
    Bf16(DisjointRows<'a, bf16>),
    F16(DisjointRows<'a, f16>),
}

impl SharedRows<'_> {
    /// Writes `row(i)` to the i-th row of a piece, rounded to the storage type.
    pub(crate) fn write<'v>(&self, b: usize, h: usize, piece: usize, row: impl Fn(usize) -> &'v [f32]) {
        match self {
            SharedRows::F32(rows) => rows.sheet(b, h, piece).write(row),
            SharedRows::Bf16(rows) => rows.sheet(b, h, piece).write(row),
            SharedRows::F16(rows) => rows.sheet(b, h, piece).write(row),
        }
    }

    /// The same a register at a time.
    #[inline(always)]
    pub(crate) fn write_lanes<'v, S: Lanes>(&self, s: S, [b, h, piece]: [usize; 3], row: impl Fn(usize) -> &'v [f32]) {
        match self {
            SharedRows::F32(rows) => rows.sheet(b, h, piece).write(row),
            SharedRows::Bf16(rows) => rows.sheet(b, h, piece).write_lanes(s, row),
            SharedRows::F16(rows) => rows.sheet(b, h, piece).write_lanes(s, row),
        }
    }
}

/// The rows of an output, split into pieces of every head. A piece can be claimed by one thread at a time: a second
/// claim panics, so two threads never hold the same row.
#[derive(Debug)]
pub(crate) struct DisjointRows<'a, T> {
    start: *mut T,
    shape: [usize; 4],
    strides: [usize; 4],
    pieces: &'a [Range<usize>],
    /// Columns that stand in for the heads, where one matrix is split both ways.
    columns: Option<&'a [Range<usize>]>,
    states: Vec<AtomicU8>,
    fresh: Option<(&'a mut Vec<T>, Fill<T>)>,
    borrow: PhantomData<&'a mut [T]>,
}

/// A piece of fresh memory that was never claimed: nothing is written there.
const UNTOUCHED: u8 = 0;
const FREE: u8 = 1;
const TAKEN: u8 = 2;

// SAFETY: rows are handed out through `claim` only, which gives each piece to one thread at a time.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for DisjointRows<'_, T> {}
// SAFETY: it stands for the exclusive borrow it was made from.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for DisjointRows<'_, T> {}

impl<'a, T> DisjointRows<'a, T> {
    /// # Panics
    /// If the pieces are not ascending, disjoint ranges of rows; of fresh memory, also if they leave rows out.
    pub(crate) fn new(out: &'a mut StridedMut<'_, T>, pieces: &'a [Range<usize>]) -> Self {
        let ([b, h, n, _], strides) = (out.shape, out.strides);
        assert_disjoint(pieces, n);
        let (start, fresh) = match &mut out.memory {
            Memory::Slice(data) => (data.as_mut_ptr(), None),
            Memory::Fresh(values, _) if !values.is_empty() => (values.as_mut_ptr(), None),
            Memory::Fresh(values, fill) => {
                assert_eq!(pieces.iter().map(Range::len).sum::<usize>(), n, "rows are left out");
                (values.as_mut_ptr(), Some((&mut **values, *fill)))
            }
        };
        let states = states(b * h * pieces.len(), fresh.is_some());
        DisjointRows { start, shape: out.shape, strides, pieces, columns: None, states, fresh, borrow: PhantomData }
    }

    /// The rows of one matrix, cut into `columns`: what is a head in [`DisjointRows::claim`] is then a range of columns.
    ///
    /// # Panics
    /// If there are several heads, or the pieces or the columns are not ascending, disjoint ranges, or leave out some of fresh memory.
    pub(crate) fn tiles(out: &'a mut StridedMut<'_, T>, pieces: &'a [Range<usize>], columns: &'a [Range<usize>]) -> Self {
        let [b, h, _, d] = out.shape;
        assert_eq!([b, h], [1, 1], "one matrix is cut");
        assert_disjoint(columns, d);
        let mut tiles = Self::new(out, pieces);
        let all = columns.iter().map(Range::len).sum::<usize>() == d;
        assert!(all || tiles.fresh.is_none(), "columns are left out");
        tiles.states = states(columns.len() * pieces.len(), tiles.fresh.is_some());
        tiles.shape[1] = columns.len();
        tiles.columns = Some(columns);
        tiles
    }

    /// A claim, and what has to fill its rows before they are values.
    fn take(&self, b: usize, h: usize, piece: usize) -> (ManuallyDrop<Claim<'_, T>>, Option<Fill<T>>) {
        let [batch, heads, ..] = self.shape;
        assert!(b < batch && h < heads, "no such head");
        let rows = self.pieces[piece].clone();
        let state = &self.states[(b * heads + h) * self.pieces.len() + piece];
        let before = state.swap(TAKEN, Ordering::Acquire);
        assert!(before != TAKEN, "a piece of rows is claimed twice");
        let (offset, width) = match self.columns {
            Some(columns) => (columns[h].start, columns[h].len()),
            None => (b * self.strides[0] + h * self.strides[1], self.shape[3]),
        };
        let start = self.start.wrapping_add(offset + rows.start * self.strides[2]);
        // Not dropped, so never free, if filling it panics.
        let claim = ManuallyDrop::new(Claim { start, rows: rows.len(), width, stride: self.strides[2], state, borrow: PhantomData });
        (claim, self.fresh.as_ref().filter(|_| before == UNTOUCHED).map(|(_, fill)| *fill))
    }

    /// The rows of one piece of head `h`, until the claim is dropped.
    ///
    /// # Panics
    /// If another claim on them is alive.
    pub(crate) fn claim(&self, b: usize, h: usize, piece: usize) -> Claim<'_, T> {
        let (claim, fill) = self.take(b, h, piece);
        if let Some(fill) = fill {
            claim.fill(fill);
        }
        ManuallyDrop::into_inner(claim)
    }

    /// [`DisjointRows::claim`] of rows that are written once, from end to end, so that fresh memory need not be filled beforehand.
    pub(crate) fn sheet(&self, b: usize, h: usize, piece: usize) -> Sheet<'_, T> {
        let (claim, fill) = self.take(b, h, piece);
        Sheet { claim, open: fill.map(|fill| (fill, Strip::default())) }
    }
}

fn states(count: usize, fresh: bool) -> Vec<AtomicU8> {
    (0..count).map(|_| AtomicU8::new(if fresh { UNTOUCHED } else { FREE })).collect()
}

impl<T> Drop for DisjointRows<'_, T> {
    /// Fresh memory becomes the values of its vector; what nobody claimed is filled now.
    fn drop(&mut self) {
        let [batch, heads, n, d] = self.shape;
        for at in 0..self.states.len() {
            if self.fresh.is_some() && self.states[at].load(Ordering::Acquire) == UNTOUCHED {
                let head = at / self.pieces.len();
                drop(self.claim(head / heads, head % heads, at % self.pieces.len()));
            }
        }
        let written = self.states.iter().all(|state| state.load(Ordering::Acquire) == FREE);
        let heads = if self.columns.is_some() { 1 } else { heads };
        if let (Some((values, _)), true) = (&mut self.fresh, written) {
            // SAFETY: the vector has room for the shape, and the pieces, which cover it, were each filled by the claim that freed them.
            #[allow(unsafe_code)]
            unsafe {
                values.set_len(batch * heads * n * d);
            }
        }
    }
}

fn assert_disjoint(pieces: &[Range<usize>], end: usize) {
    let ascending = pieces.windows(2).all(|pair| pair[0].end <= pair[1].start);
    assert!(ascending && pieces.iter().all(|p| p.start <= p.end && p.end <= end), "pieces overlap or reach outside");
}

/// One piece of rows, held by one thread.
#[derive(Debug)]
pub(crate) struct Claim<'a, T> {
    start: *mut T,
    rows: usize,
    width: usize,
    stride: usize,
    state: &'a AtomicU8,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Claim<'_, T> {
    /// Writes to memory that holds nothing yet.
    fn fill(&self, fill: Fill<T>) {
        let together = self.stride == self.width;
        let (count, length) = if together { (1, self.rows * self.width) } else { (self.rows, self.width) };
        for i in 0..count {
            // SAFETY: as for `row`, of memory that need not hold values.
            #[allow(unsafe_code)]
            fill(unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride).cast(), length) });
        }
    }

    /// Rows in this piece.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The i-th row of the piece.
    #[inline(always)]
    pub(crate) fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of a piece of {}", self.rows);
        // SAFETY: the shape was checked against the slice and for overlap, and this claim alone holds the row.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.width)
        }
    }
}

impl<T> Claim<'_, T> {
    /// All rows of the piece as one slice, where they follow one another.
    #[inline(always)]
    pub(crate) fn together(&mut self) -> Option<&mut [T]> {
        // SAFETY: as for `row`: rows of this width, this far apart, leave no gap, and this claim alone holds them.
        #[allow(unsafe_code)]
        (self.stride == self.width).then(|| unsafe { std::slice::from_raw_parts_mut(self.start, self.rows * self.width) })
    }
}

/// A piece of rows that is written once. Fresh memory is written some rows at a time, these strip of columns by strip, and every strip from its
/// first row to its last; where that is not brought to an end, the piece is filled when the sheet is dropped.
#[derive(Debug)]
pub(crate) struct Sheet<'a, T> {
    claim: ManuallyDrop<Claim<'a, T>>,
    /// While fresh memory is left: what fills it, and where writing stands.
    open: Option<(Fill<T>, Strip)>,
}

/// Where writing stands: rows before `first` are complete.
#[derive(Debug, Default)]
struct Strip {
    first: usize,
    /// Behind the last row that is written together with `first`; known from the second strip on.
    end: Option<usize>,
    columns: Range<usize>,
    /// The next row.
    row: usize,
}

impl<T: Copy + Default> Sheet<'_, T> {
    /// Columns of a row, all of which are written now.
    ///
    /// # Panics
    /// If fresh memory is written in another order.
    #[inline(always)]
    pub(crate) fn part(&mut self, row: usize, columns: Range<usize>) -> &mut [T] {
        let Parts { next, width, .. } = self.parts(row..row + 1, columns);
        // SAFETY: as for [`Claim::row`]; the part was written just now, or before the claim was made.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(next, width)
        }
    }

    /// The same of some rows, one after the other.
    ///
    /// # Panics
    /// If fresh memory is written in another order.
    #[inline(always)]
    pub(crate) fn parts(&mut self, rows: Range<usize>, columns: Range<usize>) -> Parts<'_, T> {
        let Claim { start, rows: all, width, stride, .. } = *self.claim;
        let inside = rows.start <= rows.end && rows.end <= all && columns.start <= columns.end && columns.end <= width;
        assert!(inside, "a part of rows {rows:?}, {columns:?}, lies outside");
        let next = start.wrapping_add(rows.start * stride + columns.start);
        let parts = Parts { next, left: rows.len(), stride, width: columns.len(), sheet: PhantomData };
        if self.open.is_some() {
            self.clear_parts(&parts, rows.start, &columns);
        }
        parts
    }

    /// Writes fresh memory, which every row of `parts` is, for the first time.
    fn clear_parts(&mut self, parts: &Parts<'_, T>, row: usize, columns: &Range<usize>) {
        for i in 0..parts.left {
            let Some((_, strip)) = &mut self.open else { return };
            let first = parts.next.wrapping_add(i * parts.stride);
            // SAFETY: as for [`Claim::row`], of memory that need not hold values.
            #[allow(unsafe_code)]
            clear::<T>(unsafe { std::slice::from_raw_parts_mut(first.cast(), parts.width) });
            if strip.advance(row + i, columns, self.claim.width) == self.claim.rows {
                self.open = None;
            }
        }
    }
}

/// Parts of rows of a [`Sheet`], which hold values.
#[derive(Debug)]
pub(crate) struct Parts<'s, T> {
    next: *mut T,
    left: usize,
    stride: usize,
    width: usize,
    sheet: PhantomData<&'s mut [T]>,
}

impl<'s, T> Iterator for Parts<'s, T> {
    type Item = &'s mut [T];

    #[inline(always)]
    fn next(&mut self) -> Option<&'s mut [T]> {
        if self.left == 0 {
            return None;
        }
        let first = self.next;
        self.left -= 1;
        self.next = first.wrapping_add(self.stride);
        // SAFETY: as for [`Claim::row`]: the sheet is borrowed, no two rows overlap, and all of these were written or held values before.
        #[allow(unsafe_code)]
        Some(unsafe { std::slice::from_raw_parts_mut(first, self.width) })
    }
}

impl Strip {
    /// Steps over columns of a row; how many rows are complete then.
    #[inline(always)]
    fn advance(&mut self, row: usize, columns: &Range<usize>, width: usize) -> usize {
        if self.columns != *columns || row != self.row {
            let ended = self.end.is_none_or(|end| end == self.row);
            assert!(
                ended && row == self.first && columns.start == self.columns.end,
                "fresh memory is written strip by strip, from the first row on"
            );
            if columns.start > 0 {
                self.end = Some(self.row);
            }
            self.columns = columns.clone();
        }
        assert!(self.end.is_none_or(|end| row < end), "a strip is longer than the one before it");
        self.row = row + 1;
        if columns.end == width && self.end.is_none_or(|end| end == self.row) {
            *self = Strip { first: self.row, row: self.row, ..Strip::default() };
        }
        self.first
    }
}

/// Writes a value to every place, a register at a time.
#[inline(always)]
fn clear<T: Copy + Default>(memory: &mut [MaybeUninit<T>]) {
    let (whole, rest) = memory.as_chunks_mut::<MOST_LANES>();
    for part in whole {
        *part = [MaybeUninit::new(T::default()); MOST_LANES];
    }
    rest.fill(MaybeUninit::new(T::default()));
}

impl<T: Element> Sheet<'_, T> {
    /// Writes `row(i)` to the i-th row, rounded.
    fn write<'v>(mut self, row: impl Fn(usize) -> &'v [f32]) {
        for i in 0..self.claim.rows {
            let width = self.claim.width;
            T::narrow(row(i), self.part(i, 0..width));
        }
    }

    #[inline(always)]
    fn write_lanes<'v, S: Lanes>(mut self, s: S, row: impl Fn(usize) -> &'v [f32]) {
        let Claim { rows, width, .. } = *self.claim;
        let whole = width / S::N * S::N;
        for i in 0..rows {
            let (from, into) = (&row(i)[..width], self.part(i, 0..width));
            for at in (0..whole).step_by(S::N) {
                T::store(s, &mut into[at..], s.load(&from[at..]));
            }
            T::narrow(&from[whole..], &mut into[whole..]);
        }
    }
}

impl<T> Sheet<'_, T> {
    /// Asks for the memory of a tile that will be written soon, `C` registers wide, where its rows are inside.
    #[inline(always)]
    pub(crate) fn ahead<S: Lanes, const C: usize>(&self, s: S, rows: Range<usize>, column: usize) {
        let claim = &self.claim;
        for row in rows.start..rows.end.min(claim.rows) {
            let first = claim.start.wrapping_add(row * claim.stride + column);
            for at in (0..C * S::N).step_by(LINE * size_of::<f32>() / size_of::<T>()) {
                s.prefetch(first.wrapping_add(at));
            }
        }
    }
}

impl<T> Drop for Sheet<'_, T> {
    fn drop(&mut self) {
        if let Some((fill, _)) = self.open.take() {
            self.claim.fill(fill);
        }
        // SAFETY: it is not used again.
        #[allow(unsafe_code)]
        unsafe {
            ManuallyDrop::drop(&mut self.claim);
        }
    }
}

impl<T> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        self.state.store(FREE, Ordering::Release);
    }
}

fn row_major(shape: [usize; 4]) -> [isize; 4] {
    let mut strides = [1isize; 4];
    for d in (0..3).rev() {
        strides[d] = strides[d + 1] * shape[d + 1] as isize;
    }
    strides
}

fn check_reach(available: usize, offset: usize, shape: [usize; 4], strides: [isize; 4], tensor: &'static str) -> Result<(), Error> {
    if shape.contains(&0) {
        return Ok(());
    }
    let (mut low, mut high) = (offset as i128, offset as i128);
    for (n, s) in shape.into_iter().zip(strides) {
        let far = (n as i128 - 1) * s as i128;
        low += far.min(0);
        high += far.max(0);
    }
    if low < 0 || high >= available as i128 {
        let needed = usize::try_from(high + 1).unwrap_or(usize::MAX);
        return Err(Error::OutOfBounds { tensor, needed, available });
    }
    Ok(())
}

/// Rows do not overlap if, from the smallest stride up, each stride passes over everything before it.
fn check_disjoint(shape: [usize; 4], strides: [usize; 4], tensor: &'static str) -> Result<(), Error> {
    let refuse = |message: &str| Err(Error::Layout { tensor, message: format!("{message} (shape {shape:?}, strides {strides:?})") });
    if shape.contains(&0) {
        return Ok(());
    }
    if shape[3] > 1 && strides[3] != 1 {
        return refuse("the last dimension of an output must be contiguous");
    }
    let mut dims: Vec<usize> = (0..3).filter(|&d| shape[d] > 1).collect();
    dims.sort_by_key(|&d| strides[d]);
    let mut covered = shape[3];
    for d in dims {
        if strides[d] < covered {
            return refuse("rows of an output overlap");
        }
        covered += (shape[d] - 1) * strides[d];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_reach_only_what_is_there() {
        let data = [0.0f32; 24];
        assert!(Strided::contiguous(&data, [1, 2, 3, 4], "q").is_ok());
        assert!(matches!(
            Strided::contiguous(&data, [1, 2, 3, 5], "q"),
            Err(Error::OutOfBounds { tensor: "q", needed: 30, available: 24 })
        ));
        assert!(Strided::new(&data, 0, [1, 1, 1, 4], [0, 0, 0, -1], "q").is_err());
        let flipped = Strided::new(&[1.0f32, 2.0, 3.0], 2, [1, 1, 1, 3], [0, 0, 0, -1], "q").unwrap();
        assert_eq!([0, 1, 2].map(|d| flipped.at([0, 0, 0, d])), [3.0, 2.0, 1.0]);
    }

    #[test]
    fn overlapping_outputs_are_refused() {
        let mut data = [0.0f32; 24];
        assert!(StridedMut::new(&mut data, [1, 2, 3, 4], [24, 4, 8, 1], "o").is_ok());
        assert!(StridedMut::new(&mut data, [1, 2, 3, 4], [24, 0, 8, 1], "o").is_err());
        assert!(StridedMut::new(&mut data, [1, 1, 3, 4], [24, 0, 2, 1], "o").is_err());
        assert!(StridedMut::new(&mut data, [1, 1, 3, 4], [24, 0, 4, 2], "o").is_err());
    }

    #[test]
    fn fresh_memory_is_zeros_until_written() {
        let (mut values, pieces) = (vec![7.0f32; 3], [0..2, 2..3]);
        let mut out = StridedMut::fresh(&mut values, [1, 2, 3, 4], [24, 4, 8, 1], "o").unwrap();
        let rows = DisjointRows::new(&mut out, &pieces);
        rows.claim(0, 1, 0).row(1).fill(1.0);
        rows.claim(0, 1, 0).row(1)[0] += 1.0;
        drop(rows);
        let expected: Vec<f32> = (0..24)
            .map(|i| {
                if i == 12 {
                    2.0
                } else if (12..16).contains(&i) {
                    1.0
                } else {
                    0.0
                }
            })
            .collect();
        assert_eq!(values, expected);
        assert!(StridedMut::fresh(&mut values, [1, 2, 3, 4], [24, 4, 9, 1], "o").is_err());
    }

    /// Writes rows of a strip, the number of their column in each place.
    fn write_strip(sheet: &mut Sheet<'_, f32>, rows: Range<usize>, columns: Range<usize>) {
        for row in rows {
            let lanes: [f32; 8] = std::array::from_fn(|i| (columns.start + i) as f32);
            let part = sheet.part(row, columns.clone());
            let count = part.len();
            part.copy_from_slice(&lanes[..count]);
        }
    }

    #[test]
    fn a_sheet_that_is_written_needs_no_zeros_and_one_that_is_not_gets_them() {
        let (mut values, pieces, columns) = (Vec::new(), [0..2, 2..3], [0..2, 2..12]);
        let mut out = StridedMut::fresh(&mut values, [1, 1, 3, 12], [36, 36, 12, 1], "o").unwrap();
        let tiles = DisjointRows::tiles(&mut out, &pieces, &columns);
        let mut sheet = tiles.sheet(0, 1, 0);
        write_strip(&mut sheet, 0..2, 0..8);
        write_strip(&mut sheet, 0..2, 8..10);
        drop(sheet);
        write_strip(&mut tiles.sheet(0, 1, 1), 0..1, 0..8);
        drop(tiles);
        let row: Vec<f32> = [0.0, 0.0].into_iter().chain((0..10).map(|i| i as f32)).collect();
        assert_eq!(values, [&row[..], &row, &[0.0; 12]].concat());
    }

    #[test]
    fn fresh_memory_is_written_some_rows_at_a_time() {
        let order = [(0..2, 0..8), (0..2, 8..10), (2..3, 0..10), (3..5, 0..3), (3..5, 3..4), (3..5, 4..10)];
        for count in 0..=order.len() {
            let mut values = Vec::new();
            let mut out = StridedMut::fresh(&mut values, [1, 1, 6, 10], [60, 60, 10, 1], "o").unwrap();
            let pieces = [0..5, 5..6];
            let rows = DisjointRows::new(&mut out, &pieces);
            let mut sheet = rows.sheet(0, 0, 0);
            for (rows, columns) in &order[..count] {
                for start in columns.clone().step_by(8) {
                    let columns = start..columns.end.min(start + 8);
                    if columns == (0..8) && rows.len() == 1 {
                        // One row by itself may be written in any number of parts.
                        write_strip(&mut sheet, rows.clone(), 0..5);
                        write_strip(&mut sheet, rows.clone(), 5..8);
                    } else {
                        write_strip(&mut sheet, rows.clone(), columns);
                    }
                }
            }
            assert_eq!(sheet.open.is_none(), count == order.len());
            drop(sheet);
            drop(rows);
            let whole: Vec<f32> = (0..50).map(|i| (i % 10) as f32).chain([0.0; 10]).collect();
            assert_eq!(values, if count == order.len() { whole } else { vec![0.0; 60] });
        }
    }

    #[test]
    #[should_panic(expected = "longer than the one before")]
    fn a_strip_of_fresh_memory_is_as_long_as_the_first() {
        let (mut values, pieces) = (Vec::<f32>::new(), [0..3, 3..4]);
        let mut out = StridedMut::fresh(&mut values, [1, 1, 4, 8], [32, 32, 8, 1], "o").unwrap();
        let rows = DisjointRows::new(&mut out, &pieces);
        let mut sheet = rows.sheet(0, 0, 0);
        write_strip(&mut sheet, 0..2, 0..4);
        write_strip(&mut sheet, 0..3, 4..6);
    }

    #[test]
    #[should_panic(expected = "strip by strip")]
    fn a_strip_of_fresh_memory_is_not_left_before_its_end() {
        let (mut values, pieces) = (Vec::<f32>::new(), [0..3, 3..4]);
        let mut out = StridedMut::fresh(&mut values, [1, 1, 4, 8], [32, 32, 8, 1], "o").unwrap();
        let rows = DisjointRows::new(&mut out, &pieces);
        let mut sheet = rows.sheet(0, 0, 0);
        write_strip(&mut sheet, 0..2, 0..4);
        write_strip(&mut sheet, 0..1, 4..6);
        write_strip(&mut sheet, 0..2, 6..8);
    }

    #[test]
    #[should_panic(expected = "strip by strip")]
    fn fresh_memory_is_not_written_out_of_order() {
        let (mut values, pieces) = (Vec::<f32>::new(), [0..1, 1..3]);
        let mut out = StridedMut::fresh(&mut values, [1, 1, 3, 8], [24, 24, 8, 1], "o").unwrap();
        let rows = DisjointRows::new(&mut out, &pieces);
        rows.sheet(0, 0, 1).part(1, 0..8);
    }

    #[test]
    #[should_panic(expected = "claimed twice")]
    fn a_piece_is_claimed_once() {
        let mut data = [0.0f32; 24];
        let mut out = StridedMut::contiguous(&mut data, [1, 2, 3, 4], "o").unwrap();
        let pieces = [0..2, 2..3];
        let rows = DisjointRows::new(&mut out, &pieces);
        let _first = rows.claim(0, 1, 1);
        let _second = rows.claim(0, 1, 1);
    }
}
