//! Reducers between layers: which tokens go on to the next layer, and which merge on the way.
//!
//! A reducer's configuration ([`Config`]) reads [`Tokens`], packed sequences with what is known of them, and gives a [`Reduction`],
//! which then applies to hidden states, forward and backward, and composes with later ones, so that the way back to the original
//! positions survives all layers. Survivors stay in position order; a sequence never ends up empty. Choices are constants for
//! gradients. Results have the same bits for any number of threads. A new reducer is a file here and a line in [`Reducer`]'s list.
//!
//! ```
//! use regard_core::Par;
//! use regard_core::reduce::{Reducer, Tokens};
//! use regard_core::rows::{Matrix, MatrixMut};
//!
//! let x = [9.0f32, 9.0, 1.0, 0.0, 2.0, 0.0, 0.0, 1.0]; // [4 tokens, 2]
//! let keys = Matrix::new(&x, [4, 2], "keys")?;
//! let mut tome = Reducer::by_name("tome").unwrap();
//! tome.set("r", "1")?;
//! let reduction = tome.reduce(&Tokens { keys: Some(keys), ..Tokens::new(&[0, 4]) }, 0, Par::default())?;
//! assert_eq!(reduction.kept(), [0, 1, 3]); // token 2 went to token 1, its best target; token 0 is protected
//! assert_eq!(reduction.sizes(), [1.0, 2.0, 1.0]);
//! let mut y = [0.0; 6];
//! reduction.apply(&Matrix::new(&x, [4, 2], "x")?, &mut MatrixMut::new(&mut y, [3, 2], "y")?, Par::default())?;
//! assert_eq!(y, [9.0, 9.0, 1.5, 0.0, 0.0, 1.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod delete_gate;
mod farthest;
mod matching;
mod options;
mod pairs;
mod pitome;
mod prune;
mod reduction;
mod score;
mod tokens;
mod tome;

pub use delete_gate::{Controller, DeleteGate};
pub use options::PerLayer;
pub use pitome::{Form, Pitome};
pub use prune::{Prune, Rule};
pub use reduction::Reduction;
pub use score::Uniform;
pub use tokens::Tokens;
pub use tome::Tome;

use crate::mechanism::{OptionAbout, OptionError};
use crate::oracle::reduce::{Fate, Sequence};
use crate::view::Element;
use crate::{Error, Par};

/// What the list says of a reducer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// Its name everywhere.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Its options.
    pub options: &'static [OptionAbout],
    /// What of [`Tokens`] it reads, beside offsets, sizes and protected.
    pub tensors: &'static [&'static str],
    /// Settings at which every token stays.
    pub exact: &'static [&'static [(&'static str, &'static str)]],
}

/// A reducer's options and what they come to.
pub trait Config: Default + Clone + std::fmt::Debug {
    /// Name, options, tensors.
    const ABOUT: About;

    /// Sets one option from its written value.
    ///
    /// # Errors
    /// If there is no such option, or the value is not one.
    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError>;

    /// Refuses options out of their range.
    ///
    /// # Errors
    /// The first one, with its number.
    fn check(&self) -> Result<(), Error>;

    /// Whether it does anything after this layer; layers count from 0.
    fn acts(&self, _layer: usize) -> bool {
        true
    }

    /// The row that each row goes to: itself where it stays, none where it is deleted. Options and tokens are checked.
    ///
    /// # Errors
    /// If a tensor is missing, or more tokens are protected than may stay.
    fn parents<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, par: Par) -> Result<Vec<Option<usize>>, Error>;

    /// The same for one sequence, by the definition; none where it is refused.
    fn define(&self, sequence: &Sequence, layer: usize) -> Option<Fate>;
}

/// Makes the enum of reducers and everything that walks it.
macro_rules! reducers {
    ($($variant:ident),+) => {
        /// Any reducer of the list.
        #[derive(Debug, Clone)]
        pub enum Reducer {
            $(#[doc = concat!("See [`", stringify!($variant), "`].")] $variant($variant)),+
        }

        $(impl From<$variant> for Reducer {
            fn from(config: $variant) -> Self {
                Reducer::$variant(config)
            }
        })+

        impl Reducer {
            /// What the list says of each.
            pub const ALL: &'static [About] = &[$($variant::ABOUT),+];

            /// The reducer of that name with its defaults.
            pub fn by_name(name: &str) -> Option<Self> {
                $(if name == $variant::ABOUT.name { return Some(Reducer::$variant($variant::default())); })+
                None
            }

            /// What the list says of it.
            pub fn about(&self) -> &'static About {
                match self { $(Reducer::$variant(_) => const { &$variant::ABOUT }),+ }
            }

            /// Sets one option from its written value.
            ///
            /// # Errors
            /// If there is no such option, or the value is not one.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
                match self { $(Reducer::$variant(config) => config.set(name, value)),+ }
            }

            /// Whether it does anything after this layer; layers count from 0.
            pub fn acts(&self, layer: usize) -> bool {
                match self { $(Reducer::$variant(config) => config.acts(layer)),+ }
            }

            /// Refuses options out of their range.
            ///
            /// # Errors
            /// The first one, with its number.
            pub fn check(&self) -> Result<(), Error> {
                match self { $(Reducer::$variant(config) => config.check()),+ }
            }

            fn parents<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, par: Par) -> Result<Vec<Option<usize>>, Error> {
                match self { $(Reducer::$variant(config) => config.parents(tokens, layer, par)),+ }
            }

            fn define(&self, sequence: &Sequence, layer: usize) -> Option<Fate> {
                match self { $(Reducer::$variant(config) => config.define(sequence, layer)),+ }
            }
        }
    };
}

reducers!(Prune, Tome, Pitome, DeleteGate);

impl Reducer {
    /// What becomes of the tokens after this layer; everything stays where the reducer does not act.
    ///
    /// # Errors
    /// If an option is out of its range, a tensor is missing or has another shape, or more tokens of a sequence are protected
    /// than may stay.
    pub fn reduce<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize, par: Par) -> Result<Reduction, Error> {
        self.check()?;
        tokens.check()?;
        if !self.acts(layer) {
            let all: Vec<Option<usize>> = (0..tokens.rows()).map(Some).collect();
            return Ok(Reduction::new(tokens, &all));
        }
        Ok(Reduction::new(tokens, &self.parents(tokens, layer, par)?))
    }

    /// The same by the definition in f64, sequence by sequence; none where one is refused.
    ///
    /// # Errors
    /// If an option is out of its range, or a tensor has another shape.
    pub fn definition<T: Element>(&self, tokens: &Tokens<'_, T>, layer: usize) -> Result<Option<Vec<Fate>>, Error> {
        self.check()?;
        tokens.check()?;
        Ok(tokens.sequences().map(|rows| self.define(&tokens.definition(rows), layer)).collect())
    }
}
