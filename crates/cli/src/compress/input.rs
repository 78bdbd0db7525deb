//! Texts that may have to be read twice.

use crate::failure::Failure;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

/// A file, or standard input.
pub struct Input {
    name: String,
    file: Option<File>,
}

impl Input {
    /// Opens files, so that one that is missing is found before any work is done; none means standard input.
    pub fn all(paths: &[PathBuf]) -> Result<Vec<Self>, Failure> {
        let standard = [PathBuf::from("-")];
        let paths = if paths.is_empty() { &standard } else { paths };
        if paths.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
            return Err(Failure::Usage("- stands twice; standard input can be read once".into()));
        }
        paths.iter().map(|path| Self::open(path)).collect()
    }

    fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Input { name: "standard input".into(), file: None });
        }
        let refuse = |error: io::Error| Failure::Data(format!("cannot read {}: {error}", path.display()));
        let file = File::open(path).map_err(refuse)?;
        if file.metadata().map_err(refuse)?.is_dir() {
            return Err(Failure::Data(format!("{} is a folder; name the files in it", path.display())));
        }
        Ok(Input { name: path.display().to_string(), file: Some(file) })
    }

    /// For messages and results.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes, where that is known.
    pub fn length(&self) -> u64 {
        self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len())
    }

    /// What is read first, if anything is to be, and what is read then. Standard input goes through a temporary file in between.
    pub fn twice(self, twice: bool) -> Result<[Option<Box<dyn Read>>; 2], Failure> {
        let refuse = |error: io::Error| Failure::Data(format!("cannot read {}: {error}", self.name));
        let again = |mut file: File| {
            file.rewind()?;
            let other = file.try_clone()?;
            Ok((file, other))
        };
        match (self.file, twice) {
            (None, false) => Ok([None, Some(Box::new(io::stdin().lock()))]),
            (Some(file), false) => Ok([None, Some(Box::new(file))]),
            (file, true) => {
                let whole = match file {
                    Some(file) => Ok(file),
                    None => spooled(),
                };
                let (first, second) = whole.and_then(again).map_err(refuse)?;
                Ok([Some(Box::new(first)), Some(Box::new(Rewound(second, false)))])
            }
        }
    }
}

fn spooled() -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut io::stdin().lock(), &mut file)?;
    Ok(file)
}

/// A file that is read from its beginning, wherever another handle left it.
struct Rewound(File, bool);

impl Read for Rewound {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.1 {
            self.0.rewind()?;
            self.1 = true;
        }
        self.0.read(buffer)
    }
}
