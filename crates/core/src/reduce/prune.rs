//! Pruning by received attention: tokens that nobody looks at leave the sequence, and later layers run on a shorter one.
//!
//! The score `c_j` is [`super::Uniform::score`], 1 on average under every mask. Rules: `threshold` keeps `c_j ≥ t`; `top_k` the highest
//! `count`, or the fraction `keep` of each sequence; `learned` is `threshold` after training, and in training a soft mask
//! `m_j = sigmoid((c_j - t) / T)` that multiplies the token's output, with `mean m` as penalty (Kim et al. 2022, arXiv 2107.00910); `coreset`
//! takes no score but greedily the token whose vector is farthest from those kept, beginning with the first (Pyramid-BERT, Huang et
//! al. 2022, arXiv 2203.14380): a constant `keep` makes lengths decay geometrically over layers. Protected tokens count among the
//! kept. Where no score reaches the threshold the best token stays. Ties go to the lower position.

use super::farthest::{Wanted, centres};
use super::options::{PerLayer, check_count, check_keep, count_of, keep_one, per_layer, set_keep, set_protect, sort_descending, unknown};
use super::tokens::need;
use super::{About, Config, Tokens};
use crate::mechanism::{OptionAbout, OptionError, SetOption};
use crate::oracle::reduce::{self as oracle, Amount, Fate, Sequence};
use crate::rows::matrix::check_length;
use crate::view::Element;
use crate::{Error, Par};
use std::ops::Range;

/// Which tokens stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// Scores of at least the threshold.
    #[default]
    Threshold,
    /// The highest scores.
    TopK,
    /// As [`Rule::Threshold`], with a threshold that was learned under [`Prune::soft_mask`].
    Learned,
    /// Greedily the tokens farthest from one another.
    Coreset,
}

impl SetOption for Rule {
    fn set_option(&mut self, (name, expected): (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
        *self = match value {
            "threshold" => Rule::Threshold,
            "top_k" => Rule::TopK,
            "learned" => Rule::Learned,
            "coreset" => Rule::Coreset,
            _ => return Err(OptionError::Value { name, value: value.to_owned(), expected }),
        };
        Ok(())
    }
}

/// Options of pruning.
#[derive(Debug, Clone, PartialEq)]
pub struct Prune {
    /// See [`Rule`]; if not set, the highest scores where `keep` or `count` is, else the threshold.
    pub rule: Option<Rule>,
    /// The lowest score that stays in each layer; 1 is the average.
    pub threshold: PerLayer<f64>,
    /// The fraction that stays in each layer; 0.5 if neither this nor `count` is set.
    pub keep: Option<PerLayer<f64>>,
    /// The number of tokens that stay in each layer, in place of `keep`; longer than a sequence: all of it.
    pub count: Option<PerLayer<usize>>,
    /// Leading tokens of each sequence that are protected.
    pub protect: usize,
    /// Width of the soft mask in training, above 0.
    pub temperature: f32,
}

impl Default for Prune {
    fn default() -> Self {
        Prune { rule: None, threshold: 0.5.into(), keep: None, count: None, protect: 1, temperature: 0.1 }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "rule", kind: "threshold, top_k, learned or coreset", default: "", samples: &[] },
    OptionAbout { name: "threshold", kind: "numbers", default: "0.5", samples: &[] },
    OptionAbout { name: "keep", kind: "numbers", default: "0.5", samples: &[] },
    OptionAbout { name: "count", kind: "integers", default: "", samples: &[] },
    OptionAbout { name: "protect", kind: "integer", default: "1", samples: &[] },
    OptionAbout { name: "temperature", kind: "number", default: "0.1", samples: &[] },
];

impl Prune {
    fn rule(&self) -> Rule {
        let counts = self.keep.is_some() || self.count.is_some();
        self.rule.unwrap_or(if counts { Rule::TopK } else { Rule::Threshold })
    }

    /// Tokens of a sequence of this length that stay in a layer, for the rules that count.
    pub fn count(&self, layer: usize, length: usize) -> usize {
        match &self.count {
            Some(count) => count.at(layer).max(1).min(length),
            None => count_of(self.keep.as_ref().map_or(0.5, |keep| keep.at(layer)), length),
        }
    }
}

impl Config for Prune {
    const ABOUT: About = About {
        name: "prune",
        about: "Removes the tokens that receive the least attention, or those that resemble the kept ones",
        options: OPTIONS,
        tensors: &["score", "x"],
        exact: &[&[("threshold", "0")], &[("rule", "top_k"), ("keep", "1")], &[("rule", "coreset"), ("keep", "1")]],
    };

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "rule" => self.rule.set_option(("rule", "threshold, top_k, learned or coreset"), value),
            "threshold" => {
                self.threshold = per_layer(("threshold", "a number, or one per layer"), value)?;
                Ok(())
            }
            "keep" => set_keep(&mut self.keep, value),
            "count" => {
                self.count = Some(per_layer(("count", "an integer of at least 1, or one per layer"), value)?);
                Ok(())
            }
            "protect" => set_protect(&mut self.protect, value),
            "temperature" => self.temperature.set_option(("temperature", "a number above 0"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.keep.is_some() && self.count.is_some() {
            return Err(Error::Combination("prune takes keep or count, not both".into()));
        }
        if self.count.iter().flat_map(PerLayer::all).any(|count| count == 0) {
            return Err(Error::value("count", "0 tokens: at least 1 stays"));
        }
        if let Some(t) = self.threshold.all().find(|t| t.is_nan()) {
            return Err(Error::value("threshold", format!("{t} is not a number")));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::value("temperature", format!("{} is not a finite number above 0", self.temperature)));
        }
        check_keep(&self.keep)
    }

    /// Not where everything stays anyhow: then nobody has to know the scores of a layer.
    fn acts(&self, layer: usize) -> bool {
        match self.rule() {
            Rule::Threshold | Rule::Learned => self.threshold.at(layer) > 0.0,
            Rule::TopK | Rule::Coreset => self.count.is_some() || self.keep.as_ref().is_none_or(|keep| keep.at(layer) < 1.0),
        }
    }

    fn parents<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, par: Par) -> Result<Vec<Option<usize>>, Error> {
        let protected = tokens.protected(self.protect);
        match self.rule() {
            Rule::Threshold | Rule::Learned => self.above(tokens, self.threshold.at(layer), &protected),
            Rule::TopK => self.top(tokens, layer, &protected),
            Rule::Coreset => self.coreset(tokens, layer, &protected, par),
        }
    }

    fn define(&self, sequence: &Sequence, layer: usize) -> Option<Fate> {
        let sequence = sequence.protecting(self.protect);
        let amount = match (&self.count, &self.keep) {
            (Some(count), _) => Amount::Stay(count.at(layer)),
            (None, keep) => Amount::Keep(keep.as_ref().map_or(0.5, |keep| keep.at(layer))),
        };
        match self.rule() {
            Rule::Threshold | Rule::Learned => Some(oracle::above(&sequence, &sequence.score, self.threshold.at(layer))),
            Rule::TopK => oracle::highest(&sequence, amount),
            Rule::Coreset => oracle::coreset(&sequence, amount),
        }
    }
}

impl Prune {
    fn above<T: Element>(&self, tokens: &Tokens<'_, T>, threshold: f64, protected: &[bool]) -> Result<Vec<Option<usize>>, Error> {
        let score = need(tokens.score, "prune", "score")?;
        let stays = |row: usize| protected[row] || f64::from(score[row]) >= threshold;
        let mut parents: Vec<Option<usize>> = (0..tokens.rows()).map(|row| stays(row).then_some(row)).collect();
        for rows in tokens.sequences() {
            keep_one(&mut parents, rows, |row| score[row]);
        }
        Ok(parents)
    }

    /// How many tokens of each sequence stay.
    fn counts<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, protected: &[bool]) -> Result<Vec<(Range<usize>, usize)>, Error> {
        let counted = |rows: Range<usize>| {
            let count = self.count(layer, rows.len());
            check_count(count, &rows, protected).map(|()| (rows, count))
        };
        tokens.sequences().map(counted).collect()
    }

    fn top<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, protected: &[bool]) -> Result<Vec<Option<usize>>, Error> {
        let score = need(tokens.score, "prune", "score")?;
        let mut parents = vec![None; tokens.rows()];
        for (rows, count) in self.counts(tokens, layer, protected)? {
            let (mut stay, mut free): (Vec<usize>, Vec<usize>) = rows.partition(|&row| protected[row]);
            sort_descending(&mut free, |row| score[row]);
            stay.extend(&free[..count - stay.len()]);
            stay.iter().for_each(|&row| parents[row] = Some(row));
        }
        Ok(parents)
    }

    fn coreset<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, protected: &[bool], par: Par) -> Result<Vec<Option<usize>>, Error> {
        let x = need(tokens.x, "prune with the rule coreset", "x")?;
        let wanted = |(rows, count): (Range<usize>, usize)| {
            let given = rows.clone().filter(|&row| protected[row] || row == rows.start).collect();
            Wanted { rows, given, count }
        };
        let wanted: Vec<Wanted> = self.counts(tokens, layer, protected)?.into_iter().map(wanted).collect();
        let mut parents = vec![None; tokens.rows()];
        centres(&x, &wanted, par).into_iter().flatten().for_each(|row| parents[row] = Some(row));
        Ok(parents)
    }
}

/// The soft mask of training.
impl Prune {
    /// `m_j = sigmoid((c_j - t) / T)` of every token, 1 for protected ones, `[T]`: what the outputs of tokens are multiplied by. The
    /// penalty of the paper is the mean of it.
    ///
    /// # Errors
    /// If the score is missing, or something does not fit.
    pub fn soft_mask<T: Element>(&self, tokens: &Tokens<'_, T>, threshold: f32) -> Result<Vec<f32>, Error> {
        self.check()?;
        tokens.check()?;
        let score = need(tokens.score, "prune", "score")?;
        let mask = |(c, protected): (&f32, bool)| if protected { 1.0 } else { sigmoid((c - threshold) / self.temperature) };
        Ok(score.iter().zip(tokens.protected(self.protect)).map(mask).collect())
    }

    /// Gradients of the score, `[T]`, and of the threshold, from the mask and the gradient of the mask: `dc = m (1 - m) dm / T`,
    /// `dt = -Σ dc`. A protected token has neither.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn soft_mask_backward(&self, mask: &[f32], dmask: &[f32]) -> Result<(Vec<f32>, f32), Error> {
        self.check()?;
        check_length(dmask.len(), mask.len(), "dmask")?;
        let dscore: Vec<f32> = mask.iter().zip(dmask).map(|(m, dm)| m * (1.0 - m) * dm / self.temperature).collect();
        let sum: f64 = dscore.iter().map(|dc| f64::from(*dc)).sum();
        Ok((dscore, -sum as f32))
    }
}

/// `1 / (1 + e^-x)`.
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
