//! What mechanisms have in common whose keys are codewords: inputs that passed the door, codes, and what they cost.

mod definition;
mod memory;

pub(super) use definition::{Coding, Near, oracle};
pub(super) use memory::Held;
pub use memory::Tallies;

use super::{Gradients, Inputs, Trace};
use crate::coded::{Rule, Sequence};
use crate::problem::expect;
use crate::quantise::{Codewords, squared_distance};
use crate::view::View;
use crate::{Error, Par, Problem, Scores};
use std::ops::Range;
use std::sync::Arc;

/// The code of padding.
const NOBODY: u32 = u32::MAX;
/// Codes that f32 can count.
const MOST_CODES: usize = 1 << 24;

/// Inputs of a call.
pub(super) struct Ground<'a> {
    pub(super) problem: Problem<'a>,
    pub(super) sequences: Vec<Sequence>,
}

impl<'a> Ground<'a> {
    pub(super) fn new(name: &'static str, inputs: &Inputs<'a>, scale: Option<f32>) -> Result<Self, Error> {
        let sight = &inputs.sight;
        let windowed = sight.left.is_some() || sight.right.is_some() || sight.until.is_some();
        if windowed || sight.mask.is_some() || sight.spans.is_some() || sight.positions.is_some() {
            return Err(Error::Combination(format!("{name} takes no mask, window, until, key_spans or key_positions")));
        }
        let scores = scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
        let problem = Problem::new(inputs.q, inputs.k, inputs.v, inputs.sight, scores)?;
        let sequences = Sequence::all(&problem);
        Ok(Ground { problem, sequences })
    }

    /// Batch row and valid keys of every sequence.
    pub(super) fn keys(&self) -> Vec<(usize, Range<usize>)> {
        self.sequences.iter().map(|sequence| (sequence.batch, sequence.keys.clone())).collect()
    }

    /// Batch row and valid queries of every sequence.
    pub(super) fn queries(&self) -> Vec<(usize, Range<usize>)> {
        self.sequences.iter().map(|sequence| (sequence.batch, sequence.queries.clone())).collect()
    }

    pub(super) fn rule(&self, block: usize, gap: usize) -> Rule {
        Rule { causal: self.problem.sight.is_causal(), block, gap }
    }
}

/// The codewords that a mechanism was given, `[1, heads, S, Dk]`.
pub(super) fn codebook<'a>(tensor: &'static str, given: Option<View<'a>>, [heads, dk]: [usize; 2]) -> Result<View<'a>, Error> {
    let Some(given) = given else {
        return Err(Error::Combination(format!("{tensor} is missing: the codewords of {heads} heads, each {dk} values")));
    };
    let count = given.shape()[2];
    expect(tensor, given.shape(), [1, heads, count, dk])?;
    if !(1..=MOST_CODES).contains(&count) {
        return Err(Error::value(tensor, format!("{count} codewords: there are at least 1 and at most {MOST_CODES}")));
    }
    Ok(given)
}

/// Of every head.
pub(super) fn codewords(codebook: &View<'_>) -> Arc<[Codewords]> {
    (0..codebook.shape()[1]).map(|head| Codewords::of(codebook, head)).collect()
}

/// The codes of all rows of some ranges: batch row and rows of each sequence.
#[derive(Debug, Clone)]
pub(super) struct Codes {
    /// `[B, heads, rows]`, [`NOBODY`] for padding.
    pub(super) values: Vec<u32>,
    shape: [usize; 3],
    /// S.
    count: usize,
}

impl Codes {
    pub(super) fn of(rows: &View<'_>, codewords: &[Codewords], valid: &[(usize, Range<usize>)], par: Par) -> Self {
        let [batch, heads, count, _] = rows.shape();
        let mut values = vec![NOBODY; batch * heads * count];
        for (b, range) in valid {
            for (h, codewords) in codewords.iter().enumerate() {
                let into = &mut values[(b * heads + h) * count..][range.clone()];
                codewords.nearest(rows, [*b, h], range.clone(), into, par);
            }
        }
        Codes { values, shape: [batch, heads, count], count: codewords[0].count() }
    }

    /// Refuses codes of other inputs.
    pub(super) fn check(&self, rows: &View<'_>, codebook: &View<'_>) -> Result<(), Error> {
        let [batch, heads, count, _] = rows.shape();
        let (found, expected) = ([&self.shape[..], &[self.count]].concat(), vec![batch, heads, count, codebook.shape()[2]]);
        if found == expected { Ok(()) } else { Err(Error::Shape { tensor: "codes", found, expected }) }
    }

    pub(super) fn trace(&self, name: &'static str) -> Trace {
        let values = self.values.iter().map(|&code| if code == NOBODY { -1 } else { code.into() }).collect();
        Trace { name, shape: self.shape.to_vec(), values }
    }

    /// The mean squared distance of rows to their codewords; none where there is no row.
    pub(super) fn distance(&self, rows: &View<'_>, codewords: &[Codewords]) -> Option<f64> {
        let ([_, heads, count], width) = (self.shape, rows.shape()[3]);
        let (mut sum, mut valid, mut row) = (0.0, 0u64, vec![0.0; width]);
        for (at, &code) in self.values.iter().enumerate().filter(|(_, code)| **code != NOBODY) {
            let [b, h, n] = [at / count / heads, at / count % heads, at % count];
            row.iter_mut().enumerate().for_each(|(d, x)| *x = rows.at([b, h, n, d]));
            sum += squared_distance(&row, codewords[h].row(code as usize));
            valid += 1;
        }
        (valid > 0).then(|| sum / valid as f64)
    }
}

/// Refuses a weight that a field may hold and an option may not.
pub(super) fn check_weight(name: &'static str, weight: f32) -> Result<(), Error> {
    if weight.is_finite() && weight >= 0.0 {
        return Ok(());
    }
    Err(Error::value(name, format!("{weight}: expected a number of at least 0")))
}

/// Refuses gradients of anything but q, k and v.
pub(super) fn only_of_heads(name: &'static str, gradients: &Gradients<'_>) -> Result<(), Error> {
    match gradients.beside_heads().next() {
        Some(gradient) => Err(Error::Combination(format!("{name} has gradients of q, k and v only, not {gradient}"))),
        None if gradients.heads.dkey_bias.is_some() || gradients.heads.dbias.is_some() => {
            Err(Error::Combination(format!("{name} reads no biases and has no gradients of them")))
        }
        None => Ok(()),
    }
}
