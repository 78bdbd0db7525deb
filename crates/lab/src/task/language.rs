//! Language: the next token at every position of windows over text files, or the tokens that are hidden in them.
//!
//! Files are one text after another, nothing between. Bytes are read where they lie; characters and tokens of a tokenizer are written to
//! a temporary file once, 4 bytes each, so that texts may be larger than memory. A tokenizer is given pieces of about 64 KiB that end
//! with a line (or, where none ends, with a space or a character) and adds no special tokens; a word across the cut of such a piece may
//! come out differently.
//!
//! Train example i is the window at token i, every offset one, neighbours overlapping: the order is training's choice. Validation and
//! test are windows one after another without overlap; the last may be shorter. A window of N tokens has N targets, the last of
//! which is the token after it. Shares are cut at tokens: `[0.9, 0.1, 0]` on characters is nanoGPT's division.
//!
//! With `masked` each token of a window is asked for with that probability, and a model sees the whole window: 8 of 10 such tokens are
//! replaced by a mask, the token behind the vocabulary, 1 by any token, and 1 stays (Devlin et al. 2018). Which ones is a function of the
//! split and the window's number.

use super::file::{Places, Spill, open as open_file};
use super::lines::utf8;
use super::open::{LONGEST, Source, open, within};
use super::random::Draws;
use super::shares::{Shares, TEST_IS_VALIDATION};
use super::tokens::{Model, Tokens};
use super::{Example, Facts, Input, Inputs, Metric, Split, Target, Targets, Task};
use crate::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a piece of text.
const PIECE: usize = 1 << 16;

/// One file or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Files {
    /// One.
    One(PathBuf),
    /// Several, read in this order.
    Many(Vec<PathBuf>),
}

/// Which numbers are quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// Mean cross-entropy, nats a token.
    Loss,
    /// Bits a byte, for bytes alone.
    BitsPerByte,
}

/// Keys of `language`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Language {
    /// The text to learn from: a file or a list of files. Must be there.
    pub train: Files,
    /// Files for validation; null for a share of `train`.
    pub validation: Option<Files>,
    /// Files for the test; null for a share of `train`.
    pub test: Option<Files>,
    /// `bytes`, `chars`, or `{model: DIR}` for the `tokenizer.json` of a folder.
    pub tokens: Tokens,
    /// Tokens of a window.
    pub context: usize,
    /// Shares of train, validation and test, in the order of the text; null for 0.8, 0.1, 0.1, or what files of their own leave over.
    pub splits: Option<[f64; 3]>,
    /// `loss` or `bits_per_byte`; null for bits where tokens are bytes, loss else.
    pub metric: Option<Quality>,
    /// The share of tokens that are hidden and asked for, with both sides in view; null for the next token everywhere.
    pub masked: Option<f64>,
}

impl Default for Language {
    fn default() -> Self {
        let train = Files::One(PathBuf::new());
        Language { train, validation: None, test: None, tokens: Tokens::Bytes, context: 256, splits: None, metric: None, masked: None }
    }
}

impl Files {
    fn paths(&self, base: &Path) -> Vec<PathBuf> {
        match self {
            Files::One(path) => vec![base.join(path)],
            Files::Many(paths) => paths.iter().map(|path| base.join(path)).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Files::One(path) => path.as_os_str().is_empty(),
            Files::Many(paths) => paths.is_empty(),
        }
    }
}

/// What makes tokens of a text that is not taken as bytes.
enum Encoder {
    Chars(Vec<char>),
    Model(Box<Model>),
}

impl Encoder {
    fn vocabulary(&self) -> usize {
        match self {
            Encoder::Chars(known) => known.len(),
            Encoder::Model(model) => model.vocabulary(),
        }
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        match self {
            Encoder::Chars(known) => Ok(text.chars().filter_map(|char| known.binary_search(&char).ok()).map(|at| at as u32).collect()),
            Encoder::Model(model) => model.encode(text, false),
        }
    }
}

/// A run of tokens on disk: files of bytes, or one temporary file of words.
struct Stream {
    /// Each with the place of its first token.
    files: Vec<(u64, Places)>,
    /// Bytes of a token, 1 or 4.
    width: usize,
    count: u64,
}

impl Stream {
    fn open(paths: &[PathBuf], encoder: Option<&Encoder>) -> Result<Self, Error> {
        let Some(encoder) = encoder else { return Stream::bytes(paths) };
        let mut spill = Spill::new()?;
        pieces(paths, &mut |text| {
            let words: Vec<u8> = encoder.encode(text)?.into_iter().flat_map(u32::to_le_bytes).collect();
            spill.write(&words)
        })?;
        let count = spill.written() / 4;
        Ok(Stream { files: vec![(0, spill.finish()?)], width: 4, count })
    }

    fn bytes(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut count = 0;
        let mut files = Vec::new();
        for path in paths {
            let file = Places::open(path)?;
            let size = file.size()?;
            files.push((count, file));
            count += size;
        }
        Ok(Stream { files, width: 1, count })
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u32>, Error> {
        let mut tokens = Vec::with_capacity((range.end - range.start) as usize);
        for (place, (first, file)) in self.files.iter().enumerate() {
            let end = self.files.get(place + 1).map_or(self.count, |(next, _)| *next);
            let part = range.start.max(*first)..range.end.min(end);
            if part.start < part.end {
                let width = self.width as u64;
                let bytes = file.read((part.start - first) * width, ((part.end - part.start) * width) as usize)?;
                tokens.extend(
                    bytes.chunks_exact(self.width).map(|token| token.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))),
                );
            }
        }
        Ok(tokens)
    }

    /// How often each token occurs in a part.
    fn counts(&self, range: &Range<u64>, vocabulary: usize) -> Result<Vec<u64>, Error> {
        let mut counts = vec![0; vocabulary];
        let mut at = range.start;
        while at < range.end {
            let next = range.end.min(at + PIECE as u64);
            self.read(at..next)?.into_iter().for_each(|token| counts[token as usize] += 1);
            at = next;
        }
        Ok(counts)
    }
}

/// Texts of files in pieces that end with a line where one ends.
fn pieces(paths: &[PathBuf], visit: &mut dyn FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
    for path in paths {
        let mut file = open_file(path)?;
        let (mut held, mut line) = (Vec::new(), 1);
        loop {
            let read = (&mut file).take(PIECE as u64).read_to_end(&mut held).map_err(|error| Error::file(path, error))?;
            let cut = if read < PIECE { held.len() } else { cut(&held) };
            let text = utf8(&held[..cut], path, String::new).map_err(|_| not_text(&held[..cut], path, line))?;
            visit(text)?;
            line += held[..cut].iter().filter(|byte| **byte == b'\n').count();
            held.drain(..cut);
            if read < PIECE {
                break;
            }
        }
    }
    Ok(())
}

/// Where a piece ends: after its last line end, else its last space, else before its last character, which may not be whole.
fn cut(held: &[u8]) -> usize {
    let after = |byte: u8| held.iter().rposition(|found| *found == byte).map(|at| at + 1);
    let character = || held.iter().rposition(|byte| byte & 0xc0 != 0x80).filter(|at| *at > 0);
    after(b'\n').or_else(|| after(b' ')).or_else(character).unwrap_or(held.len())
}

/// The refusal of bytes that are not UTF-8, with their line.
fn not_text(bytes: &[u8], path: &Path, first: usize) -> Error {
    let valid = bytes.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
    let line = first + bytes[..valid].iter().filter(|byte| **byte == b'\n').count();
    let start = bytes[..valid].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    match utf8(&bytes[start..], path, || format!("line {line}")) {
        Err(error) => error,
        Ok(_) => Error::data(path, format!("line {line}"), "is not UTF-8"),
    }
}

/// A part of a stream.
#[derive(Clone)]
struct Part {
    stream: Arc<Stream>,
    range: Range<u64>,
}

impl Part {
    fn tokens(&self) -> u64 {
        self.range.end - self.range.start
    }
}

struct Windows {
    parts: [Part; 3],
    context: u64,
    hidden: Option<Hidden>,
}

/// Tokens that are asked for with both sides in view.
struct Hidden {
    share: f64,
    /// Tokens of texts; the mask is the one behind them.
    vocabulary: u64,
}

impl Hidden {
    /// Hides tokens of a window and says which they were. One is hidden at least.
    fn hide(&self, tokens: &mut [u32], mut draws: Draws) -> Vec<Option<u32>> {
        let always = draws.below(tokens.len().max(1) as u64) as usize;
        let mut hide = |at: usize, token: &mut u32| {
            let (asked, how) = (draws.chance(self.share) || at == always, draws.below(10));
            let other = draws.below(self.vocabulary) as u32;
            let was = *token;
            *token = match how {
                _ if !asked => was,
                0..8 => self.vocabulary as u32,
                8 => other,
                _ => was,
            };
            asked.then_some(was)
        };
        tokens.iter_mut().enumerate().map(|(at, token)| hide(at, token)).collect()
    }
}

impl Language {
    pub(super) fn open(&self, base: &Path) -> Result<Box<dyn Task>, Error> {
        self.check()?;
        let encoder = self.encoder(base)?;
        let shares = Shares::choose(self.splits, [self.validation.is_some(), self.test.is_some()])?;
        let stream = Arc::new(Stream::open(&self.train.paths(base), encoder.as_ref())?);
        let mut parts = shares.cut(stream.count).map(|range| Part { stream: Arc::clone(&stream), range });
        for (split, files) in [(Split::Validation, &self.validation), (Split::Test, &self.test)] {
            if let Some(files) = files {
                let stream = Stream::open(&files.paths(base), encoder.as_ref())?;
                parts[split as usize] = Part { range: 0..stream.count, stream: Arc::new(stream) };
            }
        }
        let mut notes = Vec::new();
        if self.test.is_none() && !shares.tests() {
            parts[2] = parts[1].clone();
            notes.push(TEST_IS_VALIDATION.into());
        }
        let vocabulary = encoder.as_ref().map_or(256, Encoder::vocabulary);
        let hidden = self.masked.map(|share| Hidden { share, vocabulary: vocabulary as u64 });
        let windows = Windows { parts, context: self.context as u64, hidden };
        let facts = self.facts(&windows, vocabulary)?;
        open(windows, facts, notes)
    }

    fn check(&self) -> Result<(), Error> {
        if self.train.is_empty() {
            return Err(Error::key("task.train", "is missing; it names the text to learn from"));
        }
        within("context", self.context, 1..=LONGEST)?;
        if self.metric == Some(Quality::BitsPerByte) && self.tokens != Tokens::Bytes {
            return Err(Error::key("task.metric", "is bits_per_byte, which is for tokens: bytes; write loss"));
        }
        if let Some(share) = self.masked.filter(|share| !(*share > 0.0 && *share < 1.0)) {
            return Err(Error::key("task.masked", format!("is {share}; it is a share of the tokens between 0 and 1, such as 0.15")));
        }
        Ok(())
    }

    fn encoder(&self, base: &Path) -> Result<Option<Encoder>, Error> {
        match &self.tokens {
            Tokens::Bytes => Ok(None),
            Tokens::Model(folder) => Ok(Some(Encoder::Model(Box::new(Model::open(&base.join(folder), None)?)))),
            Tokens::Chars => {
                let mut known = BTreeSet::new();
                for files in [Some(&self.train), self.validation.as_ref(), self.test.as_ref()].into_iter().flatten() {
                    pieces(&files.paths(base), &mut |text| {
                        known.extend(text.chars());
                        Ok(())
                    })?;
                }
                Ok(Some(Encoder::Chars(known.into_iter().collect())))
            }
        }
    }

    fn facts(&self, windows: &Windows, vocabulary: usize) -> Result<Facts, Error> {
        let [train, validation, test] = &windows.parts;
        if train.tokens() <= windows.context {
            let path = self.train.paths(Path::new(""));
            let message = format!("{} tokens to learn from are too few for a context of {}", train.tokens(), windows.context);
            return Err(Error::data(&path[0], "file", message));
        }
        let bits = self.metric.unwrap_or(if self.tokens == Tokens::Bytes { Quality::BitsPerByte } else { Quality::Loss });
        let (metric, scale) = match bits {
            Quality::Loss => (Metric::Loss, 1.0),
            Quality::BitsPerByte => (Metric::BitsPerByte, std::f64::consts::LOG2_E),
        };
        let apart = |part: &Part| part.tokens().saturating_sub(1).div_ceil(windows.context);
        // The mask is one more token.
        let tokens = vocabulary + usize::from(windows.hidden.is_some());
        Ok(Facts {
            name: "language",
            inputs: Inputs::Tokens { vocabulary: tokens },
            targets: Targets::Tokens(tokens),
            metric,
            causal: windows.hidden.is_none(),
            longest: self.context,
            sizes: [Some(train.tokens() - windows.context), Some(apart(validation)), Some(apart(test))],
            balance: Vec::new(),
            floor: frequencies(train, test, vocabulary)?.map(|loss| loss * scale),
            fingerprint: String::new(),
        })
    }
}

/// Cross-entropy of the targets of test under the frequencies of train, each token counted once more than it occurs.
fn frequencies(train: &Part, test: &Part, vocabulary: usize) -> Result<Option<f64>, Error> {
    if test.tokens() < 2 {
        return Ok(None);
    }
    let seen = train.stream.counts(&train.range, vocabulary)?;
    let asked = test.stream.counts(&(test.range.start + 1..test.range.end), vocabulary)?;
    let all = (train.tokens() + vocabulary as u64) as f64;
    let sum: f64 = seen.iter().zip(&asked).map(|(seen, asked)| *asked as f64 * (all / (seen + 1) as f64).ln()).sum();
    Ok(Some(sum / (test.tokens() - 1) as f64))
}

impl Source for Windows {
    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let part = &self.parts[split as usize];
        let step = if split == Split::Train { 1 } else { self.context };
        let start = part.range.start + index * step;
        if let Some(hidden) = &self.hidden {
            let mut tokens = part.stream.read(start..part.range.end.min(start + self.context))?;
            let target = hidden.hide(&mut tokens, Draws::new("masked", 0, (split, index)));
            return Ok(Example { input: Input::Tokens(tokens), target: Target::Tokens(target) });
        }
        let mut tokens = part.stream.read(start..part.range.end.min(start + self.context + 1))?;
        let target = tokens[1..].iter().copied().map(Some).collect();
        tokens.pop();
        Ok(Example { input: Input::Tokens(tokens), target: Target::Tokens(target) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_lines_and_lose_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let texts = ["é".repeat(100_000), "wörd ".repeat(50_000), "line of text\n".repeat(20_000), String::new(), "a".repeat(PIECE)];
        for (number, text) in texts.iter().enumerate() {
            let path = folder.path().join("text");
            std::fs::write(&path, text).expect("it is written");
            let mut found = Vec::new();
            pieces(&[path], &mut |piece| {
                found.push(piece.to_owned());
                Ok(())
            })
            .expect("it is UTF-8");
            assert_eq!(found.concat(), *text, "text {number}");
            assert!(found.iter().all(|piece| piece.len() < 2 * PIECE + 16), "text {number}");
            let lines = found.iter().rev().skip(1).all(|piece| number != 2 || piece.ends_with('\n'));
            assert!(lines, "text {number}");
        }
    }
}
