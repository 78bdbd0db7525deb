//! HyperAttention: keys in the direction of a query as they are, a sample of the others for the rest.
//!
//! Rows are hashed by `bits` hyperplanes R (`hyperplanes [1,1,Dk,bits]`, whose number of columns wins over the option; normal numbers
//! from the seed where absent): `bin = Σ_t [x·R_t > 0] 2^t`, ranked by inverse Gray code, so that neighbouring bins differ in one side.
//!
//! **A square** is some queries over keys that they all see. Its keys are sorted by rank, equal ranks in order, and cut into blocks of
//! `block`. A query belongs to the block where its own rank would be inserted (lower bound; behind the last key: the last block),
//! whatever the other queries are. It attends to that block and, beside it, to `min(samples, eligible)` of the `eligible` other keys of
//! the square, drawn without replacement, each of which stands for several: `s = scale·q·k + ln(eligible / drawn)`. With `by_norm` they
//! are drawn with replacement by `p = |v| / Σ|v|` over the eligible (evenly where that sum is 0), and `s = scale·q·k - ln(drawn·p)`.
//! Draws depend on (seed, batch row, query head, square, block, index) alone; batch row 0 for packed sequences.
//!
//! **Bidirectional**: a sequence is one square. **Causal**: positions `[0, M)` of a sequence are halved, the first half is `floor(n/2)`
//! long. The queries of the second half over the keys of the first are a square; the halves are halved again down to `min_len` positions
//! (or one), where attention is exact. The parts of a row are merged by their log-sum-exps.
//!
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,M,Dk]`, v `[B,G,M,Dv]`. Each query head has its own draws, each kv head its own order. Time
//! `O(N (block + samples) D)` for a square, times `log(M / min_len)` if causal; memory linear in N. Steps are exact attention over the
//! cache. It is exact attention where one block holds all keys (causal: or `min_len` holds them), and where all others are drawn without
//! replacement. Choices (ranks, norms of v, the seed) are frozen in gradients. Han et al. 2023; blocks of queries and ranks are ours:
//! as published a query's block depends on later queries, and neighbouring ranks differ in several sides.

mod attend;
mod blocks;
mod choose;
mod definition;
mod draw;
mod gather;
mod ground;
mod leaves;
mod running;
mod sorted;
mod squares;
mod visits;

pub use choose::Hashed;
pub use sorted::{Meeting, Rows, Sorted};

use super::cache::{Cache, Rule};
use super::exact::unknown;
use super::options::{OptionError, SetOption};
use super::{About, Causality, Composition, Config, Gradients, Inputs, Limit, OptionAbout, Pass, Plan, Trace};
use crate::hash::MOST_BITS;
use crate::oracle::Oracle;
use crate::{Dims, Error, Output, Par, Problem, Saved, Scores, exact};
use attend::Squares;
use ground::Ground;

/// Options of HyperAttention.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyper {
    /// Hyperplanes that rows are hashed by, 1 to 32.
    pub bits: usize,
    /// Keys in a block, at least 1.
    pub block: usize,
    /// Keys drawn outside of a block.
    pub samples: usize,
    /// Positions up to which causal attention is exact.
    pub min_len: usize,
    /// Whether keys are drawn by the norm of their values.
    pub by_norm: bool,
    /// Factor on `q·k`; `1/√Dk` if absent.
    pub scale: Option<f32>,
}

impl Default for Hyper {
    fn default() -> Self {
        Hyper { bits: 7, block: 256, samples: 256, min_len: 4096, by_norm: false, scale: None }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "bits", kind: "integer", default: "7", samples: &["1", "11"] },
    OptionAbout { name: "block", kind: "integer", default: "256", samples: &["1", "13"] },
    OptionAbout { name: "samples", kind: "integer", default: "256", samples: &["0", "1", "1000"] },
    OptionAbout { name: "min_len", kind: "integer", default: "4096", samples: &["0", "16"] },
    OptionAbout { name: "by_norm", kind: "boolean", default: "false", samples: &["true"] },
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
];

impl Config for Hyper {
    const ABOUT: About = About {
        name: "hyper",
        about: "Softmax attention inside blocks of keys sorted by direction, and to a sample of the others",
        causality: Causality::Optional,
        options: OPTIONS,
        tensors: &["hyperplanes", "lengths", "lengths_q"],
        needs: &[&[], &["hyperplanes"]],
        square: false,
        traces: &["lse", "order_q", "order_k", "buckets_q", "buckets_k"],
        limit: Some(Limit { options: &[("block", "1000000"), ("min_len", "1000000")], tensors: &[], codebooks: &[] }),
        steps_are_exact: true,
        trial: &[("block", "4"), ("samples", "3"), ("min_len", "5")],
    };
    type Choices = Hashed;
    type Plan<'a> = Halved<'a>;
    type Memory = Cache<Self>;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "bits" => within(&mut self.bits, ("bits", "an integer from 1 to 32"), value, |bits| (1..=MOST_BITS).contains(&bits)),
            "block" => within(&mut self.block, ("block", "an integer of at least 1"), value, |block| block > 0),
            "samples" => self.samples.set_option(("samples", "an integer of at least 0"), value),
            "min_len" => self.min_len.set_option(("min_len", "an integer of at least 0"), value),
            "by_norm" => self.by_norm.set_option(("by_norm", "true or false"), value),
            "scale" => self.scale.set_option(("scale", "a number"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, pass: Pass, par: Par) -> Result<Hashed, Error> {
        Ok(Hashed::choose(&Ground::new(self, inputs)?, pass.seed, par))
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Hashed, _pass: Pass) -> Result<Halved<'a>, Error> {
        let ground = Ground::new(self, inputs)?;
        choices.check(&ground)?;
        Ok(Halved(Squares::new(ground, choices)))
    }

    fn start(&self) -> Result<Cache<Self>, Error> {
        self.check()?;
        Ok(Cache::new(self.clone()))
    }
}

impl Rule for Hyper {
    fn problem<'a>(&self, inputs: &Inputs<'a>, _pass: Pass) -> Result<Problem<'a>, Error> {
        let scores = self.scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
        Problem::new(inputs.q, inputs.k, inputs.v, inputs.sight, scores)
    }

    fn remembered(&self) -> Option<(usize, usize)> {
        None
    }

    fn without_window(&self) -> Self {
        self.clone()
    }
}

impl Hyper {
    /// Refuses what fields may hold and options may not.
    fn check(&self) -> Result<(), Error> {
        if self.block == 0 {
            return Err(Error::value("block", format!("0 keys, with samples={}: a block has at least 1", self.samples)));
        }
        if !(1..=MOST_BITS).contains(&self.bits) {
            return Err(Error::value("bits", format!("{}: expected 1 to {MOST_BITS}", self.bits)));
        }
        Ok(())
    }
}

/// An option that has to pass a test.
fn within(field: &mut usize, about: (&'static str, &'static str), value: &str, passes: impl Fn(usize) -> bool) -> Result<(), OptionError> {
    let mut read = 0;
    read.set_option(about, value)?;
    if !passes(read) {
        return Err(OptionError::Value { name: about.0, value: value.to_owned(), expected: about.1 });
    }
    *field = read;
    Ok(())
}

/// Sequences in halves, squares in blocks: the plan.
pub struct Halved<'a>(Squares<'a>);

impl Plan for Halved<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        match self.problem() {
            Some(problem) => exact::forward(problem, out, par),
            None => self.0.forward(out, par),
        }
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        let of_biases = gradients.heads.dkey_bias.is_some() || gradients.heads.dbias.is_some();
        if let Some(name) = gradients.beside_heads().next().or(of_biases.then_some("biases")) {
            return Err(Error::Combination(format!("hyper has gradients of q, k and v only, not {name}")));
        }
        match self.problem() {
            Some(problem) => exact::backward(problem, saved, &mut gradients.heads, par),
            None => self.0.backward(saved, &mut gradients.heads, par),
        }
    }

    fn traces(&self) -> Vec<Trace> {
        self.0.chosen.traces(&self.0.ground)
    }

    fn dims(&self) -> Dims {
        self.0.ground.problem.dims
    }

    fn pairs(&self) -> u64 {
        self.problem().map_or_else(|| self.0.pairs(), Problem::visible_pairs)
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        definition::oracle(&self.0.ground, self.0.chosen)
    }

    fn composition(&self) -> Option<Composition<'_>> {
        Some(self.problem().map_or_else(|| Composition::Sorted(self.0.listed()), Composition::Exact))
    }

    fn problem(&self) -> Option<&Problem<'_>> {
        self.0.is_exact().then_some(&self.0.ground.problem)
    }
}
