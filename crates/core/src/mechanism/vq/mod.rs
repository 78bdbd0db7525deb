//! Attention over quantised keys: every key is read as the nearest of `S` codewords, so that however many there are they come to S logits.
//!
//! `c(j) = argmin_s ‖k_j - C_s‖²` per kv head (ties to the lowest), `o_i = softmax_j(scale q_i·C_c(j)) V` over the keys that query i
//! sees. With `n_s` keys of code s before a block's first query and `mean_s` of their values, those have the logit `scale q·C_s + ln n_s`
//! and the value `mean_s`; the block's own keys are masked one by one, with the logits of their codes. Blocks change nothing but
//! rounding: ones longer than 128 run as 128, and bidirectional attention has none. `recent` and `exclude_recent`: with the latter the
//! `recent` most recent keys (own included; bidirectional: those at distances below `recent`) are left out, so that together with `local`
//! of that window, merged by the log-sum-exp, every key is read once.
//!
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,M,Dk]`, v `[B,G,M,Dv]`, codebook `[1,G,S,Dk]`. Time `N S (2 Dk + Dv)`, assignment included; backward
//! `N Σ_s min(n_s (Dk + Dv), Dk Dv)`, since the gradient of a key, `scale Σ_i P_ij (dO_i·v_j - D_i) q_i`, is a matrix of its code applied to
//! v_j, or a look at every query: of the n_s keys of a code whichever is less. A state holds S counts and sums of values, and with
//! `exclude_recent` a ring of `recent`.
//!
//! Gradients of keys go straight through; the codebook has none and follows by moving averages ([`crate::quantise::Codebook`]). The loss
//! is the commitment `beta · mean_j ‖k_j - C_c(j)‖²`. Where the codebook holds every key it is exact attention. Lingle 2023.

use super::codes::{Codes, Coding, Ground, Held, Near, Tallies, check_weight, codebook, codewords, only_of_heads, oracle};
use super::composition::Coded;
use super::exact::unknown;
use super::options::{OptionError, SetOption, SetPositive, SetWeight};
use super::{About, Causality, Composition, Config, Gradients, Inputs, Limit, OptionAbout, Pass, Plan, Trace};
use crate::coded::{self, Queries};
use crate::oracle::Oracle;
use crate::view::View;
use crate::{Dims, Error, Output, Par, Saved};

/// Options of attention over quantised keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Vq {
    /// Codewords of a codebook that is yet to be made; that of the inputs has its own number.
    pub codebook_size: usize,
    /// Keys between two boundaries of the causal form, 1 or more.
    pub block: usize,
    /// Keys that `exclude_recent` leaves out, 1 or more.
    pub recent: usize,
    /// Whether recent keys are left out.
    pub exclude_recent: bool,
    /// Weight of the commitment, at least 0.
    pub beta: f32,
    /// Factor on `q·k`; `1/√Dk` if absent.
    pub scale: Option<f32>,
}

impl Default for Vq {
    fn default() -> Self {
        Vq { codebook_size: 512, block: 512, recent: 512, exclude_recent: false, beta: 1e-4, scale: None }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "codebook_size", kind: "integer", default: "512", samples: &[] },
    OptionAbout { name: "block", kind: "integer", default: "512", samples: &["1", "16"] },
    OptionAbout { name: "recent", kind: "integer", default: "512", samples: &["1", "7"] },
    OptionAbout { name: "exclude_recent", kind: "boolean", default: "false", samples: &["true"] },
    OptionAbout { name: "beta", kind: "number", default: "0.0001", samples: &["1"] },
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
];

const NAME: &str = "vq";

impl Config for Vq {
    const ABOUT: About = About {
        name: NAME,
        about: "Softmax attention over keys quantised to a codebook, old ones summed up per code",
        causality: Causality::Optional,
        options: OPTIONS,
        tensors: &["codebook", "lengths", "lengths_q"],
        needs: &[&["codebook"]],
        square: false,
        traces: &["lse", "codes"],
        limit: Some(Limit { options: &[], tensors: &[], codebooks: &[("codebook", "k")] }),
        steps_are_exact: false,
        trial: &[],
    };
    type Choices = Chosen;
    type Plan<'a> = Quantised<'a>;
    type Memory = Tallies;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "codebook_size" => self.codebook_size.set_positive("codebook_size", value),
            "block" => self.block.set_positive("block", value),
            "recent" => self.recent.set_positive("recent", value),
            "exclude_recent" => self.exclude_recent.set_option(("exclude_recent", "true or false"), value),
            "beta" => self.beta.set_weight("beta", value),
            "scale" => self.scale.set_option(("scale", "a number"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, _pass: Pass, par: Par) -> Result<Chosen, Error> {
        self.check()?;
        let ground = Ground::new(NAME, inputs, self.scale)?;
        let codewords = codewords(&given(&ground, inputs)?);
        Ok(Chosen { codes: Codes::of(&inputs.k, &codewords, &ground.keys(), par) })
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Chosen, _pass: Pass) -> Result<Quantised<'a>, Error> {
        self.check()?;
        let ground = Ground::new(NAME, inputs, self.scale)?;
        let codebook = given(&ground, inputs)?;
        choices.codes.check(&inputs.k, &codebook)?;
        let coded = coded::Coded {
            dims: ground.problem.dims,
            queries: Queries::Rows(inputs.q),
            codewords: codewords(&codebook),
            codes: &choices.codes.values,
            v: inputs.v,
            sequences: ground.sequences.clone(),
            rule: ground.rule(self.block, self.gap()),
            scale: ground.problem.scale(),
        };
        Ok(Quantised { ground, coded, choices, codebook, beta: self.beta })
    }

    fn start(&self) -> Result<Tallies, Error> {
        self.check()?;
        Ok(Tallies::new(Held { name: NAME, gap: self.gap(), scale: self.scale, queries: false }))
    }

    fn codewords(&self, tensor: &str) -> Option<usize> {
        (tensor == "codebook").then_some(self.codebook_size)
    }

    fn commitment(&self, tensor: &str) -> f32 {
        if tensor == "codebook" { self.beta } else { 0.0 }
    }

    fn leave_out(&mut self, window: usize) {
        (self.exclude_recent, self.recent) = (true, window);
    }

    fn leaves_out(&self) -> bool {
        self.exclude_recent
    }
}

fn given<'a>(ground: &Ground<'_>, inputs: &Inputs<'a>) -> Result<View<'a>, Error> {
    codebook("codebook", inputs.codebook, [ground.problem.dims.kv_heads, ground.problem.dims.dk])
}

impl Vq {
    /// Refuses what fields may hold and options may not.
    fn check(&self) -> Result<(), Error> {
        for (name, count) in [("codebook_size", self.codebook_size), ("block", self.block), ("recent", self.recent)] {
            if count == 0 {
                return Err(Error::value(name, "0: expected an integer of at least 1"));
            }
        }
        check_weight("beta", self.beta)
    }

    /// Keys nearer than this are left out.
    fn gap(&self) -> usize {
        if self.exclude_recent { self.recent } else { 0 }
    }
}

/// The code of every key.
#[derive(Debug, Clone)]
pub struct Chosen {
    codes: Codes,
}

/// Keys quantised: the plan.
pub struct Quantised<'a> {
    ground: Ground<'a>,
    coded: coded::Coded<'a>,
    choices: &'a Chosen,
    codebook: View<'a>,
    beta: f32,
}

impl Quantised<'_> {
    fn coding(&self) -> Coding {
        Coding::new(&self.ground.problem.k, &self.codebook, &self.choices.codes)
    }
}

impl Plan for Quantised<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.coded.forward(out, par)
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        only_of_heads(NAME, gradients)?;
        self.coded.backward(saved, &mut gradients.heads, par)
    }

    fn traces(&self) -> Vec<Trace> {
        vec![self.choices.codes.trace("codes")]
    }

    fn loss(&self) -> Option<f64> {
        let distance = self.choices.codes.distance(&self.ground.problem.k, &self.coded.codewords);
        Some(f64::from(self.beta) * distance.unwrap_or(0.0))
    }

    fn dims(&self) -> Dims {
        self.coded.dims
    }

    fn pairs(&self) -> u64 {
        self.coded.pairs()
    }

    fn composition(&self) -> Option<Composition<'_>> {
        Some(Composition::Coded(Coded { problem: &self.ground.problem, near: self.coded.rule.gap, near_is_read: false }))
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        oracle(&self.ground.problem, self.coding(), None, Near::LeftOut(self.coded.rule.gap))
    }

    fn completed(&self) -> Option<Box<dyn Oracle>> {
        Some(oracle(&self.ground.problem, self.coding(), None, Near::AsTheyAre(self.coded.rule.gap)))
    }
}
