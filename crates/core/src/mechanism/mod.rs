//! The list of mechanisms.
//!
//! A mechanism is a configuration with names for its options ([`Config`]). On [`Inputs`] it first chooses what is not
//! differentiated ([`Config::choose`]: types, clusters, codes), then makes a [`Plan`] of those choices, which runs forward
//! and backward and knows its own definition; token by token it keeps a [`Memory`]. A new mechanism is a file here and a
//! line in the list; names in files, on the command line, in benchmarks and tests follow from its [`About`].
//!
//! ```
//! use regard_core::mechanism::{Inputs, Mechanism, Pass, Plan};
//! use regard_core::{Output, Par, Sight, Strided, StridedMut, View, ViewMut};
//!
//! let shape = [1, 1, 8, 4];
//! let x: Vec<f32> = (0..32).map(|i| (i as f32 * 0.37).sin()).collect();
//! let view = || Strided::contiguous(&x, shape, "x").map(View::from);
//! let inputs = Inputs::new(view()?, view()?, view()?, Sight::causal());
//! let mut local = Mechanism::by_name("local").unwrap();
//! local.set("window", "3").unwrap();
//! let choices = local.choose(&inputs, Pass::default(), Par::default())?;
//! let mut o = vec![0.0; 32];
//! let out = ViewMut::F32(StridedMut::contiguous(&mut o, shape, "o")?);
//! local.plan(&inputs, &choices, Pass::default())?.forward(&mut Output { o: out, lse: None }, Par::default())?;
//! # Ok::<(), regard_core::Error>(())
//! ```

mod cache;
mod carried;
pub mod clustered;
pub mod codes;
pub mod combined;
mod composition;
mod exact;
pub mod gated_linear;
pub mod hyper;
pub mod linear;
mod local;
mod memory;
mod nats;
mod options;
mod owned;
pub mod vq;
pub mod vq_qk;

pub use carried::Carried;
pub use clustered::Clustered;
pub use combined::Combined;
pub use composition::{Coded, Composition, Decaying, Joined, Summed};
pub use exact::Exact;
pub use gated_linear::GatedLinear;
pub use hyper::Hyper;
pub use linear::Linear;
pub use local::Local;
pub use memory::{Memory, Token, Tokens};
pub use nats::{Nats, Typing};
pub use options::{OptionError, SetOption};
pub use vq::Vq;
pub use vq_qk::VqQk;

use crate::oracle::Oracle;
use crate::{Dims, Error, Output, Par, Problem, Saved, Sight, View, ViewMut};

/// Whether a mechanism has a causal and a bidirectional form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Causality {
    /// Both.
    Optional,
    /// Causal only.
    Required,
    /// Bidirectional only.
    Never,
}

/// One option of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionAbout {
    /// As written in files and on the command line.
    pub name: &'static str,
    /// `integer`, `number`, `boolean`, or the allowed words.
    pub kind: &'static str,
    /// Its default, as written; empty where leaving it out means unlimited or a derived value.
    pub default: &'static str,
    /// Other values worth trying, as written: every suite that walks the list takes them in turn.
    pub samples: &'static [&'static str],
}

/// What makes a mechanism exact attention: options as written, and what to fill tensors with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Options and their values.
    pub options: &'static [(&'static str, &'static str)],
    /// Tensors of integers and their one value.
    pub tensors: &'static [(&'static str, i64)],
    /// Codebooks, and the tensor all of whose rows each holds.
    pub codebooks: &'static [(&'static str, &'static str)],
}

/// What the list says of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// Its name everywhere.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// See [`Causality`].
    pub causality: Causality,
    /// Its options.
    pub options: &'static [OptionAbout],
    /// Tensors it reads beside q, k, v.
    pub tensors: &'static [&'static str],
    /// Of those, which it does not run without: all of any one set.
    pub needs: &'static [&'static [&'static str]],
    /// Whether there must be as many queries as keys.
    pub square: bool,
    /// Tensors it writes beside o.
    pub traces: &'static [&'static str],
    /// Where it is exact attention, if it is anywhere.
    pub limit: Option<Limit>,
    /// Whether a step is exact attention over all tokens so far, whatever the parallel form leaves out.
    pub steps_are_exact: bool,
    /// Options under which it does on a few tokens what it does on many by default: every suite that walks the list starts from them.
    pub trial: &'static [(&'static str, &'static str)],
}

/// Everything a mechanism may read. `sight` holds the caller's rules (causal, lengths, offsets, spans, positions,
/// mask); the mechanism adds its own.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// `[B, H, N, Dk]`.
    pub q: View<'a>,
    /// `[B, G, M, Dk]`.
    pub k: View<'a>,
    /// `[B, G, M, Dv]`.
    pub v: View<'a>,
    /// The caller's visibility rules.
    pub sight: Sight<'a>,
    /// `[B, G, M]`.
    pub key_bias: Option<&'a [f32]>,
    /// `[B|1, H|1, N, M]`.
    pub bias: Option<View<'a>>,
    /// `[B, G, M]`.
    pub until: Option<&'a [i64]>,
    /// Hidden states `[B, 1, N, E]`.
    pub x: Option<View<'a>>,
    /// Types of keys `[B, G, M]`, or of queries `[B, H, N]`: 0 global, 1 local, 2 window.
    pub types: Option<&'a [i64]>,
    /// What types are chosen by, `[B, G, M, 3]` or `[B, H, N, 3]`.
    pub type_logits: Option<&'a [f32]>,
    /// Learned thresholds of query heads, `[H]`.
    pub threshold: Option<&'a [f32]>,
    /// Logarithms of gates, at most 0, `[B, H, N, Dk]`.
    pub gates: Option<View<'a>>,
    /// Codewords of keys, `[1, G, S, Dk]`.
    pub codebook: Option<View<'a>>,
    /// Codewords of queries, `[1, H, S, Dk]`.
    pub codebook_q: Option<View<'a>>,
    /// Normals of hyperplanes, one a column, `[1, 1, Dk, bits]`.
    pub hyperplanes: Option<View<'a>>,
    /// Shares of query heads between two mechanisms before a sigmoid, `[H]`.
    pub mix: Option<&'a [f32]>,
}

impl<'a> Inputs<'a> {
    /// q, k, v and the visibility rules, nothing else.
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, sight: Sight<'a>) -> Self {
        Inputs {
            q,
            k,
            v,
            sight,
            key_bias: None,
            bias: None,
            until: None,
            x: None,
            types: None,
            type_logits: None,
            threshold: None,
            gates: None,
            codebook: None,
            codebook_q: None,
            hyperplanes: None,
            mix: None,
        }
    }

    /// Sizes as q, k and v state them; nothing is checked yet.
    pub fn dims(&self) -> Dims {
        let ([batch, heads, queries, dk], [_, kv_heads, keys, _]) = (self.q.shape(), self.k.shape());
        Dims { batch, heads, kv_heads, queries, keys, dk, dv: self.v.shape()[3] }
    }

    /// Refuses tensors beside q, k, v that a mechanism does not read.
    fn expect_only(&self, about: &About) -> Result<(), Error> {
        let given = [
            ("key_bias", self.key_bias.is_some()),
            ("bias", self.bias.is_some()),
            ("until", self.until.is_some()),
            ("types", self.types.is_some()),
            ("type_logits", self.type_logits.is_some()),
            ("threshold", self.threshold.is_some()),
            ("gates", self.gates.is_some()),
            ("codebook", self.codebook.is_some()),
            ("codebook_q", self.codebook_q.is_some()),
            ("hyperplanes", self.hyperplanes.is_some()),
            ("mix", self.mix.is_some()),
        ];
        match given.into_iter().find(|(name, given)| *given && !about.tensors.contains(name)) {
            Some((tensor, _)) => Err(Error::Combination(format!("{} reads no {tensor}", about.name))),
            None => Ok(()),
        }
    }
}

/// Which call this is: dropout and sampling depend on seed and step alone, and dropout acts in training only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Whether dropout acts.
    pub training: bool,
    /// Seed of the run.
    pub seed: u64,
    /// Training step.
    pub step: u64,
}

/// Where the gradients of a mechanism's inputs go. An absent one is not computed.
#[derive(Debug, Default)]
pub struct Gradients<'a> {
    /// Of q, k, v and the biases.
    pub heads: crate::Gradients<'a>,
    /// `[B, 1, N, E]`.
    pub dx: Option<ViewMut<'a>>,
    /// The shape of the type logits.
    pub dtype_logits: Option<&'a mut [f32]>,
    /// `[H]`.
    pub dthreshold: Option<&'a mut [f32]>,
    /// `[B, H, N, Dk]`.
    pub dgates: Option<ViewMut<'a>>,
    /// `[H]`.
    pub dmix: Option<&'a mut [f32]>,
}

impl Gradients<'_> {
    /// Which are asked for beside those of q, k, v and biases, by name.
    fn beside_heads(&self) -> impl Iterator<Item = &'static str> {
        let asked = [
            ("dx", self.dx.is_some()),
            ("dtype_logits", self.dtype_logits.is_some()),
            ("dthreshold", self.dthreshold.is_some()),
            ("dgates", self.dgates.is_some()),
            ("dmix", self.dmix.is_some()),
        ];
        asked.into_iter().filter(|(_, asked)| *asked).map(|(name, _)| name)
    }
}

impl<'a> From<crate::Gradients<'a>> for Gradients<'a> {
    fn from(heads: crate::Gradients<'a>) -> Self {
        Gradients { heads, ..Gradients::default() }
    }
}

/// What a mechanism chose, to look at: integers, -1 pads positions and 0 pads sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// As in [`About::traces`].
    pub name: &'static str,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<i64>,
}

/// What training adds to the loss so that a mechanism learns how much to keep or to merge, and its gradients.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Penalty {
    /// Its weight included.
    pub value: f32,
    /// The shape of the type logits, where they chose.
    pub dtype_logits: Option<Vec<f32>>,
    /// `[H]`, where there are thresholds.
    pub dthreshold: Option<Vec<f32>>,
}

/// Choices made: everything that is left is arithmetic.
pub trait Plan {
    /// `o`, and `lse` where the mechanism has one.
    ///
    /// # Errors
    /// If an output does not fit.
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error>;

    /// Gradients of the inputs with the choices as they are.
    ///
    /// # Errors
    /// If a saved value or a gradient does not fit, or a gradient of something that is not read is asked for.
    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error>;

    /// Received attention `c_j = Σ_i A_ij`, `[B, H, M]`, from the log-sum-exp of a forward pass.
    ///
    /// # Errors
    /// If the mechanism has none, or a slice does not fit.
    fn received(&self, lse: &[f32], into: &mut [f32], par: Par) -> Result<(), Error> {
        let _ = (lse, into, par);
        Err(Error::Combination("this mechanism has no received attention".into()))
    }

    /// What was chosen.
    fn traces(&self) -> Vec<Trace> {
        Vec::new()
    }

    /// Gradients it has beside those of q, k, v and biases, by name: `dx`, `dtype_logits`, `dthreshold`, `dgates`, `dmix`.
    fn gradients(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// What training adds to its loss for these choices, a mean over everything chosen, its weight included.
    fn loss(&self) -> Option<f64> {
        None
    }

    /// `weight` times how far these choices are from keeping little, or from merging as much as is wanted, with gradients by what chose.
    ///
    /// # Errors
    /// If the mechanism does not learn that, or lacks what it needs for it.
    fn penalty(&self, weight: f32, par: Par) -> Result<Penalty, Error> {
        let _ = (weight, par);
        Err(Error::Combination("this mechanism learns nothing that a penalty could steer".into()))
    }

    /// Its sizes.
    fn dims(&self) -> Dims;

    /// Pairs of queries and keys that meet: what the arithmetic is proportional to.
    fn pairs(&self) -> u64;

    /// Its definition in f64, given the choices.
    fn oracle(&self) -> Box<dyn Oracle>;

    /// Its definition with the keys that it was told to leave out ([`Config::leave_out`]) as they are: what a merge with exact attention over
    /// those comes to.
    fn completed(&self) -> Option<Box<dyn Oracle>> {
        None
    }

    /// The one exact problem it comes to, if it does.
    fn problem(&self) -> Option<&Problem<'_>> {
        None
    }

    /// What it comes to for devices without a kernel of ours, if it can be said in integers.
    fn composition(&self) -> Option<Composition<'_>> {
        self.problem().map(Composition::Exact)
    }
}

impl Plan for Problem<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        crate::exact::forward(self, out, par)
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        if let Some(name) = gradients.beside_heads().next() {
            return Err(Error::Combination(format!("exact attention has gradients of q, k, v and its biases only, not {name}")));
        }
        crate::exact::backward(self, saved, &mut gradients.heads, par)
    }

    fn received(&self, lse: &[f32], into: &mut [f32], par: Par) -> Result<(), Error> {
        crate::exact::received(self, lse, into, par)
    }

    fn dims(&self) -> Dims {
        *self.dims()
    }

    fn pairs(&self) -> u64 {
        self.visible_pairs()
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        Box::new(self.definition())
    }

    fn problem(&self) -> Option<&Problem<'_>> {
        Some(self)
    }
}

/// A mechanism's options and what they come to.
pub trait Config: Default + Clone + std::fmt::Debug {
    /// Name, options, tensors.
    const ABOUT: About;
    /// What is chosen once and not differentiated.
    type Choices: Clone + std::fmt::Debug + Send + Sync;
    /// What runs.
    type Plan<'a>: Plan;
    /// What is remembered while decoding.
    type Memory: Memory;

    /// Sets one option from its written value.
    ///
    /// # Errors
    /// If there is no such option, or the value is not one.
    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError>;

    /// Everything that is chosen on these inputs.
    ///
    /// # Errors
    /// If the inputs do not fit.
    fn choose(&self, inputs: &Inputs<'_>, pass: Pass, par: Par) -> Result<Self::Choices, Error>;

    /// What these choices come to on these inputs.
    ///
    /// # Errors
    /// If the inputs do not fit.
    fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Self::Choices, pass: Pass) -> Result<Self::Plan<'a>, Error>;

    /// The empty memory of one sequence.
    ///
    /// # Errors
    /// If the mechanism cannot step with its options.
    fn start(&self) -> Result<Self::Memory, Error>;

    /// Codewords of each head in a codebook, `codebook` or `codebook_q`, that is yet to be made.
    fn codewords(&self, tensor: &str) -> Option<usize> {
        let _ = tensor;
        None
    }

    /// What the mean squared distance of what a codebook codes, `codebook` or `codebook_q`, to its codewords weighs in the loss of training.
    fn commitment(&self, tensor: &str) -> f32 {
        let _ = tensor;
        0.0
    }

    /// The window, where what is read is the keys inside one, as they are, and nothing else.
    fn near(&self) -> Option<usize> {
        None
    }

    /// Leaves out the keys inside a window, if it can.
    fn leave_out(&mut self, window: usize) {
        let _ = window;
    }

    /// Whether keys inside a window are left out.
    fn leaves_out(&self) -> bool {
        false
    }
}

/// Makes the enums of mechanisms, choices, plans and states, and everything that walks them.
macro_rules! mechanisms {
    ($($variant:ident),+) => {
        /// Any mechanism of the list.
        #[derive(Debug, Clone)]
        pub enum Mechanism {
            $(#[doc = concat!("See [`", stringify!($variant), "`].")] $variant($variant),)+
            /// Two of them; see [`combined`].
            Combined(Box<Combined>),
        }

        /// What a mechanism of the list chose.
        #[derive(Debug, Clone)]
        pub enum Choices {
            $(#[doc = concat!("Of [`", stringify!($variant), "`].")] $variant(<$variant as Config>::Choices),)+
            /// Of two of them.
            Combined(Box<combined::Chosen>),
        }

        /// A plan of a mechanism of the list.
        #[expect(clippy::large_enum_variant, reason = "one of them lives on the stack of a call")]
        pub enum Planned<'a> {
            $(#[doc = concat!("Of [`", stringify!($variant), "`].")] $variant(<$variant as Config>::Plan<'a>),)+
            /// Of two of them.
            Combined(Box<combined::Together<'a>>),
        }

        /// What a mechanism of the list remembers of one sequence.
        #[derive(Debug, Clone)]
        pub enum State {
            $(#[doc = concat!("Of [`", stringify!($variant), "`].")] $variant(<$variant as Config>::Memory),)+
            /// Of two of them.
            Combined(Box<combined::Remembered>),
        }

        $(impl From<$variant> for Mechanism {
            fn from(config: $variant) -> Self {
                Mechanism::$variant(config)
            }
        })+

        impl Mechanism {
            /// What the list says of each.
            pub const ALL: &'static [About] = &[$($variant::ABOUT),+];

            /// The entry of the list of that name with its defaults.
            fn listed(name: &str) -> Option<Self> {
                $(if name == $variant::ABOUT.name { return Some(Mechanism::$variant($variant::default())); })+
                None
            }

            /// What the list says of it.
            pub fn about(&self) -> &'static About {
                match self { $(Mechanism::$variant(_) => const { &$variant::ABOUT },)+ Mechanism::Combined(both) => both.about() }
            }

            /// Sets one option from its written value.
            ///
            /// # Errors
            /// If there is no such option, or the value is not one.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
                match self { $(Mechanism::$variant(config) => config.set(name, value),)+ Mechanism::Combined(both) => both.set(name, value) }
            }

            /// Everything that is chosen on these inputs.
            ///
            /// # Errors
            /// If the inputs do not fit.
            pub fn choose(&self, inputs: &Inputs<'_>, pass: Pass, par: Par) -> Result<Choices, Error> {
                self.check(inputs)?;
                match self {
                    $(Mechanism::$variant(config) => Ok(Choices::$variant(config.choose(inputs, pass, par)?)),)+
                    Mechanism::Combined(both) => Ok(Choices::Combined(Box::new(both.choose(inputs, pass, par)?))),
                }
            }

            /// What these choices come to on these inputs.
            ///
            /// # Errors
            /// If the inputs do not fit, or another mechanism chose.
            pub fn plan<'a>(&self, inputs: &Inputs<'a>, choices: &'a Choices, pass: Pass) -> Result<Planned<'a>, Error> {
                self.check(inputs)?;
                match (self, choices) {
                    $((Mechanism::$variant(config), Choices::$variant(choices)) => Ok(Planned::$variant(config.plan(inputs, choices, pass)?)),)+
                    (Mechanism::Combined(both), Choices::Combined(choices)) => {
                        Ok(Planned::Combined(Box::new(both.plan(inputs, choices, pass)?)))
                    }
                    _ => Err(Error::Combination(format!("these choices are not those of {}", self.about().name))),
                }
            }

            /// The empty state of one sequence.
            ///
            /// # Errors
            /// If the mechanism cannot step with its options.
            pub fn start(&self) -> Result<State, Error> {
                match self {
                    $(Mechanism::$variant(config) => Ok(State::$variant(config.start()?)),)+
                    Mechanism::Combined(both) => Ok(State::Combined(Box::new(both.start()?))),
                }
            }

            /// Codewords of each head in a codebook, `codebook` or `codebook_q`, that is yet to be made.
            pub fn codewords(&self, tensor: &str) -> Option<usize> {
                match self { $(Mechanism::$variant(config) => config.codewords(tensor),)+ Mechanism::Combined(both) => both.codewords(tensor) }
            }

            /// What the mean squared distance of what a codebook codes, `codebook` or `codebook_q`, to its codewords weighs in the loss of
            /// training.
            pub fn commitment(&self, tensor: &str) -> f32 {
                match self { $(Mechanism::$variant(config) => config.commitment(tensor),)+ Mechanism::Combined(both) => both.commitment(tensor) }
            }

            /// See [`Config::near`].
            fn near(&self) -> Option<usize> {
                match self { $(Mechanism::$variant(config) => config.near(),)+ Mechanism::Combined(_) => None }
            }

            /// See [`Config::leave_out`].
            fn leave_out(&mut self, window: usize) {
                match self { $(Mechanism::$variant(config) => config.leave_out(window),)+ Mechanism::Combined(_) => {} }
            }

            /// See [`Config::leaves_out`].
            fn leaves_out(&self) -> bool {
                match self { $(Mechanism::$variant(config) => config.leaves_out(),)+ Mechanism::Combined(_) => false }
            }
        }

        impl<'a> Planned<'a> {
            fn any(&self) -> &(dyn Plan + 'a) {
                match self { $(Planned::$variant(plan) => plan,)+ Planned::Combined(plan) => &**plan }
            }
        }

        impl State {
            fn any(&self) -> &dyn Memory {
                match self { $(State::$variant(memory) => memory,)+ State::Combined(memory) => &**memory }
            }

            fn any_mut(&mut self) -> &mut dyn Memory {
                match self { $(State::$variant(memory) => memory,)+ State::Combined(memory) => &mut **memory }
            }
        }
    };
}

mechanisms!(Exact, Local, Nats, Clustered, Linear, GatedLinear, Vq, VqQk, Hyper);

impl From<Combined> for Mechanism {
    fn from(both: Combined) -> Self {
        Mechanism::Combined(Box::new(both))
    }
}

impl Mechanism {
    /// The mechanism of that name with its defaults: an entry of the list, or two of them joined, such as `local+vq` ([`combined`]).
    pub fn by_name(name: &str) -> Option<Self> {
        Self::listed(name).or_else(|| Combined::by_name(name).map(Mechanism::from))
    }

    /// Chooses and attends, where no gradient will be wanted.
    ///
    /// # Errors
    /// If inputs or outputs do not fit.
    pub fn forward(&self, inputs: &Inputs<'_>, pass: Pass, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.plan(inputs, &self.choose(inputs, pass, par)?, pass)?.forward(out, par)
    }

    /// Refuses what no form of the mechanism takes.
    fn check(&self, inputs: &Inputs<'_>) -> Result<(), Error> {
        let about = self.about();
        inputs.expect_only(about)?;
        match (about.causality, inputs.sight.is_causal()) {
            (Causality::Required, false) => Err(Error::Combination(format!("{} is causal only", about.name))),
            (Causality::Never, true) => Err(Error::Combination(format!("{} has no causal form", about.name))),
            _ => Ok(()),
        }
    }
}

impl Plan for Planned<'_> {
    fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.any().forward(out, par)
    }

    fn backward(&self, saved: &Saved<'_>, gradients: &mut Gradients<'_>, par: Par) -> Result<(), Error> {
        if gradients.dgates.is_some() && !self.gradients().contains(&"dgates") {
            return Err(Error::Combination("this mechanism reads no gates and has no gradient of them".into()));
        }
        self.any().backward(saved, gradients, par)
    }

    fn received(&self, lse: &[f32], into: &mut [f32], par: Par) -> Result<(), Error> {
        self.any().received(lse, into, par)
    }

    fn traces(&self) -> Vec<Trace> {
        self.any().traces()
    }

    fn gradients(&self) -> Vec<&'static str> {
        self.any().gradients()
    }

    fn loss(&self) -> Option<f64> {
        self.any().loss()
    }

    fn penalty(&self, weight: f32, par: Par) -> Result<Penalty, Error> {
        self.any().penalty(weight, par)
    }

    fn dims(&self) -> Dims {
        self.any().dims()
    }

    fn pairs(&self) -> u64 {
        self.any().pairs()
    }

    fn oracle(&self) -> Box<dyn Oracle> {
        self.any().oracle()
    }

    fn completed(&self) -> Option<Box<dyn Oracle>> {
        self.any().completed()
    }

    fn problem(&self) -> Option<&Problem<'_>> {
        self.any().problem()
    }

    fn composition(&self) -> Option<Composition<'_>> {
        self.any().composition()
    }
}

impl Memory for State {
    fn bytes(&self) -> usize {
        self.any().bytes()
    }

    fn tokens(&self) -> usize {
        self.any().tokens()
    }

    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error> {
        self.any_mut().prefill(tokens)
    }

    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.any_mut().step(token, out, par)
    }
}
