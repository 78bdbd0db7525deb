//! What a model is worth: loss and the task's metric over a split, example by example, so that two models can be compared in pairs.

use crate::Error;
use crate::batch::{Asked, Batch};
use crate::model::Model;
use crate::task::{Metric, Split, Task};
use burn::tensor::Device;
use regard::Pass;
use std::time::{Duration, Instant};

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean loss over answers, in nats or squared units.
    pub loss: f64,
    /// The task's metric.
    pub quality: f64,
    /// The metric of every example, in order; what is better for the task has the sign of the metric.
    pub scores: Vec<f32>,
    /// Share of the tokens that left each layer.
    pub kept: Vec<f64>,
    /// Tokens shown.
    pub tokens: u64,
    /// Time in the model.
    pub elapsed: Duration,
}

/// How an evaluation goes through a split.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Which split.
    pub split: Split,
    /// Examples at most.
    pub examples: u64,
    /// Examples that are computed together.
    pub batch: usize,
}

/// Sums over batches.
#[derive(Default)]
struct Sums {
    loss: f64,
    quality: f64,
    answers: f64,
    scores: Vec<f32>,
    left: Vec<u64>,
    tokens: u64,
    elapsed: Duration,
}

/// Evaluates a model that is not being trained, on the device of its parameters.
///
/// # Errors
/// If the task cannot give an example, or the model does not fit it.
pub fn evaluate(model: &Model, task: &dyn Task, scope: Scope, device: &Device) -> Result<Evaluation, Error> {
    let at = match scope.split {
        Split::Train => 0,
        Split::Validation => 1,
        Split::Test => 2,
    };
    let count = task.facts().sizes[at].unwrap_or(u64::MAX).min(scope.examples);
    let mut sums = Sums::default();
    for first in (0..count).step_by(scope.batch) {
        let indices = first..count.min(first + scope.batch as u64);
        let examples = indices.map(|index| task.example(scope.split, index)).collect::<Result<Vec<_>, _>>()?;
        let batch = Batch::pack(examples, task.facts());
        let start = Instant::now();
        let answers = model.answers(&batch, Pass::default(), device)?;
        let [_, width] = answers.said.dims();
        let left: Vec<usize> = answers.flow.left.clone();
        let said: Vec<f32> = answers.said.into_data().iter::<f32>().collect();
        sums.elapsed += start.elapsed();
        sums.add(&batch, &said, width, task.facts().metric);
        sums.left(&left, batch.tokens());
    }
    Ok(sums.evaluation())
}

impl Sums {
    fn left(&mut self, left: &[usize], tokens: usize) {
        self.tokens += tokens as u64;
        self.left.resize(left.len(), 0);
        self.left.iter_mut().zip(left).for_each(|(sum, &left)| *sum += left as u64);
    }

    fn add(&mut self, batch: &Batch, said: &[f32], width: usize, metric: Metric) {
        let judged: Vec<(f64, f64)> = match &batch.asked {
            Asked::Classes(labels) | Asked::Tokens { labels, .. } => {
                let rows = said.chunks_exact(width).zip(labels);
                rows.map(|(row, &label)| judge(row, label as usize, metric)).collect()
            }
            Asked::Values { values, .. } => {
                let rows = said.chunks_exact(width).zip(values.chunks_exact(width));
                rows.map(|(row, wanted)| squared(row, wanted)).map(|error| (error, error)).collect()
            }
        };
        for (loss, quality) in &judged {
            self.loss += loss;
            self.quality += quality;
        }
        self.answers += judged.len() as f64;
        let mean = |answers: &[(f64, f64)]| (answers.iter().map(|answer| answer.1).sum::<f64>() / answers.len() as f64) as f32;
        match &batch.asked {
            Asked::Classes(_) => self.scores.extend(judged.iter().map(|answer| answer.1 as f32)),
            Asked::Tokens { rows, .. } | Asked::Values { rows, .. } => {
                let mut from = (0, 0);
                for length in &batch.lengths {
                    let end = from.0 + length;
                    let until = from.1 + rows[from.1..].partition_point(|&row| row < end);
                    self.scores.push(mean(&judged[from.1..until]));
                    from = (end, until);
                }
            }
        }
    }

    fn evaluation(self) -> Evaluation {
        let tokens = self.tokens.max(1) as f64;
        Evaluation {
            loss: self.loss / self.answers,
            quality: self.quality / self.answers,
            scores: self.scores,
            kept: self.left.iter().map(|&left| left as f64 / tokens).collect(),
            tokens: self.tokens,
            elapsed: self.elapsed,
        }
    }
}

/// Loss and metric of one answer.
fn judge(logits: &[f32], label: usize, metric: Metric) -> (f64, f64) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    let loss = sum.ln() - f64::from(logits[label] - most);
    let quality = match metric {
        // The first of equal logits counts as the answer, and one that is not a number is wrong.
        Metric::Accuracy => f64::from(u8::from(logits.iter().position(|&x| x == most) == Some(label))),
        Metric::BitsPerByte => loss / std::f64::consts::LN_2,
        Metric::Loss | Metric::SquaredError => loss,
    };
    (loss, quality)
}

fn squared(row: &[f32], wanted: &[f32]) -> f64 {
    row.iter().zip(wanted).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>() / row.len() as f64
}

impl Metric {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::Loss => "loss",
            Metric::BitsPerByte => "bits per byte",
            Metric::SquaredError => "mean squared error",
        }
    }

    /// Whether more of it is better.
    pub fn higher_is_better(self) -> bool {
        self == Metric::Accuracy
    }

    /// Whether one quality beats another.
    pub fn beats(self, one: f64, other: f64) -> bool {
        if self.higher_is_better() { one > other } else { one < other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_its_definition() {
        let (loss, right) = judge(&[0.0, 2.0, 1.0], 1, Metric::Accuracy);
        let expected = (1.0 + 2f64.exp() + 1f64.exp()).ln() - 2.0;
        assert!((loss - expected).abs() < 1e-12 && right == 1.0);
        assert_eq!(judge(&[1.0, 1.0], 1, Metric::Accuracy).1, 0.0);
        assert_eq!(judge(&[f32::NAN, f32::NAN], 1, Metric::Accuracy).1, 0.0);
        assert!((judge(&[0.0, 0.0], 1, Metric::BitsPerByte).1 - 1.0).abs() < 1e-12);
    }
}
