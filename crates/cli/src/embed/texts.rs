//! The lines of files as texts.

use crate::failure::Failure;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// All texts, in the order of files and lines.
pub struct Texts {
    files: Vec<String>,
    /// File and bytes of each text.
    places: Vec<(usize, Range<usize>)>,
}

impl Texts {
    /// Reads files; none means standard input.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let standard = [PathBuf::from("-")];
        let mut texts = Texts { files: Vec::new(), places: Vec::new() };
        for path in if paths.is_empty() { &standard } else { paths } {
            texts.add(path)?;
        }
        Ok(texts)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Some of them.
    pub fn lines(&self, range: Range<usize>) -> Vec<&str> {
        self.places[range].iter().map(|(file, bytes)| &self.files[*file][bytes.clone()]).collect()
    }

    fn add(&mut self, path: &Path) -> Result<(), Failure> {
        let (name, bytes) = contents(path)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Failure::Data(format!("{name}, line {line}: not UTF-8; convert the file first"))
        })?;
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let bare = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
            self.places.push((self.files.len(), start..start + bare.len()));
            start += line.len();
        }
        self.files.push(text);
        Ok(())
    }
}

fn contents(path: &Path) -> Result<(String, Vec<u8>), Failure> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        let refuse = |error| Failure::Data(format!("cannot read standard input: {error}"));
        io::stdin().lock().read_to_end(&mut bytes).map_err(refuse)?;
        return Ok(("standard input".to_owned(), bytes));
    }
    let bytes = fs::read(path).map_err(|error| Failure::Data(format!("cannot read {}: {error}", path.display())))?;
    Ok((path.display().to_string(), bytes))
}
