//! Neural attention search: every key is global, local or a window key, and lives accordingly.
//!
//! Key `j` is visible to the queries `i ≥ j` up to: the end (global), `j + window` (window), the first global at or after
//! `j`, itself included (local; without one, the end). So each key has a lifetime, and the exact kernel runs it. Causal only.
//!
//! Shapes: q `[B,H,N,Dk]`, k `[B,G,M,Dk]`, v `[B,G,M,Dv]`, types `[B,G,M]` or their logits `[B,G,M,3]`, which choose the
//! largest (ties to the lower number) and make token 0 of a sequence global. Time is that of the visible pairs; a state
//! holds the globals, the locals since the last of them and `window + 1` keys, per kv head.
//!
//! The gradient of the logits is that of `A_ij = M_ij e^{s_ij} / Σ_j M_ij e^{s_ij}` with
//! `M_ij = g_j + l_j Π_{m=j}^{i-1} (1 - g_m) + w_j [i - j ≤ window]` for one-hot types `(g, l, w)`, straight through the
//! choice to the softmax of the logits; tokens that are global whatever their logits pass none. In training the last token is one of
//! them, and [`Plan::penalty`] is `weight · Σ M_ij / Σ_{j ≤ i} 1`.
//!
//! `query_typed` is a variant found in the wild, off by default: types of queries `[B,H,N]` say how far back a row looks: to
//! the beginning (global), to itself only (local), over `window` keys before itself (window; 3 if not set).
//!
//! At all types global it is exact attention. Deng et al. 2024, "Neural Attention Search".

mod definition;
mod gradient;
mod memory;
mod penalty;
mod query_typed;

pub use memory::Live;

use super::exact::unknown;
use super::memory::check_count;
use super::options::{OptionError, SetOption};
use super::{About, Causality, Composition, Config, Gradients, Inputs, Limit, OptionAbout, Pass, Penalty, Plan, Trace};
use crate::oracle::{Judged, Oracle};
use crate::sight::Scope;
use crate::{Dims, Error, Output, Par, Problem, Saved, Scores, Sight};
use query_typed::Parts;

const GLOBAL: i64 = 0;
const LOCAL: i64 = 1;
const WINDOW: i64 = 2;
const TYPES: usize = 3;
/// Lives to the end.
const FOR_EVER: i64 = i64::MAX;

/// Options of neural attention search.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Nats {
    /// How many later queries see a window key; 16 if not set, 3 with `query_typed`.
    pub window: Option<usize>,
    /// Whether types are those of queries.
    pub query_typed: bool,
    /// Factor on `q·k`; `1/√Dk` if absent.
    pub scale: Option<f32>,
}

impl Nats {
    fn reach(&self) -> usize {
        self.window.unwrap_or(if self.query_typed { 3 } else { 16 })
    }

    /// Heads that types belong to, and tokens of each.
    fn typed(&self, dims: &Dims) -> [usize; 2] {
        if self.query_typed { [dims.heads, dims.queries] } else { [dims.kv_heads, dims.keys] }
    }

    /// Every type, from the input or by its logits; the second says that a token chose for itself. `forced` are global whatever their logits.
    fn types(&self, inputs: &Inputs<'_>, dims: &Dims, forced: &[usize]) -> Result<(Vec<i64>, Vec<bool>), Error> {
        let [heads, tokens] = self.typed(dims);
        let count = dims.batch * heads * tokens;
        match (inputs.types, inputs.type_logits) {
            (Some(types), None) => {
                check_count("types", Some(types.len()), count)?;
                check_types(types, heads, tokens)?;
                Ok((types.to_vec(), vec![false; count]))
            }
            (None, Some(logits)) => {
                check_count("type_logits", Some(logits.len()), count * TYPES)?;
                let mut free = vec![true; count];
                forced.iter().for_each(|&at| free[at] = false);
                let choose = |(logits, free): (&[f32; TYPES], &bool)| if *free { largest(logits) } else { GLOBAL };
                Ok((logits.as_chunks().0.iter().zip(&free).map(choose).collect(), free))
            }
            (Some(_), Some(_)) => Err(Error::Combination("types and type_logits exclude each other".into())),
            (None, None) => Err(Error::Combination("nats needs the types of its tokens, or type_logits that choose them".into())),
        }
    }

    fn problem<'a>(&self, inputs: &Inputs<'a>, sight: Sight<'a>) -> Result<Problem<'a>, Error> {
        let scores = self.scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
        Problem::new(inputs.q, inputs.k, inputs.v, sight, scores)
    }
}

fn check_types(types: &[i64], heads: usize, tokens: usize) -> Result<(), Error> {
    match types.iter().position(|kind| !(GLOBAL..=WINDOW).contains(kind)) {
        None => Ok(()),
        Some(at) => {
            let place = [at / tokens / heads, at / tokens % heads, at % tokens];
            Err(Error::value("types", format!("{} at {place:?} is none of 0 (global), 1 (local), 2 (window)", types[at])))
        }
    }
}

/// The place of the largest logit, the lower one of equals.
fn largest(logits: &[f32; TYPES]) -> i64 {
    (1..TYPES).fold(0, |best, kind| if logits[kind] > logits[best] { kind } else { best }) as i64
}

const OPTIONS: &[OptionAbout] = &[
    OptionAbout { name: "window", kind: "integer", default: "16", samples: &["0", "3", "40"] },
    OptionAbout { name: "query_typed", kind: "boolean", default: "false", samples: &["true"] },
    OptionAbout { name: "scale", kind: "number", default: "", samples: &["0.3"] },
];

/// Types of all tokens and the lifetimes that they come to.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// `[B, G, M]`, or with `query_typed` `[B, H, N]`.
    types: Vec<i64>,
    /// Which types were chosen by their logits.
    free: Vec<bool>,
    /// `[B, G, M]`; empty with `query_typed`.
    until: Vec<i64>,
}

impl Config for Nats {
    const ABOUT: About = About {
        name: "nats",
        about: "Exact attention over keys that are global, local or live for a window",
        causality: Causality::Required,
        options: OPTIONS,
        tensors: &["types", "type_logits", "lengths", "lengths_q"],
        needs: &[&["types"], &["type_logits"]],
        square: false,
        traces: &["lse", "received", "until", "types"],
        limit: Some(Limit { options: &[], tensors: &[("types", GLOBAL)], codebooks: &[] }),
        steps_are_exact: false,
        trial: &[],
    };
    type Choices = Chosen;
    type Plan<'a> = Typed<'a>;
    type Memory = Live;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        match name {
            "window" => self.window.set_option(("window", "an integer of at least 0"), value),
            "query_typed" => self.query_typed.set_option(("query_typed", "true or false"), value),
            "scale" => self.scale.set_option(("scale", "a number"), value),
            _ => Err(unknown(name, OPTIONS)),
        }
    }

    fn choose(&self, inputs: &Inputs<'_>, pass: Pass, _par: Par) -> Result<Chosen, Error> {
        let problem = self.problem(inputs, inputs.sight)?;
        if problem.sight.spans.is_some() || problem.sight.positions.is_some() {
            return Err(Error::Combination("nats takes no key_spans and no key_positions: lifetimes are counted in tokens".into()));
        }
        let sight = &problem.sight;
        if sight.until.is_some() {
            return Err(Error::Combination("nats makes lifetimes of types: it takes no until beside them".into()));
        }
        if self.query_typed && (sight.left.is_some() || sight.right.is_some()) {
            return Err(Error::Combination(
                "types of queries say how far back a row looks: query_typed takes no window beside them".into(),
            ));
        }
        let scopes = scopes(&problem, self.query_typed);
        let forced = |(row, scope): &(usize, Scope<'_>)| self.forced(scope, pass).map(|token| token.map(|token| row + token));
        let forced: Vec<usize> = scopes.iter().flat_map(forced).flatten().collect();
        let (types, free) = self.types(inputs, &problem.dims, &forced)?;
        let mut until = vec![FOR_EVER; if self.query_typed { 0 } else { types.len() }];
        for (row, scope) in scopes.iter().filter(|_| !self.query_typed) {
            let keys = row + scope.keys.start..row + scope.keys.end;
            lifetimes(&types[keys.clone()], self.reach(), &mut until[keys]);
        }
        Ok(Chosen { types, free, until })
    }

    fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Chosen, _pass: Pass) -> Result<Typed<'a>, Error> {
        let base = self.problem(inputs, inputs.sight)?;
        let [heads, tokens] = self.typed(&base.dims);
        check_count("types", Some(choices.types.len()), base.dims.batch * heads * tokens)?;
        let runs = if self.query_typed {
            Runs::ByQuery(Parts::new(&base, &choices.types, self.reach())?)
        } else {
            Runs::ByKey(self.problem(inputs, inputs.sight.until(&choices.until))?)
        };
        Ok(Typed { base, runs, choices, window: self.reach(), logits: inputs.type_logits })
    }

    fn start(&self) -> Result<Live, Error> {
        Ok(Live::new(self.clone()))
    }
}

impl Nats {
    /// The row that is token 0 of a sequence, if it is there.
    fn first_token(&self, scope: &Scope<'_>) -> Option<usize> {
        if !self.query_typed {
            return scope.keys.clone().next();
        }
        scope.queries.clone().find(|&row| scope.query_position(row) == 0)
    }

    /// The first token of a sequence, and in training the last key.
    fn forced(&self, scope: &Scope<'_>, pass: Pass) -> [Option<usize>; 2] {
        let last = scope.keys.clone().next_back().filter(|_| pass.training && !self.query_typed);
        [self.first_token(scope), last]
    }
}

/// Every sequence of every typed head, with the place of its head's first token in `types`.
fn scopes<'a>(problem: &Problem<'a>, query_typed: bool) -> Vec<(usize, Scope<'a>)> {
    let dims = &problem.dims;
    let (heads, tokens, group) = if query_typed { (dims.heads, dims.queries, dims.group()) } else { (dims.kv_heads, dims.keys, 1) };
    let sequences = 0..problem.sight.sequences(dims);
    let pairs = sequences.flat_map(|sequence| (0..heads).map(move |head| (sequence, head)));
    let of = |(sequence, head): (usize, usize)| {
        let scope = problem.sight.scope(dims, sequence, head / group);
        ((scope.batch * heads + head) * tokens, scope)
    };
    pairs.map(of).collect()
}

/// Lifetimes of the keys of one sequence: hidden from positions `>= until`.
fn lifetimes(types: &[i64], window: usize, until: &mut [i64]) {
    let mut next_global = FOR_EVER;
    for (j, (&kind, until)) in types.iter().zip(until).enumerate().rev() {
        *until = match kind {
            GLOBAL => FOR_EVER,
            LOCAL => next_global.saturating_add(1),
            _ => window_end(j as i64, window),
        };
        if kind == GLOBAL {
            next_global = j as i64;
        }
    }
}

/// The first position that does not see a window key.
fn window_end(position: i64, window: usize) -> i64 {
    position.saturating_add(i64::try_from(window).unwrap_or(FOR_EVER)).saturating_add(1)
}

/// What runs: lifetimes of keys, or reaches of queries.
enum Runs<'a> {
    ByKey(Problem<'a>),
    ByQuery(Parts<'a>),
}

/// Types given: the plan.
pub struct Typed<'a> {
    /// Without lifetimes.
    base: Problem<'a>,
    runs: Runs<'a>,
    choices: &'a Chosen,
    window: usize,
    logits: Option<&'a [f32]>,
}

impl Plan for Typed<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        match &self.runs {
            Runs::ByKey(problem) => crate::exact::forward(problem, out, par),
            Runs::ByQuery(parts) => parts.forward(out, par),
        }
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        if gradients.dx.is_some() || gradients.dthreshold.is_some() {
            return Err(Error::Combination("nats has gradients of q, k, v and type_logits only".into()));
        }
        if let Some(into) = &mut gradients.dtype_logits {
            self.logit_gradient(saved, into, par)?;
        }
        match &self.runs {
            Runs::ByKey(problem) => crate::exact::backward(problem, saved, &mut gradients.heads, par),
            Runs::ByQuery(parts) => parts.backward(saved, &mut gradients.heads, par),
        }
    }

    fn received(&self, lse: &[f32], into: &mut [f32], par: Par) -> Result<(), Error> {
        match &self.runs {
            Runs::ByKey(problem) => crate::exact::received(problem, lse, into, par),
            Runs::ByQuery(parts) => parts.received(lse, into, par),
        }
    }

    fn traces(&self) -> Vec<Trace> {
        let dims = &self.base.dims;
        let Runs::ByKey(_) = self.runs else {
            let shape = vec![dims.batch, dims.heads, dims.queries];
            return vec![Trace { name: "types", shape, values: self.choices.types.clone() }];
        };
        let shape = vec![dims.batch, dims.kv_heads, dims.keys];
        let clipped = self.choices.until.iter().map(|&until| until.min(dims.keys as i64)).collect();
        vec![
            Trace { name: "until", shape: shape.clone(), values: clipped },
            Trace { name: "types", shape, values: self.choices.types.clone() },
        ]
    }

    fn gradients(&self) -> Vec<&'static str> {
        let learns = self.logits.is_some() && matches!(self.runs, Runs::ByKey(_));
        if learns { vec!["dtype_logits"] } else { Vec::new() }
    }

    fn penalty(&self, weight: f32, _par: Par) -> Result<Penalty, Error> {
        self.sparsity(weight)
    }

    fn dims(&self) -> Dims {
        self.base.dims
    }

    fn pairs(&self) -> u64 {
        match &self.runs {
            Runs::ByKey(problem) => problem.visible_pairs(),
            Runs::ByQuery(parts) => parts.pairs(),
        }
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        let formula = definition::Definition::new(self);
        let leaves = formula.leaves(self.logits);
        Box::new(Judged::new(formula, leaves))
    }

    fn problem(&self) -> Option<&Problem<'_>> {
        match &self.runs {
            Runs::ByKey(problem) => Some(problem),
            Runs::ByQuery(_) => None,
        }
    }

    fn composition(&self) -> Option<Composition<'_>> {
        let problem = self.problem()?;
        let Chosen { types, free, .. } = self.choices;
        let typing = Typing { problem, base: &self.base, types, free, window: self.window };
        Some(if self.logits.is_some() { Composition::Typed(typing) } else { Composition::Exact(problem) })
    }
}

/// Types of keys as they came out.
#[derive(Debug)]
pub struct Typing<'p> {
    /// With the lifetimes that types come to.
    pub problem: &'p Problem<'p>,
    /// Without them.
    pub base: &'p Problem<'p>,
    /// `[B, G, M]`: 0 global, 1 local, 2 window.
    pub types: &'p [i64],
    /// `[B, G, M]`, whether a type was chosen by logits.
    pub free: &'p [bool],
    /// How many later queries see a window key.
    pub window: usize,
}
