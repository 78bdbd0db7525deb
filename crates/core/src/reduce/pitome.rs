//! Protecting informative tokens while merging: tokens that resemble many others merge, isolated ones stay. Tran et al. 2024, arXiv
//! 2405.16148.
//!
//! Energy of token i over its whole sequence, itself included, with cosines of keys averaged over heads:
//! `E_i = mean_j ELU(cos_ij - margin)`, ELU(x) = x above 0 and `e^x - 1` below (vision), or `E_i = mean_j exp(-(1 - cos_ij)² / (2σ²))` (text).
//! The 2r unprotected tokens of highest energy are mergeable; dealt alternately in that order, the 1st, 3rd, … are sources, the others
//! targets, and every source merges into its best target. All other tokens stay. `keep` gives r; 2r never exceeds the unprotected tokens.
//! Ties go to the lower position; a zero vector resembles nothing. O(N²·Dk) in blocks.

use super::matching::{Sides, matches};
use super::options::{PerLayer, check_count, check_keep, count_of, set_keep, set_protect, sort_descending, unknown};
use super::pairs::{Fold, Meeting, Units, inverse_norms, meet};
use super::tokens::need;
use super::{About, Config, Tokens};
use crate::mechanism::{OptionAbout, OptionError, SetOption};
use crate::oracle::reduce::{self as oracle, Fate, Sequence};
use crate::rows::matrix::Matrix;
use crate::simd::Lanes;
use crate::view::Element;
use crate::{Error, Par};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// What a cosine adds to the energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// `ELU(cos - margin)`.
    #[default]
    Vision,
    /// `exp(-(1 - cos)² / (2σ²))`.
    Text,
}

impl SetOption for Form {
    fn set_option(&mut self, (name, expected): (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
        *self = match value {
            "vision" => Form::Vision,
            "text" => Form::Text,
            _ => return Err(OptionError::Value { name, value: value.to_owned(), expected }),
        };
        Ok(())
    }
}

/// Options of energy-based merging.
#[derive(Debug, Clone, PartialEq)]
pub struct Pitome {
    /// The fraction that stays in each layer; 0.9 if not set.
    pub keep: Option<PerLayer<f64>>,
    /// The cosine above which a token counts as similar, for [`Form::Vision`].
    pub margin: f32,
    /// See [`Form`].
    pub form: Form,
    /// Width of the Gaussian of [`Form::Text`], above 0.
    pub sigma: f32,
    /// Leading tokens of each sequence that are protected.
    pub protect: usize,
}

impl Default for Pitome {
    fn default() -> Self {
        Pitome { keep: None, margin: 0.5, form: Form::Vision, sigma: 0.5, protect: 1 }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "keep", kind: "numbers", default: "0.9", samples: &[] },
    OptionAbout { name: "margin", kind: "number", default: "0.5", samples: &[] },
    OptionAbout { name: "form", kind: "vision or text", default: "vision", samples: &[] },
    OptionAbout { name: "sigma", kind: "number", default: "0.5", samples: &[] },
    OptionAbout { name: "protect", kind: "integer", default: "1", samples: &[] },
];

impl Pitome {
    fn keep(&self, layer: usize) -> f64 {
        self.keep.as_ref().map_or(0.9, |keep| keep.at(layer))
    }
}

impl Config for Pitome {
    const ABOUT: About = About {
        name: "pitome",
        about: "Merges tokens that resemble many others and leaves isolated ones alone (PiToMe)",
        options: OPTIONS,
        tensors: &["keys"],
        exact: &[&[("keep", "1")]],
    };

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "keep" => set_keep(&mut self.keep, value),
            "margin" => self.margin.set_option(("margin", "a number"), value),
            "form" => self.form.set_option(("form", "vision or text"), value),
            "sigma" => self.sigma.set_option(("sigma", "a number above 0"), value),
            "protect" => set_protect(&mut self.protect, value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if !(self.sigma > 0.0 && self.sigma.is_finite()) {
            return Err(Error::value("sigma", format!("{} is not a finite number above 0", self.sigma)));
        }
        if !self.margin.is_finite() {
            return Err(Error::value("margin", format!("{} is not finite", self.margin)));
        }
        check_keep(&self.keep)
    }

    fn acts(&self, layer: usize) -> bool {
        self.keep(layer) < 1.0
    }

    fn parents<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, par: Par) -> Result<Vec<Option<usize>>, Error> {
        let keys = need(tokens.keys, "pitome", "keys")?;
        let protected = tokens.protected(self.protect);
        let energy = self.energies(tokens, &keys, par);
        let mut all = Vec::new();
        for rows in tokens.sequences() {
            let count = count_of(self.keep(layer), rows.len());
            check_count(count, &rows, &protected)?;
            let mut mergeable: Vec<usize> = rows.clone().filter(|&row| !protected[row]).collect();
            sort_descending(&mut mergeable, |row| energy[row]);
            let r = (rows.len() - count).min(mergeable.len() / 2);
            all.push(deal(&mergeable[..2 * r]));
        }
        let mut parents: Vec<Option<usize>> = (0..tokens.rows()).map(Some).collect();
        for found in matches(&keys, all, par).iter().flatten() {
            parents[found.source] = Some(found.target);
        }
        Ok(parents)
    }

    fn define(&self, sequence: &Sequence, layer: usize) -> Option<Fate> {
        let (margin, sigma) = (f64::from(self.margin), f64::from(self.sigma));
        let share = |cosine: f64| match self.form {
            Form::Vision => oracle::elu(cosine - margin),
            Form::Text => oracle::gaussian(1.0 - cosine, sigma),
        };
        oracle::pitome(&sequence.protecting(self.protect), self.keep(layer), share)
    }
}

/// Alternately to the sources and the targets.
fn deal(rows: &[usize]) -> Sides {
    let every_second = |first: usize| {
        let mut rows: Vec<usize> = rows.iter().skip(first).step_by(2).copied().collect();
        rows.sort_unstable();
        rows
    };
    Sides { sources: every_second(0), targets: every_second(1) }
}

impl Pitome {
    /// The energy of every token.
    fn energies<T: Element>(&self, tokens: &Tokens<'_, T>, keys: &Matrix<'_, T>, par: Par) -> Vec<f32> {
        let order: Vec<usize> = (0..tokens.rows()).collect();
        let units = Units::new(keys, &inverse_norms(keys, par), &order, par);
        let meetings: Vec<Meeting> = tokens.sequences().map(|rows| Meeting { lanes: rows.clone(), others: rows }).collect();
        let sums = match self.form {
            Form::Vision => meet(&units, &meetings, &Sum(Elu { margin: self.margin }), par),
            Form::Text => meet(&units, &meetings, &Sum(Gaussian { factor: -0.5 * LOG2_E / (self.sigma * self.sigma) }), par),
        };
        let mean = |rows: Range<usize>| rows.clone().map(|row| sums[row][0] / rows.len() as f32).collect::<Vec<_>>();
        tokens.sequences().flat_map(mean).collect()
    }
}

/// What one cosine adds.
trait Share: Sync {
    fn share<S: Lanes>(&self, s: S, cosine: S::F) -> S::F;
}

struct Elu {
    margin: f32,
}

impl Share for Elu {
    #[inline(always)]
    fn share<S: Lanes>(&self, s: S, cosine: S::F) -> S::F {
        let x = s.sub(cosine, s.splat(self.margin));
        let below = s.sub(s.exp2(s.mul(x, s.splat(LOG2_E))), s.splat(1.0));
        s.select(s.greater(x, s.zero()), x, below)
    }
}

struct Gaussian {
    /// `-log2 e / (2σ²)`.
    factor: f32,
}

impl Share for Gaussian {
    #[inline(always)]
    fn share<S: Lanes>(&self, s: S, cosine: S::F) -> S::F {
        let d = s.sub(s.splat(1.0), cosine);
        s.exp2(s.mul(s.mul(d, d), s.splat(self.factor)))
    }
}

/// The sum of shares and what rounding took from it (Kahan), so that long sequences keep the order of their energies.
struct Sum<H>(H);

impl<H: Share> Fold for Sum<H> {
    #[inline(always)]
    fn start<S: Lanes>(&self, s: S) -> [S::F; 2] {
        [s.zero(); 2]
    }

    #[inline(always)]
    fn add<S: Lanes>(&self, s: S, [sum, lost]: [S::F; 2], cosine: S::F, _: usize) -> [S::F; 2] {
        let share = s.sub(self.0.share(s, cosine), lost);
        let total = s.add(sum, share);
        [total, s.sub(s.sub(total, sum), share)]
    }
}
