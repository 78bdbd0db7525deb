//! Configurations in YAML, key by key: a key that nobody asks for is refused with the nearest one that somebody did.

use crate::Error;
use crate::names::meant;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// Keys and values under one heading.
#[derive(Debug, Clone)]
pub struct Section {
    place: String,
    values: Map<String, Value>,
    asked: Vec<String>,
}

impl Section {
    /// A whole file.
    ///
    /// # Errors
    /// If it cannot be read, is not YAML, or is not made of keys and values; the line is named.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?;
        Self::parse(path, &text)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// As [`Section::open`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let value: Value = serde_saphyr::from_str(text).map_err(|error| Error::data(path, "YAML", error.to_string()))?;
        match value {
            Value::Object(values) => Ok(Section { place: String::new(), values, asked: Vec::new() }),
            _ => Err(Error::data(path, "YAML", "there are no keys and values, such as `task: {name: recall}`")),
        }
    }

    /// Keys and values that were read already.
    pub fn new(place: impl Into<String>, values: Map<String, Value>) -> Self {
        Section { place: place.into(), values, asked: Vec::new() }
    }

    /// A key as it is written with the headings above it.
    pub fn name(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) }
    }

    /// Sets a value as `--set` writes it: `train.rate=0.001`. What is under the key is replaced.
    ///
    /// # Errors
    /// If the text is not of that form, the value is no YAML, or a heading on the way is a plain value.
    pub fn set(&mut self, text: &str) -> Result<(), Error> {
        let Some((key, value)) = text.split_once('=') else { return Err(Error::key(text, "is not of the form key=value")) };
        let value: Value = serde_saphyr::from_str(value).map_err(|error| Error::key(key, error.to_string()))?;
        let mut parts = key.split('.').peekable();
        let mut values = &mut self.values;
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                values.insert(part.to_owned(), value);
                return Ok(());
            }
            let below = values.entry(part).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(below) = below else { return Err(Error::key(key, format!("{part} is a value and has no keys under it"))) };
            values = below;
        }
        Ok(())
    }

    /// The value of a key, if it is there and not null.
    ///
    /// # Errors
    /// If it is of another kind.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Error> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|error| Error::key(self.name(key), error.to_string())),
        }
    }

    /// The value of a key, or a default.
    ///
    /// # Errors
    /// If it is of another kind.
    pub fn or<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T, Error> {
        Ok(self.take(key)?.unwrap_or(default))
    }

    /// The value of a key, which stays.
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The value of a key as it stands.
    pub fn value(&mut self, key: &str) -> Option<Value> {
        self.asked.push(key.to_owned());
        self.values.remove(key)
    }

    /// What stands under a heading; nothing where the heading is missing.
    ///
    /// # Errors
    /// If it is a plain value.
    pub fn section(&mut self, key: &str) -> Result<Section, Error> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(Section::new(self.name(key), Map::new())),
            Some(Value::Object(values)) => Ok(Section::new(self.name(key), values)),
            Some(other) => Err(Error::key(self.name(key), format!("found {other}, expected keys and values"))),
        }
    }

    /// The same keys with others over them, under another heading.
    ///
    /// # Errors
    /// If what lies over them is a plain value.
    pub fn over(&self, place: &str, over: Value) -> Result<Section, Error> {
        let Value::Object(over) = over else { return Err(Error::key(place, format!("found {over}, expected keys and values"))) };
        let mut values = self.values.clone();
        values.extend(over);
        Ok(Section::new(place, values))
    }

    /// Everything that was not asked for.
    pub fn rest(self) -> Map<String, Value> {
        self.values
    }

    /// Refuses what is left.
    ///
    /// # Errors
    /// A key that nobody asked for.
    pub fn done(self) -> Result<(), Error> {
        let Some(unknown) = self.values.keys().next() else { return Ok(()) };
        let meant = meant(unknown, self.asked.iter().map(String::as_str));
        Err(Error::key(self.name(unknown), format!("unknown key{meant}; there are {}", self.asked.join(", "))))
    }
}

/// A value as it is written in one line.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> Section {
        Section::parse(Path::new("run.yaml"), text).unwrap()
    }

    #[test]
    fn keys_that_nobody_asks_for_are_refused_with_the_nearest_one() {
        let mut train = section("train: {rate: 0.1, lable_smoothing: 0.2}").section("train").unwrap();
        assert_eq!(train.take::<f64>("rate").unwrap(), Some(0.1));
        assert_eq!(train.take::<f64>("label_smoothing").unwrap(), None);
        let message = train.done().unwrap_err().to_string();
        assert_eq!(message, "train.lable_smoothing: unknown key, did you mean \"label_smoothing\"?; there are rate, label_smoothing");
    }

    #[test]
    fn values_of_another_kind_are_refused_with_their_place() {
        let mut whole = section("train: {rate: fast}\nmodel: 3");
        let message = whole.section("train").unwrap().take::<f64>("rate").unwrap_err().to_string();
        assert_eq!(message, "train.rate: invalid type: string \"fast\", expected f64");
        let message = whole.section("model").unwrap_err().to_string();
        assert_eq!(message, "model: found 3, expected keys and values");
        assert!(Section::parse(Path::new("a.yaml"), "a: 1\na: 2").is_err(), "a repeated key");
        assert!(Section::parse(Path::new("a.yaml"), "- 1").is_err(), "a list");
    }

    #[test]
    fn a_setting_replaces_what_is_there() {
        let mut whole = section("train: {rate: 0.1}");
        whole.set("train.rate=0.5").unwrap();
        whole.set("model.width=64").unwrap();
        assert_eq!(whole.section("train").unwrap().take::<f64>("rate").unwrap(), Some(0.5));
        assert_eq!(whole.section("model").unwrap().take::<usize>("width").unwrap(), Some(64));
        assert_eq!(whole.set("rate").unwrap_err().to_string(), "rate: is not of the form key=value");
    }
}
