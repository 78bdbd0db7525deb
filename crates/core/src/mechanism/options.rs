//! Options as people write them: `name=value`.

use std::fmt;
use std::str::FromStr;

/// An option that cannot be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionError {
    /// The mechanism has no option of that name.
    Unknown {
        /// The name as written.
        name: String,
        /// The options there are.
        known: Vec<&'static str>,
    },
    /// The value is not one the option takes.
    Value {
        /// The option.
        name: &'static str,
        /// The value as written.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionError::Unknown { name, known } => write!(f, "unknown option \"{name}\"; there are {}", known.join(", ")),
            OptionError::Value { name, value, expected } => write!(f, "{name}={value}: expected {expected}"),
        }
    }
}

impl std::error::Error for OptionError {}

/// A field that takes a written value.
pub trait SetOption {
    /// Parses `value` into the field if it passes `allowed`.
    ///
    /// # Errors
    /// If it does not parse or is not allowed.
    fn set_option(&mut self, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError>;
}

fn refuse((name, expected): (&'static str, &'static str), value: &str) -> OptionError {
    OptionError::Value { name, value: value.to_owned(), expected }
}

/// Parses an integer, with `k` for 1024, or a number or a boolean.
fn parse<T: FromStr>(about: (&'static str, &'static str), value: &str) -> Result<T, OptionError> {
    value.parse().map_err(|_| refuse(about, value))
}

impl SetOption for usize {
    fn set_option(&mut self, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
        let (digits, factor) = value.strip_suffix('k').map_or((value, 1), |digits| (digits, 1024));
        let number: usize = parse(about, digits).map_err(|_| refuse(about, value))?;
        *self = number.checked_mul(factor).ok_or_else(|| refuse(about, value))?;
        Ok(())
    }
}

impl SetOption for bool {
    fn set_option(&mut self, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
        *self = parse(about, value)?;
        Ok(())
    }
}

impl SetOption for f32 {
    fn set_option(&mut self, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
        let number: f32 = parse(about, value)?;
        if !number.is_finite() {
            return Err(refuse(about, value));
        }
        *self = number;
        Ok(())
    }
}

impl<T: SetOption + Default> SetOption for Option<T> {
    fn set_option(&mut self, about: (&'static str, &'static str), value: &str) -> Result<(), OptionError> {
        let mut inner = T::default();
        inner.set_option(about, value)?;
        *self = Some(inner);
        Ok(())
    }
}

/// A weight of at least 0.
pub(super) trait SetWeight {
    /// Parses `value` into the field.
    ///
    /// # Errors
    /// If it is no number, or negative.
    fn set_weight(&mut self, name: &'static str, value: &str) -> Result<(), OptionError>;
}

impl SetWeight for f32 {
    fn set_weight(&mut self, name: &'static str, value: &str) -> Result<(), OptionError> {
        let (about, mut weight) = ((name, "a number of at least 0"), 0.0f32);
        weight.set_option(about, value)?;
        if weight < 0.0 {
            return Err(refuse(about, value));
        }
        *self = weight;
        Ok(())
    }
}

/// A count that is not 0.
pub(super) trait SetPositive {
    /// Parses `value` into the field.
    ///
    /// # Errors
    /// If it is no integer, or 0.
    fn set_positive(&mut self, name: &'static str, value: &str) -> Result<(), OptionError>;
}

impl SetPositive for usize {
    fn set_positive(&mut self, name: &'static str, value: &str) -> Result<(), OptionError> {
        let (about, mut count) = ((name, "an integer of at least 1"), 0);
        SetOption::set_option(&mut count, about, value)?;
        if count == 0 {
            return Err(refuse(about, value));
        }
        *self = count;
        Ok(())
    }
}
