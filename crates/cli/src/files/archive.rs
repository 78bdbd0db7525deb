//! A file opened for reading: its header is checked, its tensors are read one at a time.

use super::header::{self, Entry};
use super::stored::read_values;
use crate::failure::Failure;
use crate::tensor::{Data, Float, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longer headers are refused.
const LONGEST_HEADER: u64 = 100_000_000;

/// A file of tensors.
pub struct Archive {
    path: PathBuf,
    file: File,
    data_start: u64,
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Opens a file and checks its header against its length.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let refuse = |message: String| Failure::Data(format!("{}: {message}", path.display()));
        let mut file = File::open(path).map_err(|error| Failure::Data(format!("cannot open {}: {error}", path.display())))?;
        let metadata = file.metadata().map_err(|error| refuse(error.to_string()))?;
        if !metadata.is_file() {
            return Err(refuse("not a regular file; name a safetensors file".into()));
        }
        let header = read_header(&mut file, metadata.len()).map_err(refuse)?;
        let data_start = 8 + header.len() as u64;
        let entries = header::parse(&header, metadata.len() - data_start).map_err(refuse)?;
        Ok(Archive { path: path.to_owned(), file, data_start, entries })
    }

    /// The names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What the header says of a tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The values of a tensor that is there.
    pub fn read(&self, name: &str) -> Result<Tensor, Failure> {
        let entry = self.expected(name)?;
        let damaged = |error: io::Error| self.refuse(name, &format!("cannot be read: {error}"));
        let from = self.bytes_of(entry).map_err(damaged)?;
        let data = read_data(&entry.dtype, from, entry.shape.iter().product()).map_err(damaged)?;
        let unused = || self.refuse(name, &format!("is {}; use BOOL, U8, I32, I64, F16, BF16, F32 or F64", entry.dtype));
        Ok(Tensor { shape: entry.shape.clone(), data: data.ok_or_else(unused)? })
    }

    /// A tensor of floats without NaN or infinities; where it `hides`, -inf is fine.
    pub fn finite(&self, name: &str, hides: bool) -> Result<Tensor, Failure> {
        let tensor = self.read(name)?;
        match tensor.first_irregular(hides) {
            None => Ok(tensor),
            Some((at, value)) => {
                let allowed = if hides { "finite numbers and -inf" } else { "finite numbers" };
                Err(self.refuse(name, &format!("holds {value} at {at:?}; only {allowed} are allowed")))
            }
        }
    }

    /// The sizes of a tensor that must have four dimensions.
    pub fn shape4(&self, name: &str) -> Result<[usize; 4], Failure> {
        let shape = &self.expected(name)?.shape;
        shape.as_slice().try_into().map_err(|_| self.refuse(name, &format!("has shape {shape:?}, expected four dimensions")))
    }

    /// The type of a tensor that must be one of these.
    pub fn float(&self, name: &str, allowed: &[Float]) -> Result<Float, Failure> {
        let dtype = &self.expected(name)?.dtype;
        Float::of_file(dtype).filter(|float| allowed.contains(float)).ok_or_else(|| {
            let allowed: Vec<&str> = allowed.iter().map(|float| float.name()).collect();
            self.refuse(name, &format!("is {}, expected {}", dtype.to_lowercase(), allowed.join(" or ")))
        })
    }

    /// Refuses a tensor of another dtype.
    pub fn check_dtype(&self, name: &str, allowed: [&str; 2]) -> Result<(), Failure> {
        let dtype = self.expected(name)?.dtype.as_str();
        let refusal = || self.refuse(name, &format!("is {dtype}, expected {} or {}", allowed[0], allowed[1]));
        if allowed.contains(&dtype) { Ok(()) } else { Err(refusal()) }
    }

    /// Bytes of those of these tensors that are there.
    pub fn bytes(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.entry(name)).map(|entry| entry.bytes.end - entry.bytes.start).sum()
    }

    /// An error about one of its tensors.
    pub fn refuse(&self, name: &str, message: &str) -> Failure {
        Failure::Data(format!("{}: tensor \"{name}\" {message}", self.path.display()))
    }

    fn expected(&self, name: &str) -> Result<&Entry, Failure> {
        self.entry(name).ok_or_else(|| {
            let names: Vec<String> = self.names().take(16).map(|name| format!("{name:?}")).collect();
            let there = if names.is_empty() { "no tensors".to_owned() } else { names.join(", ") };
            self.refuse(name, &format!("is missing; the file has {there}"))
        })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn bytes_of(&self, entry: &Entry) -> io::Result<impl Read> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data_start + entry.bytes.start))?;
        Ok(file.take(entry.bytes.end - entry.bytes.start))
    }
}

fn read_header(file: &mut File, length: u64) -> Result<Vec<u8>, String> {
    let damaged = |error: io::Error| format!("cannot be read: {error}");
    let available = length.checked_sub(8).ok_or_else(|| format!("truncated: {length} bytes, a safetensors file has at least 8"))?;
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(damaged)?;
    let size = u64::from_le_bytes(size);
    if size > LONGEST_HEADER {
        return Err(format!("a header of {size} bytes is longer than {LONGEST_HEADER}; is this a safetensors file?"));
    }
    if size > available {
        return Err(format!("truncated: the header has {size} bytes, the file {available} after its first 8; write the file again"));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(damaged)?;
    Ok(header)
}

/// None for a dtype that nothing here computes with.
fn read_data(dtype: &str, from: impl Read, count: usize) -> io::Result<Option<Data>> {
    Ok(Some(match dtype {
        "F32" => Data::F32(read_values(from, count)?),
        "BF16" => Data::Bf16(read_values(from, count)?),
        "F16" => Data::F16(read_values(from, count)?),
        "F64" => Data::F64(read_values(from, count)?),
        "I32" => Data::I32(read_values(from, count)?),
        "I64" => Data::I64(read_values(from, count)?),
        "BOOL" | "U8" => Data::U8(read_values(from, count)?),
        _ => return Ok(None),
    }))
}
