//! One attention problem, checked at the door: tensors, visibility, scores. Past it nothing is checked again.

use crate::view::{Strided, View, ViewMut};
use crate::{Error, Sight};
use std::f32::consts::LOG2_E;

/// Sizes of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// B.
    pub batch: usize,
    /// H, query heads.
    pub heads: usize,
    /// G, key/value heads; query head `h` reads kv head `h / (H/G)`.
    pub kv_heads: usize,
    /// N.
    pub queries: usize,
    /// M.
    pub keys: usize,
    /// Width of q and k.
    pub dk: usize,
    /// Width of v and o.
    pub dv: usize,
}

impl Dims {
    /// Query heads per kv head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Seeded dropout on the weights: `A∘Z`, `Z = 0` with `probability`, else `1/(1 - probability)`, a function of
/// (seed, step, batch row or sequence, head, query, key) alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// In `[0, 1)`.
    pub probability: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Training step.
    pub step: u64,
}

/// How a score is made: `s = cap(scale · q·k) + key_bias + bias + ALiBi`, weights by softmax, then dropout.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scores<'a> {
    scale: Option<f32>,
    softcap: Option<f32>,
    alibi: bool,
    key_bias: Option<&'a [f32]>,
    bias: Option<View<'a>>,
    dropout: Option<Dropout>,
}

impl<'a> Scores<'a> {
    /// `scale = 1/√Dk` and nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// The factor on `q·k`.
    #[must_use]
    pub fn scale(self, scale: f32) -> Self {
        Scores { scale: Some(scale), ..self }
    }

    /// `cap·tanh(s/cap)`, before biases.
    #[must_use]
    pub fn softcap(self, cap: f32) -> Self {
        Scores { softcap: Some(cap), ..self }
    }

    /// `-slope_h · |p(i) - j|`, slopes as [`alibi_slopes`].
    #[must_use]
    pub fn alibi(self) -> Self {
        Scores { alibi: true, ..self }
    }

    /// Added to every score of a key, `[B, G, M]`; -inf hides it.
    #[must_use]
    pub fn key_bias(self, bias: &'a [f32]) -> Self {
        Scores { key_bias: Some(bias), ..self }
    }

    /// Added to single scores, `[B|1, H|1, N, M]`; -inf hides.
    #[must_use]
    pub fn bias(self, bias: View<'a>) -> Self {
        Scores { bias: Some(bias), ..self }
    }

    /// See [`Dropout`].
    #[must_use]
    pub fn dropout(self, dropout: Dropout) -> Self {
        Scores { dropout: Some(dropout), ..self }
    }

    fn checked(mut self, dims: &Dims) -> Result<Self, Error> {
        for (name, value) in [("scale", self.scale), ("softcap", self.softcap)] {
            if value.is_some_and(|x| !x.is_finite()) {
                return Err(Error::value(name, format!("{} is not finite", value.unwrap_or_default())));
            }
        }
        if self.softcap.is_some_and(|c| c <= 0.0) {
            return Err(Error::value("softcap", format!("{} is not above 0", self.softcap.unwrap_or_default())));
        }
        let cache = dims.batch * dims.kv_heads * dims.keys;
        if let Some(bias) = self.key_bias.filter(|bias| bias.len() != cache) {
            return Err(Error::Shape { tensor: "key_bias", found: vec![bias.len()], expected: vec![cache] });
        }
        if let Some(bias) = self.bias {
            self.bias = Some(bias.broadcast([dims.batch, dims.heads, dims.queries, dims.keys], "bias")?);
        }
        if let Some(p) = self.dropout.map(|d| d.probability).filter(|p| !(0.0..1.0).contains(p)) {
            return Err(Error::value("dropout", format!("{p} is outside [0, 1)")));
        }
        self.dropout = self.dropout.filter(|d| d.probability > 0.0);
        Ok(self)
    }
}

/// Slopes of ALiBi for `heads` query heads: `2^(-8h/n)` for the next lower power of two n, then every other slope of
/// `2n`. Press, Smith & Lewis 2022.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let lower = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let slope = |h: usize, n: usize| (-8.0 * h as f64 / n as f64).exp2() as f32;
    let first = (1..=lower).map(|h| slope(h, lower));
    let rest = (0..heads - lower).map(|i| slope(2 * i + 1, 2 * lower));
    first.chain(rest).collect()
}

/// Exact attention of `q [B,H,N,Dk]` over `k [B,G,M,Dk]`, `v [B,G,M,Dv]`.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    pub(crate) q: View<'a>,
    pub(crate) k: View<'a>,
    pub(crate) v: View<'a>,
    pub(crate) sight: Sight<'a>,
    pub(crate) dims: Dims,
    scores: Scores<'a>,
    bias_repeats: Option<[usize; 2]>,
    slopes: Vec<f32>,
}

impl<'a> Problem<'a> {
    /// Checks shapes, dtypes and every rule.
    ///
    /// # Errors
    /// The first thing that does not fit, with its numbers.
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, sight: Sight<'a>, scores: Scores<'a>) -> Result<Self, Error> {
        let [batch, heads, queries, dk] = q.shape();
        let [_, kv_heads, keys, _] = k.shape();
        let dv = v.shape()[3];
        let dims = Dims { batch, heads, kv_heads, queries, keys, dk, dv };
        expect("k", k.shape(), [batch, kv_heads, keys, dk])?;
        expect("v", v.shape(), [batch, kv_heads, keys, dv])?;
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::Heads { heads, kv_heads });
        }
        if dk == 0 || dv == 0 {
            return Err(Error::value("head_dim", format!("Dk = {dk} and Dv = {dv} must be at least 1")));
        }
        for (tensor, view) in [("k", &k), ("v", &v)] {
            if view.dtype() != q.dtype() {
                return Err(Error::Dtype { tensor, found: view.dtype(), expected: q.dtype() });
            }
        }
        let bias_repeats = scores.bias.map(|bias| [bias.shape()[0], bias.shape()[1]]);
        let (sight, scores) = (sight.checked(&dims)?, scores.checked(&dims)?);
        let slopes = if scores.alibi { alibi_slopes(heads) } else { Vec::new() };
        Ok(Problem { q, k, v, sight, dims, scores, bias_repeats, slopes })
    }

    /// Query heads `r`, `r + H/G` and so on, one of each group, over values of their own, `[B, G, M, Dv]`, and without dropout.
    pub(crate) fn one_of_each_group(&self, r: usize, v: View<'a>) -> Self {
        let step = self.dims.group();
        Problem {
            q: self.q.every(r, step),
            k: self.k,
            v,
            sight: Sight { mask: self.sight.mask.map(|mask| mask.every(r, step)), ..self.sight },
            dims: Dims { heads: self.dims.kv_heads, dv: v.shape()[3], ..self.dims },
            scores: Scores { bias: self.scores.bias.map(|bias| bias.every(r, step)), dropout: None, ..self.scores },
            bias_repeats: None,
            slopes: self.slopes.iter().skip(r).step_by(step).copied().collect(),
        }
    }

    /// Its sizes.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// The factor on `q·k`.
    pub fn scale(&self) -> f32 {
        self.scores.scale.unwrap_or_else(|| 1.0 / (self.dims.dk as f32).sqrt())
    }

    /// The factor if the caller set one.
    pub(crate) fn written_scale(&self) -> Option<f32> {
        self.scores.scale
    }

    /// The cap of scores before biases.
    pub fn softcap(&self) -> Option<f32> {
        self.scores.softcap
    }

    /// ALiBi's slope of a query head in units of log2, 0 without ALiBi.
    pub(crate) fn slope(&self, h: usize) -> f32 {
        self.slopes.get(h).map_or(0.0, |slope| slope * LOG2_E)
    }

    /// Whether scores fall with distance, by [`alibi_slopes`].
    pub fn has_alibi(&self) -> bool {
        self.scores.alibi
    }

    /// Key biases of one kv head, `[M]`.
    pub(crate) fn key_bias(&self, b: usize, g: usize) -> Option<&'a [f32]> {
        let row = (b * self.dims.kv_heads + g) * self.dims.keys;
        self.scores.key_bias.map(|bias| &bias[row..row + self.dims.keys])
    }

    pub(crate) fn all_key_biases(&self) -> Option<&'a [f32]> {
        self.scores.key_bias
    }

    pub(crate) fn bias(&self) -> Option<View<'a>> {
        self.scores.bias
    }

    /// Batch rows and heads of the bias as the caller gave it, before it was repeated.
    pub(crate) fn bias_repeats(&self) -> Option<[usize; 2]> {
        self.bias_repeats
    }

    pub(crate) fn dense_mask(&self) -> Option<Strided<'a, u8>> {
        self.sight.mask
    }

    /// Dropout, where it acts.
    pub fn dropout(&self) -> Option<Dropout> {
        self.scores.dropout
    }

    /// How many (query, key) pairs see each other over all query heads, dense masks aside: what the work is
    /// proportional to.
    pub fn visible_pairs(&self) -> u64 {
        let count = |sequence: usize, g: usize| -> u64 {
            let scope = self.sight.scope(&self.dims, sequence, g);
            if scope.queries.is_empty() {
                return 0;
            }
            if scope.has_positions() {
                let pairs = scope.keys.clone().flat_map(|key| scope.queries.clone().map(move |query| (query, key)));
                return pairs.filter(|&(query, key)| scope.sees(query, key)).count() as u64;
            }
            let (low, high) = scope.position_range(scope.queries.clone());
            let overlap = |key| {
                let (first, last) = scope.seen_by(key);
                (i64::from(last.min(high)) - i64::from(first.max(low)) + 1).max(0) as u64
            };
            scope.keys.clone().map(overlap).sum()
        };
        let sequences = self.sight.sequences(&self.dims);
        let per_group: u64 = (0..sequences).flat_map(|s| (0..self.dims.kv_heads).map(move |g| (s, g))).map(|(s, g)| count(s, g)).sum();
        per_group * self.dims.group() as u64
    }
}

pub(crate) fn expect(tensor: &'static str, found: [usize; 4], expected: [usize; 4]) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Shape { tensor, found: found.to_vec(), expected: expected.to_vec() }) }
}

/// Where a forward pass writes.
#[derive(Debug)]
pub struct Output<'a> {
    /// `[B, H, N, Dv]`, of q's dtype, or in f32 what would be rounded to it.
    pub o: ViewMut<'a>,
    /// Natural log-sum-exp of the visible scores, `[B, H, N]`; -inf where a query sees nothing.
    pub lse: Option<&'a mut [f32]>,
}

impl Output<'_> {
    pub(crate) fn check(&self, dims: &Dims, dtype: &'static str) -> Result<(), Error> {
        expect("o", self.o.shape(), [dims.batch, dims.heads, dims.queries, dims.dv])?;
        if ![dtype, "f32"].contains(&self.o.dtype()) {
            return Err(Error::Dtype { tensor: "o", found: self.o.dtype(), expected: dtype });
        }
        check_flat("lse", self.lse.as_deref(), dims.batch * dims.heads * dims.queries)
    }
}

/// What a backward pass needs beside the problem. After a merge of partial results by lse, `o` and `lse` are the
/// merged ones.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// The output, `[B, H, N, Dv]`.
    pub o: View<'a>,
    /// Its log-sum-exp, `[B, H, N]`.
    pub lse: &'a [f32],
    /// The gradient of the output, `[B, H, N, Dv]`.
    pub d_o: View<'a>,
}

impl Saved<'_> {
    pub(crate) fn check(&self, dims: &Dims) -> Result<(), Error> {
        let shape = [dims.batch, dims.heads, dims.queries, dims.dv];
        expect("o", self.o.shape(), shape)?;
        expect("do", self.d_o.shape(), shape)?;
        check_flat("lse", Some(self.lse), dims.batch * dims.heads * dims.queries)
    }
}

/// Where a backward pass writes. An absent gradient is not computed.
#[derive(Debug, Default)]
pub struct Gradients<'a> {
    /// `[B, H, N, Dk]`.
    pub dq: Option<ViewMut<'a>>,
    /// `[B, G, M, Dk]`.
    pub dk: Option<ViewMut<'a>>,
    /// `[B, G, M, Dv]`.
    pub dv: Option<ViewMut<'a>>,
    /// `[B, G, M]`.
    pub dkey_bias: Option<&'a mut [f32]>,
    /// The shape of the bias, row-major.
    pub dbias: Option<&'a mut [f32]>,
}

impl Gradients<'_> {
    pub(crate) fn check(&self, dims: &Dims, bias: Option<[usize; 2]>) -> Result<(), Error> {
        let cache = [dims.batch, dims.kv_heads, dims.keys];
        for (tensor, gradient, shape) in [
            ("dq", &self.dq, [dims.batch, dims.heads, dims.queries, dims.dk]),
            ("dk", &self.dk, [cache[0], cache[1], cache[2], dims.dk]),
            ("dv", &self.dv, [cache[0], cache[1], cache[2], dims.dv]),
        ] {
            if let Some(gradient) = gradient {
                expect(tensor, gradient.shape(), shape)?;
            }
        }
        check_flat("dkey_bias", self.dkey_bias.as_deref(), cache.iter().product())?;
        let [b, h] = bias.unwrap_or_default();
        check_flat("dbias", self.dbias.as_deref(), b * h * dims.queries * dims.keys)
    }
}

pub(crate) fn check_flat(tensor: &'static str, values: Option<&[f32]>, expected: usize) -> Result<(), Error> {
    match values {
        Some(values) if values.len() != expected => Err(Error::Shape { tensor, found: vec![values.len()], expected: vec![expected] }),
        _ => Ok(()),
    }
}
