//! Safetensors files, read strictly and written whole.
//!
//! A file is the length of its header (u64, little-endian), the header (JSON: name → dtype, shape and offsets into the
//! data), and the data without holes. Nothing is allocated for a tensor before its header, its shape and the size of the
//! file agree.

mod archive;
mod header;
mod stored;
mod write;

pub use archive::Archive;
pub use write::write;
