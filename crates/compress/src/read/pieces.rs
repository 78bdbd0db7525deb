//! What a model reads in place of a text.

use crate::Error;
use std::ops::Range;
use std::path::Path;
use tokenizers::tokenizer::Tokenizer;

/// Pieces of a text, without special tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    /// As the model knows them.
    pub ids: Vec<u32>,
    /// Bytes of the text that each stands for.
    pub spans: Vec<Range<usize>>,
}

/// What makes pieces.
#[derive(Debug, Clone)]
pub enum Splitter {
    /// One for every byte.
    Bytes,
    /// A `tokenizer.json`.
    Tokenizer(Box<Tokenizer>),
}

/// Bytes that are made into pieces at a time, up to the end of a line.
const PART: usize = 1 << 12;

impl Splitter {
    /// The tokenizer in a file. Its truncation and padding are ignored.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|error| Error::Model(format!("{}: cannot be read: {error}", path.display())))?;
        Self::parse(&bytes).map_err(|message| Error::Model(format!("{}: not a tokenizer: {message}", path.display())))
    }

    /// The tokenizer in a `tokenizer.json`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        Ok(Splitter::Tokenizer(Box::new(tokenizer)))
    }

    /// The pieces of a text. Parts of it are split on several threads, each up to a line's end, which no tokenizer of words looks across.
    ///
    /// # Errors
    /// If the tokenizer has nothing for a part of it.
    pub fn pieces(&self, text: &str) -> Result<Pieces, Error> {
        let Splitter::Tokenizer(tokenizer) = self else {
            return Ok(Pieces { ids: text.bytes().map(u32::from).collect(), spans: (0..text.len()).map(|at| at..at + 1).collect() });
        };
        let (starts, parts): (Vec<usize>, Vec<&str>) = parts(text).unzip();
        let encodings = tokenizer.encode_batch(parts, false).map_err(|error| Error::Model(error.to_string()))?;
        let mut pieces = Pieces::default();
        for (start, encoding) in starts.into_iter().zip(encodings) {
            pieces.ids.extend_from_slice(encoding.get_ids());
            pieces.spans.extend(encoding.get_offsets().iter().map(|&(from, to)| start + from..start + to));
        }
        Ok(pieces)
    }

    /// Tokens that stand before and behind every text.
    pub(crate) fn around(&self) -> Result<[Vec<u32>; 2], Error> {
        let Splitter::Tokenizer(tokenizer) = self else { return Ok([Vec::new(), Vec::new()]) };
        let special = tokenizer.encode_fast("", true).map_err(|error| Error::Model(error.to_string()))?;
        let ids = special.get_ids();
        let (before, behind) = ids.split_at(ids.len().min(1));
        Ok([before.to_vec(), behind.to_vec()])
    }
}

/// Parts of a text that end with a line, with the place of each.
fn parts(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &text[start..];
        let from = rest.floor_char_boundary(PART);
        let end = if rest.len() <= PART { rest.len() } else { rest[from..].find('\n').map_or(rest.len(), |at| from + at + 1) };
        let part = (start, &rest[..end]);
        start += end;
        (end > 0).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_text() {
        let long = "some words on a line\n".repeat(1000) + &"é".repeat(9000) + "\nend";
        for text in ["", "a", "line\n", &long] {
            assert_eq!(parts(text).map(|part| part.1).collect::<String>(), text);
            assert!(parts(text).all(|(start, part)| text[start..].starts_with(part)));
        }
        assert!(parts(&long).count() > 5);
    }

    #[test]
    fn bytes_are_pieces() {
        let pieces = Splitter::Bytes.pieces("aé").unwrap();
        assert_eq!(pieces, Pieces { ids: vec![97, 195, 169], spans: vec![0..1, 1..2, 2..3] });
    }
}
