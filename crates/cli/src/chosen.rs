//! The mechanisms a call names, or the reducer beside exact attention, with the options it sets.

use crate::failure::Failure;
use regard_core::mechanism::{About, Causality, Mechanism, OptionAbout, OptionError};
use regard_core::reduce::Reducer;
use regard_lab::names::meant;
use serde_json::{Map, Value};
use std::str::FromStr;

/// `--set key=value` or `--set mechanism.key=value`.
#[derive(Clone, Debug)]
pub struct Setting {
    mechanism: Option<String>,
    key: String,
    value: String,
}

impl Setting {
    /// `local.window` as an option of `local+vq`, where that is the only mechanism that has such an option and none is called `local`.
    fn of_a_part(&self, chosen: &[Chosen]) -> Self {
        let Some(part) = self.mechanism.as_ref().filter(|part| chosen.iter().all(|chosen| chosen.name() != part.as_str())) else {
            return self.clone();
        };
        let key = format!("{part}.{}", self.key);
        let mut owners = chosen.iter().filter(|chosen| chosen.settable().iter().any(|option| option.name == key));
        match (owners.next(), owners.next()) {
            (Some(owner), None) => Setting { mechanism: Some(owner.name().to_owned()), key, value: self.value.clone() },
            _ => self.clone(),
        }
    }

    /// Whether it names this mechanism.
    pub fn is_of(&self, name: &str) -> bool {
        self.mechanism.as_deref() == Some(name)
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("{text} is not of the form key=value"))?;
        let (mechanism, key) = match name.split_once('.') {
            Some((mechanism, key)) => (Some(mechanism.to_owned()), key),
            None => (None, name),
        };
        Ok(Setting { mechanism, key: key.to_owned(), value: value.to_owned() })
    }
}

/// A mechanism, or exact attention and a reducer, and what was set of it.
pub struct Chosen {
    /// With its options set.
    pub mechanism: Mechanism,
    /// With its options set; the mechanism has none then.
    pub reducer: Option<Reducer>,
    settings: Vec<Setting>,
}

impl Chosen {
    /// The mechanisms of these names.
    pub fn all(names: &[String], settings: &[Setting]) -> Result<Vec<Self>, Failure> {
        let mut chosen = names.iter().map(|name| Chosen::named(name)).collect::<Result<Vec<_>, _>>()?;
        if let Some(name) = names.iter().enumerate().find_map(|(i, name)| names[..i].contains(name).then_some(name)) {
            return Err(Failure::Usage(format!("mechanism {name} is named twice")));
        }
        for setting in settings {
            let setting = &setting.of_a_part(&chosen);
            Chosen::target(&mut chosen, setting)?.set(setting)?;
        }
        Ok(chosen)
    }

    /// The mechanism of this name, or the reducer.
    pub fn one(name: &str, settings: &[Setting]) -> Result<Self, Failure> {
        if Reducer::by_name(name).is_none() {
            return Ok(Chosen::all(&[name.to_owned()], settings)?.remove(0));
        }
        let mut chosen = Chosen::reducer(name)?;
        chosen.set_all(settings)?;
        Ok(chosen)
    }

    /// A mechanism, and a reducer where one is named.
    pub fn pair(mechanism: &str, reducer: Option<&str>, settings: &[Setting]) -> Result<(Mechanism, Option<Reducer>), Failure> {
        let mut chosen = vec![Chosen::named(mechanism)?];
        chosen.extend(reducer.map(Chosen::reducer).transpose()?);
        for setting in settings {
            let setting = &setting.of_a_part(&chosen);
            Chosen::target(&mut chosen, setting)?.set(setting)?;
        }
        let mut parts = chosen.into_iter();
        let mechanism = parts.next().map(|first| first.mechanism);
        let reducer = parts.next().and_then(|second| second.reducer);
        if let Some(reducer) = &reducer {
            reducer.check().map_err(|error| Failure::Usage(format!("{}: {error}", reducer.about().name)))?;
        }
        Ok((mechanism.expect("it was named"), reducer))
    }

    /// The reducer of this name, behind exact attention.
    fn reducer(name: &str) -> Result<Self, Failure> {
        let known: Vec<&str> = Reducer::ALL.iter().map(|about| about.name).collect();
        let unknown =
            || Failure::Usage(format!("unknown reducer \"{name}\"{}; there are {}", meant(name, known.iter().copied()), known.join(", ")));
        let reducer = Reducer::by_name(name).ok_or_else(unknown)?;
        let exact = Mechanism::by_name("exact").ok_or_else(|| Failure::Usage("there is no exact attention".into()))?;
        Ok(Chosen { mechanism: exact, reducer: Some(reducer), settings: Vec::new() })
    }

    fn set_all(&mut self, settings: &[Setting]) -> Result<(), Failure> {
        let name = self.name();
        for setting in settings {
            Chosen::target(std::slice::from_mut(self), setting)?.set(setting)?;
        }
        self.reducer.as_ref().map_or(Ok(()), Reducer::check).map_err(|error| Failure::Usage(format!("{name}: {error}")))
    }

    /// As the call names it.
    pub fn name(&self) -> &'static str {
        self.reducer.as_ref().map_or(self.about().name, |reducer| reducer.about().name)
    }

    /// Options that a call can set.
    fn settable(&self) -> &'static [OptionAbout] {
        self.reducer.as_ref().map_or(self.about().options, |reducer| reducer.about().options)
    }

    /// What the list says of it.
    pub fn about(&self) -> &'static About {
        self.mechanism.about()
    }

    /// What it is given beside q, k and v where there is a choice.
    pub fn reads_first(&self) -> &'static [&'static str] {
        self.about().needs.first().copied().unwrap_or_default()
    }

    /// Refuses a form that it does not have.
    pub fn check_causal(&self, causal: bool) -> Result<(), Failure> {
        let About { name, causality, .. } = self.about();
        match (causality, causal) {
            (Causality::Required, false) => Err(Failure::Usage(format!("{name} is causal only: add --causal"))),
            (Causality::Never, true) => Err(Failure::Usage(format!("{name} has no causal form: leave --causal out"))),
            _ => Ok(()),
        }
    }

    /// The value set for an option, as written.
    pub fn written(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|setting| setting.key == key).map(|setting| setting.value.as_str())
    }

    /// Every option with the value it has.
    pub fn options(&self) -> Map<String, Value> {
        let value = |option: &OptionAbout| typed(option, self.written(option.name).unwrap_or(option.default));
        self.settable().iter().map(|option| (option.name.to_owned(), value(option))).collect()
    }

    fn named(name: &str) -> Result<Self, Failure> {
        let known: Vec<&str> = Mechanism::ALL.iter().map(|about| about.name).collect();
        let unknown = || {
            Failure::Usage(format!("unknown mechanism \"{name}\"{}; there are {}", meant(name, known.iter().copied()), known.join(", ")))
        };
        Ok(Chosen { mechanism: Mechanism::by_name(name).ok_or_else(unknown)?, reducer: None, settings: Vec::new() })
    }

    fn target<'c>(chosen: &'c mut [Chosen], setting: &Setting) -> Result<&'c mut Chosen, Failure> {
        let Setting { mechanism, key, value } = setting;
        let names: Vec<&str> = chosen.iter().map(Chosen::name).collect();
        match mechanism {
            None if chosen.len() == 1 => Ok(&mut chosen[0]),
            None => Err(Failure::Usage(format!(
                "--set {key}={value} could be of {}; write --set {}.{key}={value}",
                names.join(" or "),
                names[0]
            ))),
            Some(wanted) => {
                let unnamed =
                    format!("--set {wanted}.{key}={value} is of no mechanism in this call{}", meant(wanted, names.iter().copied()));
                chosen.iter_mut().find(|chosen| chosen.name() == wanted).ok_or(Failure::Usage(unnamed))
            }
        }
    }

    fn set(&mut self, setting: &Setting) -> Result<(), Failure> {
        let name = self.name();
        if self.written(&setting.key).is_some() {
            return Err(Failure::Usage(format!("option {} of {name} is set twice", setting.key)));
        }
        let set = match &mut self.reducer {
            Some(reducer) => reducer.set(&setting.key, &setting.value),
            None => self.mechanism.set(&setting.key, &setting.value),
        };
        set.map_err(|error| match error {
            OptionError::Unknown { name: key, known } => {
                Failure::Usage(format!("{name} has no option \"{key}\"{}; it has {}", meant(&key, known.iter().copied()), known.join(", ")))
            }
            error @ OptionError::Value { .. } => Failure::Usage(format!("{name}: {error}")),
        })?;
        self.settings.push(setting.clone());
        Ok(())
    }
}

/// A value as JSON: a number or a boolean where it is one, null where it is left open.
pub fn typed(option: &OptionAbout, written: &str) -> Value {
    let number = |text: &str| text.strip_suffix('k').map_or(text.parse().ok(), |k| k.parse().ok().map(|n: f64| n * 1024.0));
    match option.kind {
        _ if written.is_empty() => Value::Null,
        _ if written.contains(',') => Value::from(written),
        "integer" | "integers" => number(written).map_or(Value::Null, |number| Value::from(number as u64)),
        "number" | "numbers" => number(written).map_or(Value::Null, Value::from),
        "boolean" => Value::from(written == "true"),
        _ => Value::from(written),
    }
}
