//! Clustered attention: similar tokens become one, which attends and is attended to in their place.
//!
//! Tokens are grouped by the cosine of their hidden states (`metric=hidden`, x `[B,1,N,E]`) or of their keys (`metric=keys`, each kv
//! head by itself). `rule=leader`: in order, a token joins the most similar leader with a cosine of `threshold` or more (the earliest
//! of equals), else it leads; rows alike bit for bit have cosine 1, a row of zeros is similar to nothing. `rule=matching`: bipartite
//! soft matching down to `target` clusters (a count, or below 1 a share of the tokens), whatever the threshold; bidirectional only.
//!
//! **Bidirectional.** q, k, v of a cluster are the means of its members (`representative=leader`: q and k are the leader's), its key
//! counts `size` times (`+ ln size`, unless `log_size=false`): `O_a = softmax_b(scale Q_a·K_b + ln size_b) V_b`. A token's output is that of its
//! cluster, or with `soft=r` a blend of the r most similar clusters, `softmax(cos / temperature)`. `lse` is that of its own cluster's row.
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,N,Dk]`, v `[B,G,N,Dv]`; time `O(N m E)` at most for grouping m clusters, `O(m² D)` for attention.
//!
//! **Learned thresholds** `threshold [H]`: every query head has clusters of its own. In training a token that does not lead passes a
//! gate, `o = g·(cluster's) + (1-g)·(own)` with `g = sigmoid((cos - threshold) / temperature)`, where cos is to its leader and own is its own
//! query's attention over the same merged keys; the gradients of x (or k) and of the thresholds go through g. Inference has no gate.
//! [`Clustered::penalty`] keeps thresholds from drifting to where nothing merges. An option `threshold` above 1 outdoes them.
//!
//! **Causal.** Queries stay single. A query at position p reads the keys from `floor(p/block)·block` to p as they are, and those before as
//! clusters of the leader scan over that prefix, with counts and means at that boundary. There is no broadcast to soften and no gate:
//! `soft` and `temperature` change nothing, and thresholds have no gradient. A state holds the clusters and one block.
//!
//! Choices are frozen in every gradient. Above `threshold=1` nothing merges and it is exact attention; where all members of each
//! cluster are alike, too. Clustering of queries: Vyas et al. 2020; matching: Bolya et al. 2023.

mod bidirectional;
mod causal;
mod choose;
mod definition;
mod fold;
mod ground;
mod memory;
mod merging;
mod rows;
mod similarity;

pub use choose::Chosen;
pub use memory::Folded;
pub use merging::{Merging, Set};

use super::exact::unknown;
use super::options::{OptionError, SetOption};
use super::{About, Causality, Composition, Config, Gradients, Inputs, Limit, OptionAbout, Pass, Penalty, Plan, Trace};
use crate::oracle::Oracle;
use crate::{Dims, Error, Output, Par, Saved};
use bidirectional::Merged;
use causal::Prefixes;
use ground::Ground;

/// How tokens are grouped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rule {
    /// In order: each joins the most similar leader, or leads.
    #[default]
    Leader,
    /// Bipartite soft matching down to a number of clusters.
    Matching,
}

/// What stands for the members of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Representative {
    /// The mean of their q, k and v.
    #[default]
    Mean,
    /// q and k of the leader, the mean of v.
    Leader,
}

/// What tokens are compared by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Metric {
    /// Hidden states x.
    #[default]
    Hidden,
    /// Keys, each kv head by itself.
    Keys,
}

/// Options of clustered attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustered {
    /// The least cosine of a member and its leader, -1 or more; nothing merges above 1.
    pub threshold: f32,
    /// How tokens are grouped.
    pub rule: Rule,
    /// Clusters wanted, by the matching and by the penalty: a whole number, or below 1 a share of the tokens.
    pub target: Option<f32>,
    /// What stands for the members of a cluster.
    pub representative: Representative,
    /// Whether a merged key counts as often as it has members.
    pub log_size: bool,
    /// How many clusters a token's output blends; 0: its own cluster's output and nothing else.
    pub soft: usize,
    /// Of the blend and of the gate, above 0.
    pub temperature: f32,
    /// What tokens are compared by.
    pub metric: Metric,
    /// Keys between two boundaries of the causal form, 1 or more.
    pub block: usize,
    /// Factor on `q·k`; `1/√Dk` if absent.
    pub scale: Option<f32>,
}

impl Default for Clustered {
    fn default() -> Self {
        Clustered {
            threshold: 0.9,
            rule: Rule::default(),
            target: None,
            representative: Representative::default(),
            log_size: true,
            soft: 0,
            temperature: 0.1,
            metric: Metric::default(),
            block: 256,
            scale: None,
        }
    }
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "threshold", kind: "number", default: "0.9", samples: &["-1", "0.5", "1"] },
    OptionAbout { name: "rule", kind: "leader or matching", default: "leader", samples: &[] },
    OptionAbout { name: "target", kind: "number", default: "", samples: &[] },
    OptionAbout { name: "representative", kind: "mean or leader", default: "mean", samples: &["leader"] },
    OptionAbout { name: "log_size", kind: "boolean", default: "true", samples: &["false"] },
    OptionAbout { name: "soft", kind: "integer", default: "0", samples: &["2", "1000"] },
    OptionAbout { name: "temperature", kind: "number", default: "0.1", samples: &["0.5"] },
    OptionAbout { name: "metric", kind: "hidden or keys", default: "hidden", samples: &["keys"] },
    OptionAbout { name: "block", kind: "integer", default: "256", samples: &["1", "16"] },
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
];

const THRESHOLD: (&str, &str) = ("threshold", "a number of at least -1");
const TARGET: (&str, &str) = ("target", "a whole number of clusters, or a share between 0 and 1");
const TEMPERATURE: (&str, &str) = ("temperature", "a number above 0");
const BLOCK: (&str, &str) = ("block", "an integer of at least 1");

impl Config for Clustered {
    const ABOUT: About = About {
        name: "clustered",
        about: "Softmax attention among clusters of similar tokens, whose results their members share",
        causality: Causality::Optional,
        options: OPTIONS,
        tensors: &["x", "threshold", "lengths", "lengths_q"],
        needs: &[&["x"], &["x", "threshold"]],
        square: true,
        traces: &["lse", "assignment", "sizes", "representatives"],
        limit: Some(Limit { options: &[("threshold", "2")], tensors: &[], codebooks: &[] }),
        steps_are_exact: false,
        trial: &[],
    };
    type Choices = Chosen;
    type Plan<'a> = Grouped<'a>;
    type Memory = Folded;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "threshold" => checked(&mut self.threshold, THRESHOLD, value, |x| x >= -1.0),
            "rule" => {
                word(&mut self.rule, ("rule", "leader or matching"), value, &[("leader", Rule::Leader), ("matching", Rule::Matching)])
            }
            "target" => {
                let mut target = 0.0;
                checked(&mut target, TARGET, value, is_target)?;
                self.target = Some(target);
                Ok(())
            }
            "representative" => {
                let words = &[("mean", Representative::Mean), ("leader", Representative::Leader)];
                word(&mut self.representative, ("representative", "mean or leader"), value, words)
            }
            "log_size" => self.log_size.set_option(("log_size", "true or false"), value),
            "soft" => self.soft.set_option(("soft", "an integer of at least 0"), value),
            "temperature" => checked(&mut self.temperature, TEMPERATURE, value, |x| x > 0.0),
            "metric" => word(&mut self.metric, ("metric", "hidden or keys"), value, &[("hidden", Metric::Hidden), ("keys", Metric::Keys)]),
            "block" => checked(&mut self.block, BLOCK, value, |block| block > 0),
            "scale" => self.scale.set_option(("scale", "a number"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, pass: Pass, par: Par) -> Result<Chosen, Error> {
        Ok(Chosen::choose(&Ground::new(self, inputs, pass)?, par))
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Chosen, pass: Pass) -> Result<Grouped<'a>, Error> {
        let ground = Ground::new(self, inputs, pass)?;
        choices.check(&ground)?;
        Ok(if inputs.sight.is_causal() {
            Grouped::Causal(Prefixes::new(ground, choices))
        } else {
            Grouped::Bidirectional(Merged::new(ground, choices))
        })
    }

    fn start(&self) -> Result<Folded, Error> {
        self.check(true)?;
        Ok(Folded::new(self.clone()))
    }
}

fn is_target(target: f32) -> bool {
    target > 0.0 && (target < 1.0 || target.fract() == 0.0)
}

/// An option that has to pass a test.
fn checked<T: SetOption + Default + Copy>(
    field: &mut T,
    about: (&'static str, &'static str),
    value: &str,
    passes: impl Fn(T) -> bool,
) -> Result<(), OptionError> {
    let mut read = T::default();
    read.set_option(about, value)?;
    if !passes(read) {
        return Err(OptionError::Value { name: about.0, value: value.to_owned(), expected: about.1 });
    }
    *field = read;
    Ok(())
}

/// An option that is one of some words.
fn word<T: Copy>(field: &mut T, about: (&'static str, &'static str), value: &str, words: &[(&str, T)]) -> Result<(), OptionError> {
    match words.iter().find(|(word, _)| *word == value) {
        Some((_, meant)) => {
            *field = *meant;
            Ok(())
        }
        None => Err(OptionError::Value { name: about.0, value: value.to_owned(), expected: about.1 }),
    }
}

impl Clustered {
    /// Refuses what fields may hold and options may not.
    fn check(&self, causal: bool) -> Result<(), Error> {
        let refused = |(name, expected): (&'static str, &str), value: f32| Err(Error::value(name, format!("{value}: expected {expected}")));
        if !(self.threshold.is_finite() && self.threshold >= -1.0) {
            return refused(THRESHOLD, self.threshold);
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return refused(TEMPERATURE, self.temperature);
        }
        if let Some(target) = self.target.filter(|target| !is_target(*target)) {
            return refused(TARGET, target);
        }
        if self.block == 0 {
            return refused(BLOCK, 0.0);
        }
        match (self.rule, self.target) {
            (Rule::Matching, _) if causal => Err(Error::Combination("rule=matching looks at all tokens: it has no causal form".into())),
            (Rule::Matching, None) => Err(Error::Combination("rule=matching needs a target".into())),
            _ => Ok(()),
        }
    }

    /// `weight · (m/N - target)²`, a mean over sequences and heads, and its gradient by `threshold [H]`. m/N itself has no slope; that of
    /// the gates stands in for it, `Σ g (1-g) / temperature / N` over the tokens that do not lead.
    ///
    /// # Errors
    /// If the inputs do not fit, there is no `target`, no `threshold [H]`, or the choices are those of other inputs.
    pub fn penalty(&self, inputs: &Inputs<'_>, choices: &Chosen, weight: f32, par: Par) -> Result<(f32, Vec<f32>), Error> {
        let ground = Ground::new(self, inputs, Pass { training: true, ..Pass::default() })?;
        choices.check(&ground)?;
        similarity::penalty(&ground, choices, weight, par)
    }
}

/// Tokens grouped: the plan.
pub enum Grouped<'a> {
    /// Clusters attend to clusters.
    Bidirectional(Merged<'a>),
    /// Tokens attend to their block and to clusters before it.
    Causal(Prefixes<'a>),
}

impl<'a> Grouped<'a> {
    fn parts(&self) -> (&Ground<'a>, &'a Chosen) {
        match self {
            Grouped::Bidirectional(merged) => merged.parts(),
            Grouped::Causal(prefixes) => prefixes.parts(),
        }
    }
}

impl Plan for Grouped<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        match self {
            Grouped::Bidirectional(merged) => merged.forward(out, par),
            Grouped::Causal(prefixes) => prefixes.forward(out, par),
        }
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        if gradients.dtype_logits.is_some() {
            return Err(Error::Combination("clustered has no type_logits".into()));
        }
        match self {
            Grouped::Bidirectional(merged) => merged.backward(saved, gradients, par),
            Grouped::Causal(prefixes) => prefixes.backward(saved, gradients, par),
        }
    }

    fn traces(&self) -> Vec<Trace> {
        let (ground, chosen) = self.parts();
        chosen.traces(ground)
    }

    fn gradients(&self) -> Vec<&'static str> {
        let (ground, _) = self.parts();
        let of_x = ground.is_soft() && ground.config.metric == Metric::Hidden;
        [("dx", of_x), ("dthreshold", ground.gated)].into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }

    fn penalty(&self, weight: f32, par: Par) -> Result<Penalty, Error> {
        let (ground, chosen) = self.parts();
        let (value, dthreshold) = similarity::penalty(ground, chosen, weight, par)?;
        Ok(Penalty { value, dtype_logits: None, dthreshold: Some(dthreshold) })
    }

    fn composition(&self) -> Option<Composition<'_>> {
        let (ground, chosen) = self.parts();
        Some(Composition::Merged(Merging::new(ground, chosen)))
    }

    fn dims(&self) -> Dims {
        self.parts().0.dims
    }

    fn pairs(&self) -> u64 {
        match self {
            Grouped::Bidirectional(merged) => merged.pairs(),
            Grouped::Causal(prefixes) => prefixes.pairs(),
        }
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        let (ground, chosen) = self.parts();
        definition::oracle(ground, chosen, matches!(self, Grouped::Causal(_)))
    }
}
