//! The three measures.

use super::{Contender, Fact, Measured, Planted, compressed};
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

/// Whether a classifier is right on each of the first texts of its test split after they are compressed to each share.
///
/// # Errors
/// If the task is not one of texts, or the model does not fit it.
pub fn accuracies(
    (model, task, device): (&Model, &dyn Task, &Device),
    texts: &[String],
    (contender, shares): (&Contender, &[f64]),
) -> Result<Vec<Measured>, Error> {
    let count = texts.len() as u64;
    let facts = Facts { sizes: [Some(1), Some(1), Some(count)], ..task.facts().clone() };
    let judged = |(texts, ratio)| {
        let retold = Retold { task, facts: facts.clone(), texts };
        let found = evaluate(model, &retold, Scope { split: Split::Test, examples: count, batch: 16 }, device)?;
        Ok(Measured { values: found.scores, ratio })
    };
    compressed(&mut contender.compressor(None)?, texts, shares)?.into_iter().map(judged).collect()
}

/// The cosine between the vectors of each text and of what is left of it, for each share.
///
/// # Errors
/// If the encoder refuses a text.
pub fn cosines(encoder: &TextEncoder, texts: &[String], (contender, shares): (&Contender, &[f64])) -> Result<Vec<Measured>, Error> {
    let whole = vectors(encoder, texts)?;
    let width = encoder.encoder.width();
    let dot = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| a * b).sum();
    let near = |(shorter, ratio): (Vec<String>, f64)| {
        let left = vectors(encoder, &shorter)?;
        Ok(Measured { values: whole.chunks_exact(width).zip(left.chunks_exact(width)).map(dot).collect(), ratio })
    };
    compressed(&mut contender.compressor(None)?, texts, shares)?.into_iter().map(near).collect()
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

/// Whether each answer of planted facts still stands in the text, word for word, for each share. With `asked` each text is compressed for one
/// fact's question at a time.
///
/// # Errors
/// If the method takes no question.
pub fn facts_kept(texts: &[Planted], (contender, shares): (&Contender, &[f64]), asked: bool) -> Result<Vec<Measured>, Error> {
    let mut all = vec![Measured { values: Vec::new(), ratio: 0.0 }; shares.len()];
    let mut take = |planted: &Planted, facts: &[Fact], question: Option<&str>| -> Result<(), Error> {
        let told = std::slice::from_ref(&planted.text);
        for (measured, (left, ratio)) in all.iter_mut().zip(compressed(&mut contender.compressor(question)?, told, shares)?) {
            measured.values.extend(facts.iter().map(|fact| f32::from(holds(&left[0], &fact.answer))));
            measured.ratio += ratio * facts.len() as f64;
        }
        Ok(())
    };
    for planted in texts {
        if asked {
            planted.facts.iter().try_for_each(|fact| take(planted, std::slice::from_ref(fact), Some(&fact.question)))?;
        } else {
            take(planted, &planted.facts, None)?;
        }
    }
    all.iter_mut().for_each(|measured| measured.ratio /= measured.values.len().max(1) as f64);
    Ok(all)
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
