//! Options that reducers share: numbers per layer, how many tokens stay, and the order in which tokens are picked.

use crate::Error;
use crate::mechanism::{OptionAbout, OptionError, SetOption};
use std::ops::Range;
use std::str::FromStr;

/// A number for every layer: one for all of them, or `a,b,c` for layer 0, 1 and all others.
#[derive(Debug, Clone, PartialEq)]
pub struct PerLayer<N> {
    first: Vec<N>,
    rest: N,
}

impl<N> From<N> for PerLayer<N> {
    fn from(rest: N) -> Self {
        PerLayer { first: Vec::new(), rest }
    }
}

impl<N: Copy> PerLayer<N> {
    /// `first` in the layers from 0 on, `rest` in those after them.
    pub fn new(first: Vec<N>, rest: N) -> Self {
        PerLayer { first, rest }
    }

    /// The number of a layer; layers count from 0.
    pub fn at(&self, layer: usize) -> N {
        self.first.get(layer).copied().unwrap_or(self.rest)
    }

    /// All numbers there are.
    pub(super) fn all(&self) -> impl Iterator<Item = N> + '_ {
        self.first.iter().chain([&self.rest]).copied()
    }
}

/// A number that a layer can have.
pub(super) trait Number: Copy + FromStr {
    fn is_number(self) -> bool;
}

impl Number for usize {
    fn is_number(self) -> bool {
        true
    }
}

impl Number for f64 {
    fn is_number(self) -> bool {
        self.is_finite()
    }
}

/// Parses `a,b,c`.
pub(super) fn per_layer<N: Number>((name, expected): (&'static str, &'static str), value: &str) -> Result<PerLayer<N>, OptionError> {
    let numbers: Option<Vec<N>> = value.split(',').map(|part| part.trim().parse().ok().filter(|x: &N| x.is_number())).collect();
    let refused = || OptionError::Value { name, value: value.to_owned(), expected };
    let mut first = numbers.ok_or_else(refused)?;
    let rest = first.pop().ok_or_else(refused)?;
    Ok(PerLayer { first, rest })
}

pub(super) fn unknown(name: &str, options: &[OptionAbout]) -> OptionError {
    OptionError::Unknown { name: name.to_owned(), known: options.iter().map(|option| option.name).collect() }
}

pub(super) fn set_keep(keep: &mut Option<PerLayer<f64>>, value: &str) -> Result<(), OptionError> {
    *keep = Some(per_layer(("keep", "a fraction above 0 and at most 1, or one per layer"), value)?);
    Ok(())
}

pub(super) fn set_protect(protect: &mut usize, value: &str) -> Result<(), OptionError> {
    protect.set_option(("protect", "an integer of at least 0"), value)
}

/// Refuses fractions outside (0, 1].
pub(super) fn check_keep(keep: &Option<PerLayer<f64>>) -> Result<(), Error> {
    match keep.iter().flat_map(PerLayer::all).find(|keep| !(*keep > 0.0 && *keep <= 1.0)) {
        Some(keep) => Err(Error::value("keep", format!("{keep} is not above 0 and at most 1"))),
        None => Ok(()),
    }
}

/// How many of `length` tokens the fraction `keep` leaves.
pub(super) fn count_of(keep: f64, length: usize) -> usize {
    ((keep * length as f64 - 1e-9).ceil() as usize).max(1).min(length)
}

/// Refuses to keep fewer tokens of a sequence than are protected.
pub(super) fn check_count(count: usize, rows: &Range<usize>, protected: &[bool]) -> Result<(), Error> {
    let safe = protected[rows.clone()].iter().filter(|protected| **protected).count();
    if count < safe {
        let message = format!("the sequence of rows {rows:?} keeps {count} of {} tokens, {safe} are protected", rows.len());
        return Err(Error::value("keep", message));
    }
    Ok(())
}

/// Sorts rows by descending value, ties to the lower row.
pub(super) fn sort_descending(rows: &mut [usize], value: impl Fn(usize) -> f32) {
    // Adding 0 makes -0 the 0 that it ties with.
    rows.sort_unstable_by(|&a, &b| (value(b) + 0.0).total_cmp(&(value(a) + 0.0)).then(a.cmp(&b)));
}

/// Keeps the row of the highest value, ties to the lower one, where every row of a sequence would go.
pub(super) fn keep_one(parents: &mut [Option<usize>], rows: Range<usize>, value: impl Fn(usize) -> f32) {
    if parents[rows.clone()].iter().all(Option::is_none)
        && let Some(best) = rows.reduce(|best, row| if value(row) > value(best) { row } else { best })
    {
        parents[best] = Some(best);
    }
}
