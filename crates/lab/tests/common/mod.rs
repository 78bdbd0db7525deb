//! Tasks from YAML, files to read and to spoil.

#![allow(dead_code, reason = "each test file uses its own part")]

use regard_lab::task::{Example, Input, Split, Target, Task, TaskConfig};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/lab lies in it")
}

/// The data folder: `REGARD_DATA`, else `../shared/data` seen from the repository, where it has a file of this name. Where not, the
/// skipped test says so past the capture of the test runner; where `CI` is set it fails.
pub fn data(name: &str) -> Option<PathBuf> {
    let folder = repository().join(std::env::var_os("REGARD_DATA").unwrap_or_else(|| "../shared/data".into()));
    if folder.join(name).exists() {
        return Some(folder);
    }
    let message = format!("{} is not there; REGARD_DATA names the folder of test data", folder.join(name).display());
    assert!(std::env::var_os("CI").is_none(), "{message}");
    writeln!(std::io::stderr(), "skipped: {message}").expect("stderr is open");
    None
}

/// A folder with files.
pub fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("it is written");
    }
    folder
}

/// A configuration as a file has it.
#[track_caller]
pub fn config(yaml: &str) -> TaskConfig {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

/// A task that opens.
#[track_caller]
pub fn open(base: &Path, yaml: &str) -> Box<dyn Task> {
    config(yaml).open(base).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

/// What is said of a configuration that does not open, its folder left out.
#[track_caller]
pub fn refusal(base: &Path, yaml: &str) -> String {
    let value = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    let opened = TaskConfig::read(value).and_then(|config| config.open(base));
    let error = opened.err().unwrap_or_else(|| panic!("{yaml} was opened"));
    error.to_string().replace(&format!("{}{}", base.display(), std::path::MAIN_SEPARATOR), "")
}

/// Example of a split.
#[track_caller]
pub fn example(task: &dyn Task, split: Split, index: u64) -> Example {
    task.example(split, index).unwrap_or_else(|error| panic!("{split:?} {index}: {error}"))
}

/// All examples of a split.
pub fn all(task: &dyn Task, split: Split) -> Vec<Example> {
    let size = task.facts().sizes[split as usize].expect("it ends");
    (0..size).map(|index| example(task, split, index)).collect()
}

/// Tokens that are shown.
pub fn tokens(example: &Example) -> &[u32] {
    match &example.input {
        Input::Tokens(tokens) => tokens,
        Input::Rows(_) => panic!("tokens were expected"),
    }
}

/// Features that are shown.
pub fn rows(example: &Example) -> &[f32] {
    match &example.input {
        Input::Rows(rows) => rows,
        Input::Tokens(_) => panic!("rows were expected"),
    }
}

/// Tokens that are asked.
pub fn asked(example: &Example) -> &[Option<u32>] {
    match &example.target {
        Target::Tokens(tokens) => tokens,
        _ => panic!("tokens were expected"),
    }
}

/// The class that is asked.
pub fn class(example: &Example) -> u32 {
    match example.target {
        Target::Class(class) => class,
        _ => panic!("a class was expected"),
    }
}

/// Tokens of bytes as text.
pub fn text(example: &Example) -> String {
    String::from_utf8(tokens(example).iter().map(|token| *token as u8).collect()).expect("UTF-8")
}
