//! A needle in a haystack: a number under a name, hidden in filler and asked for at the end (the passkey of Mohtashami and Jaggi 2023;
//! several needles with names as in RULER, Hsieh et al. 2024). Those are English sentences; here they are tokens, of any length.
//!
//! A fact is `FACT name d₁ … d_n`, the question `ASK name d₁ … d_(n−1)`, at whose last n positions d₁ … d_n are asked, each after the right
//! ones before it. `facts` of them with different names lie apart in filler that is drawn from its own tokens, one of which is
//! asked for. Where there is one fact, `place` says how deep it lies: 0 at the beginning, 1 right before the question. Tokens: digits
//! 0 to 9, [`FACT`], [`ASK`], then names, then filler.

use super::open::{LONGEST, Source, generated, open, within};
use super::random::Draws;
use super::{Example, Input, Split, Target, Task};
use crate::Error;
use serde::{Deserialize, Serialize};

/// The token that a fact begins with.
pub const FACT: u32 = 10;
/// The token that the question begins with.
pub const ASK: u32 = 11;

/// Keys of `needle`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Needle {
    /// Tokens of a sequence, the question included.
    pub length: usize,
    /// Digits of a number; a passkey has 5.
    pub digits: usize,
    /// Facts, of which one is asked for.
    pub facts: usize,
    /// Names there are, at least as many as facts.
    pub names: usize,
    /// Filler tokens there are.
    pub filler: usize,
    /// How deep one fact lies, from 0 to 1; null for anywhere.
    pub place: Option<f64>,
    /// Examples of train, validation and test; null for no end.
    pub sizes: [Option<u64>; 3],
    /// Another seed, other examples.
    pub seed: u64,
}

impl Default for Needle {
    fn default() -> Self {
        Needle { length: 1024, digits: 5, facts: 1, names: 32, filler: 64, place: None, sizes: [None, Some(1000), Some(1000)], seed: 0 }
    }
}

impl Needle {
    pub(super) fn open(&self) -> Result<Box<dyn Task>, Error> {
        self.check()?;
        let vocabulary = ASK as usize + 1 + self.names + self.filler;
        let facts = generated("needle", [vocabulary, self.length], self.sizes, 10);
        open(self.clone(), facts, Vec::new())
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |key: &str, message: String| Err(Error::key(format!("task.{key}"), message));
        within("digits", self.digits, 1..=LONGEST)?;
        within("facts", self.facts, 1..=LONGEST)?;
        within("names", self.names, self.facts..=LONGEST)?;
        within("filler", self.filler, 1..=LONGEST)?;
        within("length", self.length, self.facts * (self.digits + 2) + self.digits + 1..=LONGEST)?;
        match self.place {
            Some(place) if !(0.0..=1.0).contains(&place) => refuse("place", format!("is {place}; it lies between 0 and 1")),
            Some(_) if self.facts > 1 => refuse("place", format!("is for one fact, there are {}", self.facts)),
            _ => Ok(()),
        }
    }

    /// Where facts begin, in order: the filler that lies before each is its rank among `filler + facts` slots.
    fn places(&self, filler: usize, draws: &mut Draws) -> Vec<usize> {
        if let Some(place) = self.place {
            return vec![(place * filler as f64).round() as usize];
        }
        let mut slots = draws.distinct(self.facts, (filler + self.facts) as u64);
        slots.sort_unstable();
        // A slot before this one that holds a fact is longer by the rest of that fact.
        slots.iter().enumerate().map(|(fact, slot)| *slot as usize + fact * (self.digits + 1)).collect()
    }
}

impl Source for Needle {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let mut draws = Draws::new("needle", self.seed, (split, index));
        let (names, fillers) = (u64::from(ASK) + 1, u64::from(ASK) + 1 + self.names as u64);
        let mut tokens: Vec<u32> = (0..self.length).map(|_| draws.token(fillers, fillers + self.filler as u64)).collect();
        let question = self.length - self.digits - 1;
        let places = self.places(question - self.facts * (self.digits + 2), &mut draws);
        let asked = draws.below(self.facts as u64) as usize;
        let mut target = vec![None; self.length];
        let chosen = draws.distinct(self.facts, self.names as u64);
        for (fact, (name, place)) in chosen.into_iter().zip(places).enumerate() {
            let number: Vec<u32> = (0..self.digits).map(|_| draws.token(0, 10)).collect();
            let body: Vec<u32> = std::iter::once((names + name) as u32).chain(number.iter().copied()).collect();
            tokens[place] = FACT;
            tokens[place + 1..place + 1 + body.len()].copy_from_slice(&body);
            if fact == asked {
                tokens[question] = ASK;
                tokens[question + 1..].copy_from_slice(&body[..self.digits]);
                target[question + 1..].iter_mut().zip(number).for_each(|(target, digit)| *target = Some(digit));
            }
        }
        Ok(Example { input: Input::Tokens(tokens), target: Target::Tokens(target) })
    }
}
