//! What a model is made of, as a configuration says.

use super::Model;
use crate::Error;
use crate::names::meant;
use crate::section::{Section, plain};
use burn::module::Module;
use regard::reduce::Reducer;
use regard::rows::Activation;
use regard_core::mechanism::{Mechanism, OptionError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A model of its own sizes, or one that starts from a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelConfig {
    /// From scratch.
    Sizes(Sizes),
    /// From an encoder.
    Pretrained(Pretrained),
}

/// An encoder of the BERT family under a head for classes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pretrained {
    /// The folder of its checkpoint, as it was written.
    pub from: PathBuf,
    /// What is trained.
    pub train: Trained,
    /// What stands for a sequence that is given a class.
    pub pooling: Pooling,
    /// Standard deviation of the head's weights at the start.
    pub deviation: f64,
    /// Where `from` starts; data may move, so no part of what a run is.
    #[serde(skip)]
    pub base: PathBuf,
}

/// Which parameters training moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trained {
    /// Every one.
    All,
    /// Those that the checkpoint does not have; the encoder stays as it is, and none of its gradients are computed.
    New,
}

/// Sizes of a transformer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sizes {
    /// E, the width of hidden states.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// H, query heads.
    pub heads: usize,
    /// G, key/value heads.
    pub kv_heads: usize,
    /// Width inside the feed-forward block; without one there is none.
    pub inner: usize,
    /// Activation of the feed-forward block.
    pub activation: Gate,
    /// How a model knows where a token stands.
    pub positions: Positions,
    /// Whether linear maps have biases.
    pub bias: bool,
    /// Whether the head that says tokens is the table of embeddings.
    pub tied: bool,
    /// What stands for a sequence that is given a class.
    pub pooling: Pooling,
    /// Dropout on what the blocks add, in `[0, 1)`, while training.
    pub dropout: f64,
    /// Standard deviation of weights at the start; `1/√width` where it is not said.
    pub deviation: f64,
    /// What attention computes with.
    pub precision: Precision,
}

/// What attention computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    F32,
    /// q, k, v and o are stored in bf16; parameters and everything else stay in single precision.
    Bf16,
}

/// Activation of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// GELU, by the error function.
    Gelu,
    /// GELU, by the hyperbolic tangent.
    GeluTanh,
    /// max(0, x).
    Relu,
    /// x · sigmoid(x).
    Silu,
    /// silu of one half times the other (Shazeer 2020).
    Swiglu,
}

impl Gate {
    /// The function, where it is one of a single number.
    pub fn function(self) -> Option<Activation> {
        match self {
            Gate::Gelu => Some(Activation::Gelu),
            Gate::GeluTanh => Some(Activation::GeluTanh),
            Gate::Relu => Some(Activation::Relu),
            Gate::Silu => Some(Activation::Silu),
            Gate::Swiglu => None,
        }
    }
}

/// How a model knows where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned vector for every position.
    Learned,
    /// Rotary embedding of q and k.
    Rotary,
    /// It does not, but for what causal attention gives away.
    None,
}

/// What stands for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over its tokens; merged ones count as often as the tokens that they stand for.
    Mean,
    /// Its first token.
    First,
    /// Its last token.
    Last,
}

impl ModelConfig {
    /// Reads what stands under `model`: `{from: DIR, …}`, or sizes.
    ///
    /// # Errors
    /// An unknown key, or a value that is out of its range.
    pub fn read(mut section: Section) -> Result<Self, Error> {
        match section.take("from")? {
            Some(from) => Pretrained::read(section, from).map(ModelConfig::Pretrained),
            None => Sizes::read(section).map(ModelConfig::Sizes),
        }
    }

    /// How many parameters of a model training leaves as they are.
    pub fn frozen(&self, model: &Model) -> usize {
        match self {
            ModelConfig::Pretrained(Pretrained { train: Trained::New, .. }) => model.encoder.as_ref().map_or(0, Module::num_params),
            _ => 0,
        }
    }

    /// Dropout while training.
    pub fn dropout(&self) -> f64 {
        match self {
            ModelConfig::Sizes(sizes) => sizes.dropout,
            ModelConfig::Pretrained(_) => 0.0,
        }
    }

    /// The same with paths that start from a folder.
    #[must_use]
    pub fn within(self, base: &Path) -> Self {
        match self {
            ModelConfig::Pretrained(pretrained) => ModelConfig::Pretrained(Pretrained { base: base.into(), ..pretrained }),
            sizes => sizes,
        }
    }
}

impl Pretrained {
    fn read(mut section: Section, from: PathBuf) -> Result<Self, Error> {
        let pretrained = Pretrained {
            from,
            train: section.or("train", Trained::All)?,
            pooling: section.or("pooling", Pooling::Mean)?,
            deviation: section.or("deviation", 0.02)?,
            base: PathBuf::new(),
        };
        check_deviation(&section, pretrained.deviation)?;
        section.done()?;
        Ok(pretrained)
    }

    /// The folder of the checkpoint.
    pub fn folder(&self) -> PathBuf {
        self.base.join(&self.from)
    }
}

fn check_deviation(section: &Section, deviation: f64) -> Result<(), Error> {
    if deviation.is_nan() || deviation <= 0.0 {
        return Err(Error::key(section.name("deviation"), format!("{deviation} is not above 0")));
    }
    Ok(())
}

impl Sizes {
    fn read(mut section: Section) -> Result<Self, Error> {
        let width = section.or("width", 128)?;
        let heads = section.or("heads", 4)?;
        let config = Sizes {
            width,
            layers: section.or("layers", 2)?,
            heads,
            kv_heads: section.or("kv_heads", heads)?,
            inner: section.or("inner", 4 * width)?,
            activation: section.or("activation", Gate::Gelu)?,
            positions: section.or("positions", Positions::Learned)?,
            bias: section.or("bias", true)?,
            tied: section.or("tied", false)?,
            pooling: section.or("pooling", Pooling::Mean)?,
            dropout: section.or("dropout", 0.0)?,
            deviation: section.or("deviation", (width.max(1) as f64).sqrt().recip())?,
            precision: section.or("precision", Precision::F32)?,
        };
        config.check(&section)?;
        section.done()?;
        Ok(config)
    }

    fn check(&self, section: &Section) -> Result<(), Error> {
        let refuse = |key: &str, message: String| Err(Error::key(section.name(key), message));
        let &Sizes { width, layers, heads, kv_heads, dropout, deviation, .. } = self;
        if width == 0 || layers == 0 {
            return refuse(if width == 0 { "width" } else { "layers" }, "0 makes no model; write at least 1".into());
        }
        if heads == 0 || !width.is_multiple_of(heads) {
            return refuse("heads", format!("a width of {width} does not divide over {heads} heads"));
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return refuse("kv_heads", format!("{heads} query heads do not divide over {kv_heads} key/value heads"));
        }
        if self.positions == Positions::Rotary && !(width / heads).is_multiple_of(2) {
            return refuse("positions", format!("rotary needs heads of an even width, these have {}", width / heads));
        }
        if !(0.0..1.0).contains(&dropout) {
            return refuse("dropout", format!("{dropout} is outside [0, 1)"));
        }
        check_deviation(section, deviation)
    }
}

/// How tokens exchange information and which go on: a mechanism, and perhaps a reducer, with their options.
#[derive(Debug, Clone)]
pub struct Mixing {
    /// For people and records.
    pub name: String,
    /// With its options set.
    pub mechanism: Mechanism,
    /// With its options set.
    pub reducer: Option<Reducer>,
    /// Weight of what the mechanism adds to the loss ([`regard::penalty`]), where it learns how much to keep or to merge.
    pub penalty: f32,
    /// Whether a token must not see later ones, even where the task lets it.
    pub causal: bool,
    /// As it was written.
    pub written: Map<String, Value>,
}

impl Mixing {
    /// The mechanism of that name with its defaults.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        Self::read("attention", &Value::from(name))
    }

    /// Reads a name, or `{mechanism: local, window: 64, reduce: {reducer: prune, keep: 0.5}, name: …}`.
    ///
    /// # Errors
    /// An unknown name or option, with the nearest known one, or a value that is none of the option's.
    pub fn read(place: &str, value: &Value) -> Result<Self, Error> {
        let written = match value {
            Value::String(name) => Map::from_iter([("mechanism".to_owned(), Value::from(name.clone()))]),
            Value::Object(written) => written.clone(),
            other => return Err(Error::key(place, format!("found {other}, expected a mechanism or {{mechanism: …, option: …}}"))),
        };
        let mut section = Section::new(place, written.clone());
        let mechanism = section.or("mechanism", "exact".to_owned())?;
        let label: Option<String> = section.take("name")?;
        let penalty = section.or("penalty", 0.0)?;
        let causal = section.or("causal", false)?;
        let reducer = match section.value("reduce") {
            None | Some(Value::Null) => None,
            Some(value) => Some(reducer(&section.name("reduce"), value)?),
        };
        let name = label.unwrap_or_else(|| match &reducer {
            Some(reducer) if mechanism == "exact" => reducer.about().name.to_owned(),
            Some(reducer) => format!("{mechanism}, {}", reducer.about().name),
            None => mechanism.clone(),
        });
        Ok(Mixing { name, mechanism: self::mechanism(place, &mechanism, section.rest())?, reducer, penalty, causal, written })
    }
}

fn mechanism(place: &str, name: &str, options: Map<String, Value>) -> Result<Mechanism, Error> {
    let known: Vec<&str> = Mechanism::ALL.iter().map(|about| about.name).collect();
    let unknown =
        || Error::key(place, format!("unknown mechanism \"{name}\"{}; there are {}", meant(name, known.iter().copied()), known.join(", ")));
    let mut mechanism = Mechanism::by_name(name).ok_or_else(unknown)?;
    set_all(place, name, options, |key, value| mechanism.set(key, value))?;
    Ok(mechanism)
}

fn reducer(place: &str, value: Value) -> Result<Reducer, Error> {
    let mut section = match value {
        Value::String(name) => Section::new(place, Map::from_iter([("reducer".to_owned(), Value::from(name))])),
        Value::Object(written) => Section::new(place, written),
        other => return Err(Error::key(place, format!("found {other}, expected a reducer or {{reducer: …, option: …}}"))),
    };
    let name: String = section.take("reducer")?.ok_or_else(|| Error::key(section.name("reducer"), "is missing; write reducer: prune"))?;
    let known: Vec<&str> = Reducer::ALL.iter().map(|about| about.name).collect();
    let unknown =
        || Error::key(place, format!("unknown reducer \"{name}\"{}; there are {}", meant(&name, known.iter().copied()), known.join(", ")));
    let mut reducer = Reducer::by_name(&name).ok_or_else(unknown)?;
    set_all(place, &name, section.rest(), |key, value| reducer.set(key, value))?;
    reducer.check().map_err(|error| Error::key(place, error.to_string()))?;
    Ok(reducer)
}

fn set_all(
    place: &str,
    name: &str,
    options: Map<String, Value>,
    mut set: impl FnMut(&str, &str) -> Result<(), OptionError>,
) -> Result<(), Error> {
    for (key, value) in options {
        set(&key, &plain(&value)).map_err(|error| {
            let message = match error {
                OptionError::Unknown { name: key, known } => {
                    format!("{name} has no option \"{key}\"{}; it has {}", meant(&key, known.iter().copied()), known.join(", "))
                }
                error @ OptionError::Value { .. } => format!("{name}: {error}"),
            };
            Error::key(format!("{place}.{key}"), message)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_is_named_after_what_it_does() {
        let name = |value: Value| Mixing::read("attention", &value).unwrap().name;
        assert_eq!(name(json!("local")), "local");
        assert_eq!(name(json!({"mechanism": "local", "window": 64, "name": "near"})), "near");
        assert_eq!(name(json!({"reduce": {"reducer": "prune", "keep": 0.5}})), "prune");
    }

    #[test]
    fn what_is_misspelt_is_named() {
        let message = |value: Value| Mixing::read("attention", &value).unwrap_err().to_string();
        assert!(message(json!("locl")).starts_with("attention: unknown mechanism \"locl\", did you mean \"local\"?"));
        assert!(
            message(json!({"mechanism": "local", "windw": 3}))
                .starts_with("attention.windw: local has no option \"windw\", did you mean \"window\"?")
        );
        assert!(message(json!({"reduce": "prun"})).starts_with("attention.reduce: unknown reducer \"prun\", did you mean \"prune\"?"));
        assert!(message(json!({"reduce": {"reducer": "prune", "keep": 0}})).starts_with("attention.reduce"));
        assert_eq!(message(json!(3)), "attention: found 3, expected a mechanism or {mechanism: …, option: …}");
    }
}
