//! A value of a record and where it stands, so that whoever refuses it can say so.
//!
//! `results[3].median_s` is a path as JavaScript and jq write it. A key that is missing and one that is `null` mean the
//! same: unknown. Keys that nobody asks for are left alone.

use super::Refusal;
use serde_json::{Map, Value};

/// A value, the file it came from and the path to it.
#[derive(Clone)]
pub struct Place<'a> {
    file: &'a str,
    path: String,
    value: &'a Value,
}

impl<'a> Place<'a> {
    /// The whole record.
    pub fn whole(file: &'a str, value: &'a Value) -> Self {
        Place { file, path: String::new(), value }
    }

    /// This value is not what was expected here.
    pub fn refuse(&self, expected: &str) -> Refusal {
        let path = if self.path.is_empty() { "the record" } else { &self.path };
        Refusal::Value { file: self.file.to_owned(), path: path.to_owned(), found: shown(self.value), expected: expected.to_owned() }
    }

    /// The value under a key of an object.
    pub fn at(&self, key: &str) -> Result<Place<'a>, Refusal> {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Ok(Place { file: self.file, path, value: self.object()?.get(key).unwrap_or(&Value::Null) })
    }

    /// The value, if it is known.
    pub fn known(self) -> Option<Self> {
        (!self.value.is_null()).then_some(self)
    }

    /// What `read` makes of the value under a key, if that is known.
    pub fn maybe<T>(&self, key: &str, read: impl FnOnce(&Place<'a>) -> Result<T, Refusal>) -> Result<Option<T>, Refusal> {
        self.at(key)?.known().map(|place| read(&place)).transpose()
    }

    /// What `read` makes of every element of the list under a key.
    pub fn list<T>(&self, key: &str, read: impl Fn(&Place<'a>) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
        let list = self.at(key)?;
        let Value::Array(values) = list.value else { return Err(list.refuse("a list")) };
        let place = |(i, value)| Place { file: self.file, path: format!("{}[{i}]", list.path), value };
        values.iter().enumerate().map(|each| read(&place(each))).collect()
    }

    /// The same for a list that may be unknown, which makes it empty.
    pub fn list_if_known<T>(&self, key: &str, read: impl Fn(&Place<'a>) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
        if self.at(key)?.value.is_null() { Ok(Vec::new()) } else { self.list(key, read) }
    }

    /// Keys and values.
    pub fn object(&self) -> Result<&'a Map<String, Value>, Refusal> {
        self.value.as_object().ok_or_else(|| self.refuse("an object"))
    }

    /// Text.
    pub fn text(&self) -> Result<String, Refusal> {
        self.value.as_str().map(str::to_owned).ok_or_else(|| self.refuse("text"))
    }

    /// True or false.
    pub fn truth(&self) -> Result<bool, Refusal> {
        self.value.as_bool().ok_or_else(|| self.refuse("true or false"))
    }

    /// An integer of at least 0.
    pub fn count(&self) -> Result<u64, Refusal> {
        self.value.as_u64().ok_or_else(|| self.refuse("an integer of at least 0"))
    }

    /// An integer of at least 1.
    pub fn positive_count(&self) -> Result<u64, Refusal> {
        self.value.as_u64().filter(|&count| count > 0).ok_or_else(|| self.refuse("an integer of at least 1"))
    }

    /// Any number.
    pub fn number(&self) -> Result<f64, Refusal> {
        self.value.as_f64().ok_or_else(|| self.refuse("a number"))
    }

    /// A number of at least 0.
    pub fn amount(&self) -> Result<f64, Refusal> {
        self.value.as_f64().filter(|&amount| amount >= 0.0).ok_or_else(|| self.refuse("a number of at least 0"))
    }

    /// A number from 0 to 1.
    pub fn share(&self) -> Result<f64, Refusal> {
        let within = |share: &f64| (0.0..=1.0).contains(share);
        self.value.as_f64().filter(within).ok_or_else(|| self.refuse("a number from 0 to 1"))
    }
}

/// A value as a message shows it: short, and on one line.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(keys) => format!("an object with {} keys", keys.len()),
        other => {
            let text = other.to_string();
            let short: String = text.chars().take(LONGEST).collect();
            if short.len() < text.len() { short + "…" } else { text }
        }
    }
}
