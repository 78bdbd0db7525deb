//! The memory of mechanisms whose past is a sum: its bytes do not grow, or in a window only up to it.

use super::memory::{Memory, Token, Tokens};
use super::options::{OptionError, SetOption};
use crate::problem::expect;
use crate::scan::{Coming, Rules, Running};
use crate::{Error, Output, Par};

/// What an option of tokens between two updates takes.
pub(super) const CHUNK: (&str, &str) = ("chunk", "an integer of at least 1");

/// An integer of at least 1.
pub(super) fn set_count(field: &mut usize, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
    let mut count = 0usize;
    count.set_option(about, value)?;
    if count == 0 {
        return Err(OptionError::Value { name: about.0, value: value.to_owned(), expected: about.1 });
    }
    *field = count;
    Ok(())
}

/// The running sums of one sequence, in f32.
#[derive(Debug, Clone)]
pub struct Carried {
    rules: Rules,
    /// Made by the first tokens.
    held: Option<Running>,
}

impl Carried {
    pub(super) fn new(rules: Rules) -> Self {
        Carried { rules, held: None }
    }

    /// The sums that these tokens fit, empty before the first of them.
    fn hold(&mut self, tokens: &Tokens<'_>) -> Result<&mut Running, Error> {
        tokens.check()?;
        let name = self.rules.name;
        if tokens.key_bias.is_some() || tokens.until.is_some() || tokens.types.is_some() || tokens.type_logits.is_some() {
            return Err(Error::Combination(format!("steps of {name} read neither biases nor lifetimes nor types")));
        }
        let [_, kv_heads, count, dk] = tokens.k.shape();
        let heads = match (self.rules.decays, tokens.gates) {
            (false, None) => kv_heads,
            (true, Some(gates)) => {
                let heads = gates.shape()[1];
                expect("gates", gates.shape(), [1, heads, count, dk])?;
                refuse_growth(&gates)?;
                heads
            }
            (false, Some(_)) => return Err(Error::Combination(format!("{name} reads no gates"))),
            (true, None) => return Err(Error::Combination(format!("{name} needs gates with every token, [1, H, T, Dk]"))),
        };
        let shape @ [_, dk, dv] = [heads, dk, tokens.v.shape()[3]];
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return Err(Error::Heads { heads, kv_heads });
        }
        if dk == 0 || dv == 0 {
            return Err(Error::value("head_dim", format!("Dk = {dk} and Dv = {dv} must be at least 1")));
        }
        let held = self.held.get_or_insert_with(|| Running::new(self.rules, heads, [dk, dv]));
        if held.shape() != shape {
            let (found, expected) = (shape.to_vec(), held.shape().to_vec());
            return Err(Error::Shape { tensor: "heads of sums, Dk, Dv", found, expected });
        }
        Ok(held)
    }
}

/// Refuses a gate that is not at most 0.
fn refuse_growth(gates: &crate::View<'_>) -> Result<(), Error> {
    let [_, heads, tokens, width] = gates.shape();
    let mut all = (0..heads).flat_map(|h| (0..tokens).flat_map(move |n| (0..width).map(move |d| [0, h, n, d])));
    match all.find(|at| gates.at(*at).is_nan() || gates.at(*at) > 0.0) {
        Some(at) => Err(Error::value("gates", format!("{} at {at:?}: logarithms of gates are numbers of at most 0", gates.at(at)))),
        None => Ok(()),
    }
}

impl Memory for Carried {
    fn bytes(&self) -> usize {
        self.held.as_ref().map_or(0, Running::bytes)
    }

    fn tokens(&self) -> usize {
        self.held.as_ref().map_or(0, Running::tokens)
    }

    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error> {
        let coming = Coming { k: tokens.k, v: tokens.v, gates: tokens.gates };
        self.hold(tokens)?.prefill(coming, Par::default());
        Ok(())
    }

    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        token.check(out)?;
        if token.bias.is_some() || token.mask.is_some() {
            return Err(Error::Combination(format!("steps of {} take no bias and no mask: there is one sum of all keys", self.rules.name)));
        }
        let (heads, kept) = (token.q.shape()[1], &token.kept);
        if let Some(gates) = kept.gates {
            expect("gates", gates.shape(), [1, heads, 1, kept.k.shape()[3]])?;
        }
        let kv_heads = kept.k.shape()[1];
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::Heads { heads, kv_heads });
        }
        let coming = Coming { k: kept.k, v: kept.v, gates: kept.gates };
        self.hold(kept)?.step(coming, token.q, out, par);
        Ok(())
    }
}
