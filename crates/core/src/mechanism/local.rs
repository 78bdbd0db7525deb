//! Window attention: a query sees the `window` most recent keys, itself included (causal), or the keys at distance
//! below `window` (bidirectional), and the first `sinks` keys.
//!
//! Shapes as exact attention; time `N·window·(Dk+Dv)`; state: a ring of `window` keys and the sinks. At
//! `window >= max(N, M)` it is exact attention. Beltagy et al. 2020; sinks: Xiao et al. 2023.

use super::cache::{Cache, Rule};
use super::exact::unknown;
use super::options::{OptionError, SetOption};
use super::{About, Causality, Config, Inputs, Limit, OptionAbout, Pass};
use crate::{Error, Par, Problem, Scores};

/// Options of window attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Keys in the window, the query's own included; at least 1.
    pub window: usize,
    /// First keys that stay visible to every later query.
    pub sinks: usize,
    /// Factor on `q·k`; `1/√Dk` if absent.
    pub scale: Option<f32>,
}

impl Default for Local {
    fn default() -> Self {
        Local { window: 256, sinks: 0, scale: None }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "window", kind: "integer", default: "256", samples: &["1", "7", "64"] },
    OptionAbout { name: "sinks", kind: "integer", default: "0", samples: &["3"] },
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
];

impl Config for Local {
    const ABOUT: About = About {
        name: "local",
        about: "Softmax attention inside a sliding window, with optional sinks",
        causality: Causality::Optional,
        options: OPTIONS,
        tensors: &["lengths", "lengths_q"],
        needs: &[&[]],
        square: false,
        traces: &["lse", "received"],
        limit: Some(Limit { options: &[("window", "1000000")], tensors: &[], codebooks: &[] }),
        steps_are_exact: false,
        trial: &[("window", "7")],
    };

    type Choices = ();
    type Plan<'a> = Problem<'a>;
    type Memory = Cache<Self>;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "window" => {
                let about = ("window", "an integer of at least 1");
                let mut window = 0;
                SetOption::set_option(&mut window, about, value)?;
                if window == 0 {
                    return Err(OptionError::Value { name: about.0, value: value.to_owned(), expected: about.1 });
                }
                self.window = window;
                Ok(())
            }
            "sinks" => self.sinks.set_option(("sinks", "an integer of at least 0"), value),
            "scale" => self.scale.set_option(("scale", "a number"), value),
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
        Ok(Cache::new(self.clone()))
    }

    fn near(&self) -> Option<usize> {
        (self.sinks == 0).then_some(self.window)
    }
}

impl Rule for Local {
    fn problem<'a>(&self, inputs: &Inputs<'a>, _pass: Pass) -> Result<Problem<'a>, Error> {
        if self.window == 0 {
            return Err(Error::value("window", "0 keys: a window has at least 1"));
        }
        let reach = Some(self.window - 1);
        let sight = inputs.sight.window(reach, reach).sinks(self.sinks);
        let scores = self.scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
        Problem::new(inputs.q, inputs.k, inputs.v, sight, scores)
    }

    fn remembered(&self) -> Option<(usize, usize)> {
        Some((self.window, self.sinks))
    }

    fn without_window(&self) -> Self {
        Local { window: usize::MAX, ..self.clone() }
    }
}
