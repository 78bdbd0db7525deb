//! The list of mechanisms.
//!
//! A mechanism is a configuration with names for its options ([`Config`]); applied to [`Inputs`] it makes the plan that
//! the kernel runs. A new one is a file here and a line in [`Mechanism`]'s list; names in files, on the command line and
//! in benchmarks follow from its [`About`].

mod exact;
mod local;
mod options;
mod state;

pub use exact::Exact;
pub use local::Local;
pub use options::{OptionError, SetOption};
pub use state::{State, Token};

use crate::oracle::Definition;
use crate::{Error, Gradients, Output, Par, Problem, Saved, Sight, View};

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
    /// Tensors it writes beside o.
    pub traces: &'static [&'static str],
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
}

impl<'a> Inputs<'a> {
    /// q, k, v and the visibility rules, nothing else.
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, sight: Sight<'a>) -> Self {
        Inputs { q, k, v, sight, key_bias: None, bias: None, until: None }
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

/// A mechanism's options and what they come to.
pub trait Config: Default + Clone + std::fmt::Debug {
    /// Name, options, tensors.
    const ABOUT: About;

    /// Sets one option from its written value.
    ///
    /// # Errors
    /// If there is no such option, or the value is not one.
    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError>;

    /// The exact problem it comes to on these inputs.
    ///
    /// # Errors
    /// If the inputs do not fit.
    fn problem<'a>(&self, inputs: &Inputs<'a>, pass: Pass) -> Result<Problem<'a>, Error>;

    /// How many keys a step can see: a window and sinks, or everything.
    fn remembered(&self) -> Option<(usize, usize)>;

    /// The same over a state that holds only what a step can see.
    #[must_use]
    fn without_window(&self) -> Self;
}

/// Makes the enum of mechanisms and everything that walks it.
macro_rules! mechanisms {
    ($($variant:ident),+) => {
        /// Any mechanism of the list.
        #[derive(Debug, Clone)]
        pub enum Mechanism {
            $(#[doc = concat!("See [`", stringify!($variant), "`].")] $variant($variant)),+
        }

        $(impl From<$variant> for Mechanism {
            fn from(config: $variant) -> Self {
                Mechanism::$variant(config)
            }
        })+

        impl Mechanism {
            /// What the list says of each.
            pub const ALL: &'static [About] = &[$($variant::ABOUT),+];

            /// The mechanism of that name with its defaults.
            pub fn by_name(name: &str) -> Option<Self> {
                $(if name == $variant::ABOUT.name { return Some(Mechanism::$variant($variant::default())); })+
                None
            }

            /// What the list says of it.
            pub fn about(&self) -> &'static About {
                match self { $(Mechanism::$variant(_) => const { &$variant::ABOUT }),+ }
            }

            /// Sets one option from its written value.
            ///
            /// # Errors
            /// If there is no such option, or the value is not one.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
                match self { $(Mechanism::$variant(config) => config.set(name, value)),+ }
            }

            /// The exact problem it comes to on these inputs.
            ///
            /// # Errors
            /// If the inputs do not fit.
            pub fn problem<'a>(&self, inputs: &Inputs<'a>, pass: Pass) -> Result<Problem<'a>, Error> {
                match self { $(Mechanism::$variant(config) => config.problem(inputs, pass)),+ }
            }

            fn without_window(&self) -> Self {
                match self { $(Mechanism::$variant(config) => Mechanism::$variant(config.without_window())),+ }
            }

            fn remembered(&self) -> Option<(usize, usize)> {
                match self { $(Mechanism::$variant(config) => config.remembered()),+ }
            }
        }
    };
}

mechanisms!(Exact, Local);

impl Mechanism {
    /// Attention of `inputs`.
    ///
    /// # Errors
    /// If inputs or outputs do not fit.
    pub fn forward(&self, inputs: &Inputs<'_>, pass: Pass, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        crate::exact::forward(&self.problem(inputs, pass)?, out, par)
    }

    /// Gradients of `inputs`.
    ///
    /// # Errors
    /// If inputs, saved values or gradients do not fit.
    pub fn backward(
        &self,
        inputs: &Inputs<'_>,
        pass: Pass,
        saved: &Saved<'_>,
        gradients: &mut Gradients<'_>,
        par: Par,
    ) -> Result<(), Error> {
        crate::exact::backward(&self.problem(inputs, pass)?, saved, gradients, par)
    }

    /// Received attention `c_j = Σ_i A_ij`, `[B, H, M]`, from the log-sum-exp of a forward pass.
    ///
    /// # Errors
    /// If something does not fit.
    pub fn received(&self, inputs: &Inputs<'_>, lse: &[f32], into: &mut [f32], par: Par) -> Result<(), Error> {
        crate::exact::received(&self.problem(inputs, Pass::default())?, lse, into, par)
    }

    /// The definition in f64 that its results are judged by.
    ///
    /// # Errors
    /// If the inputs do not fit.
    pub fn definition(&self, inputs: &Inputs<'_>, pass: Pass) -> Result<Definition, Error> {
        Ok(self.problem(inputs, pass)?.definition())
    }
}
