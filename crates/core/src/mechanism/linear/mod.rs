//! Linear attention: a feature map φ stands in for the exponential, so that the past is a sum.
//!
//! ```text
//! o_i = Σ_j (φ(q_i)·φ(k_j)) v_j / (Σ_j φ(q_i)·φ(k_j) + ε)      over j <= p(i), or all j, or those in a window
//! ```
//!
//! φ is `elu(x) + 1`, `relu`, the identity, `relu²`, or a softmax over the features; there is no `1/√Dk`. Without `normalize` nothing is
//! divided. A padded key has φ = 0. A query whose denominator is exactly 0 gives zeros, as one that sees no key.
//!
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,M,Dk]`, v `[B,G,M,Dv]`; time `O((N + M) Dk Dv)`, in a window of w keys `O(N w (Dk + Dv))`. State: `S [Dk,Dv]` and
//! `z [Dk]` per kv head, in f32; with a window a ring of its keys and values. There is no log-sum-exp: an `lse` that is passed stays as it is,
//! and the backward pass does not read it. With the identity denominators may come near 0, where the quotient means little; there is a
//! reason for `normalize=false`. Katharopoulos et al. 2020.

mod definition;

use super::carried::{CHUNK, Carried, set_count};
use super::composition::Summed;
use super::exact::unknown;
use super::options::{OptionError, SetOption};
use super::{About, Causality, Composition, Config, Gradients, Inputs, OptionAbout, Pass, Plan};
use crate::oracle::Oracle;
use crate::scan::{Map, Rules, Scan};
use crate::{Dims, Error, Output, Par, Problem, Saved, Scores};

pub use crate::scan::Map as FeatureMap;

/// Options of linear attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// What stands in for the exponential.
    pub feature_map: FeatureMap,
    /// Added to denominators, at least 0.
    pub eps: f32,
    /// Tokens that meet pair by pair, between two updates of the state; at least 1, and 128 at most are taken.
    pub chunk: usize,
    /// Whether outputs are divided by the sum of the weights.
    pub normalize: bool,
    /// Keys that a query sees, its own included (bidirectional: at distance below it); at least 1. All if absent.
    pub window: Option<usize>,
}

impl Default for Linear {
    fn default() -> Self {
        Linear { feature_map: FeatureMap::default(), eps: 1e-6, chunk: 64, normalize: true, window: None }
    }
}

const MAPS: (&str, &str) = ("feature_map", "elu1, relu, identity, squared_relu or softmax");
const EPS: (&str, &str) = ("eps", "a number of at least 0");
const WINDOW: (&str, &str) = ("window", "an integer of at least 1");

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: MAPS.0, kind: MAPS.1, default: "elu1", samples: &["relu", "squared_relu", "softmax"] },
    OptionAbout { name: "eps", kind: "number", default: "0.000001", samples: &["0.5"] },
    OptionAbout { name: "chunk", kind: "integer", default: "64", samples: &["1", "16"] },
    OptionAbout { name: "normalize", kind: "boolean", default: "true", samples: &["false"] },
    OptionAbout { name: "window", kind: "integer", default: "", samples: &["3", "20"] },
];

const WORDS: [(&str, Map); 5] =
    [("elu1", Map::Elu1), ("relu", Map::Relu), ("identity", Map::Identity), ("squared_relu", Map::SquaredRelu), ("softmax", Map::Softmax)];

impl Config for Linear {
    const ABOUT: About = About {
        name: "linear",
        about: "Attention by a feature map in place of the exponential: the past is one running sum",
        causality: Causality::Optional,
        options: OPTIONS,
        tensors: &["lengths", "lengths_q"],
        needs: &[&[]],
        square: false,
        traces: &[],
        limit: None,
        steps_are_exact: false,
        trial: &[],
    };
    type Choices = ();
    type Plan<'a> = Summing<'a>;
    type Memory = Carried;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        let refused = |(name, expected)| OptionError::Value { name, value: value.to_owned(), expected };
        match name {
            "feature_map" => {
                self.feature_map = WORDS.iter().find(|(word, _)| *word == value).ok_or_else(|| refused(MAPS))?.1;
                Ok(())
            }
            "eps" => {
                let mut eps = 0.0f32;
                eps.set_option(EPS, value)?;
                self.eps = if eps >= 0.0 { eps } else { return Err(refused(EPS)) };
                Ok(())
            }
            "chunk" => set_count(&mut self.chunk, CHUNK, value),
            "normalize" => self.normalize.set_option(("normalize", "true or false"), value),
            "window" => {
                let mut window = 0;
                set_count(&mut window, WINDOW, value)?;
                self.window = Some(window);
                Ok(())
            }
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, _pass: Pass, _par: Par) -> Result<(), Error> {
        self.scan(inputs).map(|_| ())
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, _choices: &'a (), _pass: Pass) -> Result<Summing<'a>, Error> {
        let scan = self.scan(inputs)?;
        let reach = self.window.map(|window| window - 1);
        let sight = inputs.sight.window(reach, reach);
        Ok(Summing { scan, problem: Problem::new(inputs.q, inputs.k, inputs.v, sight, Scores::new())? })
    }

    fn start(&self) -> Result<Carried, Error> {
        Ok(Carried::new(self.rules()?))
    }
}

impl Linear {
    fn rules(&self) -> Result<Rules, Error> {
        for ((name, expected), value) in [(CHUNK, Some(self.chunk)), (WINDOW, self.window)] {
            if value == Some(0) {
                return Err(Error::value(name, format!("0: expected {expected}")));
            }
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(Error::value(EPS.0, format!("{}: expected {}", self.eps, EPS.1)));
        }
        Ok(Rules {
            name: Self::ABOUT.name,
            map: self.feature_map,
            chunk: self.chunk,
            epsilon: self.normalize.then_some(self.eps),
            window: self.window,
            decays: false,
            scale: None,
        })
    }

    fn scan<'a>(&self, inputs: &Inputs<'a>) -> Result<Scan<'a>, Error> {
        let problem = Problem::new(inputs.q, inputs.k, inputs.v, inputs.sight, Scores::new())?;
        Scan::new(self.rules()?, &problem, None)
    }
}

/// Linear attention of some inputs: the plan.
pub struct Summing<'a> {
    scan: Scan<'a>,
    /// Visibility, where tensor operations follow it.
    problem: Problem<'a>,
}

impl Plan for Summing<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.scan.forward(out, par)
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        if let Some(name) = gradients.beside_heads().next() {
            return Err(Error::Combination(format!("linear has gradients of q, k and v only, not {name}")));
        }
        self.scan.backward(saved, (&mut gradients.heads, None), par)
    }

    fn dims(&self) -> Dims {
        self.scan.dims()
    }

    fn pairs(&self) -> u64 {
        self.scan.pairs()
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        definition::oracle(&self.scan)
    }

    fn composition(&self) -> Option<Composition<'_>> {
        let rules = self.scan.rules();
        Some(Composition::Summed(Summed { problem: &self.problem, map: rules.map, epsilon: rules.epsilon }))
    }
}
