//! Softmax attention, nothing approximated: `o_i = Σ_j softmax_j(s_ij) v_j` over the visible keys.
//!
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,M,Dk]`, v `[B,G,M,Dv]`, o `[B,H,N,Dv]`. Time `N·M·(Dk+Dv)` over visible pairs, memory
//! linear in N. Vaswani et al. 2017; tiled as Dao et al. 2022.

use super::cache::{Cache, Rule};
use super::options::{OptionError, SetOption};
use super::{About, Causality, Config, Inputs, Limit, OptionAbout, Pass};
use crate::{Alignment, Dropout, Error, Par, Problem, Scores};

/// Options of exact attention.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exact {
    /// Factor on `q·k`; `1/√Dk` if absent.
    pub scale: Option<f32>,
    /// Inclusive reach to the left; unlimited if absent.
    pub window_left: Option<usize>,
    /// Inclusive reach to the right; unlimited if absent.
    pub window_right: Option<usize>,
    /// First keys that the left reach spares.
    pub sinks: usize,
    /// `c·tanh(s/c)` before biases.
    pub softcap: Option<f32>,
    /// Linear biases by distance.
    pub alibi: bool,
    /// Where queries stand when N ≠ M.
    pub alignment: Alignment,
    /// Probability of dropping a weight in training.
    pub dropout: f32,
}

impl SetOption for Alignment {
    fn set_option(&mut self, (name, expected): (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
        *self = match value {
            "bottom_right" => Alignment::BottomRight,
            "top_left" => Alignment::TopLeft,
            _ => return Err(OptionError::Value { name, value: value.to_owned(), expected }),
        };
        Ok(())
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
    OptionAbout { name: "window_left", kind: "integer", default: "", samples: &["0", "7"] },
    OptionAbout { name: "window_right", kind: "integer", default: "", samples: &["0", "5"] },
    OptionAbout { name: "sinks", kind: "integer", default: "0", samples: &["2"] },
    OptionAbout { name: "softcap", kind: "number", default: "", samples: &["1.5"] },
    OptionAbout { name: "alibi", kind: "boolean", default: "false", samples: &["true"] },
    OptionAbout { name: "alignment", kind: "bottom_right or top_left", default: "bottom_right", samples: &["top_left"] },
    OptionAbout { name: "dropout", kind: "number", default: "0", samples: &["0.2"] },
];

impl Config for Exact {
    const ABOUT: About = About {
        name: "exact",
        about: "Softmax attention over every visible key, tiled, nothing approximated",
        causality: Causality::Optional,
        options: OPTIONS,
        tensors: &[
            "key_bias",
            "until",
            "lengths",
            "lengths_q",
            "mask",
            "bias",
            "offsets_q",
            "offsets_k",
            "key_spans",
            "key_positions",
            "query_positions",
        ],
        needs: &[&[]],
        square: false,
        traces: &["lse", "received"],
        limit: Some(Limit { options: &[], tensors: &[], codebooks: &[] }),
        steps_are_exact: false,
        trial: &[],
    };

    type Choices = ();
    type Plan<'a> = Problem<'a>;
    type Memory = Cache<Self>;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "scale" => self.scale.set_option(("scale", "a number"), value),
            "window_left" => self.window_left.set_option(("window_left", "an integer of at least 0"), value),
            "window_right" => self.window_right.set_option(("window_right", "an integer of at least 0"), value),
            "sinks" => self.sinks.set_option(("sinks", "an integer of at least 0"), value),
            "softcap" => positive(&mut self.softcap, ("softcap", "a number above 0"), value),
            "alibi" => self.alibi.set_option(("alibi", "true or false"), value),
            "alignment" => self.alignment.set_option(("alignment", "bottom_right or top_left"), value),
            "dropout" => probability(&mut self.dropout, ("dropout", "a number in [0, 1)"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, pass: Pass, _par: Par) -> Result<(), Error> {
        self.problem(inputs, pass).map(|_| ())
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, _choices: &'a (), pass: Pass) -> Result<Problem<'a>, Error> {
        self.problem(inputs, pass)
    }

    fn start(&self) -> Result<Cache<Self>, Error> {
        if self.alignment == Alignment::TopLeft {
            return Err(Error::Combination("steps are aligned bottom_right: alignment=top_left does not step".into()));
        }
        Ok(Cache::new(self.clone()))
    }
}

impl Rule for Exact {
    fn problem<'a>(&self, inputs: &Inputs<'a>, pass: Pass) -> Result<Problem<'a>, Error> {
        let mut sight = inputs.sight.window(self.window_left, self.window_right).sinks(self.sinks).alignment(self.alignment);
        if let Some(until) = inputs.until {
            sight = sight.until(until);
        }
        let mut scores = Scores::new();
        if let Some(scale) = self.scale {
            scores = scores.scale(scale);
        }
        if let Some(cap) = self.softcap {
            scores = scores.softcap(cap);
        }
        if self.alibi {
            scores = scores.alibi();
        }
        if let Some(bias) = inputs.key_bias {
            scores = scores.key_bias(bias);
        }
        if let Some(bias) = inputs.bias {
            scores = scores.bias(bias);
        }
        if pass.training && self.dropout > 0.0 {
            scores = scores.dropout(Dropout { probability: self.dropout, seed: pass.seed, step: pass.step });
        }
        Problem::new(inputs.q, inputs.k, inputs.v, sight, scores)
    }

    fn remembered(&self) -> Option<(usize, usize)> {
        None
    }

    fn without_window(&self) -> Self {
        self.clone()
    }
}

/// An option above zero.
fn positive(field: &mut Option<f32>, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
    let mut number = 0.0f32;
    number.set_option(about, value)?;
    if number <= 0.0 {
        return Err(OptionError::Value { name: about.0, value: value.to_owned(), expected: about.1 });
    }
    *field = Some(number);
    Ok(())
}

/// An option in `[0, 1)`.
fn probability(field: &mut f32, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
    let mut number = 0.0f32;
    number.set_option(about, value)?;
    if !(0.0..1.0).contains(&number) {
        return Err(OptionError::Value { name: about.0, value: value.to_owned(), expected: about.1 });
    }
    *field = number;
    Ok(())
}

pub(super) fn unknown(name: &str, options: &[OptionAbout]) -> OptionError {
    OptionError::Unknown { name: name.to_owned(), known: options.iter().map(|option| option.name).collect() }
}
