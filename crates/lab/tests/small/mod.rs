//! Small tasks that are learned in seconds.

#![allow(dead_code, reason = "each test file uses its own part")]

use regard_lab::Error;
use regard_lab::draw::Stream;
use regard_lab::model::{Mixing, ModelConfig};
use regard_lab::section::Section;
use regard_lab::task::{Example, Facts, Input, Inputs, Metric, Split, Target, Targets, Task};
use regard_lab::train::{Run, Training};
use serde_json::{Value, json};

fn facts(name: &'static str, targets: Targets, metric: Metric) -> Facts {
    Facts {
        name,
        inputs: Inputs::Tokens { vocabulary: 16 },
        targets,
        metric,
        causal: matches!(targets, Targets::Tokens(_)),
        longest: 24,
        sizes: [Some(256), Some(64), Some(64)],
        balance: Vec::new(),
        floor: None,
        fingerprint: name.into(),
    }
}

fn stream(split: Split, index: u64) -> Stream {
    let split = match split {
        Split::Train => 0,
        Split::Validation => 1,
        Split::Test => 2,
    };
    Stream::of(&[split, index])
}

/// Every token is to be answered by the one before it.
pub struct Echo(Facts);

impl Echo {
    pub fn new() -> Self {
        Echo(facts("echo", Targets::Tokens(16), Metric::Accuracy))
    }
}

impl Task for Echo {
    fn facts(&self) -> &Facts {
        &self.0
    }

    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let stream = stream(split, index);
        let length = 8 + stream.bits(1000) % 17;
        let tokens: Vec<u32> = (0..length).map(|at| (stream.bits(at) % 16) as u32).collect();
        let labels = (0..tokens.len()).map(|at| (at > 0 && at % 2 == 0).then(|| tokens[at - 1])).collect();
        Ok(Example { input: Input::Tokens(tokens), target: Target::Tokens(labels) })
    }
}

/// Whether token 3 occurs.
pub struct Occurs(Facts);

impl Occurs {
    pub fn new() -> Self {
        Occurs(facts("occurs", Targets::Classes(2), Metric::Accuracy))
    }
}

impl Task for Occurs {
    fn facts(&self) -> &Facts {
        &self.0
    }

    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let stream = stream(split, index);
        let length = 8 + stream.bits(1000) % 17;
        let mut tokens: Vec<u32> = (0..length).map(|at| 4 + (stream.bits(at) % 12) as u32).collect();
        let class = (stream.bits(2000) % 2) as u32;
        if class == 1 {
            let place = stream.bits(3000) as usize % tokens.len();
            tokens[place] = 3;
        }
        Ok(Example { input: Input::Tokens(tokens), target: Target::Class(class) })
    }
}

fn section(name: &str, value: Value) -> Section {
    let Value::Object(values) = value else { panic!("{name} needs keys and values") };
    Section::new(name, values)
}

/// A run of a small model.
pub fn run(mixing: Value, train: Value) -> Run {
    Run {
        model: ModelConfig::read(section("model", json!({"width": 32, "layers": 2, "heads": 2}))).unwrap(),
        mixing: Mixing::read("attention", &mixing).unwrap(),
        training: Training::read(section("train", train)).unwrap(),
    }
}
