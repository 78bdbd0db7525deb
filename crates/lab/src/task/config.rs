//! The list of tasks, and a task as a configuration writes it: `{name: recall, pairs: 8}`.
//!
//! A key is checked against the keys of its task, which are those of the default configuration, before anything is read of it: an
//! unknown one is refused with the nearest known one, a value that does not fit with the name of its key. `1k` is 1024.

use super::Task;
use super::classify::Classify;
use super::copy::Copy;
use super::forecast::Forecast;
use super::images::Images;
use super::induction::Induction;
use super::language::Language;
use super::listops::ListOps;
use super::needle::Needle;
use super::recall::Recall;
use crate::Error;
use crate::names::meant;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// A task as it is written. Its file says what keys mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", try_from = "Value")]
pub enum TaskConfig {
    /// Classes of texts.
    Classify(Classify),
    /// The next token of a text.
    Language(Language),
    /// Classes of images.
    Images(Images),
    /// The next rows of a table of numbers.
    Forecast(Forecast),
    /// Values of keys seen before.
    Recall(Recall),
    /// Values of nested expressions.
    ListOps(ListOps),
    /// Symbols from before a delay.
    Copy(Copy),
    /// What followed a token before.
    Induction(Induction),
    /// A number hidden in filler.
    Needle(Needle),
}

/// A task of the list.
#[derive(Clone, Copy)]
pub struct About {
    /// Its name in configurations.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub about: &'static str,
    default: fn() -> TaskConfig,
    read: fn(Value) -> serde_json::Result<TaskConfig>,
}

/// Every task.
pub const ABOUT: [About; 9] = [
    About {
        name: "classify",
        about: "classes of texts, from TSV, CSV, JSON Lines or Parquet",
        default: || TaskConfig::Classify(Default::default()),
        read: |keys| written(keys, TaskConfig::Classify),
    },
    About {
        name: "language",
        about: "the next byte, character or token of text files",
        default: || TaskConfig::Language(Default::default()),
        read: |keys| written(keys, TaskConfig::Language),
    },
    About {
        name: "images",
        about: "classes of images as sequences of patches, from IDX, CIFAR-10 records or CSV",
        default: || TaskConfig::Images(Default::default()),
        read: |keys| written(keys, TaskConfig::Images),
    },
    About {
        name: "forecast",
        about: "the next rows of a CSV file of numbers",
        default: || TaskConfig::Forecast(Default::default()),
        read: |keys| written(keys, TaskConfig::Forecast),
    },
    About {
        name: "recall",
        about: "values of keys that were shown before, many keys a sequence (MQAR)",
        default: || TaskConfig::Recall(Default::default()),
        read: |keys| written(keys, TaskConfig::Recall),
    },
    About {
        name: "listops",
        about: "values of nested list operations, of Long Range Arena's size or small",
        default: || TaskConfig::ListOps(Default::default()),
        read: |keys| written(keys, TaskConfig::ListOps),
    },
    About {
        name: "copy",
        about: "symbols from before a delay, asked for after a delimiter",
        default: || TaskConfig::Copy(Default::default()),
        read: |keys| written(keys, TaskConfig::Copy),
    },
    About {
        name: "induction",
        about: "the token that followed a special one where it stood before",
        default: || TaskConfig::Induction(Default::default()),
        read: |keys| written(keys, TaskConfig::Induction),
    },
    About {
        name: "needle",
        about: "a number under a name, hidden in filler of any length and asked for at the end",
        default: || TaskConfig::Needle(Default::default()),
        read: |keys| written(keys, TaskConfig::Needle),
    },
];

fn written<T: DeserializeOwned>(keys: Value, variant: fn(T) -> TaskConfig) -> serde_json::Result<TaskConfig> {
    serde_json::from_value(keys).map(variant)
}

impl About {
    /// The task of a name.
    ///
    /// # Errors
    /// If there is none; the message has the nearest.
    pub fn of(name: &str) -> Result<&'static About, Error> {
        const ALL: &[About] = &ABOUT;
        let names = || ALL.iter().map(|about| about.name);
        ALL.iter().find(|about| about.name == name).ok_or_else(|| {
            let all = names().collect::<Vec<_>>().join(", ");
            Error::key("task.name", format!("there is no task \"{name}\"{}; there are {all}", meant(name, names())))
        })
    }

    /// The task with nothing set.
    pub fn default(&self) -> TaskConfig {
        (self.default)()
    }

    /// Its keys with their defaults; `null` has the meaning that docs/tasks.md says.
    pub fn keys(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut keys)) = serde_json::to_value(self.default()) else { unreachable!("a configuration is keys and values") };
        keys.shift_remove("name");
        keys
    }

    /// Refuses a key that there is not, or whose value is of another kind.
    fn take(&self, defaults: &Map<String, Value>, (key, value): (String, Value)) -> Result<(String, Value), Error> {
        let Some(default) = defaults.get(&key) else {
            let known = || defaults.keys().map(String::as_str);
            let all = known().collect::<Vec<_>>().join(", ");
            return Err(Error::key(format!("task.{key}"), format!("is no key of {}{}; there are {all}", self.name, meant(&key, known()))));
        };
        let alone = |value: &Value| (self.read)(Value::Object(Map::from_iter([(key.clone(), value.clone())])));
        let Err(error) = alone(&value) else { return Ok((key, value)) };
        let counted = thousands(value.clone());
        if alone(&counted).is_ok() {
            return Ok((key, counted));
        }
        let usual = if default.is_null() { String::new() } else { format!("; the default is {default}") };
        Err(Error::key(format!("task.{key}"), format!("is {value}: {error}{usual}")))
    }
}

/// `4k` as 4096, also within lists.
fn thousands(value: Value) -> Value {
    match value {
        Value::String(text) => match text.strip_suffix('k').and_then(|count| count.parse::<u64>().ok()) {
            Some(count) => Value::from(count.saturating_mul(1024)),
            None => Value::String(text),
        },
        Value::Array(values) => Value::Array(values.into_iter().map(thousands).collect()),
        other => other,
    }
}

impl TaskConfig {
    /// Keys and values as a configuration file has them.
    ///
    /// # Errors
    /// If the name or a key is not known, or a value is of another kind; files are not looked at.
    pub fn read(written: Value) -> Result<Self, Error> {
        let Value::Object(mut keys) = written else {
            return Err(Error::key("task", "keys and values were expected, such as {name: recall, pairs: 8}"));
        };
        let about = match keys.shift_remove("name") {
            Some(Value::String(name)) => About::of(&name)?,
            other => {
                let found = other.map_or_else(|| "is missing".to_owned(), |value| format!("is {value}"));
                return Err(Error::key("task.name", format!("{found}; it is one of {}", ABOUT.map(|about| about.name).join(", "))));
            }
        };
        let defaults = about.keys();
        let keys = keys.into_iter().map(|entry| about.take(&defaults, entry)).collect::<Result<Map<_, _>, _>>()?;
        (about.read)(Value::Object(keys)).map_err(|error| Error::key("task", error.to_string()))
    }

    /// Its name in the list.
    pub fn name(&self) -> &'static str {
        match self {
            TaskConfig::Classify(_) => "classify",
            TaskConfig::Language(_) => "language",
            TaskConfig::Images(_) => "images",
            TaskConfig::Forecast(_) => "forecast",
            TaskConfig::Recall(_) => "recall",
            TaskConfig::ListOps(_) => "listops",
            TaskConfig::Copy(_) => "copy",
            TaskConfig::Induction(_) => "induction",
            TaskConfig::Needle(_) => "needle",
        }
    }

    /// Opens the task; paths are seen from the folder `base`, which is that of the configuration file.
    ///
    /// # Errors
    /// If a value is out of range, a file cannot be read, or says what it should not: with the key, or the file and the place in it.
    pub fn open(&self, base: &Path) -> Result<Box<dyn Task>, Error> {
        match self {
            TaskConfig::Classify(config) => config.open(base),
            TaskConfig::Language(config) => config.open(base),
            TaskConfig::Images(config) => config.open(base),
            TaskConfig::Forecast(config) => config.open(base),
            TaskConfig::Recall(config) => config.open(),
            TaskConfig::ListOps(config) => config.open(),
            TaskConfig::Copy(config) => config.open(),
            TaskConfig::Induction(config) => config.open(),
            TaskConfig::Needle(config) => config.open(),
        }
    }
}

impl TryFrom<Value> for TaskConfig {
    type Error = Error;

    fn try_from(written: Value) -> Result<Self, Error> {
        TaskConfig::read(written)
    }
}
