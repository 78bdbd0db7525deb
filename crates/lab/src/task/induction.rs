//! Induction heads: which token followed a special one when it occurred before (Olsson et al. 2022; as a task with these sizes in
//! Gu and Dao 2023, "Mamba", after Fu et al. 2023, "H3").
//!
//! A sequence is `length` N tokens below `vocabulary` V, of which V − 1 is special. It stands at a place drawn from 0..N − 2 and at the
//! end; every other token is drawn from the rest. At the last position the token after the first place is asked.

use super::open::{LONGEST, Source, generated, open, within};
use super::random::Draws;
use super::{Example, Input, Split, Target, Task};
use crate::Error;
use serde::{Deserialize, Serialize};

/// Keys of `induction`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Induction {
    /// Tokens of a sequence.
    pub length: usize,
    /// Tokens there are, the special one included.
    pub vocabulary: usize,
    /// Examples of train, validation and test; null for no end.
    pub sizes: [Option<u64>; 3],
    /// Another seed, other examples.
    pub seed: u64,
}

impl Default for Induction {
    fn default() -> Self {
        Induction { length: 256, vocabulary: 16, sizes: [None, Some(1000), Some(1000)], seed: 0 }
    }
}

impl Induction {
    pub(super) fn open(&self) -> Result<Box<dyn Task>, Error> {
        within("length", self.length, 3..=LONGEST)?;
        within("vocabulary", self.vocabulary, 2..=1 << 31)?;
        let facts = generated("induction", [self.vocabulary, self.length], self.sizes, self.vocabulary - 1);
        open(self.clone(), facts, Vec::new())
    }
}

impl Source for Induction {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let (last, special) = (self.length - 1, self.vocabulary as u64 - 1);
        let mut draws = Draws::new("induction", self.seed, (split, index));
        let mut tokens: Vec<u32> = (0..self.length).map(|_| draws.token(0, special)).collect();
        let place = draws.below(last as u64 - 1) as usize;
        (tokens[place], tokens[last]) = (special as u32, special as u32);
        let mut target = vec![None; self.length];
        target[last] = Some(tokens[place + 1]);
        Ok(Example { input: Input::Tokens(tokens), target: Target::Tokens(target) })
    }
}
