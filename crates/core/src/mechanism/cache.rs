//! The memory of mechanisms that come to one exact problem. Exact attention remembers every key; a window remembers a
//! ring of `window` keys and the sinks, so its bytes stop growing. Keys and values are kept in f32.

use super::memory::{Memory, Token, Tokens, widen};
use super::{Inputs, Pass};
use crate::problem::expect;
use crate::view::{Strided, View};
use crate::{Error, Output, Par, Problem, Sight};

/// A configuration that comes to one exact problem without choosing anything.
pub trait Rule: Clone + std::fmt::Debug {
    /// That problem.
    ///
    /// # Errors
    /// If the inputs do not fit.
    fn problem<'a>(&self, inputs: &Inputs<'a>, pass: Pass) -> Result<Problem<'a>, Error>;

    /// How many keys a step can see: a window and sinks, or everything.
    fn remembered(&self) -> Option<(usize, usize)>;

    /// The same over a cache that holds only what a step can see.
    #[must_use]
    fn without_window(&self) -> Self;
}

/// Keys and values of one sequence.
#[derive(Debug, Clone)]
pub struct Cache<R> {
    rule: R,
    /// Tokens taken in so far.
    tokens: usize,
    keys: Rows<f32>,
    values: Rows<f32>,
    biases: Option<Rows<f32>>,
    lifetimes: Option<Rows<i64>>,
}

/// Rows of every kv head, `[heads][capacity][width]`, of which the first are in use.
#[derive(Debug, Clone)]
struct Rows<T> {
    data: Vec<T>,
    heads: usize,
    width: usize,
    capacity: usize,
}

impl<T: Copy + Default> Rows<T> {
    fn new(heads: usize, width: usize) -> Self {
        Rows { data: Vec::new(), heads, width, capacity: 0 }
    }

    /// Makes room for entry `slot`, doubling up to `limit`.
    fn reserve(&mut self, slot: usize, limit: usize) {
        if slot < self.capacity {
            return;
        }
        let capacity = (2 * self.capacity).max(64).max(slot + 1).min(limit.max(slot + 1));
        let mut data = vec![T::default(); self.heads * capacity * self.width];
        if self.capacity > 0 {
            for (to, from) in data.chunks_mut(capacity * self.width).zip(self.data.chunks(self.capacity * self.width)) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        (self.data, self.capacity) = (data, capacity);
    }

    /// Entry `slot` of head `g`.
    fn entry(&mut self, g: usize, slot: usize) -> &mut [T] {
        &mut self.data[(g * self.capacity + slot) * self.width..][..self.width]
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.data[..])
    }
}

impl<R: Rule> Cache<R> {
    pub(super) fn new(rule: R) -> Self {
        Cache { rule, tokens: 0, keys: Rows::new(0, 0), values: Rows::new(0, 0), biases: None, lifetimes: None }
    }

    fn put(&mut self, [k, v]: [&View<'_>; 2], (key_bias, until): (Option<&[f32]>, Option<&[i64]>), n: usize) {
        let (slot, limit) = (self.slot(), self.limit());
        let count = k.shape()[2];
        for (rows, view) in [(&mut self.keys, k), (&mut self.values, v)] {
            rows.reserve(slot, limit);
            for g in 0..rows.heads {
                rows.entry(g, slot).iter_mut().enumerate().for_each(|(d, x)| *x = view.at([0, g, n, d]));
            }
        }
        put_side(&mut self.biases, key_bias, (n, count), (slot, limit));
        put_side(&mut self.lifetimes, until, (n, count), (slot, limit));
        self.tokens += 1;
    }

    /// Most keys that are ever held.
    fn limit(&self) -> usize {
        self.rule.remembered().map_or(usize::MAX, |(window, sinks)| window.saturating_add(sinks))
    }

    /// The entry of the next token: the end, or the oldest of a full ring behind the sinks.
    fn slot(&self) -> usize {
        match self.rule.remembered() {
            Some((window, sinks)) if self.tokens >= self.limit() => sinks + (self.tokens - sinks) % window,
            _ => self.tokens,
        }
    }

    /// Refuses a token that does not fit before anything is taken in.
    fn check(&self, token: &Token<'_>, out: &Output<'_>) -> Result<(), Error> {
        token.check(out)?;
        if self.rule.remembered().is_some() && (token.bias.is_some() || token.mask.is_some()) {
            return Err(Error::Combination("a window's steps take no bias and no mask: a ring keeps keys in no particular order".into()));
        }
        let (heads, keys) = (token.q.shape()[1], self.tokens + 1);
        for (tensor, shape) in [("bias", token.bias.map(|bias| bias.shape())), ("mask", token.mask.map(|mask| mask.shape()))] {
            if let Some(shape) = shape {
                expect(tensor, shape, [1, if shape[1] == 1 { 1 } else { heads }, 1, keys])?;
            }
        }
        Ok(())
    }
}

impl<R: Rule> Memory for Cache<R> {
    fn bytes(&self) -> usize {
        let side = self.biases.as_ref().map_or(0, Rows::bytes) + self.lifetimes.as_ref().map_or(0, Rows::bytes);
        self.keys.bytes() + self.values.bytes() + side
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error> {
        tokens.check()?;
        let &Tokens { k, v, key_bias, until, .. } = tokens;
        let ([_, heads, count, dk], dv) = (k.shape(), v.shape()[3]);
        if self.tokens == 0 {
            (self.keys, self.values) = (Rows::new(heads, dk), Rows::new(heads, dv));
            self.biases = key_bias.map(|_| Rows::new(heads, 1));
            self.lifetimes = until.map(|_| Rows::new(heads, 1));
        }
        let held = [self.keys.heads, self.keys.width, self.values.width];
        if held != [heads, dk, dv] {
            return Err(Error::Shape { tensor: "heads, Dk, Dv", found: vec![heads, dk, dv], expected: held.to_vec() });
        }
        if self.biases.is_some() != key_bias.is_some() || self.lifetimes.is_some() != until.is_some() {
            return Err(Error::Combination("key_bias and until come with every token of a sequence or with none".into()));
        }
        for n in 0..count {
            self.put([&k, &v], (key_bias, until), n);
        }
        Ok(())
    }

    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.check(token, out)?;
        self.prefill(&token.kept)?;
        let held = [self.tokens.min(self.limit())];
        let room = self.keys.capacity;
        let shape = |rows: &Rows<f32>| [1, rows.heads, room, rows.width];
        let widened = widen(&token.q);
        let q = Strided::contiguous(&widened, token.q.shape(), "q")?.into();
        let k = Strided::contiguous(&self.keys.data, shape(&self.keys), "k")?.into();
        let v = Strided::contiguous(&self.values.data, shape(&self.values), "v")?.into();
        let bias = token.bias.map(|bias| (bias.shape()[1], padded(bias.shape(), room, |at| bias.at(at))));
        let mask = token.mask.map(|mask| (mask.shape()[1], padded(mask.shape(), room, |at| mask.at(at))));
        // A ring holds just what the query sees, in no particular order: no rule but the number of keys.
        let ring = self.rule.remembered().is_some();
        let mut inputs = Inputs::new(q, k, v, if ring { Sight::full() } else { Sight::causal() }.lengths(&held).lengths_q(&[1]));
        inputs.key_bias = self.biases.as_ref().map(|rows| &rows.data[..]);
        inputs.until = self.lifetimes.as_ref().map(|rows| &rows.data[..]);
        if let Some((heads, values)) = &bias {
            inputs.bias = Some(Strided::contiguous(values, [1, *heads, 1, room], "bias")?.into());
        }
        if let Some((heads, values)) = &mask {
            inputs.sight = inputs.sight.mask(Strided::contiguous(values, [1, *heads, 1, room], "mask")?);
        }
        let problem = if ring {
            self.rule.without_window().problem(&inputs, Pass::default())?
        } else {
            self.rule.problem(&inputs, Pass::default())?
        };
        crate::exact::forward(&problem, out, par)
    }
}

/// A row per head, lengthened to `room` keys.
fn padded<T: Copy + Default>([_, heads, _, keys]: [usize; 4], room: usize, at: impl Fn([usize; 4]) -> T) -> Vec<T> {
    let row = |h: usize| (0..room).map(move |j| (h, j));
    (0..heads).flat_map(row).map(|(h, j)| if j < keys { at([0, h, 0, j]) } else { T::default() }).collect()
}

/// Writes column `n` of `values [G, count]` to entry `slot` of every head.
fn put_side<T: Copy + Default>(
    rows: &mut Option<Rows<T>>,
    values: Option<&[T]>,
    (n, count): (usize, usize),
    (slot, limit): (usize, usize),
) {
    let (Some(rows), Some(values)) = (rows, values) else { return };
    rows.reserve(slot, limit);
    for g in 0..rows.heads {
        rows.entry(g, slot)[0] = values[g * count + n];
    }
}
