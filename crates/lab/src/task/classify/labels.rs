//! Which class a label is: as a configuration says, or every different label of the train file one.

use super::Others;
use super::table::quoted;
use crate::names::meant;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::HashMap;

/// More different labels than this are no labels.
const MOST: usize = 10_000;

/// Classes in their order, with the labels of each: `{negative: [1, 2], positive: [4, 5]}`, or `{negative: 0, positive: 1}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(pub Vec<(String, Vec<String>)>);

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, labels)| (name, labels)))
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Map::deserialize(deserializer)?;
        let class = |(name, labels): (String, Value)| match labels {
            Value::Array(labels) => Some((name, labels.iter().map(plain).collect::<Option<_>>()?)),
            label => Some((name, vec![plain(&label)?])),
        };
        let classes = written.into_iter().map(class).collect::<Option<_>>();
        classes
            .map(Labels)
            .ok_or_else(|| serde::de::Error::custom("labels are texts, numbers or lists of them, such as {negative: [1, 2]}"))
    }
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Classes and their labels while files are read.
#[derive(Debug)]
pub struct Classes {
    names: Vec<String>,
    of: HashMap<String, u32>,
    /// Whether a label that is not known makes a new class.
    growing: bool,
    others: Others,
}

impl Classes {
    pub fn new(labels: Option<&Labels>, others: Others) -> Result<Self, String> {
        let mut classes = Classes { names: Vec::new(), of: HashMap::new(), growing: labels.is_none(), others };
        for (class, (name, labels)) in labels.iter().flat_map(|labels| &labels.0).enumerate() {
            classes.names.push(name.clone());
            for label in labels {
                if classes.of.insert(label.clone(), class as u32).is_some() {
                    return Err(format!("names {} twice", quoted(label)));
                }
            }
        }
        match classes.names.len() {
            1 => Err("has one class; it needs two".into()),
            _ => Ok(classes),
        }
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The class of a label, none for one that is left out.
    pub fn find(&mut self, label: &str) -> Result<Option<u32>, String> {
        let label = label.trim();
        if let Some(class) = self.of.get(label) {
            return Ok(Some(*class));
        }
        match (self.growing, self.others) {
            _ if label.is_empty() => Err("the label is empty".into()),
            (true, _) if self.names.len() == MOST => Err(format!("more than {MOST} different labels; is this the column of labels?")),
            (true, _) => {
                self.of.insert(label.into(), self.names.len() as u32);
                self.names.push(label.into());
                Ok(Some(self.names.len() as u32 - 1))
            }
            (false, Others::LeaveOut) => Ok(None),
            (false, Others::Refuse) => {
                let mut known: Vec<&str> = self.of.keys().map(String::as_str).collect();
                known.sort_by(|a, b| order(a, b));
                let all = known.iter().take(20).copied().collect::<Vec<_>>().join(", ");
                let nearest = meant(label, known.iter().copied());
                Err(format!(
                    "unknown label {}{nearest}; there are {all}; others: leave_out passes over rows with other labels",
                    quoted(label)
                ))
            }
        }
    }

    /// The class of a label of a row that was read before.
    pub fn known(&self, label: &str) -> Option<u32> {
        self.of.get(label.trim()).copied()
    }

    /// Ends the finding of labels: classes get the order of their names, whole numbers by value. Gives each one's former number.
    pub fn settle(&mut self) -> Vec<usize> {
        let mut former: Vec<usize> = (0..self.names.len()).collect();
        if std::mem::replace(&mut self.growing, false) {
            former.sort_by(|a, b| order(&self.names[*a], &self.names[*b]));
            self.names = former.iter().map(|class| self.names[*class].clone()).collect();
            self.of = self.names.iter().enumerate().map(|(class, name)| (name.clone(), class as u32)).collect();
        }
        former
    }
}

fn order(a: &str, b: &str) -> Ordering {
    match (a.parse::<i64>(), b.parse::<i64>()) {
        (Ok(x), Ok(y)) => x.cmp(&y).then_with(|| a.cmp(b)),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        _ => a.cmp(b),
    }
}
