//! ListOps: the value of a nested list of operations (Nangia and Bowman 2018), long as in Long Range Arena (Tay et al. 2020).
//!
//! An expression is a digit, or `[OP a b … ]` with OP one of MIN, MAX, MED (median; of an even number of arguments the mean of the middle
//! two, rounded down), SM (sum modulo 10). From depth 1 on, a node is a digit with probability 3/4 and at the greatest depth always;
//! otherwise an operator with 2 to `arguments` arguments; digits, operators and numbers of arguments are uniform. Expressions whose
//! number of tokens is out of bounds are drawn again. Tokens: the digits 0 to 9, then [`MIN`] to [`SM`], then [`CLOSE`]; the class
//! is the value.

use super::open::{LONGEST, Source, open, within};
use super::random::Draws;
use super::{Example, Facts, Input, Inputs, Label, Metric, Split, Target, Targets, Task};
use crate::Error;
use serde::{Deserialize, Serialize};

/// The token of `[MIN`.
pub const MIN: u32 = 10;
/// The token of `[MAX`.
pub const MAX: u32 = 11;
/// The token of `[MED`.
pub const MED: u32 = 12;
/// The token of `[SM`.
pub const SM: u32 = 13;
/// The token of `]`.
pub const CLOSE: u32 = 14;

/// So many examples of a split are counted for the balance.
const COUNTED: u64 = 2000;
/// So many draws for one example, before bounds are called impossible.
const DRAWS: u32 = 1_000_000;

/// A set of sizes with a name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Long Range Arena's: more than 500 and fewer than 2000 tokens, depth 10, at most 10 arguments.
    #[default]
    Full,
    /// 16 to 128 tokens, depth 6, at most 5 arguments.
    Mini,
}

/// Keys of `listops`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListOps {
    /// `full` or `mini`: what the next four keys are where they are null.
    pub preset: Preset,
    /// Tokens of the shortest expression: 501, mini 16.
    pub shortest: Option<usize>,
    /// Tokens of the longest expression: 1999, mini 128.
    pub longest: Option<usize>,
    /// The greatest depth; a digit alone has depth 1: 10, mini 6.
    pub depth: Option<usize>,
    /// The most arguments of an operator: 10, mini 5.
    pub arguments: Option<usize>,
    /// Examples of train, validation and test; null for no end.
    pub sizes: [Option<u64>; 3],
    /// Another seed, other examples.
    pub seed: u64,
}

impl Default for ListOps {
    fn default() -> Self {
        let sizes = [Some(96_000), Some(2000), Some(2000)];
        ListOps { preset: Preset::Full, shortest: None, longest: None, depth: None, arguments: None, sizes, seed: 0 }
    }
}

struct Expressions {
    shortest: usize,
    longest: usize,
    depth: usize,
    arguments: u64,
    seed: u64,
}

impl ListOps {
    pub(super) fn open(&self) -> Result<Box<dyn Task>, Error> {
        let source = self.expressions()?;
        let mut balance: Vec<Label> = (0..10).map(|digit| Label { name: digit.to_string(), counts: [0; 3] }).collect();
        for split in Split::ALL {
            for index in 0..self.sizes[split as usize].map_or(COUNTED, |size| size.min(COUNTED)) {
                let (_, value) = source.expression(split, index)?;
                balance[value as usize].counts[split as usize] += 1;
            }
        }
        let facts = Facts {
            name: "listops",
            inputs: Inputs::Tokens { vocabulary: CLOSE as usize + 1 },
            targets: Targets::Classes(10),
            metric: Metric::Accuracy,
            causal: false,
            longest: source.longest,
            sizes: self.sizes,
            balance,
            floor: None,
            fingerprint: String::new(),
        };
        open(source, facts, vec![format!("labels are counted in the first {COUNTED} examples of every split")])
    }

    fn expressions(&self) -> Result<Expressions, Error> {
        let [shortest, longest, depth, arguments] = match self.preset {
            Preset::Full => [501, 1999, 10, 10],
            Preset::Mini => [16, 128, 6, 5],
        };
        let source = Expressions {
            shortest: self.shortest.unwrap_or(shortest),
            longest: self.longest.unwrap_or(longest),
            depth: self.depth.unwrap_or(depth),
            arguments: self.arguments.unwrap_or(arguments) as u64,
            seed: self.seed,
        };
        within("depth", source.depth, 1..=64)?;
        within("arguments", source.arguments as usize, 2..=LONGEST)?;
        within("longest", source.longest, 1..=LONGEST)?;
        within("shortest", source.shortest, 0..=source.longest)?;
        Ok(source)
    }
}

impl Expressions {
    /// Tokens and value of the first expression within bounds.
    fn expression(&self, split: Split, index: u64) -> Result<(Vec<u32>, u32), Error> {
        let mut draws = Draws::new("listops", self.seed, (split, index));
        let mut tokens = Vec::with_capacity(self.longest);
        for _ in 0..DRAWS {
            tokens.clear();
            match self.node(&mut draws, 1, &mut tokens) {
                Some(value) if tokens.len() >= self.shortest => return Ok((tokens, value)),
                _ => {}
            }
        }
        let (shortest, longest) = (self.shortest, self.longest);
        let message =
            format!("of {DRAWS} expressions none had {shortest} to {longest} tokens; set more depth or arguments, or wider bounds");
        Err(Error::key("task.shortest", message))
    }

    /// Writes a node and what lies below it and gives its value; nothing where that is too long.
    fn node(&self, draws: &mut Draws, depth: usize, tokens: &mut Vec<u32>) -> Option<u32> {
        if depth == self.depth || draws.below(4) != 0 {
            let digit = draws.token(0, 10);
            tokens.push(digit);
            return (tokens.len() <= self.longest).then_some(digit);
        }
        let operator = draws.token(MIN.into(), CLOSE.into());
        tokens.push(operator);
        let count = 2 + draws.below(self.arguments - 1);
        let values = (0..count).map(|_| self.node(draws, depth + 1, tokens)).collect::<Option<Vec<u32>>>()?;
        tokens.push(CLOSE);
        (tokens.len() <= self.longest).then(|| apply(operator, values))
    }
}

fn apply(operator: u32, mut values: Vec<u32>) -> u32 {
    values.sort_unstable();
    let (last, middle) = (values.len() - 1, values.len() / 2);
    match operator {
        MIN => values[0],
        MAX => values[last],
        MED => (values[last - middle] + values[middle]) / 2,
        _ => values.iter().sum::<u32>() % 10,
    }
}

impl Source for Expressions {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let (tokens, value) = self.expression(split, index)?;
        Ok(Example { input: Input::Tokens(tokens), target: Target::Class(value) })
    }
}
