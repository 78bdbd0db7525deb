//! Attention of quantised queries over quantised keys: `o_i = softmax_j(scale C^q_a(i)·C_c(j)) V`, codes as in `vq`, of queries by head.
//!
//! Logits come from a table `[S_q, S_k]`, computed once per head. Bidirectional: all queries of one code share one output. Causal: counts
//! and sums of values per code of the keys before each block, and the block's own keys with the logits of their codes; every row's
//! maximum is taken off before a power. Blocks change nothing but rounding; ones longer than 128 run as 128.
//!
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,M,Dk]`, v `[B,G,M,Dv]`, codebook_q `[1,H,S_q,Dk]`, codebook `[1,G,S_k,Dk]`. Time `N (S_q Dk + S_k Dk +
//! S_k Dv)`, assignment included; backward beyond that `N (S_k (Dk + 2 Dv) + S_q (2 Dv + Dk))`. A state holds S_k counts and sums of values.
//!
//! Gradients of queries and keys go straight through; codebooks have none ([`crate::quantise::Codebook`]). The loss is the commitment
//! `beta · (mean_i ‖q_i - C^q_a(i)‖² + mean_j ‖k_j - C_c(j)‖²)`. Where codebooks hold every query and key it is exact attention. After
//! Lingle 2023.

use super::codes::{Codes, Coding, Ground, Held, Near, Tallies, check_weight, codebook, codewords, only_of_heads, oracle};
use super::composition::Coded;
use super::exact::unknown;
use super::options::{OptionError, SetOption, SetPositive, SetWeight};
use super::{About, Causality, Composition, Config, Gradients, Inputs, Limit, OptionAbout, Pass, Plan, Trace};
use crate::coded::{self, Queries, table};
use crate::oracle::Oracle;
use crate::quantise::Codewords;
use crate::view::View;
use crate::{Dims, Error, Output, Par, Saved};

/// Options of attention of quantised queries over quantised keys.
#[derive(Debug, Clone, PartialEq)]
pub struct VqQk {
    /// Codewords of queries, of a codebook that is yet to be made; that of the inputs has its own number.
    pub codebook_size_q: usize,
    /// The same of keys.
    pub codebook_size_k: usize,
    /// Keys between two boundaries of the causal form, 1 or more.
    pub block: usize,
    /// Weight of the commitment, at least 0.
    pub beta: f32,
    /// Factor on `q·k`; `1/√Dk` if absent.
    pub scale: Option<f32>,
}

impl Default for VqQk {
    fn default() -> Self {
        VqQk { codebook_size_q: 128, codebook_size_k: 128, block: 512, beta: 1e-4, scale: None }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "codebook_size_q", kind: "integer", default: "128", samples: &[] },
    OptionAbout { name: "codebook_size_k", kind: "integer", default: "128", samples: &[] },
    OptionAbout { name: "block", kind: "integer", default: "512", samples: &["1", "16"] },
    OptionAbout { name: "beta", kind: "number", default: "0.0001", samples: &["1"] },
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
];

const NAME: &str = "vq_qk";

impl Config for VqQk {
    const ABOUT: About = About {
        name: NAME,
        about: "Softmax attention of quantised queries over quantised keys, by a table of logits",
        causality: Causality::Optional,
        options: OPTIONS,
        tensors: &["codebook_q", "codebook", "lengths", "lengths_q"],
        needs: &[&["codebook_q", "codebook"]],
        square: false,
        traces: &["lse", "codes_q", "codes"],
        limit: Some(Limit { options: &[], tensors: &[], codebooks: &[("codebook_q", "q"), ("codebook", "k")] }),
        steps_are_exact: false,
        trial: &[],
    };
    type Choices = Chosen;
    type Plan<'a> = Quantised<'a>;
    type Memory = Tallies;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "codebook_size_q" => self.codebook_size_q.set_positive("codebook_size_q", value),
            "codebook_size_k" => self.codebook_size_k.set_positive("codebook_size_k", value),
            "block" => self.block.set_positive("block", value),
            "beta" => self.beta.set_weight("beta", value),
            "scale" => self.scale.set_option(("scale", "a number"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, _pass: Pass, par: Par) -> Result<Chosen, Error> {
        self.check()?;
        let ground = Ground::new(NAME, inputs, self.scale)?;
        let [of_queries, of_keys] = given(&ground, inputs)?.map(|codebook| codewords(&codebook));
        let queries = Codes::of(&inputs.q, &of_queries, &ground.queries(), par);
        Ok(Chosen { queries, keys: Codes::of(&inputs.k, &of_keys, &ground.keys(), par) })
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Chosen, _pass: Pass) -> Result<Quantised<'a>, Error> {
        self.check()?;
        let ground = Ground::new(NAME, inputs, self.scale)?;
        let codebooks @ [of_queries, of_keys] = given(&ground, inputs)?;
        choices.queries.check(&inputs.q, &of_queries)?;
        choices.keys.check(&inputs.k, &of_keys)?;
        let [of_queries, of_keys] = codebooks.map(|codebook| codewords(&codebook));
        let (group, scale) = (ground.problem.dims.group(), ground.problem.scale());
        let logits = |(h, queries): (usize, &Codewords)| table(queries, &of_keys[h / group], scale, Par::default());
        let tables = of_queries.iter().enumerate().map(logits).collect();
        let coded = coded::Coded {
            dims: ground.problem.dims,
            queries: Queries::Codes { codewords: of_queries, codes: &choices.queries.values, tables },
            codewords: of_keys,
            codes: &choices.keys.values,
            v: inputs.v,
            sequences: ground.sequences.clone(),
            rule: ground.rule(self.block, 0),
            scale,
        };
        Ok(Quantised { ground, coded, choices, codebooks, beta: self.beta })
    }

    fn start(&self) -> Result<Tallies, Error> {
        self.check()?;
        Ok(Tallies::new(Held { name: NAME, gap: 0, scale: self.scale, queries: true }))
    }

    fn codewords(&self, tensor: &str) -> Option<usize> {
        match tensor {
            "codebook_q" => Some(self.codebook_size_q),
            "codebook" => Some(self.codebook_size_k),
            _ => None,
        }
    }

    fn commitment(&self, tensor: &str) -> f32 {
        if ["codebook", "codebook_q"].contains(&tensor) { self.beta } else { 0.0 }
    }
}

/// Codewords of queries and of keys.
fn given<'a>(ground: &Ground<'_>, inputs: &Inputs<'a>) -> Result<[View<'a>; 2], Error> {
    let dims = &ground.problem.dims;
    let of_queries = codebook("codebook_q", inputs.codebook_q, [dims.heads, dims.dk])?;
    Ok([of_queries, codebook("codebook", inputs.codebook, [dims.kv_heads, dims.dk])?])
}

impl VqQk {
    /// Refuses what fields may hold and options may not.
    fn check(&self) -> Result<(), Error> {
        let counts = [("codebook_size_q", self.codebook_size_q), ("codebook_size_k", self.codebook_size_k), ("block", self.block)];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => Err(Error::value(name, "0: expected an integer of at least 1")),
            None => check_weight("beta", self.beta),
        }
    }
}

/// The codes of all queries and keys.
#[derive(Debug, Clone)]
pub struct Chosen {
    queries: Codes,
    keys: Codes,
}

/// Queries and keys quantised: the plan.
pub struct Quantised<'a> {
    ground: Ground<'a>,
    coded: coded::Coded<'a>,
    choices: &'a Chosen,
    codebooks: [View<'a>; 2],
    beta: f32,
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
        vec![self.choices.queries.trace("codes_q"), self.choices.keys.trace("codes")]
    }

    fn loss(&self) -> Option<f64> {
        let Queries::Codes { codewords, .. } = &self.coded.queries else { return None };
        let problem = &self.ground.problem;
        let of_queries = self.choices.queries.distance(&problem.q, codewords);
        let of_keys = self.choices.keys.distance(&problem.k, &self.coded.codewords);
        Some(f64::from(self.beta) * (of_queries.unwrap_or(0.0) + of_keys.unwrap_or(0.0)))
    }

    fn dims(&self) -> Dims {
        self.coded.dims
    }

    fn pairs(&self) -> u64 {
        self.coded.pairs()
    }

    fn composition(&self) -> Option<Composition<'_>> {
        Some(Composition::Coded(Coded { problem: &self.ground.problem, near: 0, near_is_read: false }))
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        let (problem, [of_queries, of_keys]) = (&self.ground.problem, &self.codebooks);
        let queries = Coding::new(&problem.q, of_queries, &self.choices.queries);
        oracle(problem, Coding::new(&problem.k, of_keys, &self.choices.keys), Some(queries), Near::LeftOut(0))
    }
}
