//! Copying after a delimiter (the copying memory problem: Hochreiter and Schmidhuber 1997, with the sizes of Arjovsky et al. 2016).
//!
//! A sequence is `symbols` S symbols of an alphabet of A, `delay` T − 1 blanks, a delimiter, and S blanks: T + 2S tokens. At the last S
//! positions the symbols are asked in their order; elsewhere nothing is (the paper also asks for blanks there, which a model learns
//! at once). Tokens: 0..A symbols, A the blank, A + 1 the delimiter.

use super::open::{LONGEST, Source, generated, open, within};
use super::random::Draws;
use super::{Example, Input, Split, Target, Task};
use crate::Error;
use serde::{Deserialize, Serialize};

/// Keys of `copy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Copy {
    /// Symbols to copy.
    pub symbols: usize,
    /// How many positions before the first answer the last symbol stands; the paper has 100, 200, 300 and 500.
    pub delay: usize,
    /// Different symbols.
    pub alphabet: usize,
    /// Examples of train, validation and test; null for no end.
    pub sizes: [Option<u64>; 3],
    /// Another seed, other examples.
    pub seed: u64,
}

impl Default for Copy {
    fn default() -> Self {
        Copy { symbols: 10, delay: 100, alphabet: 8, sizes: [None, Some(1000), Some(1000)], seed: 0 }
    }
}

impl Copy {
    pub(super) fn open(&self) -> Result<Box<dyn Task>, Error> {
        for (key, value) in [("symbols", self.symbols), ("delay", self.delay), ("alphabet", self.alphabet)] {
            within(key, value, 1..=LONGEST)?;
        }
        let facts = generated("copy", [self.alphabet + 2, self.delay + 2 * self.symbols], self.sizes, self.alphabet);
        open(self.clone(), facts, Vec::new())
    }
}

impl Source for Copy {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let mut draws = Draws::new("copy", self.seed, (split, index));
        let symbols: Vec<u32> = (0..self.symbols).map(|_| draws.token(0, self.alphabet as u64)).collect();
        let answers = self.delay + self.symbols;
        let mut tokens = vec![self.alphabet as u32; answers + self.symbols];
        tokens[..self.symbols].copy_from_slice(&symbols);
        tokens[answers - 1] = self.alphabet as u32 + 1;
        let target = std::iter::repeat_n(None, answers).chain(symbols.into_iter().map(Some)).collect();
        Ok(Example { input: Input::Tokens(tokens), target: Target::Tokens(target) })
    }
}
