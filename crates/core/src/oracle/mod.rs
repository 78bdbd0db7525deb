//! The definition of exact attention in plain float64: slow, obvious, and what every fast path is tested against.
//!
//! For one query row `i` of query head `h`, over the keys `j` that it sees:
//!
//! ```text
//! s_j = cap(scale q·k_j) + key_bias_j + bias_ij - slope_h |p(i) - j|      cap(x) = c tanh(x / c)
//! lse = ln Σ_j exp s_j       A_j = exp(s_j - lse)       o = Σ_j A_j Z_j v_j       received_j = Σ_i A_ij
//! ```
//!
//! and backward, with `dP_j = Z_j (dO·v_j)` and `D = dO·o`:
//!
//! ```text
//! dS_j = A_j (dP_j - D)      dX_j = dS_j (1 - tanh²(scale q·k_j / c))     dq = scale Σ_j dX_j k_j
//! dk_j = scale Σ_i dX_ij q_i      dv_j = Σ_i A_ij Z_ij dO_i      d key_bias_j = Σ_i dS_ij      d bias_ij = dS_ij
//! ```
//!
//! Query head `h` reads key/value head `g = h / (H / G)`; `dk`, `dv` and `d key_bias` sum over the query heads of a group.
//! A row that sees no key gives zeros, `lse = -inf` and zero gradients. `Z` is 1, or with dropout 0 or `1 / (1 - p)`.
//!
//! [`plain`] is the same code in float32, rounded to a storage type where an honest implementation rounds: its error against
//! the definition is the budget of a fast path. Sources: Vaswani et al. 2017 (attention), Press et al. 2022 (ALiBi slopes),
//! Dao et al. 2022 (the backward pass through `D`).
//!
//! ```
//! use regard_core::oracle::Definition;
//! let (q, k, v) = (vec![1.0], vec![0.0, 3f64.ln()], vec![0.0, 4.0]);
//! let one = Definition { batch: 1, heads: 1, kv_heads: 1, queries: 1, keys: 2, dk: 1, dv: 1, q, k, v, ..Definition::default() };
//! let forward = one.forward();
//! assert!((forward.o[0] - 3.0).abs() < 1e-12 && (forward.lse[0] - 4f64.ln()).abs() < 1e-12);
//! ```

mod judge;
pub mod reduce;
mod tape;

pub(crate) use judge::gradient_of;
pub use judge::{Defined, Formula, Judged, Leaves, Oracle};

use std::convert::identity;
use std::ops::{Add, Div, Mul, Neg, Range, Sub};

/// The numbers that the definition is computed in: `f64` for the truth, `f32` for [`plain`].
pub trait Real:
    Copy + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// The nearest representable number.
    fn from_f64(x: f64) -> Self;
    /// The same number, exactly.
    fn to_f64(self) -> f64;
    /// e to this power.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The same number, not differentiated.
    #[must_use]
    fn constant(self) -> Self {
        Self::from_f64(self.to_f64())
    }
    /// The quotient that an honest implementation stores as its output, and reads again in its backward pass.
    #[must_use]
    fn over(self, sum: Self) -> Self {
        self / sum
    }
}

impl Real for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

impl Real for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

/// A value per pair, `[B|1, H|1, N, M]`: a `batch` or `heads` of 1 is shared by all batch rows or all query heads.
#[derive(Clone, Debug)]
pub struct Dense<T> {
    /// B or 1.
    pub batch: usize,
    /// H or 1.
    pub heads: usize,
    /// `[batch, heads, N, M]`.
    pub values: Vec<T>,
}

/// Dropout on the attention weights: the same numbers always drop the same pairs.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Fraction dropped, `0 ≤ p < 1`; survivors are multiplied by `1 / (1 - p)`.
    pub probability: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Step of the run, so that each step drops other pairs.
    pub step: u64,
}

/// One attention problem with everything that exact attention understands. All tensors are contiguous and row-major.
///
/// `m` and `n` are the keys and queries of one sequence: of a batch row, of a packed segment, or of a span. Query `i` stands at
/// `p(i) = i + m - n`, or at `p(i) = i` if `top_left`.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// B.
    pub batch: usize,
    /// H, query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// G, key/value heads.
    pub kv_heads: usize,
    /// N.
    pub queries: usize,
    /// M.
    pub keys: usize,
    /// Features of a query and of a key.
    pub dk: usize,
    /// Features of a value.
    pub dv: usize,
    /// `[B, H, N, Dk]`.
    pub q: Vec<f64>,
    /// `[B, G, M, Dk]`.
    pub k: Vec<f64>,
    /// `[B, G, M, Dv]`.
    pub v: Vec<f64>,
    /// Factor of `q·k`; `1 / sqrt(Dk)` if absent.
    pub scale: Option<f64>,
    /// Only keys `j ≤ p(i)` are visible.
    pub causal: bool,
    /// Only keys `j ≥ p(i) - left` are visible.
    pub window_left: Option<usize>,
    /// Only keys `j ≤ p(i) + right` are visible.
    pub window_right: Option<usize>,
    /// Keys `j < sinks` are exempt from `window_left`.
    pub sinks: usize,
    /// `p(i) = i` whatever the lengths.
    pub top_left: bool,
    /// `[B]`, m of each batch row; M if absent.
    pub lengths: Option<Vec<usize>>,
    /// `[B]`, n of each batch row; if absent `lengths` where `N = M`, else N.
    pub lengths_q: Option<Vec<usize>>,
    /// `[B, G, M]`: key `j` is hidden from `p(i) ≥ until_j`. `≤ 0`: never visible; `≥ m`: for ever (with `key_positions`: `i64::MAX`).
    pub until: Option<Vec<i64>>,
    /// `[B, G, M]`, added to the score; `-inf` hides the key.
    pub key_bias: Option<Vec<f64>>,
    /// True where the query may attend.
    pub mask: Option<Dense<bool>>,
    /// Added to the score; `-inf` hides the pair.
    pub bias: Option<Dense<f64>>,
    /// Subtract `slope_h |p(i) - j|`, with the slopes of [`alibi_slopes`].
    pub alibi: bool,
    /// `c > 0`: scores become `c tanh(score / c)` before biases.
    pub softcap: Option<f64>,
    /// Dropout on the weights.
    pub dropout: Option<Dropout>,
    /// `[S+1]`, with B = 1: packed sequence `s` owns queries `offsets_q[s] .. offsets_q[s+1]`. Needs `offsets_k`.
    pub offsets_q: Option<Vec<usize>>,
    /// `[S+1]`: packed sequence `s` owns keys `offsets_k[s] .. offsets_k[s+1]`.
    pub offsets_k: Option<Vec<usize>>,
    /// `[B, G]` of (start, count): only these keys exist, and `j` counts from `start`.
    pub key_spans: Option<Vec<[usize; 2]>>,
    /// `[B, G, M]`, compared in place of `j` by causal, window, sinks, until and ALiBi.
    pub key_positions: Option<Vec<i64>>,
    /// `[B, N]`, in place of `p(i)`.
    pub query_positions: Option<Vec<i64>>,
}

/// What attention returns. `largest_term_o` is the largest absolute summand `A_ij Z_ij v_jd` of each output.
#[derive(Clone, Debug, Default)]
pub struct Forward {
    /// `[B, H, N, Dv]`.
    pub o: Vec<f64>,
    /// `[B, H, N]`, natural logarithm of the sum of exponentials of the final scores, before dropout.
    pub lse: Vec<f64>,
    /// `[B, H, M]`, column sums of the weights, before dropout.
    pub received: Vec<f64>,
    /// `[B, H, N, Dv]`.
    pub largest_term_o: Vec<f64>,
}

/// One row of [`Forward`].
#[derive(Clone, Debug)]
pub struct ForwardRow {
    /// `[Dv]`.
    pub o: Vec<f64>,
    /// As in [`Forward`].
    pub lse: f64,
    /// `[Dv]`.
    pub largest_term_o: Vec<f64>,
}

/// Gradients of a loss whose derivative by `o` was given. Each `largest_term` is the largest absolute summand of that
/// gradient, with the two parts of `dS_j = A_j dP_j - A_j D` as summands of their own: they cancel where a row sees one key.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    /// `[B, H, N, Dk]`.
    pub dq: Vec<f64>,
    /// `[B, G, M, Dk]`.
    pub dk: Vec<f64>,
    /// `[B, G, M, Dv]`.
    pub dv: Vec<f64>,
    /// `[B, G, M]`, also when no key bias was given (it is then that of zeros).
    pub dkey_bias: Vec<f64>,
    /// The shape of `bias`, summed over shared axes; empty without bias.
    pub dbias: Vec<f64>,
    /// Of `dq`.
    pub largest_term_dq: Vec<f64>,
    /// Of `dk`.
    pub largest_term_dk: Vec<f64>,
    /// Of `dv`.
    pub largest_term_dv: Vec<f64>,
    /// Of `dkey_bias`.
    pub largest_term_dkey_bias: Vec<f64>,
    /// Of `dbias`.
    pub largest_term_dbias: Vec<f64>,
}

/// How an implementation turns scores into weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// `e / Σe` with `e = exp(s - max s)`.
    Normalised,
    /// `exp(s - lse)`.
    FromLse,
}

/// The type in which an implementation stores `q k v o` and their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// The `heads` ALiBi slopes: `2^(-8h/H)`, h = 1..H, for a power of two; otherwise those of the next lower power n,
/// then the 1st, 3rd, 5th … of 2n.
pub fn alibi_slopes(heads: usize) -> Vec<f64> {
    (0..heads).map(|h| alibi_slope(heads, h)).collect()
}

fn alibi_slope(heads: usize, h: usize) -> f64 {
    let lower_power = 1 << heads.ilog2();
    let power_of_two_slope = |nth: usize, of: usize| (-8.0 * nth as f64 / of as f64).exp2();
    if h < lower_power { power_of_two_slope(h + 1, lower_power) } else { power_of_two_slope(2 * (h - lower_power) + 1, 2 * lower_power) }
}

impl Dropout {
    /// `s`: batch row or packed sequence; `i`, `j`: query and key inside it; `h`: query head.
    fn drops(&self, s: usize, h: usize, i: usize, j: usize) -> bool {
        let [step_low, step_high] = halves(self.step);
        let [seed_low, seed_high] = halves(self.seed);
        let seed = mix(seed_low ^ mix(seed_high ^ mix(step_low ^ mix(step_high ^ 0x9e37_79b9))));
        let row = mix(seed ^ mix(s as u32 ^ mix(h as u32 ^ mix(i as u32))));
        let bits = mix(row ^ (j as u32).wrapping_mul(0x9e37_79b1));
        let threshold = (self.probability * 2f64.powi(32)).round().min(f64::from(u32::MAX));
        bits < threshold as u32
    }
}

/// Chris Wellons' `lowbias32`: a permutation of the 32-bit numbers that looks random.
fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The low and the high 32 bits.
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// The queries and keys that belong together, as ranges along N and M.
pub(crate) struct Sequence {
    index: usize,
    pub(crate) queries: Range<usize>,
    pub(crate) keys: Range<usize>,
}

/// One unpadded query row of one head.
pub(crate) struct Row<'a> {
    definition: &'a Definition,
    b: usize,
    h: usize,
    g: usize,
    i: usize,
    pub(crate) sequence: Sequence,
}

impl Definition {
    /// Whether query `i` of head `h` sees key `j` (indices along N and M).
    pub fn visible(&self, b: usize, h: usize, i: usize, j: usize) -> bool {
        self.row(b, h, i).is_some_and(|row| row.sees(j))
    }

    /// The final score of a pair; `-inf` if it is hidden.
    pub fn score(&self, b: usize, h: usize, i: usize, j: usize) -> f64 {
        match self.row(b, h, i) {
            Some(row) if row.sees(j) => row.score(j),
            _ => f64::NEG_INFINITY,
        }
    }

    /// `[M]`, the weights of one row before dropout; 0 where hidden.
    pub fn weights(&self, b: usize, h: usize, i: usize) -> Vec<f64> {
        let mut weights = vec![0.0; self.keys];
        for (j, weight) in self.row(b, h, i).map(|row| EXACT.attend(&row).weights).unwrap_or_default() {
            weights[j] = weight;
        }
        weights
    }

    /// Attention of every row. Panics if a tensor does not have its documented size.
    pub fn forward(&self) -> Forward {
        EXACT.forward(self)
    }

    /// Attention of some rows of one head, for spot checks of large problems.
    pub fn forward_rows(&self, b: usize, h: usize, rows: &[usize]) -> Vec<ForwardRow> {
        EXACT.forward_rows(self, [b, h], rows)
    }

    /// Gradients for `d_o`, `[B, H, N, Dv]`. Panics if a tensor does not have its documented size.
    pub fn backward(&self, d_o: &[f64]) -> Gradients {
        EXACT.backward(self, d_o, None)
    }

    /// Every `[b, h, i]` in the order of `[B, H, N]`.
    pub(crate) fn every_row(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let (heads, queries) = (self.heads, self.queries);
        (0..self.batch * heads * queries).map(move |row| [row / queries / heads, row / queries % heads, row % queries])
    }

    /// None where the row is padding.
    pub(crate) fn row(&self, b: usize, h: usize, i: usize) -> Option<Row<'_>> {
        let g = h / (self.heads / self.kv_heads);
        let sequence = self.sequence(b, g, i)?;
        sequence.queries.contains(&i).then_some(Row { definition: self, b, h, g, i, sequence })
    }

    fn sequence(&self, b: usize, g: usize, i: usize) -> Option<Sequence> {
        let (Some(offsets_q), Some(offsets_k)) = (&self.offsets_q, &self.offsets_k) else {
            return Some(Sequence { index: b, queries: 0..self.query_length(b), keys: self.key_range(b, g) });
        };
        let segment = |offsets: &[usize], s: usize| offsets[s]..offsets[s + 1];
        let s = (0..offsets_q.len() - 1).find(|&s| segment(offsets_q, s).contains(&i))?;
        Some(Sequence { index: s, queries: segment(offsets_q, s), keys: segment(offsets_k, s) })
    }

    fn query_length(&self, b: usize) -> usize {
        match (&self.lengths_q, &self.lengths) {
            (Some(lengths_q), _) => lengths_q[b],
            (None, Some(lengths)) if self.queries == self.keys => lengths[b],
            _ => self.queries,
        }
    }

    fn key_range(&self, b: usize, g: usize) -> Range<usize> {
        match (&self.key_spans, &self.lengths) {
            (Some(spans), _) => {
                let [start, count] = spans[b * self.kv_heads + g];
                start..start + count
            }
            (None, Some(lengths)) => 0..lengths[b],
            (None, None) => 0..self.keys,
        }
    }

    fn assert_sizes(&self) {
        let rows = self.batch * self.heads * self.queries;
        let columns = self.batch * self.kv_heads * self.keys;
        assert_eq!(self.q.len(), rows * self.dk, "q is [B, H, N, Dk]");
        assert_eq!(self.k.len(), columns * self.dk, "k is [B, G, M, Dk]");
        assert_eq!(self.v.len(), columns * self.dv, "v is [B, G, M, Dv]");
        assert!(self.until.as_ref().is_none_or(|x| x.len() == columns), "until is [B, G, M]");
        assert!(self.key_bias.as_ref().is_none_or(|x| x.len() == columns), "key_bias is [B, G, M]");
        let dense_size = |batch: usize, heads: usize| batch * heads * self.queries * self.keys;
        assert!(self.mask.as_ref().is_none_or(|x| x.values.len() == dense_size(x.batch, x.heads)), "mask is [B|1, H|1, N, M]");
        assert!(self.bias.as_ref().is_none_or(|x| x.values.len() == dense_size(x.batch, x.heads)), "bias is [B|1, H|1, N, M]");
        assert_eq!(self.offsets_q.is_some(), self.offsets_k.is_some(), "offsets come in pairs");
        assert_eq!(self.query_positions.is_some(), self.key_positions.is_some(), "positions come in pairs");
    }
}

impl Row<'_> {
    pub(crate) fn sees(&self, j: usize) -> bool {
        self.sequence.keys.contains(&j) && self.reaches(j) && self.outlived_by(j) && self.allows(j)
    }

    /// Causal, window and sinks.
    fn reaches(&self, j: usize) -> bool {
        let position = self.key_position(j);
        let behind = self.position() - position;
        let is_past = !self.definition.causal || behind >= 0;
        let in_left = self.definition.window_left.is_none_or(|left| behind <= reach(left)) || position < reach(self.definition.sinks);
        let in_right = self.definition.window_right.is_none_or(|right| -behind <= reach(right));
        is_past && in_left && in_right
    }

    /// The lifetime of key `j` has not ended at this row.
    fn outlived_by(&self, j: usize) -> bool {
        let Some(until) = &self.definition.until else { return true };
        let until = until[self.key_index(j)];
        let for_ever = if self.definition.key_positions.is_some() { i64::MAX } else { reach(self.sequence.keys.len()) };
        until > 0 && (self.position() < until || until >= for_ever)
    }

    /// Mask, and biases of `-inf`.
    fn allows(&self, j: usize) -> bool {
        let masked = self.definition.mask.as_ref().is_some_and(|mask| !mask.values[self.dense_index(mask, j)]);
        !masked && self.key_bias(j) != f64::NEG_INFINITY && self.bias(j) != f64::NEG_INFINITY
    }

    pub(crate) fn position(&self) -> i64 {
        let Sequence { queries, keys, .. } = &self.sequence;
        let i = reach(self.i - queries.start);
        match &self.definition.query_positions {
            Some(positions) => positions[self.b * self.definition.queries + self.i],
            None if self.definition.top_left => i,
            None => i + reach(keys.len()) - reach(queries.len()),
        }
    }

    pub(crate) fn key_position(&self, j: usize) -> i64 {
        match &self.definition.key_positions {
            Some(positions) => positions[self.key_index(j)],
            None => reach(j - self.sequence.keys.start),
        }
    }

    fn score<T: Real>(&self, j: usize) -> T {
        let raw = self.raw_score::<T>(j);
        let capped = match self.definition.softcap.map(T::from_f64) {
            Some(c) => c * (raw / c).tanh(),
            None => raw,
        };
        capped + T::from_f64(self.key_bias(j)) + T::from_f64(self.bias(j)) + self.alibi(j)
    }

    /// `scale q·k`.
    fn raw_score<T: Real>(&self, j: usize) -> T {
        self.scale::<T>() * dot::<T>(self.query(), self.key(j))
    }

    /// The derivative of the capped by the raw score, `1 - tanh²(raw / c)`.
    fn cap_slope<T: Real>(&self, j: usize) -> T {
        let one = T::from_f64(1.0);
        let Some(c) = self.definition.softcap.map(T::from_f64) else { return one };
        let tanh = (self.raw_score::<T>(j) / c).tanh();
        one - tanh * tanh
    }

    fn scale<T: Real>(&self) -> T {
        T::from_f64(self.definition.scale.unwrap_or(1.0 / (self.definition.dk as f64).sqrt()))
    }

    fn key_bias(&self, j: usize) -> f64 {
        self.definition.key_bias.as_ref().map_or(0.0, |key_bias| key_bias[self.key_index(j)])
    }

    fn bias(&self, j: usize) -> f64 {
        self.definition.bias.as_ref().map_or(0.0, |bias| bias.values[self.dense_index(bias, j)])
    }

    fn alibi<T: Real>(&self, j: usize) -> T {
        if !self.definition.alibi {
            return T::from_f64(0.0);
        }
        let distance = (self.position() - self.key_position(j)).abs();
        -T::from_f64(alibi_slope(self.definition.heads, self.h)) * T::from_f64(distance as f64)
    }

    /// `Z`.
    fn kept<T: Real>(&self, j: usize) -> T {
        let Some(dropout) = &self.definition.dropout else { return T::from_f64(1.0) };
        let Sequence { index, queries, keys } = &self.sequence;
        if dropout.drops(*index, self.h, self.i - queries.start, j - keys.start) {
            T::from_f64(0.0)
        } else {
            T::from_f64(1.0 / (1.0 - dropout.probability))
        }
    }

    fn query(&self) -> &[f64] {
        vector(&self.definition.q, self.query_index(), self.definition.dk)
    }

    fn key(&self, j: usize) -> &[f64] {
        vector(&self.definition.k, self.key_index(j), self.definition.dk)
    }

    fn value(&self, j: usize) -> &[f64] {
        vector(&self.definition.v, self.key_index(j), self.definition.dv)
    }

    /// Of this row in `[B, H, N]`.
    pub(crate) fn query_index(&self) -> usize {
        (self.b * self.definition.heads + self.h) * self.definition.queries + self.i
    }

    /// Of key `j` in `[B, G, M]`.
    pub(crate) fn key_index(&self, j: usize) -> usize {
        (self.b * self.definition.kv_heads + self.g) * self.definition.keys + j
    }

    /// Of this row and key `j` in `[B|1, H|1, N, M]`.
    fn dense_index<D>(&self, dense: &Dense<D>, j: usize) -> usize {
        let b = if dense.batch == 1 { 0 } else { self.b };
        let h = if dense.heads == 1 { 0 } else { self.h };
        ((b * dense.heads + h) * self.definition.queries + self.i) * self.definition.keys + j
    }
}

/// A count as a distance between positions.
fn reach(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn vector(tensor: &[f64], index: usize, size: usize) -> &[f64] {
    &tensor[index * size..(index + 1) * size]
}

fn dot<T: Real>(a: &[f64], b: &[f64]) -> T {
    a.iter().zip(b).fold(T::from_f64(0.0), |sum, (&x, &y)| sum + T::from_f64(x) * T::from_f64(y))
}

/// The largest absolute summand of a dot product.
fn largest_product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x * y).abs()).fold(0.0, f64::max)
}

/// A summand, and its size for `largest_term`: larger than its absolute value if it is itself a difference that cancels.
#[derive(Clone, Copy)]
struct Term<T> {
    value: T,
    size: f64,
}

impl<T: Real> Term<T> {
    fn new(value: T) -> Self {
        Self { value, size: value.to_f64().abs() }
    }

    fn times(self, factor: T) -> Self {
        Self { value: self.value * factor, size: self.size * factor.to_f64().abs() }
    }
}

/// Running sums, each with the size of its largest term.
struct Sums<T> {
    totals: Vec<T>,
    largest: Vec<f64>,
}

impl<T: Real> Sums<T> {
    fn new(count: usize) -> Self {
        Self { totals: vec![T::from_f64(0.0); count], largest: vec![0.0; count] }
    }

    fn add(&mut self, at: usize, term: Term<T>) {
        self.totals[at] = self.totals[at] + term.value;
        self.largest[at] = self.largest[at].max(term.size);
    }

    /// Adds `factor * vector` to the `index`-th vector of that size.
    fn add_vector(&mut self, index: usize, factor: Term<T>, vector: &[f64]) {
        let own = index * vector.len()..(index + 1) * vector.len();
        let sums = self.totals[own.clone()].iter_mut().zip(&mut self.largest[own]);
        for ((total, largest), &x) in sums.zip(vector) {
            let term = factor.times(T::from_f64(x));
            *total = *total + term.value;
            *largest = largest.max(term.size);
        }
    }

    fn rounded(&self, round: fn(T) -> T) -> Vec<f64> {
        self.totals.iter().map(|&total| round(total).to_f64()).collect()
    }
}

struct GradientSums<T> {
    q: Sums<T>,
    k: Sums<T>,
    v: Sums<T>,
    key_bias: Sums<T>,
    bias: Sums<T>,
}

impl<T: Real> GradientSums<T> {
    fn new(definition: &Definition) -> Self {
        Self {
            q: Sums::new(definition.q.len()),
            k: Sums::new(definition.k.len()),
            v: Sums::new(definition.v.len()),
            key_bias: Sums::new(definition.batch * definition.kv_heads * definition.keys),
            bias: Sums::new(definition.bias.as_ref().map_or(0, |bias| bias.values.len())),
        }
    }

    fn rounded(self, round: fn(T) -> T) -> Gradients {
        Gradients {
            dq: self.q.rounded(round),
            dk: self.k.rounded(round),
            dv: self.v.rounded(round),
            dkey_bias: self.key_bias.rounded(identity),
            dbias: self.bias.rounded(identity),
            largest_term_dq: self.q.largest,
            largest_term_dk: self.k.largest,
            largest_term_dv: self.v.largest,
            largest_term_dkey_bias: self.key_bias.largest,
            largest_term_dbias: self.bias.largest,
        }
    }
}

/// The weights of one row over the keys that it sees.
struct Attended<T> {
    weights: Vec<(usize, T)>,
    lse: T,
}

/// In which numbers the definition is computed, and how those are rounded to the storage type.
struct Arithmetic<T> {
    round: fn(T) -> T,
    weights: Weights,
}

const EXACT: Arithmetic<f64> = Arithmetic { round: identity, weights: Weights::Normalised };

impl<T: Real> Arithmetic<T> {
    fn attend(&self, row: &Row<'_>) -> Attended<T> {
        let keys: Vec<usize> = row.sequence.keys.clone().filter(|&j| row.sees(j)).collect();
        let scores: Vec<T> = keys.iter().map(|&j| row.score(j)).collect();
        let largest = scores.iter().fold(T::from_f64(f64::NEG_INFINITY), |max, &s| if s > max { s } else { max });
        let sum = scores.iter().fold(T::from_f64(0.0), |sum, &s| sum + (s - largest).exp());
        let lse = largest + sum.ln();
        let weight = |s: T| match self.weights {
            Weights::Normalised => (s - largest).exp() / sum,
            Weights::FromLse => (s - lse).exp(),
        };
        Attended { weights: keys.into_iter().zip(scores.into_iter().map(weight)).collect(), lse }
    }

    /// `Σ_j A_j Z_j v_j`, not yet rounded.
    fn output(&self, row: &Row<'_>, attended: &Attended<T>) -> Sums<T> {
        let mut o = Sums::new(row.definition.dv);
        for &(j, weight) in &attended.weights {
            o.add_vector(0, Term::new((self.round)(weight * row.kept(j))), row.value(j));
        }
        o
    }

    /// Row `[b, h, i]`, and its weights for `received`.
    fn forward_row(&self, definition: &Definition, [b, h, i]: [usize; 3]) -> (ForwardRow, Attended<T>) {
        let Some(row) = definition.row(b, h, i) else {
            let zeros = vec![0.0; definition.dv];
            let padding = ForwardRow { o: zeros.clone(), lse: f64::NEG_INFINITY, largest_term_o: zeros };
            return (padding, Attended { weights: Vec::new(), lse: T::from_f64(f64::NEG_INFINITY) });
        };
        let attended = self.attend(&row);
        let o = self.output(&row, &attended);
        (ForwardRow { o: o.rounded(self.round), lse: attended.lse.to_f64(), largest_term_o: o.largest }, attended)
    }

    fn forward_rows(&self, definition: &Definition, [b, h]: [usize; 2], rows: &[usize]) -> Vec<ForwardRow> {
        rows.iter().map(|&i| self.forward_row(definition, [b, h, i]).0).collect()
    }

    fn forward(&self, definition: &Definition) -> Forward {
        definition.assert_sizes();
        let mut forward = Forward::default();
        let mut received = Sums::new(definition.batch * definition.heads * definition.keys);
        for [b, h, i] in definition.every_row() {
            let (row, attended) = self.forward_row(definition, [b, h, i]);
            forward.o.extend(row.o);
            forward.lse.push(row.lse);
            forward.largest_term_o.extend(row.largest_term_o);
            for (j, weight) in attended.weights {
                received.add((b * definition.heads + h) * definition.keys + j, Term::new(weight));
            }
        }
        forward.received = received.rounded(identity);
        forward
    }

    /// Gradients for `d_o`; `D` is computed from `o` where it is given, else from the output of these numbers.
    fn backward(&self, definition: &Definition, d_o: &[f64], o: Option<&[f64]>) -> Gradients {
        definition.assert_sizes();
        let mut sums = GradientSums::new(definition);
        assert_eq!(d_o.len(), definition.batch * definition.heads * definition.queries * definition.dv, "d_o is [B, H, N, Dv]");
        for row in definition.every_row().filter_map(|[b, h, i]| definition.row(b, h, i)) {
            let attended = self.attend(&row);
            let own = self.output(&row, &attended).rounded(self.round);
            let o = o.map_or(&own[..], |o| vector(o, row.query_index(), definition.dv));
            self.backward_row(&row, attended, [vector(d_o, row.query_index(), definition.dv), o], &mut sums);
        }
        sums.rounded(self.round)
    }

    fn backward_row(&self, row: &Row<'_>, attended: Attended<T>, [d_o, o]: [&[f64]; 2], sums: &mut GradientSums<T>) {
        let delta: T = dot(d_o, o);
        let size_of_delta = delta.to_f64().abs().max(largest_product(d_o, o));
        for (j, weight) in attended.weights {
            let d_weight = row.kept::<T>(j) * dot(d_o, row.value(j));
            let size = size_of_delta.max(d_weight.to_f64().abs()).max(largest_product(d_o, row.value(j)));
            let d_score = Term { value: d_weight - delta, size }.times(weight);
            let d_capped = d_score.times(row.cap_slope(j));
            let d_raw = Term { value: (self.round)(d_capped.value), ..d_capped }.times(row.scale());
            sums.q.add_vector(row.query_index(), d_raw, row.key(j));
            sums.k.add_vector(row.key_index(j), d_raw, row.query());
            sums.v.add_vector(row.key_index(j), Term::new((self.round)(weight * row.kept(j))), d_o);
            sums.key_bias.add(row.key_index(j), d_score);
            if let Some(bias) = &row.definition.bias {
                sums.bias.add(row.dense_index(bias, j), d_score);
            }
        }
    }
}

/// The plain honest implementation that sets tolerances: the definition with every operation in float32, inputs rounded to
/// float32 first. For a storage type, weights and `dS` are rounded to it where they enter a product with `v`, `dO`, `q` or `k`,
/// and so are `o`, `dq`, `dk` and `dv`. Gradients are those for `d_o`, `[B, H, N, Dv]`, if given.
pub fn plain(definition: &Definition, d_o: Option<&[f64]>, storage: Storage, weights: Weights) -> (Forward, Option<Gradients>) {
    let single = Arithmetic { round: storage.rounding(), weights };
    (single.forward(definition), d_o.map(|d_o| single.backward(definition, d_o, None)))
}

/// The gradients of [`plain`] when the output that a backward pass is given, `o [B, H, N, Dv]`, is not its own.
pub fn plain_gradients(definition: &Definition, d_o: &[f64], o: &[f64], storage: Storage, weights: Weights) -> Gradients {
    Arithmetic::<f32> { round: storage.rounding(), weights }.backward(definition, d_o, Some(o))
}

/// [`plain`] for some rows of head `[b, h]`, the counterpart of [`Definition::forward_rows`].
pub fn plain_rows(definition: &Definition, head: [usize; 2], rows: &[usize], storage: Storage, weights: Weights) -> Vec<ForwardRow> {
    Arithmetic { round: storage.rounding(), weights }.forward_rows(definition, head, rows)
}

impl Storage {
    pub(crate) fn rounding(self) -> fn(f32) -> f32 {
        match self {
            Storage::F32 => identity,
            Storage::Bf16 => |x| half::bf16::from_f32(x).to_f32(),
            Storage::F16 => |x| half::f16::from_f32(x).to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Xorshift; normal numbers by Box and Muller.
    struct Draw(u64);

    impl Draw {
        fn seeded(seed: u64) -> Self {
            Draw((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        }
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 >> 11
        }
        fn below(&mut self, end: usize) -> usize {
            self.next() as usize % end
        }
        fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
            (self.below(2) == 0).then(|| make(self))
        }
        fn normal(&mut self) -> f64 {
            let uniform = |bits: u64| (bits as f64 + 0.5) / 2f64.powi(53);
            (-2.0 * uniform(self.next()).ln()).sqrt() * (std::f64::consts::TAU * uniform(self.next())).cos()
        }
        fn normals(&mut self, count: usize) -> Vec<f64> {
            (0..count).map(|_| self.normal()).collect()
        }
        fn counts(&mut self, count: usize, end: usize) -> Vec<usize> {
            (0..count).map(|_| self.below(end)).collect()
        }
        fn biases(&mut self, count: usize) -> Vec<f64> {
            (0..count).map(|_| if self.below(6) == 0 { f64::NEG_INFINITY } else { self.normal() }).collect()
        }
    }

    fn dense(draw: &mut Draw, batch: usize, values: Vec<f64>) -> Dense<f64> {
        match draw.below(3) {
            0 => Dense { batch: 1, heads: 1, values: values[..30].to_vec() },
            1 => Dense { batch, heads: 1, values: values[..batch * 30].to_vec() },
            _ => Dense { batch: 1, heads: 4, values: values[..120].to_vec() },
        }
    }

    /// Everything at once, on 4 heads over 2, with N = M or 5 queries of 6 keys; `kind` chooses how sequences are bounded.
    fn drawn(seed: u64) -> Definition {
        let draw = &mut Draw::seeded(seed);
        let kind = draw.below(5);
        let batch = if kind == 2 { 1 } else { 2 };
        let mut drawn = Definition { batch, heads: 4, kv_heads: 2, queries: 5, keys: 6, dk: 3, dv: 2, ..Definition::default() };
        drawn.q = draw.normals(batch * 4 * 5 * 3);
        drawn.k = draw.normals(batch * 2 * 6 * 3);
        drawn.v = draw.normals(batch * 2 * 6 * 2);
        let columns = batch * 2 * 6;
        drawn.scale = draw.maybe(|draw| 0.5 + draw.normal().abs());
        drawn.causal = draw.below(2) == 0;
        drawn.window_left = draw.maybe(|draw| draw.below(4));
        drawn.window_right = draw.maybe(|draw| draw.below(4));
        drawn.sinks = draw.below(3);
        drawn.top_left = draw.below(4) == 0;
        drawn.until = draw.maybe(|draw| draw.counts(columns, 9).into_iter().map(reach).collect());
        drawn.key_bias = draw.maybe(|draw| draw.biases(columns));
        drawn.bias = draw.maybe(|draw| {
            let values = draw.biases(240);
            dense(draw, batch, values)
        });
        drawn.mask = draw.maybe(|draw| {
            let Dense { batch, heads, values } = dense(draw, batch, vec![0.0; 240]);
            Dense { batch, heads, values: values.iter().map(|_| draw.below(4) > 0).collect() }
        });
        drawn.alibi = draw.below(2) == 0;
        drawn.softcap = draw.maybe(|_| 1.5);
        drawn.dropout = draw.maybe(|draw| Dropout { probability: 0.3, seed: draw.next(), step: 3 });
        match kind {
            1 => {
                drawn.lengths = Some(draw.counts(2, 7));
                drawn.lengths_q = draw.maybe(|draw| draw.counts(2, 6));
            }
            2 => {
                drawn.offsets_q = Some(vec![0, 2, 2, 4]);
                drawn.offsets_k = Some(vec![0, 3, 4, 6]);
            }
            3 => {
                drawn.key_spans =
                    Some((0..4).map(|_| [draw.below(3), draw.below(5)]).map(|[start, count]| [start, count.min(6 - start)]).collect())
            }
            4 => {
                drawn.key_positions = Some(draw.counts(columns, 9).into_iter().map(reach).collect());
                drawn.query_positions = Some(draw.counts(batch * 5, 9).into_iter().map(reach).collect());
            }
            _ => {}
        }
        drawn
    }

    /// One head, values that are one-hot so that `o` shows the weights, scores all 0.
    fn uniform(queries: usize, keys: usize) -> Definition {
        let v = (0..keys * keys).map(|x| f64::from(u8::from(x / keys == x % keys))).collect();
        let shape = Definition { batch: 1, heads: 1, kv_heads: 1, queries, keys, dk: 1, dv: keys, v, ..Definition::default() };
        Definition { q: vec![1.0; queries], k: vec![0.0; keys], ..shape }
    }

    /// Which keys each query sees, as text.
    fn sight(definition: &Definition) -> String {
        let row = |i| (0..definition.keys).map(|j| if definition.visible(0, 0, i, j) { '1' } else { '.' }).collect();
        (0..definition.queries).map(row).collect::<Vec<String>>().join(" ")
    }

    fn max_difference(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).filter(|(x, y)| x != y).map(|(x, y)| (x - y).abs()).fold(0.0, |max, x| if x <= max { max } else { x })
    }

    /// The derivatives of `Σ o·d_o` by one of the inputs, by central differences.
    fn differences(definition: &Definition, d_o: &[f64], input: fn(&mut Definition) -> &mut [f64]) -> Vec<f64> {
        let mut moved = definition.clone();
        let loss = |definition: &Definition| dot::<f64>(&definition.forward().o, d_o);
        let derivative = |at: usize| {
            let [up, down] = [1e-5, -1e-5].map(|step| {
                let before = std::mem::replace(&mut input(&mut moved)[at], input(&mut definition.clone())[at] + step);
                let loss = loss(&moved);
                input(&mut moved)[at] = before;
                loss
            });
            (up - down) / 2e-5
        };
        (0..input(&mut definition.clone()).len()).map(derivative).collect()
    }

    #[test]
    fn gradients_match_finite_differences() {
        for seed in 0..150 {
            let definition = drawn(seed);
            let d_o = Draw::seeded(seed + 1000).normals(definition.batch * 4 * 5 * 2);
            let gradients = definition.backward(&d_o);
            let check = |name, gradient: &[f64], input| {
                let error = max_difference(gradient, &differences(&definition, &d_o, input));
                assert!(error < 1e-7, "d{name} is off by {error}, seed={seed}");
            };
            check("q", &gradients.dq, |x| &mut x.q);
            check("k", &gradients.dk, |x| &mut x.k);
            check("v", &gradients.dv, |x| &mut x.v);
            if definition.key_bias.is_some() {
                check("key_bias", &gradients.dkey_bias, |x| x.key_bias.as_mut().unwrap());
            }
            if definition.bias.is_some() {
                check("bias", &gradients.dbias, |x| &mut x.bias.as_mut().unwrap().values);
            }
        }
    }

    #[test]
    fn softmax_of_two_keys_by_hand() {
        let ln3 = 3f64.ln();
        let definition = Definition { k: vec![0.0, ln3], ..uniform(1, 2) };
        let forward = definition.forward();
        assert!(max_difference(&forward.o, &[0.25, 0.75]) < 1e-15);
        assert!((forward.lse[0] - 4f64.ln()).abs() < 1e-15);
        assert_eq!(forward.received, forward.o);
        assert_eq!(definition.weights(0, 0, 0), forward.o);
        let biased = Definition { k: vec![0.0; 2], key_bias: Some(vec![0.0, ln3]), ..definition.clone() };
        assert!(max_difference(&biased.forward().o, &[0.25, 0.75]) < 1e-15);
        let capped = Definition { softcap: Some(2.0), scale: Some(0.5), key_bias: Some(vec![0.0, 7.0]), ..definition };
        assert!((capped.score(0, 0, 0, 1) - (2.0 * (ln3 / 4.0).tanh() + 7.0)).abs() < 1e-15);
    }

    #[test]
    fn windows_include_both_reaches() {
        let window = Definition { window_left: Some(1), window_right: Some(2), ..uniform(5, 5) };
        assert_eq!(sight(&window), "111.. 1111. .1111 ..111 ...11");
        assert_eq!(sight(&Definition { causal: true, ..window.clone() }), "1.... 11... .11.. ..11. ...11");
        assert_eq!(sight(&Definition { sinks: 1, ..window.clone() }), "111.. 1111. 11111 1.111 1..11");
        assert_eq!(sight(&Definition { window_left: Some(usize::MAX), ..window }), "111.. 1111. 11111 11111 11111");
        let sinks_ahead = Definition { sinks: 4, window_right: Some(0), ..uniform(4, 4) };
        assert_eq!(sight(&sinks_ahead), "1... 11.. 111. 1111");
    }

    #[test]
    fn positions_align_bottom_right_or_top_left() {
        let causal = Definition { causal: true, ..uniform(2, 4) };
        assert_eq!(sight(&causal), "111. 1111");
        assert_eq!(sight(&Definition { top_left: true, ..causal }), "1... 11..");
        let padded = Definition { causal: true, lengths: Some(vec![3]), ..uniform(4, 4) };
        assert_eq!(sight(&padded), "1... 11.. 111. ....");
        assert_eq!(sight(&Definition { lengths_q: Some(vec![2]), ..padded.clone() }), "11.. 111. .... ....");
        let fewer_queries = Definition { causal: true, lengths: Some(vec![3]), ..uniform(2, 4) };
        assert_eq!(sight(&fewer_queries), "11.. 111.");
    }

    #[test]
    fn rows_before_the_first_key_see_nothing() {
        let definition = Definition { causal: true, ..uniform(4, 2) };
        assert_eq!(sight(&definition), ".. .. 1. 11");
        let forward = definition.forward();
        assert_eq!(forward.lse, [f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0, 2f64.ln()]);
        assert_eq!(forward.o, [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.5]);
        assert_eq!(forward.received, [1.5, 0.5]);
        let gradients = definition.backward(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(gradients.dq[..3], [0.0; 3]);
        assert_eq!(gradients.dv, [5.0 + 3.5, 6.0 + 4.0, 3.5, 4.0]);
        assert_eq!(Definition { causal: true, ..uniform(2, 0) }.forward().lse, [f64::NEG_INFINITY; 2]);
    }

    #[test]
    fn until_only_ends_a_lifetime() {
        let lifetimes = Definition { until: Some(vec![2, 0, 4, i64::MAX]), ..uniform(4, 4) };
        assert_eq!(sight(&lifetimes), "1.11 1.11 ..11 ..11");
        let late = Definition { top_left: true, until: Some(vec![1, 2]), ..uniform(4, 2) };
        assert_eq!(sight(&late), "11 .1 .1 .1");
        let before_the_first = Definition { until: Some(vec![1, 0]), ..uniform(4, 2) };
        assert_eq!(sight(&before_the_first), "1. 1. 1. ..");
        let positions = (Some(vec![0, 1, 2, 9]), Some(vec![800, 900, 1000, 1100]));
        let until = Some(vec![900, 1000, i64::MAX, 0]);
        let placed = Definition { key_positions: positions.0, query_positions: positions.1, until, ..uniform(4, 4) };
        assert_eq!(sight(&placed), "111. .11. ..1. ..1.");
    }

    #[test]
    fn six_slopes_interleave_those_of_four_and_eight() {
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        assert_eq!(alibi_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        let definition = Definition { alibi: true, ..uniform(2, 4) };
        assert_eq!([0, 2, 3].map(|j| definition.score(0, 0, 0, j)), [-2.0, 0.0, -1.0].map(|x| x / 256.0));
    }

    #[test]
    fn parts_over_disjoint_keys_merge_exactly() {
        let whole = Definition { mask: None, dropout: None, ..drawn(0) };
        let part = |first: bool| {
            let values = (0..30).map(|pair| (pair % 6 < 2) == first).collect();
            Definition { mask: Some(Dense { batch: 1, heads: 1, values }), ..whole.clone() }.forward()
        };
        let (a, b, whole) = (part(true), part(false), whole.forward());
        for (row, &lse) in whole.lse.iter().enumerate().filter(|(_, lse)| lse.is_finite()) {
            let merged_lse = (a.lse[row].exp() + b.lse[row].exp()).ln();
            assert!((merged_lse - lse).abs() < 1e-12);
            for at in row * 2..row * 2 + 2 {
                let merged = a.o[at] * (a.lse[row] - lse).exp() + b.o[at] * (b.lse[row] - lse).exp();
                assert!((merged - whole.o[at]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn packed_sequences_equal_padded_rows() {
        let options = Definition { alibi: true, window_left: Some(1), sinks: 1, softcap: Some(1.5), ..Definition::default() };
        let dropout = Some(Dropout { probability: 0.4, seed: 1 << 40, step: 2 });
        let draw = &mut Draw::seeded(5);
        let padded = Definition { batch: 2, heads: 1, kv_heads: 1, queries: 3, keys: 4, dk: 2, dv: 1, dropout, ..options };
        let padded = Definition { q: draw.normals(12), k: draw.normals(16), v: draw.normals(8), ..padded };
        let lengths = (Some(vec![4, 2]), Some(vec![2, 3]));
        let padded = Definition { lengths: lengths.0, lengths_q: lengths.1, until: Some(vec![3, 9, 1, 3, 2, 1, 0, 0]), ..padded };
        let packed = Definition { batch: 1, queries: 5, keys: 6, lengths: None, lengths_q: None, ..padded.clone() };
        let packed = Definition { offsets_q: Some(vec![0, 2, 5]), offsets_k: Some(vec![0, 4, 6]), ..packed };
        let packed = Definition { q: [&padded.q[..4], &padded.q[6..]].concat(), k: padded.k[..12].to_vec(), ..packed };
        let packed = Definition { v: padded.v[..6].to_vec(), until: Some(vec![3, 9, 1, 3, 2, 1]), ..packed };
        let (padded, packed) = (padded.forward(), packed.forward());
        assert_eq!(packed.lse, [&padded.lse[..2], &padded.lse[3..]].concat());
        assert_eq!(packed.o, [&padded.o[..2], &padded.o[3..]].concat());
        assert_eq!(packed.received, padded.received[..6]);
        assert_eq!((padded.o[2], padded.lse[2]), (0.0, f64::NEG_INFINITY));
    }

    #[test]
    fn every_head_of_every_batch_row_is_its_own_problem() {
        for definition in (0..100).map(drawn).filter(|drawn| drawn.batch == 2 && drawn.key_spans.is_none()) {
            let Definition { lengths: None, query_positions: None, .. } = &definition else { continue };
            let definition = Definition { alibi: false, dropout: None, ..definition };
            let forward = definition.forward();
            for (b, h, g) in [(0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 1, 0), (1, 3, 1)] {
                let (row, column) = (b * 4 + h, b * 2 + g);
                let mut one = Definition { batch: 1, heads: 1, kv_heads: 1, ..definition.clone() };
                one.q = vector(&definition.q, row, 15).to_vec();
                one.k = vector(&definition.k, column, 18).to_vec();
                one.v = vector(&definition.v, column, 12).to_vec();
                one.key_bias = definition.key_bias.as_ref().map(|bias| vector(bias, column, 6).to_vec());
                one.until = definition.until.as_ref().map(|until| until[column * 6..][..6].to_vec());
                one.bias = definition.bias.as_ref().map(|bias| of_one_head(bias, b, h));
                one.mask = definition.mask.as_ref().map(|mask| of_one_head(mask, b, h));
                let one = one.forward();
                assert_eq!(one.o, vector(&forward.o, row, 10));
                assert_eq!(one.lse, vector(&forward.lse, row, 5));
                assert_eq!(one.received, vector(&forward.received, row, 6));
            }
        }
    }

    fn of_one_head<T: Copy>(dense: &Dense<T>, b: usize, h: usize) -> Dense<T> {
        let start = 30 * (b.min(dense.batch - 1) * dense.heads + h.min(dense.heads - 1));
        Dense { batch: 1, heads: 1, values: dense.values[start..start + 30].to_vec() }
    }

    #[test]
    fn spans_and_positions_equal_the_slice_they_name() {
        let dropout = Some(Dropout { probability: 0.4, seed: 7, step: 0 });
        let spans = Definition { causal: true, alibi: true, sinks: 1, window_left: Some(1), dropout, ..uniform(2, 6) };
        let spans = Definition { k: Draw::seeded(1).normals(6), key_spans: Some(vec![[2, 3]]), ..spans };
        assert_eq!(sight(&spans), "..11.. ..111.");
        let slice = Definition { keys: 3, k: spans.k[2..5].to_vec(), v: spans.v[12..30].to_vec(), key_spans: None, ..spans.clone() };
        let slice = Definition { dv: 6, ..slice };
        let positions = (Some(vec![0, 0, 0, 1, 2, 0]), Some(vec![1, 2]));
        let placed = Definition { key_positions: positions.0, query_positions: positions.1, ..spans.clone() };
        assert_eq!(spans.forward().o, slice.forward().o);
        assert_eq!(placed.forward().o, slice.forward().o);
    }

    #[test]
    fn minus_infinity_hides_and_not_a_number_stays_where_it_is_seen() {
        let (hidden, nan) = (f64::NEG_INFINITY, f64::NAN);
        let mut definition = Definition { causal: true, key_bias: Some(vec![hidden, 0.0, 0.0]), ..uniform(3, 3) };
        definition.k = vec![nan, 0.0, nan];
        definition.v[0] = nan;
        let (forward, gradients) = (definition.forward(), definition.backward(&[1.0; 9]));
        assert_eq!(forward.lse[..2], [hidden, 0.0]);
        assert_eq!(forward.o[..6], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert!(forward.lse[2].is_nan() && forward.o[6..].iter().all(|x| x.is_nan()));
        assert_eq!((&gradients.dq[..2], gradients.dk[0]), (&[0.0, 0.0][..], 0.0));
        assert!(gradients.dq[2].is_nan() && gradients.dk[1].is_nan());
    }

    #[test]
    fn dropout_drops_its_fraction_and_depends_on_everything() {
        let dropout = Dropout { probability: 0.25, seed: 1, step: 2 };
        let pattern = |dropout: Dropout, s, h, i| (0..4096).map(|j| dropout.drops(s, h, i, j)).collect::<Vec<_>>();
        let first = pattern(dropout, 0, 0, 0);
        let dropped = first.iter().filter(|&&dropped| dropped).count() as f64 / 4096.0;
        assert!((dropped - 0.25).abs() < 0.03, "{dropped}");
        let seeds = [Dropout { seed: 1 + (1 << 32), ..dropout }, Dropout { step: 2 + (1 << 32), ..dropout }];
        let others = [pattern(dropout, 1, 0, 0), pattern(dropout, 0, 1, 0), pattern(dropout, 0, 0, 1)];
        for other in others.into_iter().chain(seeds.map(|dropout| pattern(dropout, 0, 0, 0))) {
            let agreeing = first.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / 4096.0;
            assert!((agreeing - (0.25 * 0.25 + 0.75 * 0.75)).abs() < 0.03, "{agreeing}");
        }
        assert!(!pattern(Dropout { probability: 0.0, ..dropout }, 0, 0, 0).contains(&true));
        let second_batch_row =
            Definition { batch: 2, q: vec![1.0; 2], k: vec![0.0; 8192], keys: 4096, dropout: Some(dropout), ..uniform(1, 1) };
        let row = second_batch_row.row(1, 0, 0).unwrap();
        assert_eq!((0..4096).map(|j| row.kept::<f64>(j) == 0.0).collect::<Vec<_>>(), pattern(dropout, 1, 0, 0));
    }

    #[test]
    fn dropout_keeps_its_bits() {
        let dropout = Dropout { probability: 0.25, seed: 0x1234_5678_9abc_def0, step: 5 };
        let dropped = (0..32).filter(|&j| dropout.drops(1, 2, 3, j)).fold(0_u32, |bits, j| bits | 1 << j);
        assert_eq!(dropped, 0x840a_16c4);
    }

    #[test]
    fn plain_differs_by_rounding_only() {
        for (seed, weights) in (0..60).flat_map(|seed| [Weights::Normalised, Weights::FromLse].map(|weights| (seed, weights))) {
            let definition = drawn(seed);
            let d_o = Draw::seeded(seed + 1000).normals(definition.batch * 4 * 5 * 2);
            let (forward, gradients) = (definition.forward(), definition.backward(&d_o));
            for (storage, unit) in [(Storage::F32, 2f64.powi(-23)), (Storage::F16, 2f64.powi(-10)), (Storage::Bf16, 2f64.powi(-7))] {
                let (rounded, rounded_gradients) = plain(&definition, Some(&d_o), storage, weights);
                let rounded_gradients = rounded_gradients.unwrap();
                let check = |name, a: &[f64], b: &[f64], largest: &[f64]| {
                    let bound = 16.0 * unit * largest.iter().fold(1.0, |a, &b| f64::max(a, b));
                    let error = max_difference(a, b);
                    assert!(error < bound, "{name} is off by {error} of {bound}, {storage:?} {weights:?} seed={seed}");
                };
                check("o", &rounded.o, &forward.o, &forward.largest_term_o);
                check("lse", &rounded.lse, &forward.lse, &[]);
                check("received", &rounded.received, &forward.received, &[]);
                check("dq", &rounded_gradients.dq, &gradients.dq, &gradients.largest_term_dq);
                check("dk", &rounded_gradients.dk, &gradients.dk, &gradients.largest_term_dk);
                check("dv", &rounded_gradients.dv, &gradients.dv, &gradients.largest_term_dv);
                check("dkey_bias", &rounded_gradients.dkey_bias, &gradients.dkey_bias, &gradients.largest_term_dkey_bias);
                check("dbias", &rounded_gradients.dbias, &gradients.dbias, &gradients.largest_term_dbias);
                let steps = |x: f64| x == 0.0 || (x.abs().log2().floor().exp2() * unit).recip() * x % 1.0 == 0.0;
                assert!(rounded.o.iter().filter(|x| x.abs() > 1e-4).all(|&x| steps(x)), "o is stored as {storage:?}");
                let rows = plain_rows(&definition, [0, 3], &[4], storage, weights);
                assert_eq!((&rows[0].o[..], rows[0].lse), (&rounded.o[38..40], rounded.lse[19]));
            }
            assert_eq!(definition.forward_rows(0, 3, &[4])[0].o, forward.o[38..40]);
        }
    }
}
