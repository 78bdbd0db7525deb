//! The three measures.

use super::{Contender, Measured, Planted, compressed};
use crate::Error;
use burn::tensor::Device;
use regard_lab::model::Model;
use regard_lab::task::{Example, Facts, Split, Task};
use regard_lab::train::{Scope, evaluate};
use regard_models::{Pooling, TextEncoder, batches};

/// A task whose test texts are others.
struct Retold<'a> {
    task: &'a dyn Task,
    facts: Facts,
    texts: Vec<String>,
}

impl Task for Retold<'_> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn example(&self, split: Split, index: u64) -> Result<Example, regard_lab::Error> {
        match self.task.retold(split, index, &self.texts[index as usize])? {
            Some(example) => Ok(example),
            None => self.task.example(split, index),
        }
    }
}

/// Whether a classifier is right on each of the first texts of its test split after they are compressed.
///
/// # Errors
/// If the task is not one of texts, or the model does not fit it.
pub fn accuracies(
    (model, task, device): (&Model, &dyn Task, &Device),
    texts: &[String],
    way: (&Contender, f64),
) -> Result<Measured, Error> {
    let (contender, keep) = way;
    let (texts, ratio) = compressed(&mut contender.compressor(keep, None)?, texts)?;
    let count = texts.len() as u64;
    let facts = Facts { sizes: [Some(1), Some(1), Some(count)], ..task.facts().clone() };
    let retold = Retold { task, facts, texts };
    let found = evaluate(model, &retold, Scope { split: Split::Test, examples: count, batch: 16 }, device)?;
    Ok(Measured { values: found.scores, ratio })
}

/// The cosine between the vectors of each text and of what is left of it.
///
/// # Errors
/// If the encoder refuses a text.
pub fn cosines(encoder: &TextEncoder, texts: &[String], way: (&Contender, f64)) -> Result<Measured, Error> {
    let (contender, keep) = way;
    let (shorter, ratio) = compressed(&mut contender.compressor(keep, None)?, texts)?;
    let (whole, left) = (vectors(encoder, texts)?, vectors(encoder, &shorter)?);
    let width = encoder.encoder.width();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    let values = whole.chunks_exact(width).zip(left.chunks_exact(width)).map(|(a, b)| dot(a, b)).collect();
    Ok(Measured { values, ratio })
}

/// Vectors of length 1.
fn vectors(encoder: &TextEncoder, texts: &[String]) -> Result<Vec<f32>, Error> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let tokens = encoder.tokenizer.encode(&texts)?;
    let mut all = Vec::new();
    for batch in batches(&tokens, 2048) {
        all.extend(encoder.vectors(&tokens[batch], Pooling::Mean, true)?);
    }
    Ok(all)
}

/// Whether each answer of planted facts still stands in the text, word for word. With `asked` each text is compressed for one fact's question at a time.
///
/// # Errors
/// If the method takes no question.
pub fn facts_kept(texts: &[Planted], way: (&Contender, f64), asked: bool) -> Result<Measured, Error> {
    let (contender, keep) = way;
    let (mut values, mut ratio) = (Vec::new(), 0.0);
    for planted in texts {
        let told = std::slice::from_ref(&planted.text);
        let mut all = None;
        for fact in &planted.facts {
            let (left, share) = match (&all, asked) {
                (Some(found), false) => Clone::clone(found),
                _ => compressed(&mut contender.compressor(keep, asked.then_some(&fact.question[..]))?, told)?,
            };
            values.push(f32::from(holds(&left[0], &fact.answer)));
            ratio += share;
            all = Some((left, share));
        }
    }
    let count = values.len().max(1) as f64;
    Ok(Measured { values, ratio: ratio / count })
}

/// Whether a text has an answer, whatever the white space.
fn holds(text: &str, answer: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    plain(text).contains(&plain(answer))
}

#[cfg(test)]
mod tests {
    use super::holds;

    #[test]
    fn an_answer_is_held_word_for_word() {
        assert!(holds("by Ada\nGrant of Leeds", "Ada Grant"));
        assert!(!holds("by Ada of Grant", "Ada Grant"));
    }
}
