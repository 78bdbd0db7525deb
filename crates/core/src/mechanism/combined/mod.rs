//! Two mechanisms as one, by their names and a sign between them.
//!
//! - `a+b` merges by the log-sum-exp: `o = o_a e^{l_a - l} + o_b e^{l_b - l}`, `l = ln(e^{l_a} + e^{l_b})`. One reads the keys inside a window, the
//!   other is told to leave exactly those out, so that every key is read once: `local+vq`.
//! - `a/b` splits heads: the first `split` kv heads, with their query heads, are a's, the others b's; half of them, rounded up, by default.
//! - `a~b` sums with a learned share per query head: `o = sigmoid(m_h) o_a + (1 - sigmoid(m_h)) o_b`, `mix [H]`.
//!
//! Options are those of the parts, named after them: `local.window`; of a merge, `scale` is one of both. Shapes and costs are those of the parts, and one f32 copy of every output
//! and gradient. Backward of a merge: the probabilities of both parts come from the merged log-sum-exp and `D = dO·O` from the merged output,
//! so that each part goes back as if it stood alone, and gradients add up. A sum runs its parts forward again: only its output was saved.
//! A combination is no entry of the list and no mechanism knows of it.

mod cut;
mod definition;
mod memory;
mod plan;

pub use memory::Remembered;
pub use plan::Together;

use super::options::{OptionError, SetOption};
use super::{About, Causality, Inputs, Limit, Mechanism, OptionAbout, Pass};
use crate::{Dims, Error, Par};
use cut::{Cut, Heads};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How two mechanisms become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Join {
    /// `+`, by the log-sum-exp of disjoint keys.
    Merge,
    /// `/`, each on heads of its own.
    Heads,
    /// `~`, by a learned share.
    Sum,
}

const SIGNS: [(char, Join); 3] = [('+', Join::Merge), ('/', Join::Heads), ('~', Join::Sum)];
const SPLIT: &str = "split";
const SCALE: &str = "scale";
/// Tensors whose heads or keys would have to be told apart.
const UNREAD: [&str; 3] = ["key_bias", "bias", "until"];

/// Two mechanisms of the list and how they are joined.
#[derive(Debug, Clone)]
pub struct Combined {
    join: Join,
    parts: [Mechanism; 2],
    split: Option<usize>,
    about: &'static About,
}

/// What both chose, and their tensors that had to be cut out of the caller's.
#[derive(Debug, Clone)]
pub struct Chosen {
    parts: [super::Choices; 2],
    cuts: [Cut; 2],
}

impl Combined {
    /// Of a name such as `local+vq`, if it is two different names of the list and a sign.
    pub fn by_name(name: &str) -> Option<Self> {
        let (sign, join) = SIGNS.into_iter().find(|(sign, _)| name.contains(*sign))?;
        let (first, second) = name.split_once(sign)?;
        if first == second {
            return None;
        }
        let parts = [Mechanism::listed(first)?, Mechanism::listed(second)?];
        let about = about(name, join, [parts[0].about(), parts[1].about()]);
        let mut combined = Combined { join, parts, split: None, about };
        combined.keep_apart();
        Some(combined)
    }

    /// Name, options and tensors: those of both.
    pub fn about(&self) -> &'static About {
        self.about
    }

    /// Sets one option of a part, such as `local.window`, or `split`.
    ///
    /// # Errors
    /// If there is no such option, or the value is not one.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        let known = self.about.options;
        let unknown = || OptionError::Unknown { name: name.to_owned(), known: known.iter().map(|option| option.name).collect() };
        let option = known.iter().find(|option| option.name == name).ok_or_else(unknown)?;
        let Some((part, inner)) = option.name.split_once('.') else {
            return self.set_own(option.name, value);
        };
        let part = self.parts.iter_mut().find(|mechanism| mechanism.about().name == part).ok_or_else(unknown)?;
        part.set(inner, value).map_err(|error| match error {
            OptionError::Value { value, expected, .. } => OptionError::Value { name: option.name, value, expected },
            other @ OptionError::Unknown { .. } => other,
        })?;
        self.keep_apart();
        Ok(())
    }

    /// `split`, or what both parts of a merge share.
    fn set_own(&mut self, name: &'static str, value: &str) -> Result<(), OptionError> {
        if name == SPLIT {
            return self.split.set_option((SPLIT, "an integer of at least 1"), value);
        }
        self.parts.iter_mut().try_for_each(|part| part.set(name, value))
    }

    /// Tells one part of a merge to leave out what the other reads.
    fn keep_apart(&mut self) {
        let [first, second] = &mut self.parts;
        if self.join == Join::Merge {
            if let Some(window) = first.near() {
                second.leave_out(window);
            }
            if let Some(window) = second.near() {
                first.leave_out(window);
            }
        }
    }

    /// Refuses parts that cannot be joined so.
    fn check(&self) -> Result<(), Error> {
        let name = self.about.name;
        let [a, b] = self.parts.each_ref().map(|part| part.about().name);
        if self.join != Join::Merge {
            return Ok(());
        }
        if let Some(part) = self.parts.iter().find(|part| !part.about().traces.contains(&"lse")) {
            return Err(Error::Combination(format!(
                "{name}: {} has no log-sum-exp to merge by; write {a}/{b} or {a}~{b}",
                part.about().name
            )));
        }
        let (near, far) = (self.parts.iter().position(|part| part.near().is_some()), self.parts.iter().position(Mechanism::leaves_out));
        if near.is_none() || far.is_none() || near == far {
            return Err(Error::Combination(format!(
                "{name}: keys would be read twice; a merge needs one part that reads a window without sinks and one that leaves it out"
            )));
        }
        Ok(())
    }

    /// Which heads are whose.
    fn heads(&self, dims: &Dims) -> Result<[Heads; 2], Error> {
        Heads::of(self.join, self.split, [dims.heads, dims.kv_heads])
    }

    pub(super) fn choose(&self, inputs: &Inputs<'_>, pass: Pass, par: Par) -> Result<Chosen, Error> {
        self.check()?;
        let heads = self.heads(&inputs.dims())?;
        let cuts = heads.each_ref().map(|heads| Cut::new(heads, inputs));
        let of = |at: usize| {
            let part = &self.parts[at];
            part.choose(&heads[at].inputs(inputs, &cuts[at], part.about())?, pass, par)
        };
        Ok(Chosen { parts: [of(0)?, of(1)?], cuts })
    }

    pub(super) fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Chosen, pass: Pass) -> Result<Together<'a>, Error> {
        self.check()?;
        let dims = inputs.dims();
        let heads = self.heads(&dims)?;
        let mix = self.mix(inputs.mix, dims.heads)?;
        let of = |at: usize| {
            let part = &self.parts[at];
            let own = heads[at].inputs(inputs, &choices.cuts[at], part.about())?;
            part.plan(&own, &choices.parts[at], pass)
        };
        let parts = [of(0)?, of(1)?];
        Ok(Together { join: self.join, name: self.about.name, parts, heads, dims, mix, inputs: inputs.clone() })
    }

    fn mix<'a>(&self, mix: Option<&'a [f32]>, heads: usize) -> Result<&'a [f32], Error> {
        match (self.join, mix) {
            (Join::Sum, Some(mix)) if mix.len() == heads => Ok(mix),
            (Join::Sum, Some(mix)) => Err(Error::Shape { tensor: "mix", found: vec![mix.len()], expected: vec![heads] }),
            (Join::Sum, None) => {
                Err(Error::Combination(format!("mix is missing: the share of each of {heads} query heads before a sigmoid")))
            }
            _ => Ok(&[]),
        }
    }

    pub(super) fn start(&self) -> Result<Remembered, Error> {
        self.check()?;
        let [a, b] = &self.parts;
        Ok(Remembered::new(self.join, self.split, [(a.about(), a.start()?), (b.about(), b.start()?)]))
    }

    pub(super) fn codewords(&self, tensor: &str) -> Option<usize> {
        self.parts.iter().find_map(|part| part.codewords(tensor))
    }

    pub(super) fn commitment(&self, tensor: &str) -> f32 {
        self.parts.iter().map(|part| part.commitment(tensor)).fold(0.0, f32::max)
    }
}

/// What is said of a combination, made once for each name.
fn about(name: &str, join: Join, parts: [&'static About; 2]) -> &'static About {
    static KNOWN: Mutex<BTreeMap<String, &'static About>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(about) = known.get(name) {
        return about;
    }
    // As many as there are pairs of names, and no more.
    let about = Box::leak(Box::new(described(name, join, parts)));
    known.insert(name.to_owned(), about);
    about
}

fn described(name: &str, join: Join, parts: [&'static About; 2]) -> About {
    let [a, b] = parts;
    let of = match join {
        Join::Merge => "merged by their log-sum-exp",
        Join::Heads => "each on heads of its own",
        Join::Sum => "summed with a learned share per head",
    };
    let has_lse = join != Join::Sum && parts.iter().all(|part| part.traces.contains(&"lse"));
    let lse = has_lse.then_some("lse");
    let traces = union(a.traces, b.traces).into_iter().filter(|trace| !["lse", "received"].contains(trace));
    let mix = (join == Join::Sum).then_some("mix");
    let tensors = union(a.tensors, b.tensors).into_iter().filter(|tensor| !UNREAD.contains(tensor)).chain(mix);
    About {
        name: text(name),
        about: text(&format!("{} and {}, {of}", a.name, b.name)),
        causality: match (a.causality, b.causality) {
            (Causality::Optional, other) | (other, Causality::Optional) => other,
            (first, _) => first,
        },
        options: options(join, parts).leak(),
        tensors: tensors.collect::<Vec<_>>().leak(),
        needs: needs(parts, mix).leak(),
        square: a.square || b.square,
        traces: lse.into_iter().chain(traces).collect::<Vec<_>>().leak(),
        limit: limit(join, parts),
        steps_are_exact: false,
        trial: parts.iter().flat_map(|part| prefixed(part, part.trial)).collect::<Vec<_>>().leak(),
    }
}

fn text(text: &str) -> &'static str {
    text.to_owned().leak()
}

fn prefixed(part: &'static About, pairs: &'static [(&str, &'static str)]) -> impl Iterator<Item = (&'static str, &'static str)> {
    pairs.iter().map(|(name, value)| (text(&format!("{}.{name}", part.name)), *value))
}

/// Every name once.
fn union(a: &[&'static str], b: &[&'static str]) -> Vec<&'static str> {
    a.iter().chain(b.iter().filter(|name| !a.contains(name))).copied().collect()
}

fn options(join: Join, parts: [&'static About; 2]) -> Vec<OptionAbout> {
    // What would let keys be read twice is no option of a merge, and what its parts must agree on is one.
    let free = |option: &&OptionAbout| join != Join::Merge || !["sinks", "exclude_recent", "recent", SCALE].contains(&option.name);
    let of = |part: &'static About| {
        let named = move |option: &OptionAbout| OptionAbout { name: text(&format!("{}.{}", part.name, option.name)), ..*option };
        part.options.iter().filter(free).map(named)
    };
    let mut all: Vec<OptionAbout> = parts.into_iter().flat_map(of).collect();
    let shared = parts[0].options.iter().find(|option| join == Join::Merge && option.name == SCALE);
    all.extend(shared);
    if join == Join::Heads {
        all.push(OptionAbout { name: SPLIT, kind: "integer", default: "", samples: &[] });
    }
    all
}

/// Every set of one with every set of the other.
fn needs(parts: [&'static About; 2], mix: Option<&'static str>) -> Vec<&'static [&'static str]> {
    let [a, b] = parts;
    let both = |first: &[&'static str], second: &[&'static str]| -> &'static [&'static str] {
        union(first, second).into_iter().chain(mix).collect::<Vec<_>>().leak()
    };
    a.needs.iter().flat_map(|first| b.needs.iter().map(move |second| both(first, second))).collect()
}

/// A merge is exact where its parts are, whatever the window; the others where both are.
fn limit(join: Join, parts: [&'static About; 2]) -> Option<Limit> {
    let [Some(a), Some(b)] = parts.map(|part| part.limit) else { return None };
    let both = || prefixed(parts[0], a.options).chain(prefixed(parts[1], b.options));
    Some(Limit {
        options: if join == Join::Merge { &[] } else { both().collect::<Vec<_>>().leak() },
        tensors: [a.tensors, b.tensors].concat().leak(),
        codebooks: [a.codebooks, b.codebooks].concat().leak(),
    })
}
