//! The frequencies of rotary embeddings, and what is done to them so that a model reads further than it was trained.
//!
//! Pair i of `d` rotated dims turns by `f_i` radians a position, `f_i = base^(-2i/d)`:
//!
//! | scaling | becomes | source |
//! |---|---|---|
//! | linear | `f_i / factor` | Chen et al. 2023, arXiv 2306.15595 |
//! | NTK-aware | `base · α^(d/(d-2))` in place of the base | bloc97 2023; in Peng et al. 2023, arXiv 2309.00071, section 3.1 |
//! | dynamic NTK | the same with `α = factor · L/trained - (factor - 1)` for a length L above the trained one | the same, appendix B.1 |
//! | YaRN | `f_i / factor` for slow pairs, `f_i` for fast ones, a ramp between; cos and sin times an attention factor | the same, section 3 |
//! | Llama 3 | the same idea, the ramp linear in trained turns | Llama 3.1's published configuration |

use crate::Error;
use std::f64::consts::TAU;

/// Which dims form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Dim i with dim `i + d/2`: GPT-NeoX, Llama and most checkpoints.
    Halves,
    /// Dim 2i with dim 2i + 1: the original form.
    Interleaved,
}

/// What is done to the frequencies. Every `trained` is a length in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Nothing.
    None,
    /// Positions divided by a factor.
    Linear {
        /// By how much the context grows.
        factor: f64,
    },
    /// A larger base, the same for every length.
    Ntk {
        /// What the lowest frequency is divided by.
        alpha: f64,
    },
    /// A larger base for lengths above the trained one.
    DynamicNtk {
        /// By how much the context grows.
        factor: f64,
        /// Length that the model was trained on.
        trained: usize,
    },
    /// Slow pairs scaled, fast pairs kept.
    Yarn(Yarn),
    /// Slow pairs scaled, fast pairs kept, the ramp linear in turns.
    Llama3 {
        /// By how much the context grows.
        factor: f64,
        /// Pairs that turn fewer times than this in the trained length are scaled.
        low: f64,
        /// Pairs that turn more often than this are kept.
        high: f64,
        /// Length that the model was trained on.
        trained: usize,
    },
}

/// Options of YaRN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// By how much the context grows.
    pub factor: f64,
    /// Length that the model was trained on.
    pub trained: usize,
    /// Pairs that turn at least so often in the trained length are kept (32).
    pub fast: f64,
    /// Pairs that turn at most so often are scaled (1).
    pub slow: f64,
    /// Whether the ends of the ramp are rounded outwards to whole pairs (true).
    pub whole: bool,
    /// What multiplies cos and sin; `None` is the paper's `0.1 ln factor + 1`.
    pub attention_factor: Option<f64>,
}

impl Yarn {
    /// The paper's settings.
    pub fn new(factor: f64, trained: usize) -> Self {
        Yarn { factor, trained, fast: 32.0, slow: 1.0, whole: true, attention_factor: None }
    }

    /// The pair, as a fraction of a number, that turns `turns` times in the trained length.
    fn pair(&self, turns: f64, rotary: &Rotary) -> f64 {
        let d = rotary.dims as f64;
        d * (self.trained as f64 / (turns * TAU)).ln() / (2.0 * rotary.base.ln())
    }

    /// Pairs where the ramp starts and ends.
    fn ramp(&self, rotary: &Rotary) -> [f64; 2] {
        let (mut first, mut last) = (self.pair(self.fast, rotary), self.pair(self.slow, rotary));
        if self.whole {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, last) = (first.max(0.0), last.min(rotary.dims as f64 - 1.0));
        [first, if first == last { last + 0.001 } else { last }]
    }
}

/// Rotary embedding: which dims turn, and how fast.
///
/// Source: Su et al. 2021, arXiv 2104.09864.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Dims that turn, counted from the front of a head; the others pass unchanged. Even.
    pub dims: usize,
    /// 10000 in the paper.
    pub base: f64,
    /// Which dims form a pair.
    pub pairing: Pairing,
    /// What is done to the frequencies.
    pub scaling: Scaling,
}

/// Radians per position of every pair, and what multiplies cos and sin.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// `[dims / 2]`, radians per position.
    pub inverse: Vec<f64>,
    /// 1 but for YaRN.
    pub attention_factor: f64,
}

impl Rotary {
    /// All `dims` of a head, base 10000, halves, no scaling.
    pub fn new(dims: usize) -> Self {
        Rotary { dims, base: 10_000.0, pairing: Pairing::Halves, scaling: Scaling::None }
    }

    /// Frequencies for sequences of `length` tokens; only dynamic NTK looks at the length.
    ///
    /// # Errors
    /// If dims is odd or 0, the base is not above 1, or a scaling's number is out of range.
    pub fn frequencies(&self, length: usize) -> Result<Frequencies, Error> {
        self.check()?;
        let mut attention_factor = 1.0;
        let plain = powers(self.dims, self.base);
        let inverse = match self.scaling {
            Scaling::None => plain,
            Scaling::Linear { factor } => plain.into_iter().map(|f| f / factor).collect(),
            Scaling::Ntk { alpha } => self.rebased(alpha),
            Scaling::DynamicNtk { factor, trained } => self.rebased((factor * length as f64 / trained as f64 - (factor - 1.0)).max(1.0)),
            Scaling::Yarn(yarn) => {
                attention_factor = yarn.attention_factor.unwrap_or(if yarn.factor > 1.0 { 0.1 * yarn.factor.ln() + 1.0 } else { 1.0 });
                let [first, last] = yarn.ramp(self);
                let scaled = |(i, f): (usize, f64)| mix(f, f / yarn.factor, (i as f64 - first) / (last - first));
                plain.into_iter().enumerate().map(scaled).collect()
            }
            Scaling::Llama3 { factor, low, high, trained } => {
                let turns = |f: f64| f * trained as f64 / TAU;
                plain.into_iter().map(|f| mix(f, f / factor, (high - turns(f)) / (high - low))).collect()
            }
        };
        Ok(Frequencies { inverse, attention_factor })
    }

    fn rebased(&self, alpha: f64) -> Vec<f64> {
        let d = self.dims as f64;
        // With one pair its frequency is 1 whatever the base.
        powers(self.dims, if self.dims > 2 { self.base * alpha.powf(d / (d - 2.0)) } else { self.base })
    }

    fn check(&self) -> Result<(), Error> {
        if self.dims == 0 || !self.dims.is_multiple_of(2) {
            return Err(Error::value("dims", format!("{} rotary dims do not form pairs", self.dims)));
        }
        let above = |name, x: f64, least: f64| {
            let fits = x.is_finite() && x > least;
            if fits { Ok(()) } else { Err(Error::value(name, format!("{x} is not a finite number above {least}"))) }
        };
        above("base", self.base, 1.0)?;
        match self.scaling {
            Scaling::None => Ok(()),
            Scaling::Linear { factor } => above("factor", factor, 0.0),
            Scaling::Ntk { alpha } => above("alpha", alpha, 0.0),
            Scaling::DynamicNtk { factor, trained } => {
                above("factor", factor, 0.0)?;
                above("trained", trained as f64, 0.0)
            }
            Scaling::Yarn(yarn) => {
                above("factor", yarn.factor, 0.0)?;
                above("trained", yarn.trained as f64, 0.0)?;
                above("slow", yarn.slow, 0.0)?;
                above("fast", yarn.fast, yarn.slow)
            }
            Scaling::Llama3 { factor, low, high, trained } => {
                above("factor", factor, 0.0)?;
                above("low", low, 0.0)?;
                above("high", high, low)?;
                above("trained", trained as f64, 0.0)
            }
        }
    }
}

/// `base^(-2i/d)`.
fn powers(dims: usize, base: f64) -> Vec<f64> {
    (0..dims / 2).map(|i| base.powf(-2.0 * i as f64 / dims as f64)).collect()
}

/// From `kept` at 0 to `scaled` at 1, and no further.
fn mix(kept: f64, scaled: f64, share: f64) -> f64 {
    let share = share.clamp(0.0, 1.0);
    kept * (1.0 - share) + scaled * share
}
