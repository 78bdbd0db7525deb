//! Files as memory: a checkpoint is read where it lies, page by page, when its values are asked for.
#![allow(unsafe_code, reason = "the operating system lends the memory")]

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::path::Path;

/// The bytes of a file that may be empty.
pub(crate) fn open(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is read only; that nobody shortens the file meanwhile is the condition under which checkpoints are read.
    unsafe { Mmap::map(&file) }
}
