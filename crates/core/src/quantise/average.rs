//! Codebooks that follow the keys by moving averages (van den Oord et al. 2017; floor and weights as in Lingle 2023).
//!
//! With `n_s` keys of code s in a batch and their sum `z_s`: `N_s ← γ N_s + (1-γ) n_s`, `Z_s ← γ Z_s + (1-γ) z_s`, `C_s = Z_s / max(N_s,
//! floor)`. A code whose `N_s` falls below the floor is dead and starts again at a key drawn from the batch, as if that had been its one
//! key.

use super::Codewords;
use crate::problem::expect;
use crate::view::{Strided, View};
use crate::{Error, Par};

/// The code of padding.
const NOBODY: i64 = -1;

/// Codewords of every head and the averages that they come from. Plain data: written down and read again it goes on as before.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebook {
    /// Heads, codewords of each, and their width.
    pub shape: [usize; 3],
    /// Codewords, `[heads, S, D]`.
    pub rows: Vec<f32>,
    /// `N`, `[heads, S]`.
    pub sizes: Vec<f32>,
    /// `Z`, `[heads, S, D]`.
    pub sums: Vec<f32>,
    /// γ, what an average keeps of itself in a step.
    pub decay: f32,
    /// The size below which a code is dead.
    pub floor: f32,
    /// Codes that started again so far.
    pub restarts: u64,
}

impl Codebook {
    /// γ of the paper.
    pub const DECAY: f32 = 0.99;
    /// Floor of the paper.
    pub const FLOOR: f32 = 0.01;

    /// Of codewords `[1, heads, S, D]`, each as if it had had one key.
    ///
    /// # Errors
    /// If there are several batch rows, or there is no codeword or no value in one.
    pub fn new(rows: &View<'_>) -> Result<Self, Error> {
        let [batch, heads, count, width] = rows.shape();
        expect("codebook", rows.shape(), [1, heads, count, width])?;
        debug_assert_eq!(batch, 1);
        let at = |i: usize| [0, i / width / count, i / width % count, i % width];
        Self::of([heads, count, width], (0..heads * count * width).map(|i| rows.at(at(i))).collect())
    }

    /// Of `count` keys of each head, drawn by a seed from `[B, heads, N, D]`.
    ///
    /// # Errors
    /// If there is no key, or `count` is 0.
    pub fn drawn(keys: &View<'_>, count: usize, seed: u64) -> Result<Self, Error> {
        let [batch, heads, tokens, width] = keys.shape();
        if batch * tokens == 0 {
            return Err(Error::value("codebook", format!("{batch} sequences of {tokens} keys have none to draw")));
        }
        let mut rows = Vec::with_capacity(heads * count * width);
        for (head, code) in (0..heads).flat_map(|head| (0..count).map(move |code| (head, code))) {
            let place = draw([seed, head as u64, code as u64], batch * tokens);
            rows.extend((0..width).map(|d| keys.at([place / tokens, head, place % tokens, d])));
        }
        Self::of([heads, count, width], rows)
    }

    fn of(shape: [usize; 3], rows: Vec<f32>) -> Result<Self, Error> {
        let [heads, count, width] = shape;
        if heads * count * width == 0 {
            return Err(Error::value("codebook", format!("{heads} heads of {count} codewords of {width} values: each has at least 1")));
        }
        let (sizes, sums) = (vec![1.0; heads * count], rows.clone());
        Ok(Codebook { shape, rows, sizes, sums, decay: Self::DECAY, floor: Self::FLOOR, restarts: 0 })
    }

    /// The codewords as a mechanism reads them, `[1, heads, S, D]`.
    ///
    /// # Errors
    /// If the fields do not fit one another.
    pub fn view(&self) -> Result<View<'_>, Error> {
        let [heads, count, width] = self.shape;
        Strided::contiguous(&self.rows, [1, heads, count, width], "codebook").map(View::from)
    }

    /// The codes of keys `[B, heads, N, D]`, `[B, heads, N]`.
    ///
    /// # Errors
    /// If the keys do not fit.
    pub fn codes(&self, keys: &View<'_>, par: Par) -> Result<Vec<i64>, Error> {
        let ([batch, heads, tokens, _], view) = (keys.shape(), self.view()?);
        expect("k", keys.shape(), [batch, self.shape[0], tokens, self.shape[2]])?;
        let codewords: Vec<Codewords> = (0..heads).map(|head| Codewords::of(&view, head)).collect();
        let mut codes = vec![0; batch * heads * tokens];
        for (at, codes) in codes.chunks_mut(tokens.max(1)).enumerate() {
            codewords[at % heads].nearest(keys, [at / heads, at % heads], 0..tokens, codes, par);
        }
        Ok(codes.into_iter().map(i64::from).collect())
    }

    /// One step of the averages, after the step of the optimiser.
    ///
    /// # Errors
    /// If the statistics are those of another shape.
    pub fn after_step(&mut self, statistics: &Statistics) -> Result<(), Error> {
        if statistics.shape != self.shape {
            return Err(Error::Shape { tensor: "statistics", found: statistics.shape.to_vec(), expected: self.shape.to_vec() });
        }
        let (width, keep) = (self.shape[2], f64::from(self.decay));
        let average = |old: f32, new: f64| (keep * f64::from(old) + (1.0 - keep) * new) as f32;
        for (code, size) in self.sizes.iter_mut().enumerate() {
            let of_code = code * width..(code + 1) * width;
            let (sums, rows) = (&mut self.sums[of_code.clone()], &mut self.rows[of_code.clone()]);
            *size = average(*size, statistics.counts[code] as f64);
            sums.iter_mut().zip(&statistics.sums[of_code.clone()]).for_each(|(sum, &new)| *sum = average(*sum, new));
            if *size < self.floor && statistics.seen(code / self.shape[1]) {
                (*size, self.restarts) = (1.0, self.restarts + 1);
                sums.copy_from_slice(&statistics.drawn[of_code]);
            }
            let size = size.max(self.floor);
            rows.iter_mut().zip(&*sums).for_each(|(row, sum)| *row = sum / size);
        }
        Ok(())
    }
}

/// What a batch says of its codes.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Heads, codewords of each, and their width.
    pub shape: [usize; 3],
    /// Keys of each code, `[heads, S]`.
    pub counts: Vec<u64>,
    /// The sums of those keys, `[heads, S, D]`.
    pub sums: Vec<f64>,
    /// A key for each code to start again at, `[heads, S, D]`.
    pub drawn: Vec<f32>,
}

impl Statistics {
    /// Of keys `[B, heads, N, D]` and their codes `[B, heads, N]`, -1 for padding; `seed` draws, so give it another one in every step.
    ///
    /// # Errors
    /// If there is not one code for each key, or a code is not below `count`.
    pub fn of(keys: &View<'_>, codes: &[i64], count: usize, seed: u64) -> Result<Self, Error> {
        let [batch, heads, tokens, width] = keys.shape();
        if codes.len() != batch * heads * tokens {
            return Err(Error::Shape { tensor: "codes", found: vec![codes.len()], expected: vec![batch, heads, tokens] });
        }
        if let Some(code) = codes.iter().find(|&&code| code != NOBODY && !(0..count as i64).contains(&code)) {
            return Err(Error::value("codes", format!("{code} is none of {count} codes")));
        }
        let mut found = Statistics {
            shape: [heads, count, width],
            counts: vec![0; heads * count],
            sums: vec![0.0; heads * count * width],
            drawn: vec![0.0; heads * count * width],
        };
        for head in 0..heads {
            let mut valid = Vec::new();
            for (b, n) in (0..batch).flat_map(|b| (0..tokens).map(move |n| (b, n))) {
                let code = codes[(b * heads + head) * tokens + n];
                if code != NOBODY {
                    valid.push([b, n]);
                    found.add(keys, [b, head, n], head * count + code as usize);
                }
            }
            found.draw_from(keys, head, &valid, seed);
        }
        Ok(found)
    }

    /// Takes in what another batch of the same step says.
    ///
    /// # Errors
    /// If it is of another shape.
    pub fn join(&mut self, other: &Statistics) -> Result<(), Error> {
        if other.shape != self.shape {
            return Err(Error::Shape { tensor: "statistics", found: other.shape.to_vec(), expected: self.shape.to_vec() });
        }
        let of_head = self.shape[1] * self.shape[2];
        for head in (0..self.shape[0]).filter(|&head| !self.seen(head)).collect::<Vec<_>>() {
            self.drawn[head * of_head..][..of_head].copy_from_slice(&other.drawn[head * of_head..][..of_head]);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| *sum += more);
        Ok(())
    }

    fn add(&mut self, keys: &View<'_>, [b, h, n]: [usize; 3], code: usize) {
        let width = self.shape[2];
        self.counts[code] += 1;
        self.sums[code * width..(code + 1) * width].iter_mut().enumerate().for_each(|(d, sum)| *sum += f64::from(keys.at([b, h, n, d])));
    }

    fn draw_from(&mut self, keys: &View<'_>, head: usize, valid: &[[usize; 2]], seed: u64) {
        let [_, count, width] = self.shape;
        for code in (0..count).filter(|_| !valid.is_empty()) {
            let [b, n] = valid[draw([seed, head as u64, code as u64], valid.len())];
            let drawn = &mut self.drawn[(head * count + code) * width..][..width];
            drawn.iter_mut().enumerate().for_each(|(d, x)| *x = keys.at([b, head, n, d]));
        }
    }

    fn of_head(&self, head: usize) -> &[u64] {
        &self.counts[head * self.shape[1]..][..self.shape[1]]
    }

    /// Whether a head had a key.
    fn seen(&self, head: usize) -> bool {
        self.of_head(head).iter().any(|&count| count > 0)
    }

    /// The share of a head's codes that some key has.
    pub fn usage(&self, head: usize) -> f64 {
        self.of_head(head).iter().filter(|&&count| count > 0).count() as f64 / self.shape[1] as f64
    }

    /// `exp(-Σ p ln p)` of a head's codes: S where all are used alike, 1 where one is, 0 without keys.
    pub fn perplexity(&self, head: usize) -> f64 {
        let total = self.of_head(head).iter().sum::<u64>() as f64;
        if total == 0.0 {
            return 0.0;
        }
        let shares = self.of_head(head).iter().filter(|&&count| count > 0).map(|&count| count as f64 / total);
        (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
    }
}

/// A number below `below` from some others (splitmix64, one round each).
fn draw(from: [u64; 3], below: usize) -> usize {
    let mix = |state: u64, x: u64| {
        let mut z = (state ^ x).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let bits = from.into_iter().fold(0, mix);
    ((u128::from(bits) * below as u128) >> 64) as usize
}
