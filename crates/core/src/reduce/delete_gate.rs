//! Deletion by a learned gate after one encoder layer. Kallini et al. 2024 (MrT5), arXiv 2410.20771.
//!
//! In training `G_j = k sigmoid(-logit_j)`, `k = -30`, is added to every logit of key j in all later layers: a soft deletion. Afterwards tokens
//! with `G_j < k/2`, which is `logit_j < 0`, are really removed; where all would go, the one with the highest logit stays. The loss takes
//! `a · mean G`, with `a` steered by a PI controller towards a rate of deleted tokens.

use super::options::{keep_one, set_protect, unknown};
use super::prune::sigmoid;
use super::tokens::need;
use super::{About, Config, Tokens};
use crate::mechanism::{OptionAbout, OptionError, SetOption};
use crate::oracle::reduce::{self as oracle, Fate, Sequence};
use crate::rows::matrix::check_length;
use crate::view::Element;
use crate::{Error, Par};

/// Options of the deletion gate.
#[derive(Debug, Clone, PartialEq)]
pub struct DeleteGate {
    /// The layer after which it stands, from 0.
    pub layer: usize,
    /// The fraction of tokens to delete that [`DeleteGate::controller`] steers to, in [0, 1].
    pub target_rate: f32,
    /// What a deleted token's logits get in training; below 0.
    pub k: f32,
    /// Leading tokens of each sequence that are protected.
    pub protect: usize,
}

impl Default for DeleteGate {
    fn default() -> Self {
        DeleteGate { layer: 2, target_rate: 0.5, k: -30.0, protect: 0 }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "layer", kind: "integer", default: "2", samples: &[] },
    OptionAbout { name: "target_rate", kind: "number", default: "0.5", samples: &[] },
    OptionAbout { name: "k", kind: "number", default: "-30", samples: &[] },
    OptionAbout { name: "protect", kind: "integer", default: "0", samples: &[] },
];

impl Config for DeleteGate {
    const ABOUT: About = About {
        name: "delete_gate",
        about: "Removes the tokens that a learned gate closes, after one encoder layer (MrT5)",
        options: OPTIONS,
        tensors: &["gate_logits"],
        exact: &[&[("layer", "1000000")]],
    };

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "layer" => self.layer.set_option(("layer", "an integer of at least 0"), value),
            "target_rate" => self.target_rate.set_option(("target_rate", "a number in [0, 1]"), value),
            "k" => self.k.set_option(("k", "a number below 0"), value),
            "protect" => set_protect(&mut self.protect, value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if !(self.k < 0.0 && self.k.is_finite()) {
            return Err(Error::value("k", format!("{} is not a finite number below 0", self.k)));
        }
        if !(0.0..=1.0).contains(&self.target_rate) {
            return Err(Error::value("target_rate", format!("{} is outside [0, 1]", self.target_rate)));
        }
        Ok(())
    }

    fn acts(&self, layer: usize) -> bool {
        layer == self.layer
    }

    fn parents<T: Element>(&self, tokens: &Tokens<'_, T>, _: usize, _: Par) -> Result<Vec<Option<usize>>, Error> {
        let logits = need(tokens.gate_logits, "delete_gate", "gate_logits")?;
        let protected = tokens.protected(self.protect);
        let stays = |row: usize| protected[row] || logits[row] >= 0.0;
        let mut parents: Vec<Option<usize>> = (0..tokens.rows()).map(|row| stays(row).then_some(row)).collect();
        for rows in tokens.sequences() {
            keep_one(&mut parents, rows, |row| logits[row]);
        }
        Ok(parents)
    }

    fn define(&self, sequence: &Sequence, layer: usize) -> Option<Fate> {
        if layer != self.layer {
            return Some(Fate::all_stay(sequence.length));
        }
        let sequence = sequence.protecting(self.protect);
        Some(oracle::gated(&sequence, f64::from(self.k)))
    }
}

impl DeleteGate {
    /// The gate of every token in training, `G = k sigmoid(-logit)`, `[T]`: a key bias for all later layers. 0 for protected tokens.
    ///
    /// # Errors
    /// If the logits are missing, or something does not fit.
    pub fn gates<T: Element>(&self, tokens: &Tokens<'_, T>) -> Result<Vec<f32>, Error> {
        self.check()?;
        tokens.check()?;
        let logits = need(tokens.gate_logits, "delete_gate", "gate_logits")?;
        let gate = |(logit, protected): (&f32, bool)| if protected { 0.0 } else { self.k * sigmoid(-logit) };
        Ok(logits.iter().zip(tokens.protected(self.protect)).map(gate).collect())
    }

    /// The gradient of the logits, `[T]`, from the gates and their gradient: `dlogit = -G (1 - G/k) dG`.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn gates_backward(&self, gates: &[f32], dgates: &[f32]) -> Result<Vec<f32>, Error> {
        self.check()?;
        check_length(dgates.len(), gates.len(), "dgates")?;
        Ok(gates.iter().zip(dgates).map(|(g, dg)| -g * (1.0 - g / self.k) * dg).collect())
    }

    /// A controller towards the target rate, with the paper's gains.
    pub fn controller(&self) -> Controller {
        Controller { target: self.target_rate, proportional: 0.5, integral: 1e-5, smoothing: 0.9, most: 10.0, error: 0.0, sum: 0.0 }
    }
}

/// Steers the weight `a` of the gate's loss by `e = target - deleted`: `p ← γ p + (1 - γ) e`, `a = P p + I Σ e`, where both a and `I Σ e` stay
/// between 0 and `most`.
#[derive(Debug, Clone, PartialEq)]
pub struct Controller {
    /// The fraction of tokens to delete.
    pub target: f32,
    /// P.
    pub proportional: f32,
    /// I.
    pub integral: f32,
    /// γ, in [0, 1).
    pub smoothing: f32,
    /// The largest weight.
    pub most: f32,
    /// State: p.
    pub error: f32,
    /// State: `I Σ e`.
    pub sum: f32,
}

impl Controller {
    /// The weight for the next step, after one that deleted this fraction of its tokens.
    pub fn step(&mut self, deleted: f32) -> f32 {
        let error = self.target - deleted;
        self.error = self.smoothing * self.error + (1.0 - self.smoothing) * error;
        self.sum = (self.sum + self.integral * error).clamp(0.0, self.most);
        (self.proportional * self.error + self.sum).clamp(0.0, self.most)
    }
}
