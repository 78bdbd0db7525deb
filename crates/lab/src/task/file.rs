//! Files that are read at any place, and temporary ones that hold what a file was made into.

use crate::Error;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A file that is read at any place.
#[derive(Debug)]
pub struct Places {
    path: PathBuf,
    file: Mutex<File>,
}

impl Places {
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Places { path: path.into(), file: Mutex::new(open(path)?) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of it.
    pub fn size(&self) -> Result<u64, Error> {
        self.with(|file| file.metadata()).map(|data| data.len())
    }

    /// Exactly so many bytes from a place on.
    pub fn read(&self, at: u64, count: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; count];
        self.with(|file| file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)))?;
        Ok(bytes)
    }

    /// At most so many bytes from a place on: fewer where the file ends.
    pub fn read_up_to(&self, at: u64, most: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(most);
        self.with(|file| file.seek(SeekFrom::Start(at)).and_then(|_| file.take(most as u64).read_to_end(&mut bytes)))?;
        Ok(bytes)
    }

    fn with<T>(&self, act: impl FnOnce(&mut File) -> std::io::Result<T>) -> Result<T, Error> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut file).map_err(|error| Error::file(&self.path, error))
    }
}

/// A file opened for reading; a folder is refused here and not at the first read.
pub fn open(path: &Path) -> Result<File, Error> {
    let file = File::open(path).map_err(|error| Error::file(path, error))?;
    let folder = file.metadata().map_err(|error| Error::file(path, error))?.is_dir();
    if folder {
        return Err(Error::data(path, "path", "is a folder, a file was expected"));
    }
    Ok(file)
}

/// A temporary file without a name, in the folder that `TMPDIR` says; it is gone when the task is.
pub struct Spill {
    path: PathBuf,
    writer: BufWriter<File>,
    written: u64,
}

impl Spill {
    pub fn new() -> Result<Self, Error> {
        let path = std::env::temp_dir();
        let file = tempfile::tempfile().map_err(|error| Error::file(&path, error))?;
        Ok(Spill { path, writer: BufWriter::new(file), written: 0 })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        self.writer.write_all(bytes).map_err(|error| Error::file(&self.path, error))
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn finish(self) -> Result<Places, Error> {
        let Spill { path, writer, .. } = self;
        let file = writer.into_inner().map_err(|error| Error::file(&path, error.into_error()))?;
        Ok(Places { path, file: Mutex::new(file) })
    }
}
