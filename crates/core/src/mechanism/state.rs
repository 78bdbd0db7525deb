//! Decoding one sequence token by token: what a mechanism remembers, and its step.
//!
//! Exact attention remembers every key; a window remembers a ring of `window` keys and the sinks, so its bytes stop
//! growing. Keys and values are kept in f32.

use super::{Config, Inputs, Local, Mechanism, Pass};
use crate::view::{Strided, StridedMut, View, ViewMut};
use crate::{Error, Output, Par, Sight};

/// The next token of one sequence (`B = 1`, `N = 1`).
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// `[1, H, 1, Dk]`.
    pub q: View<'a>,
    /// `[1, G, 1, Dk]`.
    pub k: View<'a>,
    /// `[1, G, 1, Dv]`.
    pub v: View<'a>,
    /// Bias of this token's key, `[G]`.
    pub key_bias: Option<&'a [f32]>,
    /// Lifetime of this token's key, `[G]`.
    pub until: Option<&'a [i64]>,
    /// Bias of this token's query towards all keys so far, `[1, H|1, 1, M]`.
    pub bias: Option<View<'a>>,
    /// Mask of this token's query over all keys so far, `[1, H|1, 1, M]`.
    pub mask: Option<Strided<'a, u8>>,
}

/// What a mechanism remembers of one sequence.
#[derive(Debug, Clone)]
pub struct State {
    mechanism: Mechanism,
}

impl State {
    /// Bytes held for keys, values and what belongs to them.
    pub fn bytes(&self) -> usize {
        unimplemented!()
    }
    /// Takes in keys `[1, G, T, Dk]` and values `[1, G, T, Dv]` that come before the next token, with their biases and
    /// lifetimes `[G, T]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn prefill(&mut self, _k: View<'_>, _v: View<'_>, _key_bias: Option<&[f32]>, _until: Option<&[i64]>) -> Result<(), Error> {
        unimplemented!()
    }
    /// Takes in one token and attends with its query; `out` has `N = 1`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn step(&mut self, _token: &Token<'_>, _out: &mut Output<'_>, _par: Par) -> Result<(), Error> {
        unimplemented!()
    }
}

impl Mechanism {
    /// The empty state of one sequence.
    ///
    /// # Errors
    /// If the mechanism cannot step with its options.
    pub fn start(&self) -> Result<State, Error> {
        unimplemented!()
    }
}
