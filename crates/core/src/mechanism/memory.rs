//! Decoding one sequence token by token: what comes in, and what every memory can do.

use crate::problem::expect;
use crate::view::{Strided, View};
use crate::{Error, Output, Par};

/// Keys and values of some tokens of one sequence (`B = 1`), and what belongs to them.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// `[1, G, T, Dk]`.
    pub k: View<'a>,
    /// `[1, G, T, Dv]`.
    pub v: View<'a>,
    /// `[G, T]`.
    pub key_bias: Option<&'a [f32]>,
    /// `[G, T]`.
    pub until: Option<&'a [i64]>,
    /// Types of keys `[G, T]`, or of queries `[H, T]`.
    pub types: Option<&'a [i64]>,
    /// `[G, T, 3]` or `[H, T, 3]`.
    pub type_logits: Option<&'a [f32]>,
    /// Hidden states, `[1, 1, T, E]`.
    pub x: Option<View<'a>>,
    /// Learned thresholds of query heads, `[H]`, the same with every token.
    pub threshold: Option<&'a [f32]>,
    /// Logarithms of gates, `[1, H, T, Dk]`.
    pub gates: Option<View<'a>>,
    /// Codewords of keys, `[1, G, S, Dk]`, the same with every token.
    pub codebook: Option<View<'a>>,
    /// Codewords of queries, `[1, H, S, Dk]`, the same with every token.
    pub codebook_q: Option<View<'a>>,
    /// Shares of query heads between two mechanisms before a sigmoid, `[H]`, the same with every token.
    pub mix: Option<&'a [f32]>,
}

impl<'a> Tokens<'a> {
    /// Keys and values, nothing else.
    pub fn new(k: View<'a>, v: View<'a>) -> Self {
        Tokens {
            k,
            v,
            key_bias: None,
            until: None,
            types: None,
            type_logits: None,
            x: None,
            threshold: None,
            gates: None,
            codebook: None,
            codebook_q: None,
            mix: None,
        }
    }

    /// Number of tokens.
    pub fn count(&self) -> usize {
        self.k.shape()[2]
    }

    /// Refuses shapes that do not fit one another.
    pub(super) fn check(&self) -> Result<(), Error> {
        let [_, heads, count, dk] = self.k.shape();
        expect("k", self.k.shape(), [1, heads, count, dk])?;
        expect("v", self.v.shape(), [1, heads, count, self.v.shape()[3]])?;
        check_count("key_bias", self.key_bias.map(<[_]>::len), heads * count)?;
        check_count("until", self.until.map(<[_]>::len), heads * count)?;
        self.x.map_or(Ok(()), |x| expect("x", x.shape(), [1, 1, count, x.shape()[3]]))
    }
}

/// The next token of one sequence: its query, and what is kept of it.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// `[1, H, 1, Dk]`.
    pub q: View<'a>,
    /// One token.
    pub kept: Tokens<'a>,
    /// Bias of this token's query towards all keys so far, `[1, H|1, 1, M]`.
    pub bias: Option<View<'a>>,
    /// Mask of this token's query over all keys so far, `[1, H|1, 1, M]`.
    pub mask: Option<Strided<'a, u8>>,
}

impl Token<'_> {
    /// Refuses what does not fit before anything is taken in.
    pub(super) fn check(&self, out: &Output<'_>) -> Result<(), Error> {
        let ([_, heads, _, dk], [_, kv_heads, _, _], dv) = (self.q.shape(), self.kept.k.shape(), self.kept.v.shape()[3]);
        expect("q", self.q.shape(), [1, heads, 1, dk])?;
        expect("k", self.kept.k.shape(), [1, kv_heads, 1, dk])?;
        expect("v", self.kept.v.shape(), [1, kv_heads, 1, dv])?;
        expect("o", out.o.shape(), [1, heads, 1, dv])
    }
}

/// What a mechanism remembers of one sequence.
pub trait Memory {
    /// Bytes held for keys, values and what belongs to them.
    fn bytes(&self) -> usize;

    /// Tokens taken in so far; not the number of keys held.
    fn tokens(&self) -> usize;

    /// Takes in tokens that come before the next one.
    ///
    /// # Errors
    /// If shapes do not fit one another or what is held.
    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error>;

    /// Takes in one token and attends with its query; `out` has `N = 1` and an f32 `o`.
    ///
    /// # Errors
    /// If shapes do not fit.
    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error>;
}

pub(super) fn check_count(tensor: &'static str, found: Option<usize>, expected: usize) -> Result<(), Error> {
    match found {
        Some(found) if found != expected => Err(Error::Shape { tensor, found: vec![found], expected: vec![expected] }),
        _ => Ok(()),
    }
}

/// The one token of every head of a view, in f32.
pub(super) fn widen(view: &View<'_>) -> Vec<f32> {
    let [_, heads, _, width] = view.shape();
    (0..heads).flat_map(|h| (0..width).map(move |d| (h, d))).map(|(h, d)| view.at([0, h, 0, d])).collect()
}
