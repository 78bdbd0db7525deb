//! How a model is trained, as a configuration says.

use crate::Error;
use crate::section::Section;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// Everything about training that is not the model or the task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// Examples of a step.
    pub batch: usize,
    /// Parts that a step's examples are computed in, one behind the other: less memory, the same step.
    pub accumulate: usize,
    /// Copies of the model that the parts of a step are computed on side by side, each on a share of the threads.
    #[serde(skip_serializing_if = "is_one")]
    pub replicas: usize,
    /// Steps at most.
    pub steps: u64,
    /// Seconds of training at most.
    pub seconds: Option<f64>,
    /// Validation quality at which training ends.
    pub stop_at: Option<f64>,
    /// Evaluations without a better one after which training ends; the best parameters are kept then.
    pub patience: Option<u64>,
    /// Learning rate at its highest.
    pub rate: f64,
    /// Steps in which the rate grows from 0.
    pub warm_up: u64,
    /// How the rate falls afterwards.
    pub decay: Decay,
    /// Of the rate, what is left in the end.
    pub final_share: f64,
    /// AdamW's decay of matrices; biases and norms are not decayed.
    pub weight_decay: f32,
    /// AdamW's β₁.
    pub beta_1: f32,
    /// AdamW's β₂.
    pub beta_2: f32,
    /// AdamW's ε.
    pub epsilon: f32,
    /// The longest that the gradient of all parameters together may be.
    pub clip: Option<f32>,
    /// Label smoothing, in `[0, 1)`.
    pub label_smoothing: f32,
    /// Steps between evaluations.
    pub evaluate_every: u64,
    /// Examples of an evaluation during training at most.
    pub evaluate_examples: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between lines of metrics.
    pub log_every: u64,
    /// Of parameters, order, dropout, sampling.
    pub seed: u64,
    /// Learning from another model's answers beside the right ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distil: Option<Distil>,
    /// Where parameters start that another run has too; a comparison sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

/// What joins the loss: `weight · T² · KL(teacher || student)` at temperature T (Hinton, Vinyals, Dean 2015).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distil {
    /// Of the divergence; that of the right answers is 1.
    pub weight: f32,
    /// T.
    pub temperature: f32,
    /// The folder of the teacher's run; in a comparison the teacher is the run of exact attention with the same seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

/// Where parameters start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// As exact attention was trained with the same seed.
    Exact,
}

/// How the rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine (Loshchilov, Hutter 2017).
    Cosine,
    /// A straight line.
    Linear,
    /// Not at all.
    Constant,
}

impl Training {
    /// Reads what stands under `train`.
    ///
    /// # Errors
    /// An unknown key, or a value that is out of its range.
    pub fn read(mut section: Section) -> Result<Self, Error> {
        let evaluate_every = section.or("evaluate_every", 250)?;
        let training = Training {
            batch: section.or("batch", 32)?,
            accumulate: section.or("accumulate", 1)?,
            replicas: section.or("replicas", 1)?,
            steps: section.or("steps", 1000)?,
            seconds: section.take("seconds")?,
            stop_at: section.take("stop_at")?,
            patience: section.take("patience")?,
            rate: section.or("rate", 1e-3)?,
            warm_up: section.or("warm_up", 100)?,
            decay: section.or("decay", Decay::Cosine)?,
            final_share: section.or("final_share", 0.1)?,
            weight_decay: section.or("weight_decay", 0.1)?,
            beta_1: section.or("beta_1", 0.9)?,
            beta_2: section.or("beta_2", 0.99)?,
            epsilon: section.or("epsilon", 1e-8)?,
            clip: section.take("clip")?,
            label_smoothing: section.or("label_smoothing", 0.0)?,
            evaluate_every,
            evaluate_examples: section.or("evaluate_examples", 512)?,
            checkpoint_every: section.or("checkpoint_every", evaluate_every)?,
            log_every: section.or("log_every", 10)?,
            seed: section.or("seed", 0)?,
            distil: Distil::read(&mut section)?,
            start: None,
        };
        training.check(&section)?;
        section.done()?;
        Ok(training)
    }

    fn check(&self, section: &Section) -> Result<(), Error> {
        let refuse = |key: &str, message: String| Err(Error::key(section.name(key), message));
        let counts = [
            ("batch", self.batch as u64),
            ("accumulate", self.accumulate as u64),
            ("replicas", self.replicas as u64),
            ("evaluate_every", self.evaluate_every),
            ("evaluate_examples", self.evaluate_examples),
            ("checkpoint_every", self.checkpoint_every),
            ("log_every", self.log_every),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return refuse(key, "0 is too few; write at least 1".into());
        }
        let parts = self.accumulate.saturating_mul(self.replicas);
        if parts > self.batch {
            let key = if self.replicas > self.accumulate { "replicas" } else { "accumulate" };
            return refuse(key, format!("{parts} parts of {} examples", self.batch));
        }
        if !self.rate.is_finite() || self.rate <= 0.0 {
            return refuse("rate", format!("{} is not above 0", self.rate));
        }
        let shares = [("final_share", self.final_share), ("beta_1", self.beta_1.into()), ("beta_2", self.beta_2.into())];
        if let Some((key, share)) = shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return refuse(key, format!("{share} is outside [0, 1]"));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return refuse("label_smoothing", format!("{} is outside [0, 1)", self.label_smoothing));
        }
        let above = [("clip", self.clip.map(f64::from)), ("seconds", self.seconds), ("epsilon", Some(self.epsilon.into()))];
        match above.into_iter().find(|(_, value)| value.is_some_and(|value| value.is_nan() || value <= 0.0)) {
            Some((key, value)) => refuse(key, format!("{} is not above 0", value.unwrap_or_default())),
            None => Ok(()),
        }
    }

    /// The rate of a step, counted from 0; `done` is the share of the whole budget that is behind it.
    pub fn rate_at(&self, step: u64, done: f64) -> f64 {
        if step < self.warm_up {
            return self.rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let fallen = match self.decay {
            Decay::Constant => 0.0,
            Decay::Linear => done.clamp(0.0, 1.0),
            Decay::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * done.clamp(0.0, 1.0)).cos()),
        };
        self.rate * (1.0 - fallen * (1.0 - self.final_share))
    }

    /// The share of the steps after warm-up that is behind a step.
    pub fn done(&self, step: u64) -> f64 {
        let after = self.steps.saturating_sub(self.warm_up).max(1);
        step.saturating_sub(self.warm_up) as f64 / after as f64
    }
}

impl Distil {
    fn read(section: &mut Section) -> Result<Option<Self>, Error> {
        let mut section = match section.take::<Value>("distil")? {
            None => return Ok(None),
            Some(Value::Object(values)) => Section::new(section.name("distil"), values),
            Some(other) => return Err(Error::key(section.name("distil"), format!("found {other}, expected keys and values"))),
        };
        let distil =
            Distil { weight: section.or("weight", 0.5)?, temperature: section.or("temperature", 2.0)?, from: section.take("from")? };
        let above = [("weight", distil.weight), ("temperature", distil.temperature)];
        if let Some((key, value)) = above.into_iter().find(|(_, value)| value.is_nan() || *value <= 0.0) {
            return Err(Error::key(section.name(key), format!("{value} is not above 0")));
        }
        section.done()?;
        Ok(Some(distil))
    }
}

/// Whether a number is what it is by default.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_one(number: &usize) -> bool {
    *number == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<Training, Error> {
        let serde_json::Value::Object(values) = value else { unreachable!() };
        Training::read(Section::new("train", values))
    }

    #[test]
    fn the_rate_grows_and_falls() {
        let training = read(json!({"rate": 1.0, "warm_up": 10, "steps": 110, "final_share": 0.1})).unwrap();
        let rate = |step| training.rate_at(step, training.done(step));
        assert_eq!((rate(0), rate(9), rate(10)), (0.1, 1.0, 1.0));
        assert!((rate(60) - 0.55).abs() < 1e-12 && (rate(110) - 0.1).abs() < 1e-12, "{} {}", rate(60), rate(110));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let message = |value| read(value).unwrap_err().to_string();
        assert_eq!(message(json!({"batch": 0})), "train.batch: 0 is too few; write at least 1");
        assert_eq!(message(json!({"rate": -1.0})), "train.rate: -1 is not above 0");
        assert_eq!(message(json!({"batch": 2, "accumulate": 3})), "train.accumulate: 3 parts of 2 examples");
        assert_eq!(message(json!({"batch": 3, "replicas": 2, "accumulate": 2})), "train.accumulate: 4 parts of 3 examples");
        assert_eq!(message(json!({"replicas": 0})), "train.replicas: 0 is too few; write at least 1");
        assert!(message(json!({"lr": 1.0})).starts_with("train.lr: unknown key, did you mean"));
        assert_eq!(message(json!({"clip": 0})), "train.clip: 0 is not above 0");
        assert_eq!(message(json!({"distil": {"temperature": 0}})), "train.distil.temperature: 0 is not above 0");
        assert_eq!(message(json!({"distil": 3})), "train.distil: found 3, expected keys and values");
    }
}
