//! A text of any length as pieces that are compressed one after another, so that memory does not grow with it.
//!
//! A passage has about 32 KiB and ends with a blank line; else with a line, else with white space, else with a character.

use crate::Error;
use std::io::Read;

/// Bytes of a passage.
const LENGTH: usize = 1 << 15;

/// Reads passages.
pub struct Passages<R> {
    input: R,
    name: String,
    held: Vec<u8>,
    line: usize,
    ended: bool,
}

impl<R: Read> Passages<R> {
    /// Of a file or a stream; errors name it.
    pub fn new(input: R, name: impl Into<String>) -> Self {
        Passages { input, name: name.into(), held: Vec::new(), line: 1, ended: false }
    }

    /// Fills what is held up to two passages, or to the end.
    fn fill(&mut self) -> Result<(), Error> {
        let missing = (2 * LENGTH).saturating_sub(self.held.len()) as u64;
        let read = (&mut self.input).take(missing).read_to_end(&mut self.held);
        let read = read.map_err(|error| Error::Read { name: self.name.clone(), message: error.to_string() })?;
        self.ended = (read as u64) < missing;
        Ok(())
    }

    fn refuse(&self, bytes: &[u8], at: usize, what: &str) -> Error {
        let line = self.line + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
        Error::Text { name: self.name.clone(), line, message: what.into() }
    }

    fn text(&mut self, end: usize) -> Result<String, Error> {
        let rest = self.held.split_off(end);
        let bytes = std::mem::replace(&mut self.held, rest);
        if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
            return Err(self.refuse(&bytes, at, "a zero byte: this is not a text"));
        }
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                return Err(self.refuse(error.as_bytes(), at, "not UTF-8; convert the file first"));
            }
        };
        self.line += lines;
        Ok(text)
    }
}

impl<R: Read> Iterator for Passages<R> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.ended
            && let Err(error) = self.fill()
        {
            self.ended = true;
            self.held.clear();
            return Some(Err(error));
        }
        if self.held.is_empty() {
            return None;
        }
        let end = if self.ended && self.held.len() <= LENGTH { self.held.len() } else { cut(&self.held) };
        let text = self.text(end);
        if text.is_err() {
            self.ended = true;
            self.held.clear();
        }
        Some(text)
    }
}

/// Where a passage of what is held ends: at the last place up to the length of one that divides it well, or at the first behind it.
fn cut(held: &[u8]) -> usize {
    let length = LENGTH.min(held.len());
    let last = |divider: &[u8]| held[..length].windows(divider.len()).rposition(|found| found == divider).map(|at| at + divider.len());
    let good = |at: &usize| *at > length / 2;
    let white = || held[..length].iter().rposition(u8::is_ascii_whitespace).map(|at| at + 1);
    let later = || held[length..].iter().position(u8::is_ascii_whitespace).map(|at| length + at + 1);
    let character = || held.iter().rposition(|byte| byte & 0xc0 != 0x80).filter(|at| *at > 0);
    let paragraph = last(b"\n\n").filter(good).or_else(|| last(b"\n").filter(good));
    paragraph.or_else(white).or_else(later).or_else(character).unwrap_or(held.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &[u8]) -> Result<Vec<String>, Error> {
        Passages::new(text, "text").collect()
    }

    #[test]
    fn passages_are_the_text() {
        let wrapped = "a line of words\n".repeat(30_000) + "\n\n" + &"b".repeat(200_000) + " ü" + &"é".repeat(100_000);
        for text in [wrapped, "para graph\n\n".repeat(20_000), "word ".repeat(50_000), String::new(), "x".into()] {
            let found = pieces(text.as_bytes()).unwrap();
            assert_eq!(found.concat(), text);
            assert!(found.iter().all(|piece| piece.len() <= 2 * LENGTH));
        }
        assert!(pieces("para graph\n\n".repeat(20_000).as_bytes()).unwrap().iter().all(|piece| piece.ends_with("\n\n")));
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_line() {
        let message = |text: &[u8]| pieces(text).unwrap_err().to_string();
        let mut text = "line\n".repeat(20_000).into_bytes();
        text.extend(b"\xff\xfe");
        assert_eq!(message(&text), "text, line 20001: not UTF-8; convert the file first");
        assert_eq!(message(b"a\nb\0"), "text, line 2: a zero byte: this is not a text");
    }
}
