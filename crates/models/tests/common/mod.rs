//! Where models lie, and what they should say.

#![allow(dead_code, reason = "each test file uses its own part")]

use serde::Deserialize;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/models lies in it")
}

/// A folder of the data folder: `REGARD_DATA`, else `../shared/data` seen from the repository. Where it is absent the skipped
/// test says so past the capture of the test runner; where `CI` is set it fails.
pub fn data(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("REGARD_DATA").unwrap_or_else(|| "../shared/data".into());
    let path = repository().join(folder).join(name);
    if path.is_dir() {
        return Some(path);
    }
    let message = format!("{} is not there; REGARD_DATA names the folder of test data", path.display());
    assert!(std::env::var_os("CI").is_none(), "{message}");
    writeln!(std::io::stderr(), "skipped: {message}").expect("stderr is open");
    None
}

/// A small model of the repository.
pub fn small(name: &str) -> PathBuf {
    repository().join("golden/models").join(name)
}

/// A copy of a small model that may be damaged.
pub fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(small(name).join(file), folder.path().join(file)).expect("the file is copied");
    }
    folder
}

/// What a text should come to.
#[derive(Deserialize)]
pub struct Golden {
    pub text: String,
    pub ids: Vec<u32>,
    #[serde(default)]
    pub hidden: Vec<f32>,
    pub embedding: Vec<f32>,
}

/// Part of a `golden.json`.
pub fn golden<T: serde::de::DeserializeOwned>(folder: &Path, key: &str) -> T {
    let text = fs::read(folder.join("golden.json")).expect("golden.json is there");
    let mut value: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    serde_json::from_value(value[key].take()).unwrap_or_else(|error| panic!("{key}: {error}"))
}

/// The largest difference; both must have the same length.
#[track_caller]
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
