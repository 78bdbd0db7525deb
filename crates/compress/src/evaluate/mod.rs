//! How much of what a text says is left when it is compressed: what a classifier still says of it, how near its vector is, which facts it still holds.

mod facts;
mod retention;

pub use facts::{Fact, Planted, planted};
pub use retention::{accuracies, cosines, facts_kept};

use crate::read::Reader;
use crate::{Amount, Compressor, Error, Frequencies, Method, Options};
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
    /// Ready to compress to a share of the tokens, perhaps with a question in mind.
    ///
    /// # Errors
    /// If the share is outside (0, 1], or the method takes no question.
    pub fn compressor(&self, keep: f64, question: Option<&str>) -> Result<Compressor, Error> {
        let options =
            Options { amount: Amount::Keep(keep), method: Some(self.method), question: question.map(str::to_owned), ..Options::default() };
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

/// Compresses texts, and says what share of the tokens stayed.
fn compressed(compressor: &mut Compressor, texts: &[String]) -> Result<(Vec<String>, f64), Error> {
    let (mut all, mut tokens, mut kept) = (Vec::new(), 0, 0);
    for text in texts {
        compressor.begin(0);
        let passage = compressor.passage(text)?;
        tokens += passage.tokens();
        kept += passage.tokens_kept();
        all.push(passage.compressed());
    }
    Ok((all, kept as f64 / tokens.max(1) as f64))
}
