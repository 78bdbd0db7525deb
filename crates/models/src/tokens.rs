//! Texts to token ids, by a `tokenizer.json`. Its own truncation and padding are ignored: the limit is the model's.

use crate::Error;
use std::ops::Range;
use std::path::Path;
use tokenizers::tokenizer::{Tokenizer as Inner, TruncationParams};

/// A text as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Ids, special tokens included.
    pub ids: Vec<u32>,
    /// Whether the text had more tokens than the model has positions.
    pub truncated: bool,
}

/// What makes tokens of texts.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
    limit: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` for a model with `vocabulary` ids and `limit` positions.
    ///
    /// # Errors
    /// If the file is damaged, has an id that the model does not have, or adds more special tokens than there are positions.
    pub fn open(path: &Path, vocabulary: usize, limit: usize) -> Result<Self, Error> {
        let mut inner = Inner::from_file(path).map_err(|error| Error::file(path, format!("not a tokenizer: {error}")))?;
        let entries = inner.get_vocab(true);
        let highest = entries.iter().max_by_key(|(_, id)| **id);
        if let Some((token, id)) = highest.filter(|(_, id)| **id as usize >= vocabulary) {
            let message = format!("token {token:?} has id {id}, the model has a vocabulary of {vocabulary}; they are of two models");
            return Err(Error::file(path, message));
        }
        inner.with_padding(None);
        let plain = inner.with_truncation(None).and_then(|inner| inner.encode_fast("", true));
        let special = plain.map_err(|error| Error::file(path, format!("an empty text has no tokens: {error}")))?.len();
        if special > limit {
            return Err(Error::file(path, format!("{special} special tokens in every text, the model has {limit} positions")));
        }
        let cut = TruncationParams { max_length: limit, ..TruncationParams::default() };
        inner.with_truncation(Some(cut)).map_err(|error| Error::file(path, error.to_string()))?;
        Ok(Tokenizer { inner, limit })
    }

    /// The most tokens of a text, special tokens included.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Tokens of each text.
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of a text and none for the unknown.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Tokens>, Error> {
        let encodings = self.inner.encode_batch_fast(texts.to_vec(), true).map_err(|error| Error::Text(error.to_string()))?;
        let tokens =
            encodings.iter().map(|encoding| Tokens { ids: encoding.get_ids().to_vec(), truncated: !encoding.get_overflowing().is_empty() });
        Ok(tokens.collect())
    }
}

/// Neighbours that have at most `most` tokens together; a longer text stands alone.
pub fn batches(texts: &[Tokens], most: usize) -> Vec<Range<usize>> {
    let (mut batches, mut start, mut sum) = (Vec::new(), 0, 0usize);
    for (at, text) in texts.iter().enumerate() {
        if at > start && sum.saturating_add(text.ids.len()) > most {
            batches.push(start..at);
            (start, sum) = (at, 0);
        }
        sum += text.ids.len();
    }
    if start < texts.len() {
        batches.push(start..texts.len());
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_filled_by_tokens() {
        let texts = [3, 4, 9, 1, 0, 1].map(|length| Tokens { ids: vec![0; length], truncated: false });
        assert_eq!(batches(&texts, 7), [0..2, 2..3, 3..6]);
        assert_eq!(batches(&texts, usize::MAX), vec![0..6]);
        assert_eq!(batches(&[], 7), Vec::<Range<usize>>::new());
    }
}
