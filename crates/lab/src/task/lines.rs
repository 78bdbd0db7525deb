//! Texts line by line, with the place of every line, a limit on its length, and messages about bytes that are not UTF-8.

use crate::Error;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

/// Lines of a file.
pub struct Lines<R> {
    path: PathBuf,
    reader: R,
    limit: usize,
    bytes: Vec<u8>,
    at: u64,
    number: u64,
}

/// One line without its end.
pub struct Line<'a> {
    /// Counted from 1.
    pub number: u64,
    /// Where it begins, in bytes.
    pub at: u64,
    pub bytes: &'a [u8],
}

impl<R: BufRead> Lines<R> {
    /// Lines of at most `limit` bytes of a reader that stands at the head of a file, whose mark of UTF-8 is passed over.
    pub fn new(path: &Path, mut reader: R, limit: usize) -> Result<Self, Error> {
        let at = mark(path, &mut reader)?;
        Ok(Lines { path: path.into(), reader, limit, bytes: Vec::new(), at, number: 0 })
    }

    /// The next one.
    pub fn next(&mut self) -> Result<Option<Line<'_>>, Error> {
        self.bytes.clear();
        let most = self.limit as u64 + 2;
        let read = (&mut self.reader).take(most).read_until(b'\n', &mut self.bytes).map_err(|error| Error::file(&self.path, error))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let bytes = end(&self.bytes);
        if bytes.len() > self.limit {
            return Err(long(&self.path, self.number, self.limit));
        }
        let at = self.at;
        self.at += read as u64;
        Ok(Some(Line { number: self.number, at, bytes }))
    }
}

/// A line without `\n` or `\r\n`.
pub fn end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Bytes of the mark of UTF-8 at the head of a file, which are consumed; UTF-16 and compressed files are refused.
pub fn mark<R: BufRead>(path: &Path, reader: &mut R) -> Result<u64, Error> {
    let head = reader.fill_buf().map_err(|error| Error::file(path, error))?;
    let message = match head {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("is UTF-16; convert it, such as with iconv -f utf-16 -t utf-8"),
        [0x1f, 0x8b, ..] => Some("is compressed; decompress it first, such as with gunzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("is compressed; decompress it first, such as with unzstd"),
        _ => None,
    };
    if let Some(message) = message {
        return Err(Error::data(path, "line 1", message));
    }
    let marked = head.starts_with(b"\xef\xbb\xbf");
    if marked {
        reader.consume(3);
    }
    Ok(if marked { 3 } else { 0 })
}

/// The refusal of a line.
pub fn long(path: &Path, number: u64, limit: usize) -> Error {
    let message = format!("is longer than {limit} bytes; is this the right file and format? line_limit sets another limit");
    Error::data(path, format!("line {number}"), message)
}

/// Bytes as text, or the first byte that is none.
pub fn utf8<'a>(bytes: &'a [u8], path: &Path, place: impl FnOnce() -> String) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let message = format!(
            "is not UTF-8: byte 0x{:02x} is its byte {}; convert the file, such as with iconv -f latin1 -t utf-8",
            bytes[at],
            at + 1
        );
        Error::data(path, place(), message)
    })
}
