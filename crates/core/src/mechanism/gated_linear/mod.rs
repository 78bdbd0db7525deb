//! Gated linear attention: the state of linear attention, which forgets, every channel of the keys by a gate of its own.
//!
//! ```text
//! S_t = diag(e^{g_t}) S_{t-1} + k_t v_tᵀ      o_t = scale S_tᵀ q_t
//! ```
//!
//! Gates are logarithms `g [B,H,N,Dk]`, at most 0; -inf forgets everything before. Gates of 0 are linear attention with the identity as its
//! feature map and nothing divided. The old state decays first, then the token is added, then its query reads: a token always sees itself
//! in full. Every query head has a state; query heads of a group share k and v.
//!
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,N,Dk]`, v `[B,G,N,Dv]`; causal, N = M; time `O(N Dk Dv)`. State: `S [Dk,Dv]` per query head, in f32. There is no
//! log-sum-exp: an `lse` that is passed stays as it is, and the backward pass does not read it. Yang et al. 2024.

mod definition;

use super::carried::{CHUNK, Carried, set_count};
use super::composition::Decaying;
use super::exact::unknown;
use super::options::{OptionError, SetOption};
use super::{About, Causality, Composition, Config, Gradients, Inputs, OptionAbout, Pass, Plan};
use crate::oracle::Oracle;
use crate::scan::{Map, Rules, Scan};
use crate::{Dims, Error, Output, Par, Problem, Saved, Scores};

/// Options of gated linear attention.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedLinear {
    /// Tokens that meet pair by pair, between two updates of the state; at least 1. Pairs decay one by one, so 16 at most are taken.
    pub chunk: usize,
    /// Factor on q; `1/√Dk` if absent.
    pub scale: Option<f32>,
}

impl Default for GatedLinear {
    fn default() -> Self {
        GatedLinear { chunk: 64, scale: None }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "chunk", kind: "integer", default: "64", samples: &["1", "5"] },
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
];

impl Config for GatedLinear {
    const ABOUT: About = About {
        name: "gated_linear",
        about: "Linear attention whose running sum decays by a gate for every channel of the keys",
        causality: Causality::Required,
        options: OPTIONS,
        tensors: &["gates", "lengths", "lengths_q"],
        needs: &[&["gates"]],
        square: true,
        traces: &[],
        limit: None,
        steps_are_exact: false,
        trial: &[],
    };
    type Choices = ();
    type Plan<'a> = Gated<'a>;
    type Memory = Carried;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "chunk" => set_count(&mut self.chunk, CHUNK, value),
            "scale" => self.scale.set_option(("scale", "a number"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, _pass: Pass, par: Par) -> Result<(), Error> {
        self.scan(inputs)?.refuse_growth(par)
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, _choices: &'a (), _pass: Pass) -> Result<Gated<'a>, Error> {
        Ok(Gated(self.scan(inputs)?))
    }

    fn start(&self) -> Result<Carried, Error> {
        Ok(Carried::new(self.rules()?))
    }
}

impl GatedLinear {
    fn rules(&self) -> Result<Rules, Error> {
        if self.chunk == 0 {
            return Err(Error::value(CHUNK.0, format!("0: expected {}", CHUNK.1)));
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::value("scale", format!("{scale} is not finite")));
        }
        Ok(Rules {
            name: Self::ABOUT.name,
            map: Map::Identity,
            chunk: self.chunk,
            epsilon: None,
            window: None,
            decays: true,
            scale: self.scale,
        })
    }

    fn scan<'a>(&self, inputs: &Inputs<'a>) -> Result<Scan<'a>, Error> {
        if !inputs.sight.is_causal() {
            return Err(Error::Combination("gated_linear is causal only".into()));
        }
        let problem = Problem::new(inputs.q, inputs.k, inputs.v, inputs.sight, Scores::new())?;
        Scan::new(self.rules()?, &problem, inputs.gates)
    }
}

/// Gated linear attention of some inputs: the plan.
pub struct Gated<'a>(Scan<'a>);

impl Plan for Gated<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.0.forward(out, par)
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        if let Some(name) = gradients.beside_heads().find(|name| *name != "dgates") {
            return Err(Error::Combination(format!("gated_linear has gradients of q, k, v and gates only, not {name}")));
        }
        self.0.backward(saved, (&mut gradients.heads, gradients.dgates.as_mut()), par)
    }

    fn gradients(&self) -> Vec<&'static str> {
        vec!["dgates"]
    }

    fn dims(&self) -> Dims {
        self.0.dims()
    }

    fn pairs(&self) -> u64 {
        self.0.pairs()
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        definition::oracle(&self.0)
    }

    fn composition(&self) -> Option<Composition<'_>> {
        let sequences = self.0.sequences().iter().map(|sequence| (sequence.batch, sequence.keys.clone())).collect();
        Some(Composition::Decaying(Decaying { sequences, scale: self.0.rules().scale(self.0.dims().dk) }))
    }
}
