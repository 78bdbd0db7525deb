//! How much of what a text says is left when it is compressed: what a classifier still says of it, how near its vector is, which facts it still holds.

mod facts;
mod retention;

pub use facts::{Fact, Planted, planted};
pub use retention::{accuracies, cosines, facts_kept};

use crate::read::Reader;
use crate::{Compressor, Error, Frequencies, Method, Options};
use std::sync::Arc;

/// A way to compress, under a name.
#[derive(Clone)]
pub struct Contender {
    /// For tables.
    pub name: String,
    /// What words are worth.
    pub method: Method,
    /// Whose tokens are counted, and who reads where the method does.
    pub reader: Arc<dyn Reader>,
    /// For [`Method::TfIdf`].
    pub frequencies: Frequencies,
}

impl Contender {
    /// Ready to compress, perhaps with a question in mind.
    ///
    /// # Errors
    /// If the method does not fit the model or takes no question.
    pub fn compressor(&self, question: Option<&str>) -> Result<Compressor, Error> {
        let options = Options { method: Some(self.method), question: question.map(str::to_owned), ..Options::default() };
        Ok(Compressor::new(Arc::clone(&self.reader), options)?.with_frequencies(self.frequencies.clone()))
    }

    /// Whether what it keeps may depend on a question.
    pub fn takes_questions(&self) -> bool {
        matches!(self.method, Method::Attention | Method::Embedding) && !self.reader.is_causal()
    }
}

/// A mean over texts, facts or reviews.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// One number for each.
    pub values: Vec<f32>,
    /// The share of the tokens that stayed.
    pub ratio: f64,
}

impl Measured {
    /// The mean and its standard error.
    pub fn mean(&self) -> (f64, f64) {
        let count = self.values.len().max(1) as f64;
        let mean = self.values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let squares: f64 = self.values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
        (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
    }
}

/// What is left of texts at a share, and the share of the tokens that stayed.
type Shorter = (Vec<String>, f64);

/// Compresses texts to each of some shares; each text is read once.
fn compressed(compressor: &mut Compressor, texts: &[String], shares: &[f64]) -> Result<Vec<Shorter>, Error> {
    let mut all = vec![(Vec::new(), 0, 0); shares.len()];
    for text in texts {
        compressor.begin(0);
        let mut passage = compressor.passage(text)?;
        for ((left, tokens, kept), &share) in all.iter_mut().zip(shares) {
            compressor.choose_again(&mut passage, share);
            left.push(passage.compressed());
            *tokens += passage.tokens();
            *kept += passage.tokens_kept();
        }
    }
    Ok(all.into_iter().map(|(left, tokens, kept)| (left, kept as f64 / tokens.max(1) as f64)).collect())
}
