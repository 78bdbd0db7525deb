//! Running the program and making files for it.

#![allow(dead_code, reason = "each test file uses its own part")]

use regard_core::bf16;
use regard_core::oracle::Definition;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Runs `regard` with these arguments.
pub fn regard<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(arguments: I) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_regard")).args(arguments).output().expect("regard starts");
    Outcome::from(output)
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Outcome { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Outcome {
    /// Ended with this code and said all of this, without a word of a panic.
    #[track_caller]
    pub fn refused(&self, code: i32, fragments: &[&str]) {
        self.refused_after(code, fragments);
        assert_eq!(self.stdout, "", "{self:?}");
    }

    /// The same of a call that may have told of the data first.
    #[track_caller]
    pub fn refused_after(&self, code: i32, fragments: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for fragment in fragments {
            assert!(self.stderr.contains(fragment), "{fragment:?} is not in {self:?}");
        }
        assert!(!self.stderr.contains("panic") && !self.stderr.contains("internal error"), "{self:?}");
    }

    /// Ended well.
    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// A folder with an input and a place for an output.
pub struct Desk {
    folder: TempDir,
}

impl Desk {
    pub fn new() -> Self {
        Desk { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// With this input on it.
    pub fn with(bundle: &Bundle) -> Self {
        let desk = Desk::new();
        fs::write(desk.input(), bundle.bytes()).expect("the input is written");
        desk
    }

    /// With these bytes as input.
    pub fn with_bytes(bytes: &[u8]) -> Self {
        let desk = Desk::new();
        fs::write(desk.input(), bytes).expect("the input is written");
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn input(&self) -> PathBuf {
        self.path("in.safetensors")
    }

    pub fn output(&self) -> PathBuf {
        self.path("out.safetensors")
    }

    /// The names of everything in the folder.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("the folder is there");
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs `regard attend` on the input with these further arguments, separated by spaces.
    pub fn attend(&self, arguments: &str) -> Outcome {
        self.attend_to(&self.output(), arguments)
    }

    /// The same with another output.
    pub fn attend_to(&self, output: &Path, arguments: &str) -> Outcome {
        let files = ["attend", "--input", self.input().to_str().unwrap(), "--output", output.to_str().unwrap()].map(str::to_owned);
        regard(files.into_iter().chain(arguments.split_whitespace().map(str::to_owned)))
    }

    /// The output of a run that must end well.
    #[track_caller]
    pub fn results(&self, arguments: &str) -> Bundle {
        self.attend(arguments).done();
        Bundle::read(&self.output())
    }
}

/// Named tensors, as bytes.
#[derive(Clone, Default)]
pub struct Bundle {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Bundle {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("the file is there");
        let file = SafeTensors::deserialize(&bytes).expect("the file is valid");
        let tensors = file.tensors().into_iter();
        Bundle { tensors: tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let view = |(dtype, shape, bytes)| TensorView::new(dtype, shape, bytes).expect("shape and bytes agree");
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| (name, view((*dtype, shape.clone(), bytes.as_slice()))));
        safetensors::serialize(views, None).expect("tensors can be written")
    }

    #[must_use]
    pub fn with(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
        self
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.tensors.remove(name).expect("it was there");
        self
    }

    /// As F32, BF16 or F64.
    #[must_use]
    pub fn floats(self, name: &str, dtype: Dtype, shape: &[usize], values: &[f64]) -> Self {
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
            Dtype::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => panic!("{dtype:?} is not used here"),
        };
        self.with(name, dtype, shape, bytes)
    }

    #[must_use]
    pub fn integers(self, name: &str, shape: &[usize], values: &[i64]) -> Self {
        self.with(name, Dtype::I64, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    #[track_caller]
    pub fn dtype_and_shape(&self, name: &str) -> (Dtype, Vec<usize>) {
        let (dtype, shape, _) = self.tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        (*dtype, shape.clone())
    }

    /// Floats, widened.
    #[track_caller]
    pub fn values(&self, name: &str) -> Vec<f64> {
        let (dtype, _, bytes) = self.tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        match dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|x| f64::from(bf16::from_le_bytes(x.try_into().unwrap()))).collect(),
            Dtype::F64 => bytes.chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().unwrap())).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    #[track_caller]
    pub fn indices(&self, name: &str) -> Vec<i64> {
        let (_, _, bytes) = self.tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        bytes.chunks_exact(8).map(|x| i64::from_le_bytes(x.try_into().unwrap())).collect()
    }
}

/// Seeded normal numbers, rounded to bf16 so that every storage type holds them exactly; every 13th is large.
pub fn normals(seed: u64, count: usize) -> Vec<f64> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let large = |i: usize| if i % 13 == 5 { 3.0 } else { 1.0 };
    (0..count).map(|i| bf16::from_f64(large(i) * normal()).to_f64()).collect()
}

/// Batch 2, 4 query heads on 2 kv heads, 9 queries, 12 keys, widths 8 and 6.
pub fn problem(seed: u64) -> Definition {
    let sizes = Definition { batch: 2, heads: 4, kv_heads: 2, queries: 9, keys: 12, dk: 8, dv: 6, ..Definition::default() };
    filled(sizes, seed)
}

/// The same sizes with seeded q, k, v.
pub fn filled(sizes: Definition, seed: u64) -> Definition {
    let (rows, columns) = (sizes.batch * sizes.heads * sizes.queries, sizes.batch * sizes.kv_heads * sizes.keys);
    let q = normals(3 * seed, rows * sizes.dk);
    let k = normals(3 * seed + 1, columns * sizes.dk);
    let v = normals(3 * seed + 2, columns * sizes.dv);
    Definition { q, k, v, ..sizes }
}

/// q, k, v of a problem as a file holds them.
pub fn bundle(problem: &Definition, dtype: Dtype) -> Bundle {
    let Definition { batch, heads, kv_heads, queries, keys, dk, dv, .. } = *problem;
    Bundle::new()
        .floats("q", dtype, &[batch, heads, queries, dk], &problem.q)
        .floats("k", dtype, &[batch, kv_heads, keys, dk], &problem.k)
        .floats("v", dtype, &[batch, kv_heads, keys, dv], &problem.v)
}

/// A file from its header's text and its data.
pub fn forged(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}
