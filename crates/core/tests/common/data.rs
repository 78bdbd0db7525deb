//! Files of tensors: the golden ones of this repository, and the data that stands beside it.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/core lies in it")
}

/// A file of the data folder: `REGARD_DATA`, else `../shared/data` seen from the repository. Where it is absent the skipped
/// test says so past the capture of the test runner; where `CI` is set it fails.
pub fn file(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("REGARD_DATA").unwrap_or_else(|| "../shared/data".into());
    let path = repository().join(folder).join(name);
    if path.is_file() {
        return Some(path);
    }
    let message = format!("{} is not there; REGARD_DATA names the folder of test data", path.display());
    assert!(std::env::var_os("CI").is_none(), "{message}");
    writeln!(std::io::stderr(), "skipped: {message}").expect("stderr is open");
    None
}

/// One safetensors file.
pub struct Tensors {
    bytes: Vec<u8>,
}

/// Values with their shape.
#[derive(Debug, Clone)]
pub struct Array<T> {
    pub shape: Vec<usize>,
    pub values: Vec<T>,
}

impl<T> Array<T> {
    /// The shape of a tensor of four dimensions.
    pub fn four(&self) -> [usize; 4] {
        self.shape[..].try_into().unwrap_or_else(|_| panic!("{:?} has four dimensions", self.shape))
    }
}

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Tensors { bytes }
    }

    /// Strings of the header.
    pub fn options(&self) -> HashMap<String, String> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).expect("a header");
        header.metadata().clone().unwrap_or_default()
    }

    /// Names of its tensors.
    pub fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        file.names().into_iter().map(str::to_owned).collect()
    }

    fn get<T>(&self, name: &str, read: impl Fn(&TensorView<'_>) -> Vec<T>) -> Option<Array<T>> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let tensor = file.tensor(name).ok()?;
        Some(Array { shape: tensor.shape().to_vec(), values: read(&tensor) })
    }

    /// A tensor of f64 or f32.
    pub fn floats(&self, name: &str) -> Option<Array<f64>> {
        self.get(name, |tensor| match tensor.dtype() {
            Dtype::F64 => numbers(tensor.data(), f64::from_le_bytes),
            Dtype::F32 => numbers(tensor.data(), |bytes| f32::from_le_bytes(bytes).into()),
            other => panic!("{name} is {other:?}, not a float"),
        })
    }

    /// A tensor of i64.
    pub fn integers(&self, name: &str) -> Option<Array<i64>> {
        self.get(name, |tensor| {
            assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
            numbers(tensor.data(), i64::from_le_bytes)
        })
    }

    /// A tensor of booleans.
    pub fn flags(&self, name: &str) -> Option<Array<u8>> {
        self.get(name, |tensor| {
            assert_eq!(tensor.dtype(), Dtype::BOOL, "{name}");
            tensor.data().to_vec()
        })
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| read(chunk)).collect()
}
