//! Rotary embedding of heads `[B,H,N,D]`: each pair of dims `(a, b)` turns by the angle `position · f_i`,
//! `(a cos - b sin, b cos + a sin)`, times the attention factor of the scaling. One position per token, so packed sequences
//! count from 0 each. Backward is the turn by the negative angle, with the same factor.
//!
//! Angles, cos and sin are computed in f64 once per batch ([`Turns`]) and shared by all heads, layers, queries and keys: in f32 a
//! position of a million would leave an error of 0.03 radians. Tokens `[T,H,D]` are the view `[1,H,T,D]` with strides `[_, D, H·D, 1]`.
//!
//! Source: Su et al. 2021, arXiv 2104.09864; scalings in [`super::frequencies`].

use super::frequencies::{Frequencies, Pairing, Rotary};
use super::id::Id;
use super::sweep::{Sweep, load, pieces, store, sweep};
use crate::simd::{Aligned, Lanes};
use crate::view::{DisjointRows, Element, Strided, StridedMut};
use crate::{Error, Par};
use std::ops::Range;

/// Tokens of a block.
const TOKENS: usize = 32;

/// cos and sin of every token's angles.
#[derive(Debug, Clone)]
pub struct Turns {
    pairing: Pairing,
    dims: usize,
    tokens: usize,
    /// Columns of the tables: one per pair, or for interleaved pairs one per dim.
    width: usize,
    cos: Vec<f32>,
    /// Interleaved: negative for the first of a pair.
    sin: Vec<f32>,
}

impl Turns {
    /// The turns of tokens at these positions, `[tokens]`. The length of the sequence is the largest position and 1.
    ///
    /// # Errors
    /// As [`Rotary::frequencies`].
    pub fn new<I: Id>(rotary: &Rotary, positions: &[I], par: Par) -> Result<Self, Error> {
        let last = positions.iter().map(|p| p.to_i64()).max().unwrap_or(0);
        Ok(Self::of(rotary, &rotary.frequencies(last.max(0) as usize + 1)?, positions, par))
    }

    /// The turns with frequencies that the caller chose.
    ///
    /// # Errors
    /// If there is not one frequency per pair.
    pub fn with<I: Id>(rotary: &Rotary, frequencies: &Frequencies, positions: &[I], par: Par) -> Result<Self, Error> {
        super::matrix::check_length(frequencies.inverse.len(), rotary.dims / 2, "frequencies")?;
        Ok(Self::of(rotary, frequencies, positions, par))
    }

    fn of<I: Id>(rotary: &Rotary, frequencies: &Frequencies, positions: &[I], par: Par) -> Self {
        let (pairing, dims) = (rotary.pairing, rotary.dims);
        let width = if pairing == Pairing::Halves { dims / 2 } else { dims };
        let (mut cos, mut sin) = (vec![0.0; positions.len() * width], vec![0.0; positions.len() * width]);
        let blocks = pieces(positions.len(), TOKENS);
        let shape = [1, 1, positions.len(), width];
        let mut tables = [&mut cos, &mut sin].map(|table| StridedMut::contiguous(table, shape, "turns").expect("the shape is its length"));
        let [cosines, sines] = tables.each_mut().map(|table| DisjointRows::new(table, &blocks));
        let flops = (positions.len() * width * 100) as f64;
        par.run(blocks.len(), flops, |jobs| {
            while let Some(block) = jobs.take() {
                let (mut cos, mut sin) = (cosines.claim(0, 0, block), sines.claim(0, 0, block));
                for (i, position) in positions[blocks[block].clone()].iter().enumerate() {
                    fill(pairing, frequencies, position.to_i64(), [cos.row(i), sin.row(i)]);
                }
            }
        });
        drop([cosines, sines]);
        Turns { pairing, dims, tokens: positions.len(), width, cos, sin }
    }

    /// Tokens that it was made for.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Turns `x [B,H,N,D]` into `y`. Token n of batch row b is number `b·N + n` of the positions.
    ///
    /// # Errors
    /// If shapes differ, there is not one position per token, a head is narrower than the rotary dims, or the elements of a
    /// row are not neighbours.
    pub fn forward<T: Element>(&self, x: &Strided<'_, T>, y: &mut StridedMut<'_, T>, par: Par) -> Result<(), Error> {
        self.apply(("x", x), ("y", y), 1.0, par)
    }

    /// `dx` from `dy`: the turn by the negative angle.
    ///
    /// # Errors
    /// As [`Turns::forward`].
    pub fn backward<T: Element>(&self, dy: &Strided<'_, T>, dx: &mut StridedMut<'_, T>, par: Par) -> Result<(), Error> {
        self.apply(("dy", dy), ("dx", dx), -1.0, par)
    }

    fn apply<T: Element>(
        &self,
        (name, from): (&'static str, &Strided<'_, T>),
        (into_name, into): (&'static str, &mut StridedMut<'_, T>),
        sign: f32,
        par: Par,
    ) -> Result<(), Error> {
        let shape @ [b, _, n, d] = from.shape();
        if into.shape() != shape {
            return Err(Error::Shape { tensor: into_name, found: into.shape().to_vec(), expected: shape.to_vec() });
        }
        if !shape.contains(&0) && d > 1 && from.strides()[3] != 1 {
            let message = format!("the elements of a row must be neighbours, they are {} apart", from.strides()[3]);
            return Err(Error::Layout { tensor: name, message });
        }
        if d < self.dims {
            return Err(Error::value("dims", format!("{} rotary dims do not fit heads of {d}", self.dims)));
        }
        super::matrix::check_length(self.tokens, b * n, "positions")?;
        let pieces = pieces(n, TOKENS);
        let blocks: Vec<_> = (0..b).flat_map(|_| pieces.iter().cloned()).collect();
        let work = Rotate { turns: self, from, into: DisjointRows::new(into, &pieces), pieces: pieces.len(), sign };
        sweep(&work, &blocks, shape.iter().product(), par);
        Ok(())
    }
}

/// One row of the tables.
fn fill(pairing: Pairing, frequencies: &Frequencies, position: i64, [cos, sin]: [&mut [f32]; 2]) {
    for (i, frequency) in frequencies.inverse.iter().enumerate() {
        let (s, c) = (position as f64 * frequency).sin_cos();
        let (s, c) = ((s * frequencies.attention_factor) as f32, (c * frequencies.attention_factor) as f32);
        match pairing {
            Pairing::Halves => (cos[i], sin[i]) = (c, s),
            Pairing::Interleaved => {
                cos[2 * i..2 * i + 2].fill(c);
                sin[2 * i..2 * i + 2].copy_from_slice(&[-s, s]);
            }
        }
    }
}

struct Rotate<'a, T> {
    turns: &'a Turns,
    from: &'a Strided<'a, T>,
    into: DisjointRows<'a, T>,
    /// Blocks per batch row.
    pieces: usize,
    sign: f32,
}

impl<T: Element> Sweep for Rotate<'_, T> {
    const ROUNDS: bool = T::PAIRS;

    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, block: usize, rows: Range<usize>, _: &mut Aligned<f32>) {
        let [_, heads, n, _] = self.from.shape();
        let (b, piece) = (block / self.pieces, block % self.pieces);
        let mut claims: Vec<_> = (0..heads).map(|h| self.into.claim(b, h, piece)).collect();
        // Head after head of a token: beside one another, as projections write them, they are one stream of memory.
        for (i, token) in rows.enumerate() {
            for (h, into) in claims.iter_mut().enumerate() {
                let x = self.from.row(b, h, token).expect("rows were checked to be contiguous");
                self.row(s, b * n + token, x, into.row(i));
            }
        }
    }
}

impl<T: Element> Rotate<'_, T> {
    #[inline(always)]
    fn row<S: Lanes>(&self, s: S, token: usize, x: &[T], y: &mut [T]) {
        let Turns { dims, width, .. } = *self.turns;
        let cos = &self.turns.cos[token * width..][..width];
        let sin = &self.turns.sin[token * width..][..width];
        let sign = s.splat(self.sign);
        if x.len() > dims {
            y[dims..].copy_from_slice(&x[dims..]);
        }
        let (x, y) = (&x[..dims], &mut y[..dims]);
        match self.turns.pairing {
            Pairing::Halves => {
                let ((a, b), (to_a, to_b)) = (x.split_at(width), y.split_at_mut(width));
                for at in (0..width).step_by(S::N) {
                    let (cos, sin) = (load(s, cos, at, 0.0), s.mul(sign, load(s, sin, at, 0.0)));
                    let (a, b) = (load(s, a, at, 0.0), load(s, b, at, 0.0));
                    store(s, to_a, at, s.sub(s.mul(a, cos), s.mul(b, sin)));
                    store(s, to_b, at, s.mul_add(b, cos, s.mul(a, sin)));
                }
            }
            Pairing::Interleaved => {
                for at in (0..dims).step_by(S::N) {
                    let (cos, sin) = (load(s, cos, at, 0.0), s.mul(sign, load(s, sin, at, 0.0)));
                    let x = load(s, x, at, 0.0);
                    store(s, y, at, s.mul_add(x, cos, s.mul(s.swap_pairs(x), sin)));
                }
            }
        }
    }
}
