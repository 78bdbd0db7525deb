//! What a text's tokens are: its bytes, its characters, or what a `tokenizer.json` makes of it (word pieces, byte pairs, …).
//!
//! The truncation and padding that a `tokenizer.json` asks for are ignored.

use crate::Error;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tokenizers::tokenizer::{Tokenizer, TruncationParams};

/// How texts are made into tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// Bytes of UTF-8; a vocabulary of 256.
    #[default]
    Bytes,
    /// Characters that occur in the text, in the order of their code points.
    Chars,
    /// A folder with a `tokenizer.json`: `{model: DIR}`.
    Model(PathBuf),
}

/// The tokenizer of a folder.
pub struct Model {
    path: PathBuf,
    inner: Tokenizer,
    vocabulary: usize,
}

impl Model {
    /// Opens the `tokenizer.json` of a folder; texts are cut to `longest` tokens, special tokens included.
    pub fn open(folder: &Path, longest: Option<usize>) -> Result<Self, Error> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::key("task.tokens", format!("{} is not there; {{model: DIR}} names a folder that holds it", path.display())));
        }
        let wrong = |error: &dyn std::fmt::Display| Error::data(&path, "tokenizer", error.to_string());
        let text = std::fs::read(&path).map_err(|error| Error::file(&path, error))?;
        // The reader of tokenizers takes JSON for granted in places.
        serde_json::from_slice::<IgnoredAny>(&text).map_err(|error| wrong(&error))?;
        let mut inner = Tokenizer::from_bytes(&text).map_err(|error| wrong(&error))?;
        inner.with_padding(None);
        let plain = inner.with_truncation(None).and_then(|inner| inner.encode_fast("", true)).map_err(|error| wrong(&error))?;
        if let Some(longest) = longest {
            if longest <= plain.len() {
                let message = format!("is {longest}; the tokenizer alone adds {} special tokens to every text", plain.len());
                return Err(Error::key("task.longest", message));
            }
            let cut = TruncationParams { max_length: longest, ..TruncationParams::default() };
            inner.with_truncation(Some(cut)).map_err(|error| wrong(&error))?;
        }
        let vocabulary = inner.get_vocab(true).values().max().map_or(0, |highest| *highest as usize + 1);
        Ok(Model { path, inner, vocabulary })
    }

    /// One more than the highest token.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens of a text; `special`: with those that the tokenizer puts around a text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, special).map_err(|error| Error::data(&self.path, "tokenizer", error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}
